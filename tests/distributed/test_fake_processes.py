"""One of 64 processes, with torch's fake group: what it holds is what a plan says of each GPU.

Collectives of the fake group end at once and move nothing, so sizes are real and values are not.
"""

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from gptlab.model.config import PRESETS
from gptlab.planning.cluster import Cluster, gpu_memory
from gptlab.planning.gpus import find_gpu
from gptlab.training.building import new_state
from gptlab.training.config import build
from gptlab.training.parallel import Parallel
from gptlab.training.sharding import make_mesh, trained_model

PROCESSES, NODE = 64, 8


@pytest.fixture
def process(monkeypatch):
    """process(RANK): that one of 64, eight on each machine."""

    def begin(rank: int) -> Parallel:
        for name, value in [("RANK", rank), ("WORLD_SIZE", PROCESSES), ("LOCAL_WORLD_SIZE", NODE)]:
            monkeypatch.setenv(name, str(value))
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=PROCESSES)
        parallel = Parallel()
        parallel._control = dist.group.WORLD
        return parallel

    yield begin
    dist.destroy_process_group()


def held(tensors) -> int:
    """Bytes of the tensors on this process."""
    return sum(getattr(tensor, "_local_tensor", tensor).nbytes for tensor in tensors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallelism", "rank"), [("fsdp", 0), ("fsdp", PROCESSES - 1), ("hsdp", 0)]
)
def test_each_of_64_processes_holds_what_the_plan_of_64_gpus_says(process, parallelism, rank):
    model = {**PRESETS["gpt2"], "vocab_size": 50257}
    settings = dict(device="cpu", dtype="float32", compile_model=False, dropout=0.0, max_iters=1)
    config = build({**model, **settings, "parallelism": parallelism, "batch_size": 1})
    parallel = process(rank)
    make_mesh(parallelism, parallel)
    state = new_state(trained_model(config, parallel), config, use_scaler=False)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    with parallel.micro_batch(state.model, True) as call:
        call(tokens, tokens, reduction="sum")[1].backward()
    parameters = list(state.model.parameters())
    state.optimizers.step(torch.zeros(()))
    states = state.optimizers.state_dict().values()
    moments = [tensor for each in states for tensor in each.values() if tensor.dim()]

    gpu = find_gpu("h100")
    cluster = Cluster(gpu, PROCESSES, NODE, gpu.network, gpu.dollars_per_hour)
    planned = gpu_memory(config, cluster, parallelism)
    found = {
        "weights": held(parameters),
        "gradients": held(parameter.grad for parameter in parameters),
        "optimizer": held(moments),
    }
    for name, size in found.items():
        if rank == 0:  # the first has the largest part of each tensor
            assert size == pytest.approx(planned[name], abs=2), name
        else:
            assert 0.9 * planned[name] < size <= planned[name] + 2, name
