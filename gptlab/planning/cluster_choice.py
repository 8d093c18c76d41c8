"""Choose how to train on many GPUs: parallelism, micro-batches, checkpointing, and its cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptlab.errors import ConfigError
from gptlab.hardware import Choice
from gptlab.model.arithmetic import active_parameters
from gptlab.model.memory import fits
from gptlab.planning.cluster import Cluster, Setting, setting
from gptlab.training.config import (
    FOR_THIS_RUN,
    LENGTHS,
    Overrides,
    TrainConfig,
    build,
    resolved_value,
)
from gptlab.training.resolving import Situation, TextSize, or_endless, resolve

OPTIMAL_RATIO = 20  # tokens per parameter of a run whose length nothing sets
# what published runs took, relative to such a plan (docs/SCALE.md has the table)
SPREAD = (0.65, 1.5)


@dataclass(frozen=True)
class ClusterPlan:
    """A training on a cluster.

    settings: the best of each parallelism. chosen: one of them, None where none fits.
    """

    cluster: Cluster
    config: TrainConfig
    settings: list[Setting]
    chosen: Setting | None
    notes: list[str]

    @property
    def tokens(self) -> int:
        """Tokens of the whole training."""
        return resolved_value(self.config.batch.max_iters) * self.config.tokens_per_step

    def has_room(self, one: Setting) -> bool:
        """Whether it fits into the memory of a GPU."""
        return fits(one.needed, self.cluster.gpu.memory)

    def takes(self, one: Setting) -> tuple[float, float]:
        """(seconds, US dollars) of the whole training, with its evaluations."""
        config = self.config
        iters = resolved_value(config.batch.max_iters)
        evaluations = iters // resolved_value(config.evaluation.eval_interval)
        evaluated = evaluations * resolved_value(config.evaluation.eval_tokens)
        steps = iters + evaluated * config.forward_share / config.tokens_per_step
        seconds = steps * one.step
        return seconds, seconds / 3600 * self.cluster.gpus * self.cluster.dollars_per_hour

    @property
    def options(self) -> dict[str, Any]:
        """The options that the choice sets, by their flat names."""
        assert self.chosen is not None
        best, sequences = self.chosen, self.config.sequences_per_step
        shared = {"parallelism": best.parallelism} if self.cluster.gpus > 1 else {}
        return {
            **shared,
            "batch_size": best.batch_size,
            "gradient_accumulation_steps": sequences // best.batch_size,
            "max_iters": self.config.batch.max_iters,
            "gradient_checkpointing": best.checkpointing,
        }


def parallelisms(cluster: Cluster) -> list[str]:
    """What can be used there: hybrid sharding needs several machines, all of them whole."""
    if cluster.gpus == 1:
        return ["ddp"]
    hybrid = cluster.machines > 1 and cluster.gpus % cluster.node == 0
    return ["ddp", "fsdp", *["hsdp"] * hybrid]


def best_setting(
    config: TrainConfig, cluster: Cluster, parallelism: str, checkpointing: bool
) -> Setting:
    """With the largest micro-batches that fit; of one sequence where none does.

    Of the sizes that need equally many micro-batches the smallest is taken.
    """
    sequences = config.sequences_per_step
    own = -(-sequences // cluster.gpus)
    divisors = [size for size in range(own, 0, -1) if sequences % size == 0]
    found = None
    for size in divisors:
        if found is not None and -(-own // size) != found.micro_batches:
            break
        tried = setting(config, cluster, parallelism, checkpointing, size)
        if found is not None or fits(tried.needed, cluster.gpu.memory) or size == 1:
            found = tried
    assert found is not None
    return found


def make_cluster_plan(
    config: TrainConfig, cluster: Cluster, allowed: list[str], notes: list[str]
) -> ClusterPlan:
    """The plan of a resolved configuration, whose step keeps its sequences. A pure function.

    allowed: the parallelisms to choose from, the simplest first: the first that is at most 2%
    slower than the fastest is taken.
    """
    best = []
    for name in allowed:
        recomputed = [True] if config.model.gradient_checkpointing else [False, True]
        tried = [best_setting(config, cluster, name, again) for again in recomputed]
        fitting = [one for one in tried if fits(one.needed, cluster.gpu.memory)]
        best.append(min(fitting, key=lambda one: one.step) if fitting else tried[-1])
    fitting = [one for one in best if fits(one.needed, cluster.gpu.memory)]
    fastest = min((one.step for one in fitting), default=0.0)
    chosen = next((one for one in fitting if one.step <= 1.02 * fastest), None)
    return ClusterPlan(cluster, config, best, chosen, notes)


def usual_sequences(config: TrainConfig, gpus: int) -> int:
    """Sequences of a step for a model of this size, equally many for each GPU.

    0.5M tokens up to about a billion parameters, 1M up to about three, 2M above (Brown et al.
    2020).
    """
    parameters = active_parameters(config.model)
    tokens = 1 << (19 if parameters < 1e9 else 20 if parameters < 3e9 else 21)
    return gpus * max(1, round(tokens / config.model.block_size / gpus))


def plan_on(
    cluster: Cluster,
    overrides: Overrides,
    text: TextSize,
    decided: Mapping[str, Any] | None = None,
) -> ClusterPlan:
    """The plan of what the overrides describe. Raises ConfigError.

    A step's sequences and the length of the run are chosen where nothing sets them: 20 tokens per
    parameter (Hoffmann et al. 2022). decided: values that a run has resolved and keeps.
    """
    values = {**(decided or {}), **overrides.values}
    for name in ("device", "dtype", "compile_model"):
        if overrides.sources.get(name) in FOR_THIS_RUN:
            raise ConfigError(
                f"{name} has no effect on a plan for {cluster.gpus} x {cluster.gpu.name}, which "
                f"computes in {cluster.gpu.peak[1]}, compiled",
                "leave it out",
            )
    if values.get("minutes") is not None and values.get("max_iters") is None:
        raise ConfigError(
            "minutes says how long a training takes, and that is what a plan finds out",
            "set max_iters or epochs",
        )
    notes = []
    values = {name: value for name, value in overrides.values.items() if name != "minutes"}
    if not {"batch_size", "gradient_accumulation_steps"} & {*values, *(decided or {})}:
        model = build({**_without_preset(values), "vocab_size": text.vocab_size})
        values["batch_size"] = usual_sequences(model, cluster.gpus)
        tokens = values["batch_size"] * model.model.block_size
        notes.append(
            f"A step has {tokens:,} tokens, which is usual for models of this size: no option says "
            "how many."
        )
    if not set(LENGTHS) & {*values, *(decided or {})}:
        draft = build({**_without_preset(values), "vocab_size": text.vocab_size})
        best = OPTIMAL_RATIO * active_parameters(draft.model)
        values["max_iters"] = -(-best // draft.tokens_per_step)
        notes.append(
            f"It has {values['max_iters']:,} steps, {OPTIMAL_RATIO} tokens per parameter (Hoffmann "
            "et al. 2022): no option says how many."
        )
    dtype = cluster.gpu.peak[1]
    situation = Situation(
        Choice("cuda", dtype, dtype == "float16", f"of a {cluster.gpu.name}"),
        text.vocab_size,
        or_endless(text.train_tokens),
        or_endless(text.val_tokens),
        (True, ""),
        decided={name: v for name, v in (decided or {}).items() if name not in ("device", "dtype")},
    )
    config = resolve(Overrides(values, overrides.sources), situation).config
    if config.finetune.lora_rank or config.finetune.freeze_layers:
        raise ConfigError(
            "A plan for a cluster is one of a training of the whole model",
            "leave --gpus out, or lora_rank and freeze_layers",
        )
    allowed = parallelisms(cluster)
    if (asked := values.get("parallelism", "auto")) != "auto":
        if asked not in allowed:
            raise ConfigError(
                f"parallelism {asked} is not possible on {cluster.gpus} GPUs in machines of "
                f"{cluster.node}",
                f"choose from {', '.join(allowed)}",
            )
        allowed = [asked]
    return make_cluster_plan(config, cluster, allowed, notes + _of_the_step(config, cluster))


def _without_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without what only a text can resolve."""
    return {name: value for name, value in values.items() if name != "model_preset"}


def _of_the_step(config: TrainConfig, cluster: Cluster) -> list[str]:
    """A sentence where the sequences of a step are not equally many for each GPU."""
    sequences = config.sequences_per_step
    own = -(-sequences // cluster.gpus)
    idle = 1 - sequences / (own * cluster.gpus)
    if not idle:
        return []
    better = [own * cluster.gpus, *[(own - 1) * cluster.gpus] * (own > 1)]
    equal = " or ".join(f"{number:,}" for number in better)
    return [
        f"A step's {sequences:,} sequences are not equally many for {cluster.gpus} GPUs: "
        f"{idle:.0%} of the work is on empty rows. {equal} would be."
    ]
