"""A training on many GPUs, before any is rented: memory, communication, time and cost.

What each process sends is counted in tests on torch's fake process group; the times follow from
data sheets, and benchmarks/published_runs.py holds them against runs that others have published.

Sources: all-reduce in rings (Patarasuk & Yuan 2009), data parallelism (Li et al. 2020), sharding
(Rajbhandari et al. 2020, Zhao et al. 2023), sizes of batches (Brown et al. 2020, table 2.1).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gptlab.errors import ConfigError
from gptlab.hardware import Choice
from gptlab.model.arithmetic import count_parameters, matrix_parameters
from gptlab.model.memory import fits
from gptlab.planning.gpus import Gpu, assumed_share
from gptlab.training.config import (
    FOR_THIS_RUN,
    LENGTHS,
    Overrides,
    TrainConfig,
    build,
    resolved_value,
)
from gptlab.training.memory import step_memory
from gptlab.training.resolving import Situation, TextSize, or_endless, resolve

FLOAT = 4  # bytes of a weight, and of a gradient that is sent
LINK_SHARE = 0.75  # of a link's peak that large collectives reach: 340 of 450 GB/s on an H100
HOP_SECONDS = 5e-6  # from one process of a ring to the next
NCCL_BUFFERS = 1_000_000_000  # bytes that its channels take on each GPU
OPTIMAL_RATIO = 20  # tokens per parameter of a run whose length nothing sets
RECOMPUTED = 4 / 3  # time of a step whose blocks are computed again for the backward pass
# what published runs took, relative to this plan (docs/SCALE.md has the table)
SPREAD = (0.7, 1.5)


@dataclass(frozen=True)
class Cluster:
    """GPUs in machines of `node` each. network: bytes/s to other machines, for each GPU."""

    gpu: Gpu
    gpus: int
    node: int
    network: float
    dollars_per_hour: float  # of one GPU

    @property
    def local(self) -> int:
        """GPUs of a machine that take part."""
        return min(self.node, self.gpus)

    @property
    def machines(self) -> int:
        """Machines that are needed."""
        return -(-self.gpus // self.node)

    def ring(self, processes: int) -> float:
        """Bytes/s around a ring of neighbouring processes: each machine sends over all its links.

        In a ring between machines all network links of a machine work at once.
        """
        if processes <= self.node:
            return LINK_SHARE * self.gpu.link
        return LINK_SHARE * min(self.gpu.link, self.local * self.network)


@dataclass(frozen=True)
class Traffic:
    """Bytes of the tensors that the collectives of one step send, each tensor counted whole.

    gathered, scattered: all-gathers of weights and reduce-scatters of gradients, among `group`
    processes. reduced: all-reduces of gradients among `replicas` processes. calls: of all of them.
    """

    gathered: int = 0
    scattered: int = 0
    reduced: int = 0
    group: int = 1
    replicas: int = 1
    calls: int = 0

    @property
    def sent(self) -> float:
        """Bytes that a process sends in rings, in which an all-reduce is a scatter and a gather."""
        moved = (self.gathered + self.scattered) * (self.group - 1) / self.group
        return moved + 2 * self.reduced * (self.replicas - 1) / self.replicas


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's float32 weights in `group` processes: each is padded to equal shards."""

    root: int  # embeddings, the final norm and the output head
    block: int  # the largest
    blocks: int  # all of them
    number: int  # of blocks

    @property
    def total(self) -> int:
        """All weights, with padding."""
        return self.root + self.blocks


