"""The training loop."""

import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from gptlab.checkpoints import model_content
from gptlab.data.batches import mix
from gptlab.files import atomic_write, display
from gptlab.inference.config import SamplingConfig
from gptlab.inference.evaluate import evaluate_loss
from gptlab.inference.generator import Generator
from gptlab.interop.write.adapter import write_adapter
from gptlab.model.arithmetic import ALL, trained_parameters
from gptlab.plots import plot_loss
from gptlab.training.config import Overrides, TrainConfig, layer, plan_numbers
from gptlab.training.disk_space import refuse_full_disk
from gptlab.training.interruption import Interruption
from gptlab.training.memory import explained_out_of_memory
from gptlab.training.metrics import closing_words, make_tracker
from gptlab.training.parallel import Parallel
from gptlab.training.precision import clip_grad_norm
from gptlab.training.run_recipe import as_recipe
from gptlab.training.schedules import decay_start, learning_rate
from gptlab.training.session import (
    DECIDED,
    Session,
    compile_if_wanted,
    prepare_session,
)
from gptlab.training.stability import roll_back, watch

logger = logging.getLogger(__name__)

GRACE_SECONDS = 30  # torchrun gives its processes, from a signal to the kill
ANNEAL_SHARE = 0.2  # of the steps done, for the decay that --anneal proposes
PLOT_SHARE = 0.05  # of the time, at most: a short run has ten evaluations within seconds
SAMPLE_BYTES = 240  # of a sample while training, about


@dataclass(frozen=True)
class Outcome:
    """How a training ended. exit_code: 0, or 128 + the signal that stopped it."""

    folder: Path
    step: int
    best_step: int
    best_val_loss: float
    exit_code: int = 0


def train(
    overrides: Overrides | None = None,
    *,
    started: float | None = None,
    recipe_name: str = "",
    **options,
) -> Outcome:
    """Train a model: `train(dataset="shakespeare", max_iters=500)`.

    said: layered options (`training.config.layer`); keyword options are the same names as on the
    command line. Returns where the run lies and how it ended. Raises GPTLabError.
    """
    overrides = overrides or layer(command_line=options)
    parallel = Parallel()
    session = None
    try:
        session = prepare_session(
            overrides, parallel, started=started or time.perf_counter(), recipe_name=recipe_name
        )
        with explained_out_of_memory(session.config):
            return _train(session)
    finally:
        if session is not None:
            session.metrics.close()
            session.run.end()
        parallel.end()


def _train(session: Session) -> Outcome:
    config, run, say = session.config, session.run, session.metrics.say
    for line in _plan(session):
        say(line)
    if config.run.dry_run:
        session.model.train()
        loss, grad_norm, _ = take_step(session)
        say(f"Dry run: one step works (loss {float(loss):.4f}, gradient norm {grad_norm:.3f}).")
        return _outcome(session)
    was_evaluated = session.parallel.from_first(lambda: run.was_evaluated(session.step))
    if session.is_finished and was_evaluated:
        if session.parallel.is_first:
            run.begin(resume=True)  # a kill during the last picture leaves half of it
            if not run.plot.exists():
                plot(session)
        say(
            f"This run is finished: all {session.step} steps are done. Continue it with a larger "
            f"total, for example --max_iters {2 * session.step}."
        )
        return _outcome(session)
    tracker = None
    if session.parallel.is_first:
        refuse_full_disk(config, run.folder)
        run.begin(resume=config.run.resume, overwrite=config.run.overwrite)
        if session.step:
            run.cut(session.step)
        with atomic_write(run.recipe, "w") as file:
            file.write(as_recipe(session.overrides, session.resolved, session.machine))
        tracker = make_tracker(config, run.folder)
    with Interruption() as interruption:
        compile_if_wanted(session)
        if session.parallel.is_first:
            session.trace.begin(session)
        session.metrics.begin(session.step, tracker)
        # cut() forgot the evaluation of this step, or the break came before or during it
        if session.step and (was_evaluated or evaluation_is_due(session)):
            evaluate(session)
        stopped = loop(session, interruption)
    session.metrics.close()
    if stopped:
        for line in how_to_go_on(session, interruption.received):
            say(line)
    else:
        plot(session)
        for line in closing_words(
            session.metrics, session.best_step, session.best_val_loss, session.step
        ):
            say(line)
        say(f"Next: python sample.py --out_dir {_quoted(display(run.folder))}")
    return _outcome(session, interruption.exit_code if stopped else 0)


