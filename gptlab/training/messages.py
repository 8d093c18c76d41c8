"""The messages of a training: its plan, how to continue it, and what it reached."""

import os
import sys

from gptlab.data import versions
from gptlab.data.leaks import leak_remark
from gptlab.data.token_files import Dataset, is_chat
from gptlab.files import display, quoted
from gptlab.model.arithmetic import ALL, active_in_words, trained_parameters
from gptlab.model.lora import is_adapter
from gptlab.training.config import TrainConfig
from gptlab.training.distillation import lesson
from gptlab.training.effects import without_effect
from gptlab.training.head_curves import jobs_in_words
from gptlab.training.parallel import Parallel
from gptlab.training.schedules import decay_start
from gptlab.training.setup import Setup
from gptlab.training.state import TrainState
from gptlab.training.units import TextUnits, in_words

BASELINES = {  # each with what it is, for whom the word is new
    "unigram": ("the unigram", "counts single tokens"),
    "lzma": ("lzma", "a compressor"),
    "5-gram": ("the 5-gram", "counts which token follows which four"),
}
RENDEZVOUS_PORT = 29400  # torchrun's own
ANNEAL_SHARE = 0.2  # of the steps done, for the decay that --anneal proposes


def plan_lines(setup: Setup, state: TrainState) -> list[str]:
    """What the training is about to do."""
    config = setup.config
    data, step_tokens = setup.data, config.tokens_per_step
    model, machine, processes = config.model, config.machine, setup.parallel.world_size
    weights = state.model.named_parameters()
    parameters = sum(weight.numel() for name, weight in weights if not is_adapter(name))
    lines = [
        f"Model: {parameters:,} parameters{active_in_words(model)} "
        f"({model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, block_size "
        f"{model.block_size}, vocabulary {model.vocab_size:,}){_what_is_trained(config)}.",
        f"Data: {data.name}{' (by size)' * data.by_size}{_as_it_was(setup)}, "
        f"{data.train_tokens:,} training and {data.val_tokens:,} validation tokens.",
        f"Run: {config.batch.max_iters} steps of {step_tokens:,} tokens, "
        f"{_epochs(setup)}, {config.optimizer.optimizer}, on {machine.device} in "
        f"{machine.dtype}{', compiled' if machine.compile_model else ''}"
        + (f", {processes} processes ({machine.parallelism})" * (processes > 1))
        + f", into {display(setup.run.folder)}.",
    ]
    if setup.teacher is not None:
        lines.insert(1, lesson(config, setup.teacher.configs, setup.teacher.words))
    if config.run.extend_vocabulary and not state.step:
        lines.append(_what_is_added(setup.added_ids))
    if {"minutes", "epochs"} & setup.overrides.values.keys() and not state.step:
        lines.append(f"Length: {setup.resolved.reasons.get('max_iters', '')}.")
    lines += without_effect(config, setup.overrides)
    lines += _shares(setup)
    if state.step:
        lines.append(f"Continuing after step {state.step}{_positions(setup, state)}.")
        if setup.changes:
            lines.append(f"Changed since the last start: {'; '.join(setup.changes)}.")
    return [*lines, _what_losses_are(setup.units)]


def _what_losses_are(units: TextUnits) -> str:
    """The unit of all losses, and the baselines in it."""
    levels = [f"{name} {loss:.3f} ({BASELINES[name][1]})" for name, loss in units.levels().items()]
    compare = f" Compare with {in_words(levels)}." if levels else ""
    return f"Losses are in nats per token (natural logarithms; lower is better).{compare}"


def _shares(setup: Setup) -> list[str]:
    """What each process takes of a step, or what to do about those that get nothing."""
    batch, processes = setup.config.batch, setup.parallel.world_size
    sequences = setup.config.sequences_per_step
    if processes == 1:
        return []
    if processes > sequences:
        idle, have = processes - sequences, "sequence" if sequences == 1 else "sequences"
        return [
            f"{idle} of the {processes} processes {'has' if idle == 1 else 'have'} nothing to do: "
            f"a step has {sequences} {have} (batch_size x gradient_accumulation_steps), which all "
            f"processes share. Use --batch_size {processes} or more, or fewer processes."
        ]
    least, most = sequences // processes, -(-sequences // processes)
    share = f"{least:,}" if least == most else f"{least:,} or {most:,}"
    return [
        f"Processes: each takes {share} of a step's {sequences:,} sequences (batch_size "
        f"{batch.batch_size:,} x gradient_accumulation_steps {batch.gradient_accumulation_steps:,},"
        " for all processes together)."
    ]


