"""What a step sends, counted as it is sent, is what the plan of a cluster says."""

import math

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from gptlab.planning.cluster import Cluster, gpu_memory, group_of, traffic
from gptlab.planning.cluster_choice import parallelisms
from gptlab.planning.gpus import find_gpu
from gptlab.training.config import build
from gptlab.training.parallel import Parallel
from gptlab.training.sharding import make_mesh, trained_model

# widths that four processes do not divide, so that shards are padded
SIZES = dict(
    vocab_size=67, block_size=16, n_layer=3, n_head=2, n_embd=22, head_dim=6, dropout=0.0,
    device="cpu", dtype="float32", compile_model=False, position_encoding="learned", bias=True,
)  # fmt: skip


KINDS = {"allgather": "gathered", "reduce_scatter": "scattered", "allreduce": "reduced"}


class Sent(TorchDispatchMode):
    """Adds up the bytes of the whole tensor of each collective, and counts the collectives."""

    def __init__(self):
        super().__init__()
        self.bytes = dict.fromkeys(KINDS.values(), 0)
        self.calls = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.namespace == "c10d":
            tensors = [
                leaf for leaf in torch.utils._pytree.tree_leaves(args) if hasattr(leaf, "nbytes")
            ]
            (kind,) = (kind for word, kind in KINDS.items() if word in operation.name())
            self.bytes[kind] += max(tensor.nbytes for tensor in tensors)
            self.calls += 1
        return operation(*args, **(kwargs or {}))


def check_a_step_sends_what_the_plan_says(world):
    """Two micro-batches; hybrid sharding in groups of two, as on two machines of two GPUs."""
    gpu = find_gpu("h100")
    for name in ("ddp", "fsdp", "hsdp")[: world.size]:
        cluster = Cluster(gpu, world.size, 2 if name == "hsdp" else world.size, gpu.network, 1.0)
        if name not in parallelisms(cluster):
            continue
        config = build({**SIZES, "parallelism": name, "batch_size": 2})
        parallel = Parallel()
        parallel._control = dist.group.WORLD
        make_mesh(name, parallel)
        model = trained_model(config, parallel)
        tokens = torch.randint(67, (2, 16))
        with Sent() as sent:
            for is_last in (False, True):
                with parallel.micro_batch(model, is_last) as call:
                    call(tokens, tokens, reduction="sum")[1].backward()
        planned = traffic(config, cluster, name, 2)
        found = (planned.gathered, planned.scattered, planned.reduced)
        assert found == tuple(sent.bytes.values()), (name, planned, sent.bytes)
        assert name == "ddp" or planned.calls == sent.calls, (name, planned, sent.calls)
        _hold_what_is_planned(model, config, cluster, name)


def _hold_what_is_planned(model, config, cluster, name):
    """Gradients take the bytes of the plan: for each weight the largest part of a process."""
    group = group_of(name, cluster)
    held = sum(4 * -(-p.shape[0] // group) * math.prod(p.shape[1:]) for p in model.parameters())
    whole = config.replace(gradient_accumulation_steps=2)
    planned = gpu_memory(whole, cluster, name)["gradients"]
    assert abs(planned - held) <= 1, (name, planned, held)
    if dist.get_rank() == 0:  # the first process has the largest part of every weight
        local = [getattr(p.grad, "_local_tensor", p.grad) for p in model.parameters()]
        assert sum(tensor.nbytes for tensor in local) == held
