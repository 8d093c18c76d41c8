"""The options of a training run, and the layers that set them (no torch).

    default < preset < recipe < command line

Each layer is a dict of overrides. They are merged, then the dataclasses are built once.
`resolving.resolve` replaces every remaining "auto" and None by a value.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from gptlab.errors import ConfigError
from gptlab.files import AnyPath, display, has_scripts, home
from gptlab.model.arithmetic import (
    Trained,
    active_parameters,
    count_parameters,
    flops_per_token,
    projections,
)
from gptlab.model.config import GPTConfig, preset
from gptlab.options import ESCAPED, coerce, options_of, unknown_option
from gptlab.training.optimizers.table import OPTIMIZERS


@dataclass(frozen=True)
class RunOptions:
    """Run."""

    dataset: Annotated[
        str,
        "name of a prepared dataset (prepare.py), a folder of .bin files, a task such as "
        "task:addition:digits=3, or a mix of several such as plays:0.7,letters:0.3 (without "
        "weights their sizes count)",
    ] = "shakespeare"
    out_dir: Annotated[str | None, "the run directory [out/RECIPE or out/DATASET]"] = None
    init_from: Annotated[
        str, "scratch, or a run directory or checkpoint whose weights to start from"
    ] = "scratch"
    initial_tensors: Annotated[
        str | None,
        "a .safetensors file: its tensors replace the initial weights of the same name and shape "
        "(gpt.py compare writes one)",
    ] = None
    teacher: Annotated[
        str | None,
        "runs, checkpoints or models that init_from could name, with commas between: their "
        "averaged probabilities are learned beside the text",
    ] = None
    distill: Annotated[
        float, "with teacher: the share of the loss that is the distance to the teachers"
    ] = 0.7
    extend_vocabulary: Annotated[
        bool, "with init_from: add rows for characters of the dataset that the model lacks"
    ] = False
    resume: Annotated[
        bool | Literal["auto"],
        "continue the run in out_dir; auto = or start it where there is none",
    ] = False
    anneal: Annotated[
        int, "with resume and schedule wsd: decay the learning rate over this many steps; 0 = off"
    ] = 0
    overwrite: Annotated[bool, "delete the run in out_dir first"] = False
    seed: Annotated[int, "determines the initial weights, the data order and dropout"] = 1337
    dry_run: Annotated[bool, "resolve, plan, take one step and stop; nothing is written"] = False
    quiet: Annotated[bool, "print warnings and errors only"] = False
    log_to: Annotated[
        Literal["none", "tensorboard", "wandb", "trackio"], "send metrics to a tracker as well"
    ] = "none"
    profile_steps: Annotated[
        str, "write a torch profiler trace of these steps to profile.json; 20:25 = steps 20 to 24"
    ] = ""

    @property
    def profiled(self) -> range:
        """The steps of profile_steps. Raises ConfigError."""
        first, _, end = self.profile_steps.partition(":")
        if not self.profile_steps:
            return range(0)
        if not (first.isdecimal() and end.isdecimal() and 1 <= int(first) < int(end)):
            raise ConfigError(
                f"profile_steps is {self.profile_steps!r}",
                "name the first step and the one after the last, such as 20:25",
            )
        return range(int(first), int(end))


# the sequences of a micro-batch that batch_size "auto" stands for until it is fitted to the memory
AUTO_BATCH_SIZE = 32
# options that say how long a run is; they exclude each other
LENGTHS = ("max_iters", "minutes", "epochs")
MOST_EPOCHS = 1_000_000


@dataclass(frozen=True)
class BatchOptions:
    """Batch and length."""

    batch_size: Annotated[
        int | Literal["auto"],
        "sequences per micro-batch; a step has batch_size x gradient_accumulation_steps of them, "
        "which all processes share; auto = as many of a step's 32 x gradient_accumulation_steps "
        "sequences as fit in memory",
    ] = AUTO_BATCH_SIZE
    gradient_accumulation_steps: Annotated[int, "micro-batches per step, over all processes"] = 1
    document_mask: Annotated[
        bool, "attention stops at the borders of documents, which share the rows of a batch"
    ] = False
    max_iters: Annotated[
        int | None, "total number of optimizer steps, also after a resume [2000]"
    ] = None
    minutes: Annotated[
        float | None, "instead of max_iters: as many steps as fit into this time"
    ] = None
    epochs: Annotated[
        float | None,
        "instead of max_iters: as many steps as reading the training text this many times takes",
    ] = None
    max_minutes: Annotated[
        float, "save and stop before training takes longer than this; 0 = no limit"
    ] = 0.0


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimizer."""

    optimizer: Annotated[
        Literal[tuple(OPTIMIZERS)],  # type: ignore[valid-type]  # only running code has the names
        ", or ".join(entry.help for entry in OPTIMIZERS.values()),
    ] = "adamw"
    learning_rate: Annotated[float, "highest learning rate"] = 1e-3
    weight_decay: Annotated[float, "decoupled weight decay, of matrices only"] = 0.1
    beta1: Annotated[float, "AdamW: decay of the mean of gradients"] = 0.9
    beta2: Annotated[float, "AdamW: decay of the mean of their squares"] = 0.95
    muon_momentum: Annotated[float, "Muon: decay of the mean of gradients"] = 0.95
    grad_clip: Annotated[float, "maximum norm of all gradients together; 0 = off"] = 1.0
    ema_decay: Annotated[float, "also average the weights with this decay; 0 = off"] = 0.0
    spike_rollback: Annotated[
        float,
        "when a step's loss is this many standard deviations above its running mean (try 6), go "
        "back to the last checkpoint and skip the text since; 0 = off",
    ] = 0.0