def how_to_go_on(session: Session, signal_name: str) -> list[str]:
    """Why the training stopped before its end, and the commands that continue it, as lines."""
    cause = signal_name or "a signal to another process"
    if is_out_of_time(session) and not signal_name:
        cause = f"max_minutes {session.config.batch.max_minutes:g}"
    saved = "" if session.is_diverged else ", saved"
    command = f"  python train.py --out_dir {_quoted(display(session.run.folder))} --resume"
    lines = [f"Stopped by {cause} after step {session.step}{saved}. Continue with:", command]
    if session.config.schedule.schedule == "wsd" and session.step < decay_start(session.config):
        steps = max(1, round(ANNEAL_SHARE * session.step))
        lines.append("or end it here as a finished model, with only the decay of its rate:")
        lines.append(f"{command} --anneal {steps}")
    return lines


def loop(session: Session, interruption: Interruption) -> bool:
    """Train until max_iters, an early stop or an interruption; True for the last of these.

    A signal that comes while the last evaluation runs has nothing left to interrupt.
    """
    session.last_save = time.perf_counter()
    while not session.is_finished:
        began = time.perf_counter()
        loss, grad_norm, rate = take_step(session)
        session.step_seconds = time.perf_counter() - began
        warn_of_slow_steps(session)
        if session.spike is not None and roll_back(session):
            continue
        session.metrics.step(
            session.step, loss, grad_norm, rate, session.sequences_seen, session.skipped_steps,
            session.batches.seconds,
        )  # fmt: skip
        session.trace.step(session.step, loss, grad_norm)
        stopping = session.parallel.any(bool(interruption.received) or is_out_of_time(session))
        if stopping or checkpoint_is_due(session):
            with session.metrics.paused():
                save(session)
                if evaluation_is_due(session) and not stopping:
                    evaluate(session)
                    if time.perf_counter() >= session.next_plot:
                        plot(session)
            if stopping:
                return True
            if is_overfitting(session):
                break
    return False


def take_step(session: Session):
    """One optimizer step. Returns (loss, gradient norm, learning rate), two tensors and a float."""
    config, batches, precision = session.config, session.batches, session.precision
    step, first = session.step, session.sequences_seen
    rate = learning_rate(config, step)
    session.optimizers.set_learning_rate(rate)
    total = batches.count(first)  # counted tokens of the whole batch, over all processes
    step_loss = torch.zeros((), device=config.machine.device)
    for micro in batches.micro_batches(first):
        if config.model.dropout:
            seed = mix(config.run.seed, step, micro.index, session.parallel.rank)
            seed_dropout(config.machine.device, seed >> 1)
        with session.parallel.last_sync(micro.is_last), precision.autocast():
            _, loss = session.model(micro.tokens, micro.targets, reduction="sum")
        precision.backward(loss / total)
        step_loss += loss.detach() / total
    session.parallel.finish_gradients()
    precision.unscale(session.optimizers)
    grad_norm = clip_grad_norm(session.model, config.optimizer.grad_clip)
    skipped = precision.step(session.optimizers, grad_norm)
    session.optimizers.zero_grad()
    if session.ema is not None:
        session.ema.update(session.model, step)
    session.step += 1
    session.sequences_seen += config.sequences_per_step
    step_loss = session.parallel.sum(step_loss)
    is_logged = session.step % config.evaluation.log_interval == 0
    watch(session, skipped, step_loss, is_due=is_logged or checkpoint_is_due(session))
    return step_loss, grad_norm, rate


def seed_dropout(device: str, seed: int) -> None:
    """Seed the generator that dropout on this device draws from, without a millisecond for all."""
    if device == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.get_device_module(device).manual_seed(seed)


def warn_of_slow_steps(session: Session) -> None:
    """Say once when torchrun would kill its processes before a step ends and is saved."""
    if session.parallel.world_size > 1 and session.step_seconds > GRACE_SECONDS > session.slowest:
        logger.warning(
            "A step takes %.0f s, and torchrun kills its processes %d s after a signal: use "
            "--checkpoint_minutes, for what came after the last checkpoint is lost then.",
            session.step_seconds,
            GRACE_SECONDS,
        )
    session.slowest = max(session.slowest, session.step_seconds)


