"""A training on many GPUs, before any is rented: memory, communication, time and cost.

What each process sends is counted in tests on torch's fake process group; the times follow from
data sheets, and benchmarks/published_runs.py holds them against runs that others have published.

Sources: all-reduce in rings (Patarasuk & Yuan 2009), data parallelism (Li et al. 2020), sharding
(Rajbhandari et al. 2020, Zhao et al. 2023), sizes of batches (Brown et al. 2020, table 2.1).
"""

import dataclasses
import functools
import math
from dataclasses import dataclass

from gptlab.model.arithmetic import idle_matrix_parameters, matrix_parameters
from gptlab.model.config import GPTConfig
from gptlab.planning.gpus import Gpu, assumed_share
from gptlab.training.config import TrainConfig
from gptlab.training.memory import step_memory

FLOAT = 4  # bytes of a weight, and of a gradient that is sent
LINK_SHARE = 0.75  # of a link's peak that large collectives reach: 340 of 450 GB/s on an H100
HOP_SECONDS = 5e-6  # from one process of a ring to the next
NCCL_BUFFERS = 1_000_000_000  # bytes that its channels take on each GPU
RECOMPUTED = 4 / 3  # time of a step whose blocks are computed again for the backward pass


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


@functools.lru_cache
def sizes(model: GPTConfig, group: int) -> Sizes:
    """The sizes that FSDP2 has: dimension 0 of each weight is cut into `group` equal pieces.

    Blocks behind the third count as the third does: to build a hundred of them takes a second.
    """
    from gptlab.model.building import parameter_shapes  # needs torch

    built = dataclasses.replace(model, n_layer=min(3, model.n_layer))
    parts = {f"blocks.{layer}": 0 for layer in range(built.n_layer)}
    root = 0
    for name, (rows, *others) in parameter_shapes(built).items():
        padded = FLOAT * -(-rows // group) * group * math.prod(others)
        owner = ".".join(name.split(".")[:2])
        if owner in parts:
            parts[owner] += padded
        else:
            root += padded
    *_, last = parts.values()
    blocks = sum(parts.values()) + (model.n_layer - built.n_layer) * last
    return Sizes(root, max(parts.values()), blocks, model.n_layer)


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


def group_of(parallelism: str, cluster: Cluster) -> int:
    """The number of processes that share one copy of the model's weights."""
    return {"ddp": 1, "fsdp": cluster.gpus, "hsdp": cluster.local}[parallelism]


# Memory -------------------------------------------------------------------------------------------


def gpu_memory(config: TrainConfig, cluster: Cluster, parallelism: str) -> dict[str, int]:
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
    model, whole = config.model, sizes(config.model, 1).total
    part = sizes(model, group)
    share = part.total / group / whole
    half = 0 if config.machine.dtype == "float32" else 2
    matrices = matrix_parameters(model) + idle_matrix_parameters(model)
    copies = half * matrices  # autocast's, which the backward pass reads again
    rows["weights"] = int((rows["weights"] - copies) * share)
    for name in ("gradients", "optimizer"):
        rows[name] = int(rows[name] * share)
    rows["gathered weights and gradients"] = gathered_memory(part, rows["loss"])
    head = model.vocab_size * model.n_embd
    if model.gradient_checkpointing:
        copies = half * (head + (matrices - head) // model.n_layer)
    rows["copies in half precision"] = copies
    return rows


def gathered_memory(part: Sizes, loss: int) -> int:
    """Bytes that a process holds beside its shards: weights and gradients that are whole for now.

    The weights outside of blocks stay whole from the forward pass to the end of the backward pass.
    Their gradient comes first, and is among what the loss holds. Later, when that is free again,
    there are of blocks the one that is computed, the next, which is on its way, and gradients: of
    one that is computed while another is sent.
    """
    return part.root + max(part.block, part.root + 5 * part.block - loss)


# Time ---------------------------------------------------------------------------------------------


def traffic(config: TrainConfig, cluster: Cluster, parallelism: str, micro_batches: int) -> Traffic:
    """What the collectives of a step send, as `training/sharding.py` has them.

    Sharded weights are gathered for the forward pass and again for the backward pass; gradients are
    scattered after each micro-batch, and summed between replicas once in a step.
    """
    if cluster.gpus == 1:
        return Traffic()
    group = group_of(parallelism, cluster)
    part, replicas = sizes(config.model, group), cluster.gpus // group
    if group == 1:
        return Traffic(
            reduced=part.total, replicas=replicas, calls=max(1, part.total // 25_000_000)
        )
    modules = part.number + 1  # the blocks, and what is outside of them
    return Traffic(
        gathered=2 * micro_batches * part.total,
        scattered=micro_batches * part.total,
        reduced=part.total // group if replicas > 1 else 0,
        group=group,
        replicas=replicas,
        calls=3 * modules * micro_batches + (modules if replicas > 1 else 0),
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
    part = sizes(model, sent.group)
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
    outside = 3 * micro_batches * ring_seconds(part.root, sent.group, within)
    return compute, moved + reduced, outside + max(0.0, moved + reduced - outside - compute)


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
        memory=gpu_memory(process, cluster, parallelism),
        traffic=sent,
        compute=compute,
        communication=communication,
        exposed=exposed,
        mfu=flops / (compute + exposed) / cluster.gpus / cluster.gpu.peak[0],
    )