@dataclass(frozen=True)
class ScheduleOptions:
    """Learning-rate schedule."""

    schedule: Annotated[
        Literal["cosine", "wsd"], "cosine, or warm-up-stable-decay with a linear decay"
    ] = "cosine"
    warmup_iters: Annotated[int | None, "steps of linear warm-up [5% of the run, at most 100]"] = (
        None
    )
    lr_decay_iters: Annotated[int | None, "step at which min_lr is reached [max_iters]"] = None
    min_lr: Annotated[float | None, "lowest learning rate [learning_rate / 10]"] = None
    decay_fraction: Annotated[float, "wsd: share of the run that decays; 1 = linear decay"] = 0.2


@dataclass(frozen=True)
class EvaluationOptions:
    """Evaluation and logging."""

    eval_interval: Annotated[
        int | None,
        "steps between evaluations, each with a checkpoint [a tenth of the run, or more where they "
        "take long]",
    ] = None
    checkpoint_interval: Annotated[
        int, "steps between checkpoints without an evaluation; 0 = none"
    ] = 0
    checkpoint_minutes: Annotated[
        float, "also save when the last checkpoint is this many minutes old; 0 = never"
    ] = 0.0
    keep_checkpoints: Annotated[
        int, "recent checkpoints to keep, named by their steps; 0 = only the newest two"
    ] = 0
    eval_tokens: Annotated[int | None, "validation tokens per evaluation [up to 131072]"] = None
    log_interval: Annotated[int, "steps between log records"] = 10
    early_stopping: Annotated[
        int, "stop after this many evaluations without a new lowest loss; 0 = never"
    ] = 0
    sample_interval: Annotated[
        int, "write a short sample at evaluations whose step is a multiple of this; 0 = never"
    ] = 0
    sample_prompt: Annotated[str, "the prompt of these samples (\\n is a line end)", ESCAPED] = ""
    lens_interval: Annotated[
        int,
        "look inside the model at steps that are a multiple of this (jobs of heads, norms, ranks; "
        "each look takes about as long as a step); 0 = never",
    ] = 0


@dataclass(frozen=True)
class MachineOptions:
    """Machine."""

    device: Annotated[str, "auto, cpu, cuda, cuda:1, mps or xpu"] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], "precision of the matrix products"
    ] = "auto"
    compile_model: Annotated[
        bool | Literal["auto"], "torch.compile; auto = where it saves more time than it takes"
    ] = "auto"
    parallelism: Annotated[
        Literal["auto", "ddp", "fsdp", "hsdp"],
        "what several processes have of the model: ddp = each the whole; fsdp = each a part; hsdp "
        "= a part, the whole within each machine; auto = ddp where it fits in memory, else fsdp",
    ] = "auto"
    collective_timeout: Annotated[
        float,
        "seconds that one of several processes may be silent before all end",
    ] = 600.0


