"""Evaluate while training: the validation loss, the best weights, a sample of the model's text.

All processes call these functions at the same step, and all get the same result.
"""

import logging
import math
import sys
from collections.abc import Sequence

import numpy as np

from gptlab.checkpoints import model_content
from gptlab.data.leaks import are_clean
from gptlab.inference.answers import accuracy_fields, right_answers
from gptlab.inference.config import SamplingConfig
from gptlab.inference.evaluate import window_losses
from gptlab.inference.generator import Generator
from gptlab.interop.write.adapter import write_adapter
from gptlab.model.experts import take_counts
from gptlab.training.config import TrainConfig
from gptlab.training.setup import Setup
from gptlab.training.state import TrainState

logger = logging.getLogger(__name__)

SAMPLE_BYTES = 240  # about the length of a sample while training


def evaluation_is_due(config: TrainConfig, state: TrainState) -> bool:
    """Whether an evaluation and a checkpoint are due after this step."""
    return state.is_finished or state.step % config.evaluation.eval_interval == 0


def checkpoint_is_planned(config: TrainConfig, state: TrainState) -> bool:
    """Whether a checkpoint is due after this step by its number, whatever the clock says."""
    interval = config.evaluation.checkpoint_interval
    return evaluation_is_due(config, state) or (interval > 0 and state.step % interval == 0)


def evaluate(setup: Setup, state: TrainState, metrics) -> None:
    """Measure the validation loss of raw and averaged weights, keep the best, record both."""
    take_counts(state.model)  # of whatever came before
    losses, clean = zip(*validation_losses(setup, state, metrics), strict=True)
    experts = use_of_experts(setup, state)
    loss, averaged, clean = weighted(setup, losses), None, weighted(setup, clean)
    answers = answers_of(setup, state)
    if state.ema is not None:
        state.ema.swap(state.model)
        pairs = zip(*validation_losses(setup, state, metrics), strict=True)
        averaged, its_clean = (weighted(setup, each) for each in pairs)
        if averaged < loss:
            clean, answers = its_clean, answers_of(setup, state)
        keep_best(setup, state, averaged, "averaged")
        state.ema.swap(state.model)
    keep_best(setup, state, loss, "raw")
    is_best = state.best_step == state.step
    terms = list(zip(setup.data.parts, setup.data.shares, losses, strict=True))
    has_leaks = any(part.val_leaks is not None for part in setup.data.parts)
    metrics.evaluation(
        state.step, loss, averaged, is_best, write_sample(setup, state),
        of_each={part.name: (share, loss) for part, share, loss in terms},
        clean=clean if has_leaks and not math.isnan(clean) else None,
        answers=answers, experts=experts,
    )  # fmt: skip


def use_of_experts(setup: Setup, state: TrainState) -> dict[str, list] | None:
    """How the tokens of an evaluation were shared among the experts of each layer; None for none.

    load: shares, which sum to 1. entropy: of them, over the most that it can be.
    """
    counts = setup.parallel.merge(take_counts(state.model).numpy())  # [L, n_expert]
    if not counts.any():
        return None
    load = counts / counts.sum(1, keepdims=True)
    entropy = -(load * np.log(np.maximum(load, 1e-12))).sum(1) / math.log(load.shape[1])
    return {"load": load.round(4).tolist(), "entropy": entropy.round(4).tolist()}


def weighted(setup: Setup, losses: Sequence[float]) -> float:
    """The loss of a mix: that of each dataset counts by its share in the training."""
    terms = zip(setup.data.shares, losses, strict=True)
    return math.fsum(share * loss for share, loss in terms)


