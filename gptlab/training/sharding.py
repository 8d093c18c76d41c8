"""Let many processes train one model: replicate it, or shard it over them.

Data-parallel training (Li et al. 2020) keeps the whole model in each process and sums gradients.
Fully sharded (Zhao et al. 2023), each process keeps a part of every parameter, gradient and
optimizer state, and the whole of one block at a time while it computes. Hybrid sharding does so in
groups, which are replicas of each other. The engine is torch's and applied from outside: neither
the model's code nor the names of its parameters change.
"""

from collections.abc import Mapping

import torch

from gptlab.errors import ConfigError
from gptlab.model.building import SkipInitialisation
from gptlab.model.lora import train_only
from gptlab.model.shards import place
from gptlab.model.transformer import GPT
from gptlab.training.config import TrainConfig
from gptlab.training.initial_model import take_initial_tensors
from gptlab.training.parallel import Parallel


def make_mesh(parallelism: str, parallel: Parallel) -> None:
    """Arrange the processes as a sharded model needs them: in one group, or in equal ones.

    Raises ConfigError, alike in all processes, where their number does not divide.
    """
    size = shards_of(parallelism, parallel)
    if size == 1 or parallel.is_sharded:
        return
    shape, names = (size,), ("shard",)
    if parallelism == "hsdp":
        shape, names = (parallel.world_size // size, size), ("replicate", "shard")
    from torch.distributed.device_mesh import init_device_mesh  # seconds, for a sharded model only

    kind = torch.device(parallel.device).type
    parallel.mesh = init_device_mesh(kind, shape, mesh_dim_names=names)


def shards_of(parallelism: str, parallel: Parallel) -> int:
    """The processes that divide a model among them, each with a part; 1: each has the whole.

    Of hsdp those of a machine, or half of those of the only one. Raises ConfigError where the
    processes do not divide into such groups.
    """
    processes, local = parallel.world_size, parallel.local_size
    if parallelism != "hsdp":
        return processes if parallelism == "fsdp" else 1
    size = local if 1 < local < processes else processes // 2
    if size < 2 or processes % size:
        raise ConfigError(
            "hsdp shards the model in two or more equal groups of two or more processes, and "
            f"{processes} processes do not divide into such",
            "start an even number of processes, at least four, or use --parallelism fsdp",
        )
    return size


def trained_model(
    config: TrainConfig,
    parallel: Parallel,
    filled: GPT | None = None,
    weights: Mapping | None = None,
) -> GPT:
    """The model of a training on the device, in a fixed order: built, adapted, shared by the
    processes, initialised.

    filled: it, with the weights of a checkpoint, on the CPU where it will be sharded: each block
    moves to the device by itself. Without it the model takes no memory before it is sharded, and
    its weights come one at a time: from `weights`, by their names, or drawn.
    """
    model = filled
    if model is None:
        with SkipInitialisation():  # memory that nothing was written to is not taken yet
            model = GPT(config.model)
    train_only(model, config.trained, config.finetune.lora_alpha)
    if parallel.is_sharded:
        _shard(model, parallel.mesh)
    model.to(config.machine.device)
    if filled is None and weights is not None:
        for name, parameter in model.named_parameters():
            place(parameter, weights[name])
    elif filled is None:
        model.init_weights(config.run.seed, place)
        if config.run.initial_tensors is not None:
            take_initial_tensors(model, config.run.initial_tensors, place)
    if parallel.world_size > 1 and not parallel.is_sharded:
        parallel.replica = _replica(model)
    return model


def _shard(model: GPT, mesh) -> None:
    """FSDP2 on each block and on the rest: parameters become DTensors that are cut along dim 0.

    Gradients are sums: a step's loss is already divided by all targets of its batch.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled reduction
    register_fsdp_forward_method(model, "features")  # which evaluation calls beside forward


def _replica(model: GPT) -> torch.nn.Module:
    """DDP beside the model, with a sum of gradients in place of its mean."""
    import torch.distributed as dist

    def add(group, bucket):
        sent = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
        return sent.get_future().then(lambda done: done.value()[0])

    replica = torch.nn.parallel.DistributedDataParallel(
        model, forward_sync_buffers=False, gradient_as_bucket_view=True
    )
    replica.register_comm_hook(None, add)
    return replica