def _epochs(setup: Setup) -> str:
    """How often the run reads its text; of a mix, each dataset."""
    config = setup.config
    sequences = config.batch.max_iters * config.sequences_per_step
    epochs = setup.data.epochs(sequences, config.model.block_size)
    if len(epochs) == 1:
        return f"{sum(epochs.values()):.1f} epochs"
    return " and ".join(f"{number:.1f} epochs of {name}" for name, number in epochs.items())


def _positions(setup: Setup, state: TrainState) -> str:
    """Where each dataset of a mix goes on."""
    read = setup.data.positions(state.sequences_seen)
    if len(read) == 1:
        return ""
    each = [f"{count:,} of {name}" for name, count in read.items()]
    return f"; sequences read: {', '.join(each)}"


def _as_it_was(setup: Setup) -> str:
    """A remark on datasets of which the run keeps an older version."""
    older = [part for part in setup.data.parts if part.folder.parent.name == versions.FOLDER]
    if not older:
        return ""
    numbers = ", ".join(
        f"version {part.meta.get('version', 1)}{f' of {part.name}' * (len(setup.data.parts) > 1)}"
        for part in older
    )
    return f" as it was when the run began ({numbers}; the text has changed since)"


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
    start = launch_command(setup.parallel)
    command = f"  {start} --out_dir {quoted(display(setup.run.folder))} --resume"
    lines = [f"Stopped by {cause} after step {state.step}{saved}. Continue with:", command]
    if setup.config.schedule.schedule == "wsd" and state.schedule_step < decay_start(setup.config):
        steps = max(1, round(ANNEAL_SHARE * state.step))
        lines.append("or finish the model now, with only the decay of the learning rate:")
        lines.append(f"{command} --anneal {steps}")
    return lines


def launch_command(parallel: Parallel) -> str:
    """How these processes were started: python train.py, or torchrun with their number."""
    if parallel.world_size == 1:
        return "python train.py"
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    machines = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    words = ["torchrun", "--standalone"]
    if machines > 1:
        address = f"{os.environ.get('MASTER_ADDR')}:{RENDEZVOUS_PORT}"
        words[1:] = [f"--nnodes {machines}", f"--rdzv-backend c10d --rdzv-endpoint {address}"]
    words += [f"--nproc_per_node {parallel.local_size}"]
    words += [f"--max-restarts {restarts}"] * bool(restarts)
    return " ".join([*words, "train.py"])


def _without_leaks(setup: Setup, leaking: list[Dataset], best_step: int) -> str:
    """The loss of the validation text that does not stand in the training text."""
    remarks = [leak_remark(part.meta["split"]) for part in leaking]
    if len(setup.data.parts) > 1:
        remarks = [f"{part.name}: {words}" for part, words in zip(leaking, remarks, strict=True)]
    records = [r for r in setup.run.records() if r["step"] == best_step]
    clean = next((r["clean_val_loss"] for r in records if r.get("clean_val_loss")), None)
    rest = "each window of the evaluation holds some"
    if clean is not None:
        rest = f"over the windows without them it is {clean:.4f}"
    return f"{'; '.join(remarks)}: {rest}."


def closing_words(setup: Setup, state: TrainState, metrics) -> list[str]:
    """What the run reached, how that compares, and the command that samples from it."""
    best_loss, best_step, units = state.best_val_loss, state.best_step, setup.units
    lines = [f"Lowest validation loss {best_loss:.4f} at step {best_step}."]
    lines[0] += _verdict(units, best_loss)
    bits = units.bits_per_byte(best_loss)
    if bits is not None:
        lines.append(f"That is {bits:.3f} bits per byte, comparable between tokenizers.")
    leaking = [part for part in setup.data.parts if part.val_leaks is not None]
    if leaking:
        lines.append(_without_leaks(setup, leaking, best_step))
    if state.step - best_step >= 2 * setup.config.evaluation.eval_interval:
        lines.append(
            f"After step {best_step} the model overfitted: the training loss fell and the "
            f"validation loss rose. best.pt is from step {best_step}; more text, more dropout, a "
            "smaller model or --early_stopping 3 would help."
        )
    if setup.config.evaluation.lens_interval:
        lines += filter(None, [jobs_in_words(setup.run.records())])
    lines.append(f"Wrote {display(setup.run.best)} and {display(setup.run.plot)}.")
    # without a tokenizer no text can be sampled; at a terminal gptlab.cli shows more commands
    if setup.data.tokenizer is not None and not sys.stdout.isatty():
        more = " --chat" if any(is_chat(part.meta) for part in setup.data.parts) else ""
        if prompt := setup.data.example_prompt:
            more = f" --prompt {quoted(prompt)}"
        lines.append(f"Next: python sample.py --out_dir {quoted(display(setup.run.folder))}{more}")
    return lines