def evaluation_is_due(session: Session) -> bool:
    """Whether a checkpoint with evaluation belongs behind this step."""
    return session.is_finished or session.step % session.config.evaluation.eval_interval == 0


def checkpoint_is_due(session: Session) -> bool:
    """Whether a checkpoint belongs behind this step, by its number or by the clock."""
    interval = session.config.evaluation.checkpoint_interval
    minutes = session.config.evaluation.checkpoint_minutes
    return (
        evaluation_is_due(session)
        or (interval > 0 and session.step % interval == 0)
        or (
            minutes > 0
            and session.step % session.config.evaluation.log_interval == 0  # the loss was looked at
            and time.perf_counter() >= session.last_save + 60 * minutes
        )
    )


def is_out_of_time(session: Session) -> bool:
    """Whether another step, and saving after it, would not end within max_minutes."""
    if session.is_finished:
        return False
    spare = session.step_seconds + session.save_seconds
    return time.perf_counter() + spare >= session.deadline


def evaluate(session: Session) -> None:
    """Measure the validation loss, of raw and averaged weights; keep the best."""
    averaged = None
    if session.parallel.is_first:
        loss = _validation_loss(session)
        if session.ema is not None:
            session.ema.swap(session.model)
            averaged = _validation_loss(session)
            _keep_best(session, averaged, "averaged")
            session.ema.swap(session.model)
        _keep_best(session, loss, "raw")
        is_best = session.best_step == session.step
        session.metrics.evaluation(session.step, loss, averaged, is_best, sample(session))
    session.best_val_loss, session.best_step = session.parallel.from_first(
        lambda: (session.best_val_loss, session.best_step)
    )


def sample(session: Session) -> str | None:
    """What the model writes now, where sample_interval asks for it; it never ends a run.

    Its random numbers are its own (the seed decides them): with and without samples a run is the
    same, and two samples differ because the model does.
    """
    evaluation = session.config.evaluation
    if session.dataset.tokenizer is None or not evaluation.sample_interval:
        return None
    if session.step % evaluation.sample_interval and not session.is_finished:
        return None
    tokens = max(20, round(SAMPLE_BYTES * (session.metrics.text.tokens_per_byte or 0.25)))
    try:
        with session.uncompiled():
            completion = Generator(session.model, session.dataset.tokenizer).generate(
                evaluation.sample_prompt,
                SamplingConfig(max_tokens=tokens, seed=session.config.run.seed),
            )[0]
    except Exception as error:
        logger.warning("There is no sample at step %d (%s).", session.step, error)
        return None
    return completion.text


def _validation_loss(session: Session) -> float:
    from tqdm import tqdm

    config, loud = session.config, session.metrics.loud and sys.stderr.isatty()
    with (
        session.uncompiled(),
        tqdm(
            total=len(session.windows), desc="evaluating", unit="window", leave=False,
            disable=not loud, delay=1.0, dynamic_ncols=True,
        ) as bar,
    ):  # fmt: skip
        return evaluate_loss(
            session.model,
            session.dataset.val,
            session.windows,
            config.model.block_size,
            config.batch.batch_size,
            config.machine.device,
            session.precision.autocast,
            bar.update,
            session.dataset.val_loss_mask,
        )


def _keep_best(session: Session, loss: float, weights: str) -> None:
    if not loss < session.best_val_loss:  # so that a loss that is not a number never is
        return
    session.best_val_loss, session.best_step = loss, session.step
    session.run.save_best(
        model_content(
            session.model,
            session.dataset.tokenizer,
            merge=True,
            step=session.step,
            val_loss=loss,
            val_bits_per_byte=session.metrics.text.bits_per_byte(loss),
            weights=weights,
            chat_template=session.chat_template,
            dataset=_dataset_content(session),
            train_config=_train_config_content(session),
        )
    )
    if session.config.finetune.lora_rank:
        write_adapter(session.model, session.run.adapter, session.config.run.init_from)


def is_overfitting(session: Session) -> bool:
    """Whether early_stopping says that enough evaluations brought no new lowest loss."""
    patience = session.config.evaluation.early_stopping
    since = (session.step - session.best_step) // session.config.evaluation.eval_interval
    if not patience or since < patience or session.is_finished:
        return False
    session.metrics.say(
        f"Stopping early: {since} evaluations since step {session.best_step} brought no lower "
        "validation loss, so what the model learns now is the training text by heart. best.pt has "
        "the weights from before that turn."
    )
    return True