def sizes(config: TrainConfig, group: int) -> Sizes:
    """The sizes that FSDP2 has: dimension 0 of each weight is cut into `group` equal pieces."""
    from gptlab.model.building import parameter_shapes  # needs torch

    parts: dict[str, int] = {}
    for name, (rows, *others) in parameter_shapes(config.model).items():
        words = name.split(".")
        owner = words[1] if words[0] == "blocks" else ""
        padded = FLOAT * -(-rows // group) * group * math.prod(others)
        parts[owner] = parts.get(owner, 0) + padded
    root = parts.pop("", 0)
    return Sizes(root, max(parts.values()), sum(parts.values()), len(parts))


@dataclass(frozen=True)
class Setting:
    """One way to train on the cluster. Times in seconds, of one step.

    batch_size: sequences of a micro-batch. micro_batches: of each process in a step.
    exposed: the part of the communication during which nothing is computed.
    """

    parallelism: str
    batch_size: int
    micro_batches: int
    checkpointing: bool
    memory: dict[str, int]
    traffic: Traffic
    compute: float
    communication: float
    exposed: float
    mfu: float

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.compute + self.exposed

    @property
    def needed(self) -> int:
        """Bytes on each GPU at the worst moment of a step."""
        return sum(self.memory.values())


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
        return {
            "parallelism": best.parallelism,
            "batch_size": best.batch_size,
            "gradient_accumulation_steps": sequences // best.batch_size,
            "max_iters": self.config.batch.max_iters,
            "gradient_checkpointing": best.checkpointing,
        }


def group_of(parallelism: str, cluster: Cluster) -> int:
    """The number of processes that share one copy of the model's weights."""
    return {"ddp": 1, "fsdp": cluster.gpus, "hsdp": cluster.local}[parallelism]


def parallelisms(cluster: Cluster) -> list[str]:
    """What can be used there: hybrid sharding needs several machines, all of them whole."""
    if cluster.gpus == 1:
        return ["ddp"]
    hybrid = cluster.machines > 1 and cluster.gpus % cluster.node == 0
    return ["ddp", "fsdp", *["hsdp"] * hybrid]


# Memory -------------------------------------------------------------------------------------------


def process_memory(config: TrainConfig, cluster: Cluster, parallelism: str) -> dict[str, int]:
    """Bytes on one GPU at the worst moment of a step, by what they hold.

    config: with the micro-batch of a process, and with its own number of micro-batches as
    gradient_accumulation_steps.
    """
    group = group_of(parallelism, cluster)
    steps = config.batch.gradient_accumulation_steps
    if group > 1:  # shards of gradients are there beside activations
        config = config.replace(gradient_accumulation_steps=max(2, steps))
    rows = step_memory(config, "cuda")
    if cluster.gpus > 1:
        rows["NCCL's buffers"] = NCCL_BUFFERS
    if group == 1:
        return rows
    model, whole = config.model, sizes(config, 1).total
    part = sizes(config, group)
    share = part.total / group / whole
    copies = 2 * matrix_parameters(model)  # autocast's, which the backward pass reads again
    rows["weights"] = int((rows["weights"] - copies) * share)
    for name in ("gradients", "optimizer"):
        rows[name] = int(rows[name] * share)
    rows["gathered weights and gradients"] = gathered_memory(part)
    head = model.vocab_size * model.n_embd
    if model.gradient_checkpointing:
        copies = 2 * (head + (matrix_parameters(model) - head) // model.n_layer)
    rows["copies in half precision"] = copies
    return rows


def gathered_memory(part: Sizes) -> int:
    """Bytes that a process holds beside its shards: weights and gradients that are whole for now.

    The weights outside of blocks stay whole from the forward pass to the end of the backward pass,
    with their gradient. Of blocks there are the one that is computed, the next, which is on its
    way, and gradients of two: one is computed while the other is sent. The last gradient that is
    sent is the root's.
    """
    return 2 * part.root + max(part.root, 5 * part.block)


# Time ---------------------------------------------------------------------------------------------


def traffic(config: TrainConfig, cluster: Cluster, parallelism: str, micro_batches: int) -> Traffic:
    """What the collectives of a step send, as `training/sharding.py` has them.

    Sharded weights are gathered for the forward pass and, but for those outside of blocks, again
    for the backward pass; gradients are scattered after each micro-batch, and summed between
    replicas once in a step.
    """
    if cluster.gpus == 1:
        return Traffic()
    group = group_of(parallelism, cluster)
    part, replicas = sizes(config, group), cluster.gpus // group
    if group == 1:
        return Traffic(
            reduced=part.total, replicas=replicas, calls=max(1, part.total // 25_000_000)
        )
    layers = part.number
    return Traffic(
        gathered=micro_batches * (part.root + 2 * part.blocks),
        scattered=micro_batches * part.total,
        reduced=part.total // group if replicas > 1 else 0,
        group=group,
        replicas=replicas,
        calls=micro_batches * (3 * layers + 2) + (layers + 1 if replicas > 1 else 0),
    )


def ring_seconds(size: float, processes: int, bandwidth: float) -> float:
    """The time to gather or scatter a tensor of `size` bytes around a ring."""
    return size * (processes - 1) / processes / bandwidth + (processes - 1) * HOP_SECONDS


def step_times(
    config: TrainConfig, cluster: Cluster, sent: Traffic, sequences: int, micro_batches: int
) -> tuple[float, float, float]:
    """Seconds of a step's computation, of its communication, and of what of it is exposed.

    sequences: of one process in a step. Weights of blocks travel while other blocks are computed,
    and gradients during the backward pass; what lies outside of blocks is waited for: it is the
    first that is needed and the last that is done.
    """
    model = config.model
    work = sequences * model.block_size * config.flops_per_token
    compute = work / (assumed_share(model) * cluster.gpu.peak[0])
    if model.gradient_checkpointing:
        compute *= RECOMPUTED
    if cluster.gpus == 1:
        return compute, 0.0, 0.0
    part = sizes(config, sent.group)
    within = cluster.ring(sent.group)
    # replicas of shards are one in each machine: each link of a machine carries a sum of its own
    between = cluster.ring(cluster.gpus) if sent.group == 1 else LINK_SHARE * cluster.network
    reduced = 2 * ring_seconds(sent.reduced, sent.replicas, between) if sent.reduced else 0.0
    if sent.group == 1:
        outside = reduced * part.root / part.total
        behind = 2 / 3 * compute / micro_batches  # the last backward pass
        return compute, reduced, max(outside, reduced - behind)
    moved = sum(ring_seconds(size, sent.group, within) for size in (sent.gathered, sent.scattered))
    moved += (sent.calls - 2) * (sent.group - 1) * HOP_SECONDS
    outside = 2 * micro_batches * ring_seconds(part.root, sent.group, within)
    return compute, moved + reduced, outside + max(0.0, moved + reduced - outside - compute)


# The choice ---------------------------------------------------------------------------------------


def setting(
    config: TrainConfig, cluster: Cluster, parallelism: str, checkpointing: bool, batch_size: int
) -> Setting:
    """This way to train in numbers: the memory, the times and the share of the peak."""
    own = -(-config.sequences_per_step // cluster.gpus)  # sequences of a process
    micro_batches = -(-own // batch_size)
    process = config.replace(
        batch_size=batch_size,
        gradient_accumulation_steps=micro_batches,
        gradient_checkpointing=checkpointing,
    )
    sent = traffic(process, cluster, parallelism, micro_batches)
    times = step_times(process, cluster, sent, own, micro_batches)
    compute, communication, exposed = times
    flops = config.tokens_per_step * config.flops_per_token
    return Setting(
        parallelism=parallelism,
        batch_size=batch_size,
        micro_batches=micro_batches,
        checkpointing=checkpointing,
        memory=process_memory(process, cluster, parallelism),
        traffic=sent,
        compute=compute,
        communication=communication,
        exposed=exposed,
        mfu=flops / (compute + exposed) / cluster.gpus / cluster.gpu.peak[0],
    )


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
    parameters = count_parameters(config.model)
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
        model = build({**_of_model(values), "vocab_size": text.vocab_size})
        values["batch_size"] = usual_sequences(model, cluster.gpus)
        tokens = values["batch_size"] * model.model.block_size
        notes.append(
            f"A step has {tokens:,} tokens, which is usual for models of this size: no option says "
            "how many."
        )
    if not set(LENGTHS) & {*values, *(decided or {})}:
        draft = build({**_of_model(values), "vocab_size": text.vocab_size})
        best = OPTIMAL_RATIO * count_parameters(draft.model)
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


def _of_model(values: Mapping[str, Any]) -> dict[str, Any]:
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
    return [
        f"A step's {sequences:,} sequences are not equally many for {cluster.gpus} GPUs: "
        f"{idle:.0%} of the work is on empty rows. {' or '.join(f'{n:,}' for n in better)} would be."
    ]
