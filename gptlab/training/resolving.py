"""Resolve overrides to a configuration without any "auto" or None, with reasons (no torch)."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptlab.errors import ConfigError, DataError
from gptlab.hardware import Choice, Hardware
from gptlab.training.config import AUTO_BATCH_SIZE, NOT_COMPILED, Overrides, TrainConfig, build

if TYPE_CHECKING:
    from gptlab.data.mixture import Mixture


@dataclass(frozen=True)
class Measurements:
    """Times in seconds that a short trial on this machine measured."""

    elapsed: float = 0.0  # from the start of the process to the first step
    step: float = 0.0  # one optimizer step, eager
    eval_token: float = 0.0  # one token of an evaluation
    save: float = 0.0  # writing the checkpoints once


# Compiling pays when it saves more than it costs; docs/HARDWARE.md has the measurements.
COMPILE_SECONDS = {"cpu": 45.0, "other": 60.0}
COMPILED_STEP = {"cpu": 0.72, "other": 0.6}  # share of the eager step's time
MAX_EVAL_TOKENS = 131072
EVALUATIONS = 10  # at most, of a run without eval_interval
# Fewer where they and their checkpoints would take more than this share of the steps' time, and
# more than these seconds in all.
PAUSE_SHARE, PAUSE_SECONDS = 0.25, 5.0
EVAL_SHARE = 0.1  # of the training's FLOPs
ENDLESS = 1 << 40  # tokens
PLOT_SECONDS = 4.0  # that the plots of a run take

# model_preset "auto": (train tokens needed, layers, heads, width), about 1 parameter per token for
# small texts, which are read many times, and never more than the tiny preset
SIZES_FROM_TEXT = (
    (0, 3, 3, 96),
    (100_000, 4, 4, 128),
    (400_000, 6, 6, 192),
    (2_000_000, 6, 6, 288),
)


def size_from_text(train_tokens: int) -> dict[str, int]:
    """The architecture that model_preset "auto" takes for a text of this many tokens."""
    n_layer, n_head, n_embd = [size[1:] for size in SIZES_FROM_TEXT if size[0] <= train_tokens][-1]
    return {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}


def or_endless(tokens: int | None) -> int:
    """A number of tokens; an unknown text counts as endless."""
    return ENDLESS if tokens is None else tokens


@dataclass(frozen=True)
class TextSize:
    """The sizes of a text in tokens, and their source. None: unknown.

    mix: (dataset, its share of the training, its training tokens) where several are mixed.
    """

    vocab_size: int
    train_tokens: int | None = None
    val_tokens: int | None = None
    source: str = ""
    mix: tuple[tuple[str, float, int], ...] = ()

    @classmethod
    def of(cls, data: "Mixture", vocab_size: int | None = None) -> "TextSize":
        """The sizes of opened datasets.

        vocab_size: of a model that has more rows than the tokenizer has ids (GPT-2's 50,304).
        """
        sizes = data.train_tokens, data.val_tokens
        return cls(vocab_size or data.vocab_size, *sizes, f"the dataset {data.name}")

    def block_size(self, wanted: int) -> int:
        """The longest block_size up to `wanted` of which both parts hold one window. DataError."""
        longest = min(or_endless(self.train_tokens), or_endless(self.val_tokens)) - 1
        if longest < 8:
            raise DataError(
                f"This text is too short to train on: its smaller part has {longest + 1} "
                "tokens, and a window of 8 needs 9",
                "add more text",
                sep="; ",
            )
        return wanted if wanted <= longest else 1 << (longest.bit_length() - 1)


@dataclass(frozen=True)
class Situation:
    """What determines the values that the overrides do not set.

    choice: the device and precision. can_compile: whether torch.compile works there, and why.
    measurements: needed for `minutes`, and for compile_model "auto" to consider compiling.
    estimate: the times where nothing is measured, from the FLOPs.
    decided: values that an earlier start of this run chose and a resume keeps. fitting: the
    micro-batch for batch_size "auto", a divisor of the step's sequences. processes: that train.
    fits_whole: whether the memory of one takes the whole model with all that trains it.
    """

    choice: Choice
    vocab_size: int
    train_tokens: int
    val_tokens: int
    can_compile: tuple[bool, str] = (False, "not tried")
    measurements: Measurements | None = None
    estimate: Measurements | None = None
    decided: Mapping[str, Any] | None = None
    fitting: int | None = None
    processes: int = 1
    fits_whole: bool = True


def situation_of(
    report: Hardware,
    choice: Choice,
    text: TextSize,
    *,
    decided: Mapping[str, Any] | None = None,
) -> Situation:
    """The situation of a run on one device of a machine; an unknown text counts as endless."""
    support = report.device(choice.device).compile
    return Situation(
        choice,
        text.vocab_size,
        or_endless(text.train_tokens),
        or_endless(text.val_tokens),
        (support.available, support.reason),
        decided=decided,
    )


@dataclass(frozen=True)
class Resolved:
    """A configuration without any "auto", and the reason of each value that was filled in."""

    config: TrainConfig
    reasons: dict[str, str]
    use_scaler: bool = False
    warning: str = ""


def resolve(overrides: Overrides, situation: Situation) -> Resolved:
    """Fill in every value that is not set. A pure function of its arguments.

    Raises ConfigError for options that contradict each other, the dataset or the device.
    """
    choice, decided, measurements = situation.choice, situation.decided, situation.measurements
    values: dict[str, Any] = dict(overrides.values)
    reasons: dict[str, str] = {}

    def fill(name: str, value: Any, reason: str) -> None:
        if values.get(name) in (None, "auto"):
            if decided and name in decided:
                value, reason = decided[name], "as the run began"
            values[name] = value
            reasons[name] = reason

    if values.get("model_preset") == "auto":
        for name, value in size_from_text(situation.train_tokens).items():
            fill(name, value, f"sized for {situation.train_tokens:,} tokens")
    values.pop("model_preset", None)
    vocab_size = situation.vocab_size
    if values.get("vocab_size") not in (None, vocab_size):
        raise ConfigError(
            f"vocab_size {values['vocab_size']} does not fit the dataset, whose tokenizer has "
            f"{vocab_size} ids",
            "leave vocab_size out, the dataset determines it",
        )
    values["vocab_size"], reasons["vocab_size"] = vocab_size, "from the dataset"
    values["device"], values["dtype"] = choice.device, choice.dtype
    reasons["device"] = reasons["dtype"] = choice.reason
    if situation.processes == 1:
        values["parallelism"], reasons["parallelism"] = "ddp", "there is one process"
    elif values.get("lora_rank"):
        fill("parallelism", "ddp", "adapters train beside the whole model")
        if values["parallelism"] != "ddp":
            raise ConfigError(
                f"parallelism {values['parallelism']} divides the whole training among the "
                "processes, and adapters (lora_rank) train beside the whole model",
                "use --parallelism ddp, or train all weights with --lora_rank 0",
            )
    elif situation.fits_whole:
        fill("parallelism", "ddp", "the whole model fits in each process")
    else:
        fill("parallelism", "fsdp", "the whole model does not fit in one process")

    if values.get("batch_size") == "auto":
        sequences = build(values).sequences_per_step
        size = situation.fitting or AUTO_BATCH_SIZE
        values["batch_size"], values["gradient_accumulation_steps"] = size, sequences // size
        reason = f"the largest part of a step's {sequences} sequences that fits"
        reasons["batch_size"] = reasons["gradient_accumulation_steps"] = reason
    draft = build(values)
    kind = "cpu" if choice.device == "cpu" else "other"
    already = (decided or {}).get("max_iters")
    val_tokens = situation.val_tokens
    if draft.batch.epochs is not None:
        fill("max_iters", *_steps_of_epochs(draft, situation.train_tokens))
    draft = build(values)
    _resolve_length(fill, draft, kind, situation.can_compile, measurements, val_tokens, already)
    iters = values["max_iters"]
    fill("warmup_iters", min(100, iters // 20), "a twentieth of the run, at most 100 steps")
    fill("lr_decay_iters", iters, "max_iters")
    fill("min_lr", draft.optimizer.learning_rate / 10, "a tenth of learning_rate")
    times = measurements or situation.estimate
    fill("eval_interval", *_eval_interval(draft, iters, times, val_tokens))
    fill("eval_tokens", *_eval_tokens(draft, iters, values["eval_interval"], val_tokens))
    warning = choice.reason if choice.slow else ""
    return Resolved(build(values), reasons, choice.use_scaler, warning)


def resolve_roughly(overrides: Overrides, situation: Situation) -> Resolved:
    """Resolve before anything is measured: a time budget counts 1 s per step."""
    anything = Measurements(step=1.0, eval_token=1e-4)
    return resolve(overrides, dataclasses.replace(situation, measurements=anything))


def _steps_of_epochs(draft: TrainConfig, train_tokens: int) -> tuple[int, str]:
    """The steps that read a text as often as `epochs` says, and why. ConfigError without a text."""
    if train_tokens >= ENDLESS:
        raise ConfigError(
            "epochs counts how often the text is read, and there is none",
            "name a prepared one with --dataset",
        )
    epochs, tokens = draft.batch.epochs or 0.0, draft.tokens_per_step
    steps = max(1, math.ceil(round(epochs * train_tokens / tokens, 6)))
    once = f"{epochs:g} {'epoch' if epochs == 1 else 'epochs'} of {train_tokens:,} tokens"
    return steps, f"{once} at {tokens:,} a step"


def _eval_interval(
    draft: TrainConfig, iters: int, times: Measurements | None, val_tokens: int
) -> tuple[int, str]:
    """The steps between evaluations, each with a checkpoint, and why: fewer where they are dear."""
    interval, number = math.ceil(iters / EVALUATIONS), EVALUATIONS
    if times:
        each = _pause(draft, iters, interval, times, val_tokens)
        affordable = max(PAUSE_SHARE * iters * times.step, PAUSE_SECONDS) / max(each, 1e-9)
        number = max(1, min(number, int(affordable)))
    if number == EVALUATIONS:
        return interval, f"{EVALUATIONS} evaluations in the run"
    evaluations = "1 evaluation" if number == 1 else f"{number} evaluations"
    return math.ceil(iters / number), (
        f"{evaluations} in the run, because one takes about {each:.2g} s with its checkpoint"
    )


def _pause(
    draft: TrainConfig, iters: int, interval: int, times: Measurements, val_tokens: int
) -> float:
    """The seconds of an evaluation with its checkpoint, in a run of `iters` steps."""
    tokens = draft.evaluation.eval_tokens
    tokens = tokens or _eval_tokens(draft, iters, interval, val_tokens)[0]
    weights = 2 if draft.optimizer.ema_decay else 1  # raw and averaged are both evaluated
    return weights * tokens * times.eval_token + times.save


def _eval_tokens(draft: TrainConfig, iters: int, interval: int, val_tokens: int) -> tuple[int, str]:
    """Validation tokens of an evaluation in a run of `iters` steps, and why."""
    trained = iters * draft.tokens_per_step
    # a forward pass is a third of a step
    affordable = int(EVAL_SHARE * 3 * trained / max(1, iters // interval))
    block = draft.model.block_size
    tokens = max(block, min(MAX_EVAL_TOKENS, val_tokens - 1, max(affordable, 4 * block)))
    if tokens >= val_tokens - 1:
        return tokens, "the whole validation split"
    if tokens == affordable:
        return tokens, "a tenth of the training"
    return tokens, "enough for two digits of the loss"


def _resolve_length(
    fill: Callable[[str, Any, str], None],
    draft: TrainConfig,
    kind: str,
    can_compile: tuple[bool, str],
    measured: Measurements | None,
    val_tokens: int,
    decided_iters: int | None,
) -> None:
    """Fill max_iters and compile_model, which depend on each other under a time budget."""
    cost, share = COMPILE_SECONDS[kind], COMPILED_STEP[kind]
    asked = draft.machine.compile_model
    available, why = (False, NOT_COMPILED) if draft.model.n_expert else can_compile
    saving = 0.0
    if draft.batch.minutes is None:
        iters = draft.batch.max_iters or 2000
        fill("max_iters", iters, "the default length")
        if measured:
            saving = (1 - share) * iters * measured.step
    elif measured:
        seconds = draft.batch.minutes * 60 - measured.elapsed - 2 * measured.save - PLOT_SECONDS
        eager, compiled = _steps(draft, seconds, measured, 1.0, val_tokens), 0
        if available or asked is True:
            compiled = _steps(draft, seconds - cost, measured, share, val_tokens)
        compiles = asked is True or (asked == "auto" and compiled > eager)
        iters = compiled if compiles else eager
        fill("max_iters", iters, f"{draft.batch.minutes:g} minutes at {measured.step:.3f} s a step")
        saving = cost * 2 if compiles else 0
    elif decided_iters is None:
        raise ConfigError("minutes needs a measurement of this machine, but none was made.")
    else:
        fill("max_iters", decided_iters, "as the run began")
    if asked == "auto":
        if not available:
            fill("compile_model", False, why)
        elif saving > cost:
            fill("compile_model", True, f"it saves about {saving:.0f} s and takes {cost:.0f} s")
        else:
            fill("compile_model", False, f"the run is too short to save the {cost:.0f} s it takes")


def _steps(
    draft: TrainConfig, seconds: float, measured: Measurements, share: float, val_tokens: int
) -> int:
    """The largest number of steps, at least 1, that fits into `seconds` with its evaluations.

    share: of the measured time of a step; evaluations are not compiled.
    """

    def takes(iters: int) -> float:
        interval = draft.evaluation.eval_interval
        interval = interval or _eval_interval(draft, iters, measured, val_tokens)[0]
        each = _pause(draft, iters, interval, measured, val_tokens)
        return iters * measured.step * share + math.ceil(iters / interval) * each

    fits, too_many = 1, max(2, int(seconds / (measured.step * share)) + 1)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if takes(middle) <= seconds else (fits, middle)
    return fits