@dataclass(frozen=True)
class FinetuneOptions:
    """Fine-tuning."""

    lora_rank: Annotated[
        int, "train adapters of this rank beside frozen weights (Hu et al. 2021); 0 = off"
    ] = 0
    lora_alpha: Annotated[float, "adapter output is scaled by lora_alpha / lora_rank"] = 16.0
    lora_targets: Annotated[
        str, "projections that get an adapter, separated by commas: q_proj, ..., down_proj; or all"
    ] = "all"
    freeze_layers: Annotated[
        int, "freeze the embeddings and this many of the first blocks; 0 = none"
    ] = 0


GROUPS = {
    "run": RunOptions,
    "batch": BatchOptions,
    "optimizer": OptimizerOptions,
    "schedule": ScheduleOptions,
    "evaluation": EvaluationOptions,
    "machine": MachineOptions,
    "finetune": FinetuneOptions,
    "model": GPTConfig,
}


@dataclass(frozen=True)
class PresetOption:
    """Model preset."""

    model_preset: Annotated[
        str, "tiny, small, medium, large, gpt2 ... gpt2-xl, or auto: sized from the text"
    ] = ""


OPTION_CLASSES = (PresetOption, *GROUPS.values())  # as the help shows them
OPTIONS = options_of(*GROUPS.values(), PresetOption)
MODEL_OPTIONS = frozenset(options_of(GPTConfig))
# options of the model that say nothing of its weights: a resume may change them
CHANGEABLE_MODEL_OPTIONS = frozenset({"dropout", "gradient_checkpointing", "expert_balance"})
# options of a single start: neither the run's recipe nor a resume keeps them
START_OPTIONS = frozenset(
    {"out_dir", "resume", "anneal", "overwrite", "dry_run", "quiet", "profile_steps"}
)


NOT_COMPILED = "experts are not compiled, as each has another number of tokens in every step"


