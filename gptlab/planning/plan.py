"""The arithmetic of a training before it starts: parameters, FLOPs, memory, time, cost.

6 FLOPs per parameter and token (Kaplan et al. 2020), those of attention and the share of the peak
(Chowdhery et al. 2022), 20 tokens per parameter (Hoffmann et al. 2022).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gptlab import hardware
from gptlab.data.token_files import dataset_folder, open_dataset, read_meta, token_dtype
from gptlab.errors import ConfigError, DataError, HardwareError
from gptlab.interop.read.models import default_folder
from gptlab.model.arithmetic import (
    count_parameters,
    kv_cache_bytes,
    parameters_by_component,
    trained_parameters,
)
from gptlab.model.config import GPTConfig
from gptlab.planning import gpus
from gptlab.planning.suggest import (
    AS_GOOD_AS_NEW,
    CHINCHILLA,
    SHARE_OF_PEAK,
    expected_overfitting,
    expected_seconds,
)
from gptlab.runs import load_checkpoint
from gptlab.training import config as configuration
from gptlab.training.config import Overrides, TrainConfig
from gptlab.training.memory import TIGHT, largest_batch_size, smaller_options, step_memory
from gptlab.training.resolving import (
    COMPILE_SECONDS,
    Measurements,
    Resolved,
    TextSize,
    resolve,
    resolve_roughly,
    situation_of,
)

GPT2_VOCABULARY = 50257
SAVED_BYTES_PER_SECOND = 200e6


# The text -----------------------------------------------------------------------------------------


def text_size(overrides: Overrides, vocab_size: int | None = None) -> TextSize:
    """What is known of the text: from the prepared dataset, or assumed where there is none.

    vocab_size: of a run whose dataset may be gone. Raises DataError for a dataset that was named on
    the command line and is not there.
    """
    name = overrides.values.get("dataset")
    wants_gpt2 = overrides.values.get("model_preset", "").startswith("gpt2")
    wanted = vocab_size or overrides.values.get("vocab_size")
    if name or not (wants_gpt2 or wanted):
        found = _prepared(name or configuration.RunOptions.dataset, wanted)
        if found:
            return found
    if name and not vocab_size and overrides.sources["dataset"] == "command line":
        open_dataset(name)  # says what is missing, and which command prepares it
    missing = f"{name} is not prepared" if name else "no dataset was named"
    if wanted:
        return TextSize(wanted, None, None, f"as vocab_size says; {missing}")
    if wants_gpt2:
        return TextSize(GPT2_VOCABULARY, None, None, f"GPT-2's own; {missing}")
    assumed = GPTConfig.vocab_size
    return TextSize(assumed, None, None, f"assumed; {missing}")


def with_start(overrides: Overrides) -> Overrides:
    """What was said, with the architecture of the model that init_from names.

    Raises ConfigError where that model is not on this machine.
    """
    word = overrides.values.get("init_from", "scratch")
    if word == "scratch" or any(
        name.startswith("init_from ") for name in overrides.sources.values()
    ):
        return overrides
    path = Path(word).expanduser()
    path = path if path.exists() else default_folder(word)
    if not path.exists():
        raise ConfigError(
            f"The model that init_from {word} names is not here yet, and its sizes are those of "
            f"the plan: get it with python gpt.py import {word}."
        )
    stored = load_checkpoint(path).model.config.to_dict()
    sources = {**dict.fromkeys(stored, f"init_from {word}"), **overrides.sources}
    return Overrides({**stored, **overrides.values}, sources)


def _prepared(name: str, vocab_size: int | None) -> TextSize | None:
    """The sizes of a prepared dataset, without reading its tokens; None where there is none."""
    folder = dataset_folder(name)
    if not (folder / "train.bin").is_file():
        return None
    try:
        meta = read_meta(folder)
        sizes = [meta["vocab_size"], meta["train_tokens"], meta["val_tokens"]]
    except FileNotFoundError:
        if vocab_size is None:
            return None
        width = 2 if token_dtype(vocab_size) == "uint16" else 4
        sizes = [vocab_size]
        for path in (folder / "train.bin", folder / "val.bin"):
            sizes.append(path.stat().st_size // width if path.is_file() else 0)
    except DataError:
        return None
    return TextSize(*sizes, f"the dataset {Path(name).name}")


# The machine --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """The device that a run would use here. peak: FLOP/s; free: bytes, or None."""

    report: hardware.Hardware
    choice: hardware.Choice
    peak: float
    note: str = ""

    @property
    def device(self) -> hardware.Device:
        """What is known of the device."""
        return self.report.device(self.choice.device)

    @property
    def free(self) -> int | None:
        """Free memory in bytes."""
        return self.device.memory_free


def this_machine(overrides: Overrides) -> Machine:
    """Look at this machine (seconds); what it lacks is noted and replaced by what it has."""
    report = hardware.detect()
    device, dtype = overrides.values.get("device", "auto"), overrides.values.get("dtype", "auto")
    note = ""
    try:
        choice = hardware.choose(report, device, dtype)
    except HardwareError as error:
        choice = hardware.choose(report)
        note = f"Planned for {choice.device} in {choice.dtype} instead: {error}"
    return Machine(report, choice, hardware.peak_flops(choice.device, choice.dtype).value, note)


def resolve_here(
    overrides: Overrides,
    text: TextSize,
    machine: Machine,
    *,
    decided: Mapping | None = None,
    measure: bool = False,
    started: float = 0.0,
) -> tuple[Resolved, Measurements]:
    """The configuration as training here would resolve it, and the times that this stands on.

    decided: what a run resolved already, which stands. measure: time a few steps of this very
    model, else the times follow from its FLOPs and the machine's peak. Raises ConfigError.
    """
    if text.train_tokens is None and overrides.values.get("model_preset") == "auto":
        raise ConfigError(
            "model_preset auto is sized from the text, and there is none: name a prepared one with "
            "--dataset."
        )
    values = {**overrides.values, "device": machine.choice.device, "dtype": machine.choice.dtype}
    situation = situation_of(machine.report, machine.choice, text, decided=decided)
    here = Overrides(values if machine.note else overrides.values, overrides.sources)
    rough = resolve_roughly(here, situation).config
    if measure:
        from gptlab.training.measuring import measure as measure_steps

        measured = measure_steps(rough, machine.choice, 1, started)
    else:
        measured = estimated_times(rough, machine.peak)
    return resolve(here, dataclasses.replace(situation, measurements=measured)), measured


def estimated_times(config: TrainConfig, peak: float) -> Measurements:
    """What a measurement would find, if every FLOP ran at the usual share of the peak."""
    token = config.flops_per_token / (SHARE_OF_PEAK * peak)
    values = count_parameters(config.model) * (6 if config.optimizer.ema_decay else 4)
    return Measurements(
        step=config.tokens_per_step * token,
        eval_token=token / 3,
        save=4 * values / SAVED_BYTES_PER_SECOND,
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
    trained: int  # parameters that get gradients; adapters are beside those of the model
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
        return self.config.batch.max_iters * self.config.tokens_per_step

    @property
    def epochs(self) -> float | None:
        """How often the text is read."""
        return self.tokens / self.text.train_tokens if self.text.train_tokens else None

    @property
    def total_parameters(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())

    @property
    def optimal_tokens(self) -> int:
        """Tokens with which this model's FLOPs are spent best (Hoffmann et al. 2022)."""
        return CHINCHILLA * self.total_parameters

    @property
    def needed(self) -> int:
        """Bytes at the worst moment of a step."""
        return sum(self.memory.values())

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        config = self.config
        return {
            "model": config.model.to_dict(),
            "parameters": {
                **self.parameters,
                "total": self.total_parameters,
                "trained": self.trained,
            },
            "text": dataclasses.asdict(self.text),
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
                "tokens_per_parameter": self.tokens / self.total_parameters,
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
    decided: Mapping | None = None,
    measure: bool = False,
    started: float = 0.0,
) -> Plan:
    """The plan of a training on this machine. Arguments as those of `resolve_here`."""
    resolved, times = resolve_here(
        overrides, text, machine, decided=decided, measure=measure, started=started
    )
    config, kind, free = resolved.config, machine.device.kind, machine.free
    memory = step_memory(config, kind)
    largest = None if free is None else largest_batch_size(config, kind, free)
    width = 4 if config.machine.dtype == "float32" else 2
    cache = kv_cache_bytes(config.model, 1, width)
    most_generated = None
    if free is not None:
        weights = width * count_parameters(config.model)
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
        parameters=parameters_by_component(config.model),
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
        notes=[machine.note] if machine.note else [],
    )
    return dataclasses.replace(plan, notes=plan.notes + _notes(plan))


