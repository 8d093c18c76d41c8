"""The messages of a training: its plan, how to continue it, and what it reached."""

import sys

from gptlab.data import versions
from gptlab.data.leaks import leak_said
from gptlab.data.token_files import is_chat
from gptlab.files import display, quoted
from gptlab.model.arithmetic import ALL, trained_parameters
from gptlab.model.lora import is_adapter
from gptlab.training.config import TrainConfig, plan_numbers
from gptlab.training.schedules import decay_start
from gptlab.training.setup import Setup
from gptlab.training.state import TrainState
from gptlab.training.units import TextUnits, in_words

BASELINES = {  # each with what it is, for whom the word is new
    "unigram": ("the unigram", "counts single tokens"),
    "lzma": ("lzma", "a compressor"),
    "5-gram": ("the 5-gram", "counts which token follows which four"),
}
ANNEAL_SHARE = 0.2  # of the steps done, for the decay that --anneal proposes


def plan_lines(setup: Setup, state: TrainState) -> list[str]:
    """What the training is about to do."""
    config = setup.config
    numbers = plan_numbers(config, len(setup.dataset.train))
    model, machine = config.model, config.machine
    weights = state.model.named_parameters()
    parameters = sum(weight.numel() for name, weight in weights if not is_adapter(name))
    lines = [
        f"Model: {parameters:,} parameters ({model.n_layer} layers, {model.n_head} "
        f"heads, width {model.n_embd}, block_size {model.block_size}, vocabulary "
        f"{model.vocab_size:,}){_what_is_trained(config)}.",
        f"Data: {setup.dataset.name}{_as_it_was(setup)}, {len(setup.dataset.train):,} training and "
        f"{len(setup.dataset.val):,} validation tokens.",
        f"Run: {config.batch.max_iters} steps of {numbers['tokens_per_step']:,} tokens, "
        f"{numbers['epochs']:.1f} epochs, {config.optimizer.optimizer}, on {machine.device} in "
        f"{machine.dtype}{', compiled' if machine.compile_model else ''}"
        + (f", {setup.parallel.world_size} processes" * (setup.parallel.world_size > 1))
        + f", into {display(setup.run.folder)}.",
    ]
    if config.run.extend_vocabulary and not state.step:
        lines.append(_what_is_added(setup.added_ids))
    if {"minutes", "epochs"} & setup.overrides.values.keys() and not state.step:
        lines.append(f"Length: {setup.resolved.reasons.get('max_iters', '')}.")
    if state.step:
        lines.append(f"Continuing after step {state.step}.")
        if setup.changes:
            lines.append(f"Changed since the last start: {'; '.join(setup.changes)}.")
    return [*lines, _what_losses_are(setup.units)]


def _what_losses_are(units: TextUnits) -> str:
    """The unit of all losses, and the baselines in it."""
    levels = [f"{name} {loss:.3f} ({BASELINES[name][1]})" for name, loss in units.levels().items()]
    compare = f" Compare with {in_words(levels)}." if levels else ""
    return f"Losses are in nats per token (natural logarithms; lower is better).{compare}"


def _as_it_was(setup: Setup) -> str:
    """A remark on a dataset of which the run keeps an older version."""
    if setup.dataset.folder.parent.name != versions.FOLDER:
        return ""
    number = setup.dataset.meta.get("version", 1)
    return f" as it was when the run began (version {number}; the text has changed since)"


def _what_is_added(ids: int) -> str:
    """What extend_vocabulary has done."""
    if not ids:
        return "Vocabulary: nothing to extend, the model has every id of the dataset."
    return (
        f"Vocabulary: extended by {ids:,}. Each new row begins as the mean of the others; the "
        "logits of the other ids stay as they were."
    )


def _what_is_trained(config: TrainConfig) -> str:
    if config.trained == ALL:
        return ""
    count = f"{trained_parameters(config.model, config.trained):,}"
    if config.trained.lora_rank:
        return f"; training adapters of rank {config.trained.lora_rank}, {count} parameters"
    return f"; training {count} of them, after the first {config.trained.freeze_layers} layers"


def _verdict(units: TextUnits, loss: float) -> str:
    """Which baselines a loss beats."""
    levels = units.levels()
    named = {name: f"{BASELINES[name][0]} ({level:.3f})" for name, level in levels.items()}
    beaten = [named[name] for name in levels if loss < levels[name]]
    unbeaten = [named[name] for name in levels if loss >= levels[name]]
    if not beaten:
        return f" It does not beat {in_words(unbeaten, 'or')} yet." if unbeaten else ""
    return f" It beats {in_words(beaten)}{f', but not yet {in_words(unbeaten)}' * bool(unbeaten)}."


def finished_line(state: TrainState) -> str:
    """How to continue a finished run."""
    return (
        f"This run is finished: all {state.step} steps are done. Continue it with a larger "
        f"total, for example --max_iters {2 * state.step}."
    )


def how_to_go_on(setup: Setup, state: TrainState, cause: str, is_saved: bool) -> list[str]:
    """Why the training stopped before its end, and the commands that continue it."""
    saved = ", saved" if is_saved else ""
    command = f"  python train.py --out_dir {quoted(display(setup.run.folder))} --resume"
    lines = [f"Stopped by {cause} after step {state.step}{saved}. Continue with:", command]
    if setup.config.schedule.schedule == "wsd" and state.step < decay_start(setup.config):
        steps = max(1, round(ANNEAL_SHARE * state.step))
        lines.append("or finish the model now, with only the decay of the learning rate:")
        lines.append(f"{command} --anneal {steps}")
    return lines


def _without_leaks(setup: Setup, best_step: int) -> str:
    """The loss of the validation text that does not stand in the training text."""
    said = leak_said(setup.dataset.meta["split"])
    records = [r for r in setup.run.records() if r["step"] == best_step]
    clean = next((r["clean_val_loss"] for r in records if r.get("clean_val_loss")), None)
    rest = (
        "each window of the evaluation holds some"
        if clean is None
        else (f"over the windows without them it is {clean:.4f}")
    )
    return f"{said}: {rest}."


def closing_words(setup: Setup, state: TrainState, metrics) -> list[str]:
    """What the run reached, how that compares, and the command that samples from it."""
    best_loss, best_step, units = state.best_val_loss, state.best_step, setup.units
    lines = [f"Lowest validation loss {best_loss:.4f} at step {best_step}."]
    lines[0] += _verdict(units, best_loss)
    bits = units.bits_per_byte(best_loss)
    if bits is not None:
        lines.append(f"That is {bits:.3f} bits per byte, comparable between tokenizers.")
    if setup.dataset.val_leaks is not None:
        lines.append(_without_leaks(setup, best_step))
    if state.step - best_step >= 2 * setup.config.evaluation.eval_interval:
        lines.append(
            f"After step {best_step} the model overfitted: the training loss fell and the "
            f"validation loss rose. best.pt is from step {best_step}; more text, more dropout, a "
            "smaller model or --early_stopping 3 would help."
        )
    lines.append(f"Wrote {display(setup.run.best)} and {display(setup.run.plot)}.")
    # without a tokenizer no text can be sampled; at a terminal gptlab.cli shows more commands
    if setup.dataset.tokenizer is not None and not sys.stdout.isatty():
        chat = " --chat" if is_chat(setup.dataset.meta) else ""
        lines.append(f"Next: python sample.py --out_dir {quoted(display(setup.run.folder))}{chat}")
    return lines