@dataclass(frozen=True)
class TrainConfig:
    """A whole run: groups of options, each declared above. Flat names are unique."""

    run: RunOptions = field(default_factory=RunOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    machine: MachineOptions = field(default_factory=MachineOptions)
    finetune: FinetuneOptions = field(default_factory=FinetuneOptions)
    model: GPTConfig = field(default_factory=GPTConfig)

    def flat(self) -> dict[str, Any]:
        """All values by their flat names."""
        return {
            name: value
            for group in GROUPS
            for name, value in dataclasses.asdict(getattr(self, group)).items()
        }

    def replace(self, **values: Any) -> "TrainConfig":
        """A copy with other values of flat names."""
        return build({**self.flat(), **values})

    @property
    def sequences_per_step(self) -> int:
        """Sequences of one optimizer step, over all processes."""
        size = self.batch.batch_size
        size = AUTO_BATCH_SIZE if size == "auto" else size
        return size * self.batch.gradient_accumulation_steps

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, over all processes."""
        return self.sequences_per_step * self.model.block_size

    @property
    def trained(self) -> Trained:
        """The part of the model that is trained."""
        rank = self.finetune.lora_rank
        targets = _lora_targets(self) if rank else ()
        return Trained(self.finetune.freeze_layers, rank, targets)

    @property
    def flops_per_token(self) -> float:
        """FLOPs of a training step per token."""
        return flops_per_token(self.model, trained=self.trained)

    @property
    def forward_share(self) -> float:
        """FLOPs of a forward pass, relative to those of a training step on the same tokens."""
        return flops_per_token(self.model) / 3 / self.flops_per_token


def build(values: Mapping[str, Any]) -> TrainConfig:
    """The configuration with `values` (flat names) and defaults elsewhere. Raises ConfigError."""
    groups: dict[str, Any] = {}
    for group, owner in GROUPS.items():
        names = [f.name for f in dataclasses.fields(owner) if f.name in values]
        groups[group] = owner(**{name: values[name] for name in names})
    config = TrainConfig(**groups)
    _check(config)
    return config


def _check(config: TrainConfig) -> None:
    at_least_one = (
        "batch_size",
        "gradient_accumulation_steps",
        "log_interval",
        "max_iters",
        "eval_interval",
        "eval_tokens",
    )
    above_zero = ("minutes", "epochs", "learning_rate", "lora_alpha", "collective_timeout")
    not_negative = (
        "weight_decay",
        "grad_clip",
        "warmup_iters",
        "lr_decay_iters",
        "min_lr",
        "early_stopping",
        "sample_interval",
        "lens_interval",
        "checkpoint_interval",
        "checkpoint_minutes",
        "keep_checkpoints",
        "spike_rollback",
        "anneal",
        "max_minutes",
        "lora_rank",
        "freeze_layers",
    )
    fractions = ("beta1", "beta2", "muon_momentum", "ema_decay")
    values = {name: v for name, v in config.flat().items() if isinstance(v, (int, float))}
    for name, value in values.items():
        if not math.isfinite(value):
            raise ConfigError(f"{name} is {value}", "it must be a finite number")
        if name in at_least_one and value < 1:
            raise ConfigError(f"{name} is {value}", "it must be at least 1")
        if name in above_zero and value <= 0:
            raise ConfigError(f"{name} is {value}", "it must be above 0")
        if name in not_negative and value < 0:
            raise ConfigError(f"{name} is {value}", "it cannot be negative")
        if name in fractions and not 0 <= value < 1:
            raise ConfigError(f"{name} is {value}", "it must be at least 0 and below 1")
    if (config.batch.epochs or 0) > MOST_EPOCHS:
        raise ConfigError(f"epochs is {config.batch.epochs:g}", f"the most is {MOST_EPOCHS:,}")
    if not 0 < config.schedule.decay_fraction <= 1:
        raise ConfigError(
            f"decay_fraction is {config.schedule.decay_fraction}",
            "it must be above 0 and at most 1",
        )
    highest, lowest = config.optimizer.learning_rate, config.schedule.min_lr
    if lowest is not None and lowest > highest:
        raise ConfigError(
            f"min_lr {lowest:g} is above learning_rate {highest:g}", "lower min_lr, or leave it out"
        )
    _ = config.run.profiled  # raises ConfigError
    if config.run.resume and config.run.overwrite:
        raise ConfigError("resume continues a run and overwrite deletes it", "use one of the two")
    if config.run.anneal and not config.run.resume:
        raise ConfigError("anneal finishes an existing run", "add --resume")
    if config.run.initial_tensors is not None and config.run.init_from != "scratch":
        raise ConfigError(
            "initial_tensors replaces drawn weights, and init_from leaves none to draw",
            "use one of the two",
        )
    if not 0 < config.run.distill <= 1:
        raise ConfigError(
            f"distill is {config.run.distill:g}",
            "it is a share, above 0 and at most 1; to learn from the text alone, leave teacher out",
        )
    if config.model.n_expert and config.machine.compile_model is True:
        raise ConfigError(f"compile_model true: {NOT_COMPILED}", "leave it out")
    if config.batch.document_mask and config.model.position_encoding != "rope":
        raise ConfigError(
            f"document_mask does not go with position_encoding {config.model.position_encoding}, "
            "which counts from the beginning of a row and not of a document",
            "use position_encoding rope, or leave document_mask out",
        )
    _check_finetuning(config)


def _check_finetuning(config: TrainConfig) -> None:
    layers = config.finetune.freeze_layers
    if config.run.extend_vocabulary:
        if config.run.init_from == "scratch":
            raise ConfigError(
                "extend_vocabulary widens a trained model, but this run starts from scratch",
                "name the model with --init_from, or leave extend_vocabulary out",
            )
        for name in ("lora_rank", "freeze_layers"):
            if getattr(config.finetune, name):
                raise ConfigError(
                    f"{name} trains no embedding, so the new characters would not be learned",
                    f"leave {name} out, or extend the vocabulary in a training before it",
                )
    for name in ("lora_rank", "freeze_layers"):
        if getattr(config.finetune, name) and config.run.init_from == "scratch":
            raise ConfigError(
                f"{name} builds on a pretrained model, but this run starts from scratch",
                f"name the model with --init_from, or leave {name} out",
            )
    if layers >= config.model.n_layer:
        raise ConfigError(
            f"freeze_layers {layers} leaves none of the {config.model.n_layer} blocks to train",
            f"use {config.model.n_layer - 1} or less",
        )
    if config.finetune.lora_rank:
        _lora_targets(config)


def _lora_targets(config: TrainConfig) -> tuple[str, ...]:
    """The names of the projections that get adapters; ConfigError for one that no block has."""
    known = tuple(projections(config.model))
    names = config.finetune.lora_targets.replace(",", " ").split()
    if names == ["all"]:
        return known
    for name in names or [""]:
        if name not in known:
            raise ConfigError(
                f"lora_targets {name!r} is not a projection of this model",
                f"choose from {', '.join(known)}, or all",
            )
    return tuple(name for name in known if name in names)


Value = TypeVar("Value")


def resolved_value(value: Value | Literal["auto"] | None) -> Value:
    """A value of a resolved configuration; only a draft has "auto" and None."""
    assert value is not None and value != "auto", "resolve fills in every value"
    return value


# Layers -------------------------------------------------------------------------------------------


# where an option was set for one run alone, and not in a file
FOR_THIS_RUN = ("command line", "the wizard", "a call from Python")


@dataclass(frozen=True)
class Overrides:
    """The options that were set explicitly, by flat name, and where each was set.

    sources: "preset tiny", "config/x.py", or one of `FOR_THIS_RUN`.
    """

    values: dict[str, Any]
    sources: dict[str, str]


def named_recipes() -> dict[str, Path]:
    """Recipes by name: those of gptlab (beside the scripts or in the package), and home/config."""
    package = Path(__file__).resolve().parent.parent
    shipped = package.parent / "config" if has_scripts() else package / "config"
    folders = (shipped, home() / "config")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.py"))}


def find_recipe(word: AnyPath) -> Path:
    """The file that `word` names: a path, or a recipe's name. Raises ConfigError."""
    path = Path(word).expanduser()
    if path.is_file():
        return path
    named = named_recipes()
    if path.parent in (Path(), Path("config")) and path.suffix in ("", ".py"):
        if path.stem in named:
            return named[path.stem]
    raise ConfigError(
        f"There is no recipe {display(path)}",
        f"check the path after --config, or name one of {', '.join(named)}",
    )


def read_recipe(path: AnyPath) -> dict[str, Any]:
    """The options that a recipe assigns, each of its own type. A recipe is Python, and is run.

    path: of a file, or the name of a recipe (`named_recipes`).

    Names that begin with an underscore are ignored. Raises ConfigError.
    """
    path = find_recipe(path)
    namespace = {"__name__": "recipe", "__file__": str(path)}
    try:
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"The recipe {display(path)} cannot be run: {type(error).__name__}: {error}."
        ) from error
    options = {}
    for name, value in namespace.items():
        if name.startswith("_") or callable(value) or isinstance(value, types.ModuleType):
            continue
        if name not in OPTIONS:
            raise unknown_option(f"{name} in {display(path)}", name, OPTIONS)
        options[name] = coerce(OPTIONS[name], value)
    return options


