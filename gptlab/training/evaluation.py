"""Measuring while training: the validation loss, the best weights, a sample of what they write.

Every process calls these functions at the same step, and all of them return the same.
"""

import logging
import math
import sys

from gptlab.checkpoints import model_content
from gptlab.inference.config import SamplingConfig
from gptlab.inference.evaluate import window_losses
from gptlab.inference.generator import Generator
from gptlab.interop.write.adapter import write_adapter
from gptlab.training.config import TrainConfig
from gptlab.training.setup import Setup
from gptlab.training.state import TrainState

logger = logging.getLogger(__name__)

SAMPLE_BYTES = 240  # of a sample while training, about


def evaluation_is_due(config: TrainConfig, state: TrainState) -> bool:
    """Whether a checkpoint with evaluation belongs behind this step."""
    return state.is_finished or state.step % config.evaluation.eval_interval == 0


def evaluate(setup: Setup, state: TrainState, metrics) -> None:
    """Measure the validation loss of raw and averaged weights, keep the best, and record both."""
    loss, averaged = validation_loss(setup, state, metrics), None
    if state.ema is not None:
        state.ema.swap(state.model)
        averaged = validation_loss(setup, state, metrics)
        keep_best(setup, state, averaged, "averaged")
        state.ema.swap(state.model)
    keep_best(setup, state, loss, "raw")
    is_best = state.best_step == state.step
    metrics.evaluation(state.step, loss, averaged, is_best, sample(setup, state))


def validation_loss(setup: Setup, state: TrainState, metrics) -> float:
    """Mean loss of the evaluation's windows, in nats per unmasked target.

    Each process takes its share of the batches of windows. The windows' losses are added in their
    order in float64, so any number of processes that hold the same weights finds the same number.
    """
    from tqdm import tqdm

    config, parallel = setup.config, setup.parallel
    shows_bar = metrics.terminal.loud and sys.stderr.isatty()
    with (
        setup.uncompiled(),
        tqdm(
            total=len(setup.windows), desc="evaluating", unit="window", leave=False,
            disable=not shows_bar, delay=1.0, dynamic_ncols=True,
        ) as bar,
    ):  # fmt: skip
        sums, counts = window_losses(
            state.model,
            setup.dataset.val,
            setup.windows,
            config.model.block_size,
            config.batch.batch_size,
            config.machine.device,
            autocast=state.precision.autocast,
            progress=lambda windows: bar.update(windows * parallel.world_size),
            loss_mask=setup.dataset.val_loss_mask,
            share=(parallel.rank, parallel.world_size),
        )
    sums, counts = parallel.merge(sums), parallel.merge(counts)
    return math.fsum(sums) / int(counts.sum())


def keep_best(setup: Setup, state: TrainState, loss: float, weights: str) -> None:
    """Write best.pt where this loss is the lowest. weights: "raw" or "averaged"."""
    if math.isnan(loss) or loss >= state.best_val_loss:
        return
    state.best_val_loss, state.best_step = loss, state.step

    def write() -> None:
        setup.run.save_best(
            model_content(
                state.model,
                setup.dataset.tokenizer,
                merge=True,
                step=state.step,
                val_loss=loss,
                val_bits_per_byte=setup.units.bits_per_byte(loss),
                weights=weights,
                **setup.content(),
            )
        )
        if setup.config.finetune.lora_rank:
            write_adapter(state.model, setup.run.adapter, setup.config.run.init_from)

    setup.parallel.from_first(write)


def sample(setup: Setup, state: TrainState) -> str | None:
    """What the model writes now, where sample_interval asks for it; it never ends a run.

    Its random numbers are its own (the seed decides them): with and without samples a run is the
    same, and two samples differ because the model does.
    """
    options = setup.config.evaluation
    if setup.dataset.tokenizer is None or not options.sample_interval:
        return None
    if state.step % options.sample_interval and not state.is_finished:
        return None
    tokens = max(20, round(SAMPLE_BYTES * (setup.units.tokens_per_byte or 0.25)))
    sampling = SamplingConfig(max_tokens=tokens, seed=setup.config.run.seed)

    def write() -> tuple[str | None, str]:
        """(text, why there is none): a failure is an answer too, so all processes go on."""
        try:
            with setup.uncompiled():
                generator = Generator(state.model, setup.dataset.tokenizer)
                return generator.generate(options.sample_prompt, sampling)[0].text, ""
        except Exception as error:
            return None, str(error)

    text, failure = setup.parallel.from_first(write)
    if text is None and setup.parallel.is_first:
        logger.warning("There is no sample at step %d (%s).", state.step, failure)
    return text


def is_overfitting(setup: Setup, state: TrainState, metrics) -> bool:
    """Whether early_stopping says that enough evaluations brought no new lowest loss."""
    patience = setup.config.evaluation.early_stopping
    since = (state.step - state.best_step) // setup.config.evaluation.eval_interval
    if not patience or since < patience or state.is_finished:
        return False
    metrics.say(
        f"Stopping early: {since} evaluations since step {state.best_step} brought no lower "
        "validation loss, so the model now learns the training text by heart. best.pt has the "
        "weights from before that turn."
    )
    return True
