"""The plan of a training before it starts: parameters, FLOPs, memory, time, cost.

Sources: 6 FLOPs per parameter and token (Kaplan et al. 2020), FLOPs of attention and the share of
the peak (Chowdhery et al. 2022), 20 tokens per parameter (Hoffmann et al. 2022).
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab import hardware
from gptlab.data.mixture import open_mixture, open_part, parse_mixture, whole_weights
from gptlab.data.tasks import is_task_word
from gptlab.data.token_files import (
    dataset_folder,
    is_dataset,
    read_meta,
    token_dtype,
    tokenizer_beside,
)
from gptlab.data.token_shards import SPLITS, find_token_files
from gptlab.errors import ConfigError, DataError, HardwareError
from gptlab.files import quoted
from gptlab.inference.ensemble import model_words
from gptlab.interop.read.models import present_checkpoint
from gptlab.model.arithmetic import (
    active_parameters,
    count_parameters,
    kv_cache_bytes,
    parameters_by_component,
    trained_parameters,
)
from gptlab.model.config import GPTConfig
from gptlab.model.memory import TIGHT, fits
from gptlab.planning import gpus
from gptlab.runs import load_checkpoint
from gptlab.training import config as configuration
from gptlab.training.config import Overrides, TrainConfig, resolved_value
from gptlab.training.distillation import added_work, lesson
from gptlab.training.effects import without_effect
from gptlab.training.initial_model import with_architecture
from gptlab.training.memory import (
    explained_out_of_memory,
    largest_batch_size,
    smaller_options,
    step_memory,
)
from gptlab.training.resolving import (
    COMPILE_SECONDS,
    COMPILED_STEP,
    Measurements,
    Resolved,
    TextSize,
    resolve,
    resolve_roughly,
    situation_of,
)
from gptlab.training.times import SHARE_OF_PEAK, estimated_times

GPT2_VOCABULARY = 50257
MEASURE_SECONDS = 3.0
# tokens per parameter that make the best use of a training's FLOPs (Hoffmann et al. 2022)
CHINCHILLA = 20
# reading a text up to four times is nearly as good as new text; after sixteen times there is hardly
# any gain (Muennighoff et al. 2023)
AS_GOOD_AS_NEW, WORN_OUT = 4, 16


# The text -----------------------------------------------------------------------------------------


def text_size(overrides: Overrides, vocab_size: int | None = None) -> TextSize:
    """The sizes of the text: of the prepared dataset, or assumed where there is none.

    vocab_size: of a run or a model, which may have more rows than the dataset's tokenizer has ids,
    or whose dataset may be gone. Raises DataError for a dataset that the command line names and
    that does not exist.
    """
    name = overrides.values.get("dataset")
    wants_gpt2 = overrides.values.get("model_preset", "").startswith("gpt2")
    wanted = vocab_size or overrides.values.get("vocab_size")
    if name or not (wants_gpt2 or wanted):
        found = _prepared(name or configuration.RunOptions.dataset, wanted)
        if found and vocab_size and overrides.values.get("extend_vocabulary"):
            vocab_size = max(vocab_size, found.vocab_size)
        if found:
            return dataclasses.replace(found, vocab_size=vocab_size or found.vocab_size)
    if name and not vocab_size and overrides.sources["dataset"] == "command line":
        open_mixture(name)  # its error names what is missing, and the command that prepares it
    missing = f"{name} is not prepared" if name else "no dataset was named"
    if wanted:
        return TextSize(wanted, None, None, f"set by vocab_size; {missing}")
    if wants_gpt2:
        return TextSize(GPT2_VOCABULARY, None, None, f"GPT-2's own; {missing}")
    assumed = GPTConfig.vocab_size
    return TextSize(assumed, None, None, f"assumed; {missing}")


def with_start(overrides: Overrides) -> tuple[Overrides, int | None]:
    """The overrides with the architecture of the model that init_from names, and its vocabulary.

    The vocabulary is None where no model is named, or a run has already adopted its architecture.
    Raises ConfigError for a model that is not on this machine.
    """
    word = overrides.values.get("init_from", "scratch")
    if word == "scratch" or any(
        name.startswith("init_from ") for name in overrides.sources.values()
    ):
        return overrides, None
    path = present_checkpoint(word)
    if path is None:
        raise ConfigError(
            f"The model that init_from {word} names is not here yet, and the plan needs its sizes",
            f"get it with python gpt.py import {quoted(word)}",
        )
    model = load_checkpoint(path).model.config
    return with_architecture(overrides, model, word), model.vocab_size


def teachers_of(overrides: Overrides) -> list[GPTConfig]:
    """The settings of the models that `teacher` names. ConfigError for one that is not here."""
    word = overrides.values.get("teacher")
    found = []
    for each in model_words(word) if word else []:
        path = present_checkpoint(each, "teacher")
        if path is None:
            raise ConfigError(
                f"The teacher {each} is not here yet, and the plan needs its sizes",
                f"get it with python gpt.py import {quoted(each)}",
            )
        found.append(load_checkpoint(path).model.config)
    return found


def _prepared(word: str, vocab_size: int | None) -> TextSize | None:
    """The sizes of the datasets that the option names; None where they cannot be trained on."""
    named = parse_mixture(word)
    found = [sizes for name, _ in named if (sizes := _prepared_one(name, vocab_size))]
    if len(found) < len(named) or len({vocab for vocab, _, _ in found}) > 1:
        return None
    names = [Path(name).name for name, _ in named]
    train, val = (sum(sizes[part] for sizes in found) for part in (1, 2))
    if len(named) == 1:
        return TextSize(found[0][0], train, val, f"the dataset {names[0]}")
    own = [sizes[1] for sizes in found]
    weights = whole_weights([weight for _, weight in named], own)
    shares = [weight / sum(weights) for weight in weights]
    mix = tuple(zip(names, shares, own, strict=True))
    return TextSize(found[0][0], train, val, f"the datasets {' and '.join(names)}", mix)


def _prepared_one(name: str, vocab_size: int | None) -> tuple[int, int, int] | None:
    """(vocabulary, training tokens, validation tokens) of a dataset, without reading its tokens."""
    folder = dataset_folder(name)
    if is_task_word(name) and not folder.exists():
        open_part(name)  # a task is made where it is only named
    if not is_dataset(folder):
        return None
    try:
        meta = read_meta(folder)
        return meta["vocab_size"], meta["train_tokens"], meta["val_tokens"]
    except FileNotFoundError:
        if vocab_size is None and (tokenizer := tokenizer_beside(folder, None)):
            vocab_size = tokenizer.vocab_size  # of nanoGPT's meta.pkl, for example
        if vocab_size is None:
            return None
        width = 2 if token_dtype(vocab_size) == "uint16" else 4
        with contextlib.suppress(DataError):  # training says what is wrong with the files
            train, val = (
                sum(path.stat().st_size // width for path in find_token_files(folder, split))
                for split in SPLITS
            )
            return vocab_size, train, val
        return None
    except DataError:
        return None


# The machine --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """The device that a run would use here. peak: FLOP/s; free: bytes, or None."""

    report: hardware.Hardware
    choice: hardware.Choice
    peak: float
    note: str = ""

    @classmethod
    def of(cls, report: hardware.Hardware, choice: hardware.Choice, note: str = "") -> "Machine":
        """The machine with its peak (looked up, or measured in tenths of a second)."""
        return cls(report, choice, hardware.peak_flops(choice.device, choice.dtype).value, note)

    @property
    def device(self) -> hardware.Device:
        """What is known of the device."""
        return self.report.device(self.choice.device)

    @property
    def free(self) -> int | None:
        """Free memory in bytes."""
        return self.device.memory_free

    def estimate(self, config: TrainConfig) -> Measurements:
        """The times at which every FLOP runs at the usual share of the peak."""
        return estimated_times(config, self.peak)

    def measure(
        self, config: TrainConfig, started: float, seconds: float = MEASURE_SECONDS
    ) -> Measurements:
        """The times of a few steps of this model. HardwareError when memory runs out.

        started: time.perf_counter() when the process began. seconds: what it may take.
        """
        from gptlab.training import building, measuring

        building.settle_torch(self.choice.device)
        with explained_out_of_memory(config):
            return measuring.measure(config, self.choice, 1, started, seconds)


def this_machine(overrides: Overrides) -> Machine:
    """Detect this machine (takes seconds); a device that it lacks is noted and replaced."""
    report = hardware.detect()
    device, dtype = overrides.values.get("device", "auto"), overrides.values.get("dtype", "auto")
    note = ""
    try:
        choice = hardware.choose(report, device, dtype)
    except HardwareError as error:
        choice = hardware.choose(report)
        note = f"Planned for {choice.device} in {choice.dtype} instead: {error}"
    return Machine.of(report, choice, note)


def resolve_here(
    overrides: Overrides,
    text: TextSize,
    machine: Machine,
    times: Callable[[TrainConfig], Measurements],
    decided: Mapping[str, Any] | None = None,
) -> tuple[Resolved, Measurements]:
    """The configuration as training here would resolve it, and the times behind it.

    times: `machine.estimate`, or a function that measures a few steps (`machine.measure`). decided:
    values that a run has resolved and keeps. Raises ConfigError.
    """
    if text.train_tokens is None and overrides.values.get("model_preset") == "auto":
        raise ConfigError(
            "model_preset auto is sized from the text, but there is no text",
            "name a prepared one with --dataset",
        )
    choice = machine.choice
    if machine.note:  # the device that the overrides name is not here
        values = {**overrides.values, "device": choice.device, "dtype": choice.dtype}
        overrides = Overrides(values, overrides.sources)
    situation = situation_of(machine.report, choice, text, decided=decided)
    measured = times(resolve_roughly(overrides, situation).config)
    return resolve(overrides, dataclasses.replace(situation, measurements=measured)), measured


def expected_seconds(config: TrainConfig, measured: Measurements) -> float:
    """The time of a whole run without its start: steps, evaluations and savings."""
    iters, evaluation = resolved_value(config.batch.max_iters), config.evaluation
    interval = resolved_value(evaluation.eval_interval)
    kind = "cpu" if config.machine.device == "cpu" else "other"
    share = COMPILED_STEP[kind] if config.machine.compile_model else 1.0
    weights = 2 if config.optimizer.ema_decay else 1
    each = weights * resolved_value(evaluation.eval_tokens) * measured.eval_token + measured.save
    return iters * measured.step * share + math.ceil(iters / interval) * each


def expected_overfitting(epochs: float, early_stopping: bool) -> str:
    """What reading a text this many times does to the model, in a sentence."""
    if epochs <= 1:
        return "No part of the text is read twice, so the model cannot memorise it."
    if epochs <= AS_GOOD_AS_NEW:
        return "Up to 4 readings are nearly as good as new text: expect little overfitting."
    if epochs <= WORN_OUT:
        return (
            "The model will memorise some of it; dropout delays that, and best.pt keeps the "
            "weights from the best point."
        )
    stop = (
        "then stops by itself" if early_stopping else "continues, and best.pt keeps the best point"
    )
    return (
        "Expect overfitting: after some time the validation loss turns and rises. The training "
        f"{stop}; more text, or a shorter training, would use the time better."
    )


# The plan -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A training in numbers: bytes, seconds, tokens, FLOPs, US dollars."""

    resolved: Resolved
    text: TextSize
    device: str
    description: str
    parameters: dict[str, int]
    trained: int  # parameters that get gradients; adapters are not among the model's own
    flops_per_token: float
    memory: dict[str, int]
    free: int | None
    largest_batch_size: int | None
    kv_bytes_per_token: int
    most_generated: int | None  # sequences of block_size that can be written at once
    peak: float
    seconds: float
    time_basis: str
    gpus: list[gpus.GpuEstimate]
    notes: list[str]

    @property
    def config(self) -> TrainConfig:
        """The configuration without any "auto"."""
        return self.resolved.config

    @property
    def tokens(self) -> int:
        """Tokens of the whole training."""
        return resolved_value(self.config.batch.max_iters) * self.config.tokens_per_step

    @property
    def epochs(self) -> float | None:
        """How often the text is read."""
        return self.tokens / self.text.train_tokens if self.text.train_tokens else None

    @property
    def epochs_of_each(self) -> dict[str, float]:
        """How often each dataset of a mix is read; {} where there is one text."""
        return {name: self.tokens * share / size for name, share, size in self.text.mix}

    @property
    def total_parameters(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())

    @property
    def active_parameters(self) -> int:
        """Those that work on a token: all but the experts that are not chosen for it."""
        model = self.config.model
        return self.total_parameters - count_parameters(model) + active_parameters(model)

    @property
    def tokens_per_parameter(self) -> float:
        """Of the whole training; of a mixture of experts for each active parameter."""
        return self.tokens / self.active_parameters

    @property
    def optimal_tokens(self) -> int:
        """Tokens that make the best use of this model's FLOPs (Hoffmann et al. 2022)."""
        return CHINCHILLA * self.active_parameters

    @property
    def needed(self) -> int:
        """Bytes at the worst moment of a step."""
        return sum(self.memory.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        config = self.config
        return {
            "model": config.model.to_dict(),
            "parameters": {
                **self.parameters,
                "total": self.total_parameters,
                "active": self.active_parameters,
                "trained": self.trained,
            },
            "text": dataclasses.asdict(self.text) | {"mix": list(map(list, self.text.mix))},
            "flops": {
                "per_token": self.flops_per_token,
                "per_step": self.flops_per_token * config.tokens_per_step,
                "total": self.flops_per_token * self.tokens,
            },
            "run": {
                "max_iters": config.batch.max_iters,
                "batch_size": config.batch.batch_size,
                "gradient_accumulation_steps": config.batch.gradient_accumulation_steps,
                "tokens_per_step": config.tokens_per_step,
                "tokens": self.tokens,
                "epochs": self.epochs,
                "epochs_of_each": self.epochs_of_each,
                "tokens_per_parameter": self.tokens_per_parameter,
            },
            "chinchilla": {
                "tokens": self.optimal_tokens,
                "steps": -(-self.optimal_tokens // config.tokens_per_step),
            },
            "memory": {
                "device": self.device,
                **self.memory,
                "total": self.needed,
                "free": self.free,
                "largest_batch_size": self.largest_batch_size,
            },
            "kv_cache": {
                "bytes_per_token": self.kv_bytes_per_token,
                "bytes_per_sequence": self.kv_bytes_per_token * config.model.block_size,
                "largest_batch": self.most_generated,
            },
            "time": {
                "seconds": self.seconds,
                "basis": self.time_basis,
                "peak_flops": self.peak,
            },
            "gpus": [dataclasses.asdict(gpu) for gpu in self.gpus],
            "notes": self.notes,
        }


def make_plan(
    overrides: Overrides,
    text: TextSize,
    machine: Machine,
    *,
    decided: Mapping[str, Any] | None = None,
    measure: bool = False,
    started: float = 0.0,
) -> Plan:
    """The plan of a training on this machine. Raises ConfigError.

    decided: values that a run has resolved and keeps. measure: time a few steps here; otherwise the
    times follow from the FLOPs. started: as in `Machine.measure`.
    """
    teachers = teachers_of(overrides)

    def times_of(config: TrainConfig) -> Measurements:
        times = machine.measure(config, started) if measure else machine.estimate(config)
        return dataclasses.replace(times, step=times.step * (1 + added_work(config, teachers)))

    resolved, times = resolve_here(overrides, text, machine, times_of, decided)
    config, kind, free = resolved.config, machine.device.kind, machine.free
    memory = step_memory(config, kind)
    if teachers:
        memory["teachers"] = 4 * sum(map(count_parameters, teachers))
    for_it = None if free is None else free - memory.get("teachers", 0)
    largest = None if for_it is None else largest_batch_size(config, kind, for_it)
    width = 4 if config.machine.dtype == "float32" else 2
    cache = kv_cache_bytes(config.model, 1, width)
    most_generated = None
    if free is not None:
        weights = width * sum(_parameters(config.model).values())
        most_generated = max(0, int((TIGHT * free - weights) // cache))
    seconds = expected_seconds(config, times)
    if config.machine.compile_model:
        seconds += COMPILE_SECONDS["cpu" if kind == "cpu" else "other"]
    basis = (
        f"measured: {times.step:.3g} s a step"
        if measure
        else f"estimated: {SHARE_OF_PEAK:.0%} of {machine.peak / 1e9:,.0f} GFLOP/s"
    )
    plan = Plan(
        resolved=resolved,
        text=text,
        device=config.machine.device,
        description=machine.device.description,
        parameters=_parameters(config.model),
        trained=trained_parameters(config.model, config.trained),
        flops_per_token=config.flops_per_token,
        memory=memory,
        free=free,
        largest_batch_size=largest,
        kv_bytes_per_token=cache // config.model.block_size,
        most_generated=most_generated,
        peak=machine.peak,
        seconds=seconds,
        time_basis=basis,
        gpus=_on_gpus(config),
        notes=[
            *filter(None, (machine.note, *without_effect(config, overrides))),
            *(
                [lesson(config, teachers, model_words(config.run.teacher or ""))]
                if teachers
                else ()
            ),
        ],
    )
    return dataclasses.replace(plan, notes=plan.notes + _notes(plan))


def _parameters(model: GPTConfig) -> dict[str, int]:
    """The module's parameters by what they do; those that no formula knows are "other"."""
    from gptlab.model.building import parameter_shapes  # needs torch

    parts = parameters_by_component(model)
    other = sum(map(math.prod, parameter_shapes(model).values())) - sum(parts.values())
    return {**parts, "other": other} if other else parts


def _on_gpus(config: TrainConfig) -> list[gpus.GpuEstimate]:
    iters = resolved_value(config.batch.max_iters)
    evaluations = iters // resolved_value(config.evaluation.eval_interval)
    # a forward pass is a third of a step
    evaluated = evaluations * resolved_value(config.evaluation.eval_tokens) / 3
    tokens = iters * config.tokens_per_step + evaluated
    half = config.replace(dtype="bfloat16")  # two bytes per activation, as in float16
    return [
        gpus.estimate(
            gpu,
            config.model,
            tokens,
            largest_batch_size(half, "cuda", gpu.memory, resolved_value(config.batch.batch_size)),
        )
        for gpu in gpus.GPUS
    ]


def _notes(plan: Plan) -> list[str]:
    """Sentences about the numbers that matter."""
    notes, config = [], plan.config
    ratio = plan.tokens_per_parameter
    if not fits(plan.needed, plan.free):
        notes.append(
            f"The free memory is too small: {smaller_options(config)} needs less and trains on the "
            "same tokens per step."
        )
    # of a mix, the dataset that is read most often
    epochs = max(plan.epochs_of_each.values(), default=plan.epochs)
    rereads = epochs is not None and epochs > AS_GOOD_AS_NEW  # the text is the limit
    is_new = config.run.init_from == "scratch"  # a pretrained model has read other text
    if ratio < CHINCHILLA / 2 and not rereads and is_new:
        notes.append(
            f"{ratio:.2g} tokens per parameter are few: in the same time a smaller model, trained "
            f"on more tokens, would reach a lower loss (about {CHINCHILLA} make the best use of "
            "compute)."
        )
    elif ratio > 2 * CHINCHILLA:
        notes.append(
            f"{ratio:.2g} tokens per parameter are many: for the same compute a larger model would "
            "reach a lower loss, and this one is cheaper to use."
        )
    if epochs is not None and epochs > 1:
        early = bool(config.evaluation.early_stopping)
        notes.append(f"{epochs:.1f} epochs: {expected_overfitting(epochs, early)}")
    return notes