def layer(
    recipe: Mapping[str, Any] | None = None,
    command_line: Mapping[str, Any] | None = None,
    recipe_name: str = "recipe",
    asked: str = "command line",
) -> Overrides:
    """Merge the layers: the command line overrides the recipe, which overrides the preset.

    asked: what set the options of the command line, one of `FOR_THIS_RUN`. max_iters, minutes and
    epochs exclude each other: the later layer wins, two in one are refused.
    """
    recipe, command_line = dict(recipe or {}), dict(command_line or {})
    for overrides, where in ((recipe, recipe_name), (command_line, "the command line")):
        named = [name for name in LENGTHS if overrides.get(name) is not None]
        if len(named) > 1:
            raise ConfigError(f"{where} sets both {named[0]} and {named[1]}", "set one of the two")
    if any(command_line.get(name) is not None for name in LENGTHS):
        for name in LENGTHS:
            recipe.pop(name, None)
    name = command_line.get("model_preset", recipe.get("model_preset", ""))
    layers = [(recipe, recipe_name), (command_line, asked)]
    if name and name != "auto":
        layers.insert(0, (preset(name), f"preset {name}"))
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for options, where in layers:
        if "n_head" in options and "n_kv_head" not in options:  # another number of heads
            values.pop("n_kv_head", None)
        if options.get("use_swiglu") is True and "activation" not in options:
            values.pop("activation", None)
        values.update(options)
        sources.update(dict.fromkeys(options, where))
    return Overrides(values, sources)


# Showing ------------------------------------------------------------------------------------------


def plan_numbers(config: TrainConfig, train_tokens: int) -> dict[str, float]:
    """The size of a run: parameters and how many are active, tokens, epochs, FLOPs."""
    tokens = resolved_value(config.batch.max_iters) * config.tokens_per_step
    return {
        "parameters": count_parameters(config.model),
        "active": active_parameters(config.model),
        "tokens_per_step": config.tokens_per_step,
        "tokens": tokens,
        "epochs": tokens / max(1, train_tokens),
        "flops": tokens * config.flops_per_token,
    }