def save(session: Session) -> None:
    """Write the full training state, on the first process; never a state that has diverged."""
    if not session.parallel.is_first:
        return
    if session.is_diverged:
        logger.warning("Step %d was not saved: its loss is out of all bounds.", session.step)
        return
    session.trace.flush()
    config = session.config
    began, flat = time.perf_counter(), config.flat()
    session.run.save(
        model_content(
            session.model,
            session.dataset.tokenizer,
            step=session.step,
            sequences_seen=session.sequences_seen,
            best_val_loss=session.best_val_loss,
            best_step=session.best_step,
            skipped_steps=session.skipped_steps,
            optimizer=session.optimizers.state_dict(),
            ema=session.ema.weights if session.ema is not None else None,
            scaler=session.precision.state_dict(),
            chat_template=session.chat_template,
            dataset=_dataset_content(session),
            train_config=_train_config_content(session),
            decided={
                **{name: flat[name] for name in DECIDED},
                "dtype": flat["dtype"],
                "device": flat["device"],
            },
            loss_band=session.band.state() if session.band is not None else None,
            **({"lora_alpha": config.finetune.lora_alpha} if config.finetune.lora_rank else {}),
        ),
        keep=session.config.evaluation.keep_checkpoints,
    )
    session.last_save = time.perf_counter()
    session.save_seconds = session.last_save - began


def _dataset_content(session: Session) -> dict:
    return {"name": session.dataset.name, "fingerprint": session.dataset.fingerprint}


def _train_config_content(session: Session) -> dict:
    return {
        "values": dict(session.overrides.values),
        "sources": dict(session.overrides.sources),
        "resolved": session.config.flat(),
    }


def plot(session: Session) -> None:
    """Draw loss.png; a picture that cannot be drawn never ends a run."""
    if not session.parallel.is_first:
        return
    begin = time.perf_counter()
    try:
        plot_loss(
            session.run.records(),
            session.run.plot,
            title=f"{session.run.folder.name} on {session.dataset.name}",
            levels=session.metrics.text.levels(),
        )
    except Exception as error:
        logger.warning("%s was not drawn (%s).", display(session.run.plot), error)
    end = time.perf_counter()
    session.next_plot = end + (end - begin) / PLOT_SHARE


def _plan(session: Session) -> list[str]:
    """What is about to happen, in a few lines."""
    config = session.config
    numbers = plan_numbers(config, len(session.dataset.train))
    model, machine = config.model, config.machine
    lines = [
        f"Model: {numbers['parameters']:,} parameters ({model.n_layer} layers, {model.n_head} "
        f"heads, {model.n_embd} channels, block_size {model.block_size}, vocabulary "
        f"{model.vocab_size:,}){_what_is_trained(config)}.",
        f"Data: {session.dataset.name}, {len(session.dataset.train):,} training and "
        f"{len(session.dataset.val):,} validation tokens.",
        f"Run: {config.batch.max_iters} steps of {numbers['tokens_per_step']:,} tokens, "
        f"{numbers['epochs']:.1f} epochs, {config.optimizer.optimizer}, on {machine.device} in "
        f"{machine.dtype}{', compiled' if machine.compile_model else ''}"
        + (f", {session.parallel.world_size} processes" * (session.parallel.world_size > 1))
        + f", into {display(session.run.folder)}.",
    ]
    if "minutes" in session.overrides.values and not session.step:
        lines.append(f"Length: {session.resolved.reasons.get('max_iters', '')}.")
    if session.step:
        lines.append(f"Continuing after step {session.step}.")
        if session.changes:
            lines.append(f"Changed since the last start: {'; '.join(session.changes)}.")
    return lines


def _what_is_trained(config: TrainConfig) -> str:
    if config.trained == ALL:
        return ""
    count = f"{trained_parameters(config.model, config.trained):,}"
    if config.trained.lora_rank:
        return f"; trained are adapters of rank {config.trained.lora_rank}, {count} parameters"
    return f"; trained are {count} of them, after the first {config.trained.freeze_layers} layers"


def _outcome(session: Session, exit_code: int = 0) -> Outcome:
    return Outcome(
        session.run.folder, session.step, session.best_step, session.best_val_loss, exit_code
    )


def _quoted(text: str) -> str:
    return f'"{text}"' if " " in text else text