def _on_gpus(config: TrainConfig) -> list[gpus.GpuEstimate]:
    evaluations = config.batch.max_iters // config.evaluation.eval_interval
    # a forward pass is a third of a step
    tokens = config.batch.max_iters * config.tokens_per_step
    tokens += evaluations * config.evaluation.eval_tokens / 3
    half = config.replace(dtype="bfloat16")  # two bytes an activation, whichever the half
    return [
        gpus.estimate(
            gpu,
            config.model,
            tokens,
            largest_batch_size(half, "cuda", gpu.memory, config.batch.batch_size),
        )
        for gpu in gpus.GPUS
    ]


def _notes(plan: Plan) -> list[str]:
    """What the numbers mean, where they say something."""
    notes, config = [], plan.config
    ratio = plan.tokens / plan.total_parameters
    if plan.free is not None and plan.needed > TIGHT * plan.free:
        notes.append(
            f"This does not fit into the memory that is free here: {smaller_options(config)} needs "
            "less and trains on the same tokens per step."
        )
    rereads = plan.epochs is not None and plan.epochs > AS_GOOD_AS_NEW  # then the text is the limit
    is_new = config.run.init_from == "scratch"  # a pretrained model has read before
    if ratio < CHINCHILLA / 2 and not rereads and is_new:
        notes.append(
            f"{ratio:.2g} tokens per parameter are few: in the same time a smaller model, trained "
            f"on more tokens, would reach a lower loss (about {CHINCHILLA} is the best use of "
            "compute)."
        )
    elif ratio > 2 * CHINCHILLA:
        notes.append(
            f"{ratio:.2g} tokens per parameter are many: for the same compute a larger model would "
            "reach a lower loss, and this one is cheaper to use."
        )
    if plan.epochs is not None and plan.epochs > 1:
        early = bool(config.evaluation.early_stopping)
        notes.append(f"{plan.epochs:.1f} epochs: {expected_overfitting(plan.epochs, early)}")
    return notes