def validation_losses(setup: Setup, state: TrainState, metrics) -> list[tuple[float, float]]:
    """Mean loss of the evaluation's windows of each dataset, and of those windows that hold no
    passage of the training text (NaN without any), in nats per unmasked target.

    Each process takes its share of the batches of windows. The losses are added in window order
    and in float64, so the result does not depend on the number of processes.
    """
    from tqdm import tqdm

    config, parallel, losses = setup.config, setup.parallel, []
    shows_bar = metrics.terminal.loud and sys.stderr.isatty()
    with (
        setup.apart(state.model),
        tqdm(
            total=sum(map(len, setup.windows)), desc="evaluating", unit="window", leave=False,
            disable=not shows_bar, delay=1.0, dynamic_ncols=True,
        ) as bar,
    ):  # fmt: skip
        for dataset, windows in zip(setup.data.parts, setup.windows, strict=True):
            sums, counts = window_losses(
                state.model,
                windows.tokens,
                windows.starts,
                windows.block_size,
                config.batch.batch_size,
                config.machine.device,
                autocast=state.precision.autocast,
                progress=lambda windows: bar.update(windows * parallel.world_size),
                loss_mask=windows.loss_mask,
                share=(parallel.rank, parallel.world_size),
                separator=setup.separator,
            )
            sums, counts = parallel.merge(sums), parallel.merge(counts)
            loss = clean_loss = math.fsum(sums) / int(counts.sum())
            if dataset.val_leaks is not None:
                clean = are_clean(dataset.val_leaks, windows.starts, windows.block_size)
                clean_loss = math.fsum(sums[clean]) / (int(counts[clean].sum()) or math.nan)
            losses.append((loss, clean_loss))
    return losses


def answers_of(setup: Setup, state: TrainState) -> dict:
    """The fields of a record that say how many answers are right; {} for a text.

    Each process takes its share of the problems.
    """
    parallel, right = setup.parallel, {}
    with setup.apart(state.model):
        for name, kinds in setup.tests.items():
            for kind, windows in kinds.items():
                own = right_answers(
                    state.model,
                    windows,
                    setup.config.machine.device,
                    autocast=state.precision.autocast,
                    share=(parallel.rank, parallel.world_size),
                )
                right[name, kind] = parallel.merge(own)
    return accuracy_fields(setup.tests, right)


def keep_best(setup: Setup, state: TrainState, loss: float, weights: str) -> None:
    """Write best.pt where this loss is the lowest. weights: "raw" or "averaged"."""
    if math.isnan(loss) or loss >= state.best_val_loss:
        return
    state.best_val_loss, state.best_step = loss, state.step
    adapters = {}
    if state.base:
        adapters = {"base": state.base, "lora_alpha": setup.config.finetune.lora_alpha}

    def made() -> dict:
        return model_content(
            state.model,
            setup.data.tokenizer,
            "adapters" if state.base else "merged",
            **adapters,
            step=state.step,
            val_loss=loss,
            val_bits_per_byte=setup.units.bits_per_byte(loss),
            weights=weights,
            **setup.content(state),
        )

    def write() -> None:
        setup.run.save_best(made())
        if setup.config.finetune.lora_rank:
            write_adapter(state.model, setup.run.adapter, setup.config.run.init_from)

    with setup.apart(state.model):
        if setup.parallel.is_sharded:
            setup.run.save_best_shards(made(), setup.parallel)
        else:
            setup.parallel.from_first(write)


def write_sample(setup: Setup, state: TrainState) -> str | None:
    """A sample of the model's text, at the steps of sample_interval; a failure never ends a run.

    It draws its own random numbers from the run's seed: samples do not change a run, and two
    samples differ only because the model does.
    """
    options = setup.config.evaluation
    if setup.data.tokenizer is None or not options.sample_interval:
        return None
    if state.step % options.sample_interval and not state.is_finished:
        return None
    tokens = max(20, round(SAMPLE_BYTES * (setup.units.tokens_per_byte or 0.25)))
    sampling = SamplingConfig(max_tokens=tokens, seed=setup.config.run.seed)

    def write() -> tuple[str | None, str]:
        """(text, why there is none): a failure is returned too, so all processes continue."""
        try:
            with setup.apart(state.model):
                generator = Generator(state.model, setup.data.tokenizer)
                generator.reverses = setup.data.has_reversed_answers
                return generator.generate(options.sample_prompt, sampling)[0].text, ""
        except Exception as error:
            return None, str(error)

    text, failure = setup.parallel.with_model(write)
    if text is None and setup.parallel.is_first:
        logger.warning("No sample at step %d (%s).", state.step, failure)
    return text


def is_overfitting(setup: Setup, state: TrainState, metrics) -> bool:
    """Whether early_stopping evaluations have passed without a new lowest loss."""
    patience = setup.config.evaluation.early_stopping
    since = (state.step - state.best_step) // setup.config.evaluation.eval_interval
    if not patience or since < patience or state.is_finished:
        return False
    metrics.say(
        f"Stopping early: {since} evaluations since step {state.best_step} brought no lower "
        "validation loss, so the model now memorises the training text. best.pt has the weights "
        f"of step {state.best_step}."
    )
    return True
