"""Checkpoints in shards: what processes write, one process reads, whole and by rows."""

import json
import tempfile

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from gptlab import sharded_checkpoints
from gptlab.sharded_checkpoints import StoredTensor, open_shards, save_shards, with_tensors
from gptlab.training.parallel import Parallel

# rows that do not divide, fewer rows than processes, a vector, no row at all
SHAPES = [(8, 3), (7, 2), (1, 5), (3,), (0, 2)]


def together():
    """The processes of this launch, as a training has them."""
    parallel = Parallel()
    parallel._control = dist.group.WORLD
    return parallel


def content(world, seed, hybrid=False):
    """(a content in shards, the same whole)."""
    mesh, placements = init_device_mesh("cpu", (world.size,)), [Shard(0)]
    if hybrid:
        mesh, placements = init_device_mesh("cpu", (2, world.size // 2)), [Replicate(), Shard(0)]
    generator = torch.Generator().manual_seed(seed)
    whole = {f"w{i}": torch.randn(shape, generator=generator) for i, shape in enumerate(SHAPES)}
    whole["half"] = whole["w0"].bfloat16()
    parts = {name: distribute_tensor(value, mesh, placements) for name, value in whole.items()}
    plain = {"step": seed, "loss": float("inf"), "names": ["ä", None]}
    moments = {"w0": {"moment": parts["w0"] * 2, "step": torch.tensor(3)}}
    expected = {"w0": {"moment": whole["w0"] * 2, "step": torch.tensor(3)}}
    return (
        {**plain, "model": parts, "optimizer": moments},
        {**plain, "model": whole, "optimizer": expected},
    )


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_equal(found[name], value)
        elif isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value), name
        else:
            assert found[name] == value, name


def check_what_processes_write_is_read_whole_and_by_rows(world):
    for hybrid in (False, True)[: 1 + (world.size == 4)]:
        folder = world.folder / f"hybrid-{hybrid}"
        parts, expected = content(world, 1, hybrid)
        save_shards(parts, folder, together(), world.folder / "before")
        found = open_shards(folder)
        assert_equal(with_tensors(found), expected)
        with tempfile.TemporaryFile() as file:
            assert_equal(with_tensors(found, file), expected)
        for name, value in expected["model"].items():
            stored = found["model"][name]
            assert isinstance(stored, StoredTensor)
            for first in range(len(value) + 1):
                for end in range(first, len(value) + 2):
                    assert torch.equal(stored[first:end], value[first:end]), (name, first, end)
        files = {path.name for path in folder.iterdir()}
        assert ".metadata" not in files  # a pickle
        assert len(files) == 1 + world.size


def check_the_checkpoint_before_the_newest_is_kept(world):
    newest, before = world.folder / "ckpt", world.folder / "ckpt.prev"
    for seed in (1, 2, 3):
        save_shards(content(world, seed)[0], newest, together(), before)
        dist.barrier()
        assert_equal(with_tensors(open_shards(newest)), content(world, seed)[1])
        if seed > 1:
            assert_equal(with_tensors(open_shards(before)), content(world, seed - 1)[1])
        dist.barrier()
    if world.rank == 0:
        assert {path.name for path in world.folder.iterdir()} == {"ckpt", "ckpt.prev"}


def check_a_process_that_cannot_write_ends_the_save_of_all_and_changes_nothing(world):
    newest, before = world.folder / "ckpt", world.folder / "ckpt.prev"
    save_shards(content(world, 1)[0], newest, together(), before)
    dist.barrier()
    hash_file = sharded_checkpoints.sha256_file
    if world.rank == 1:  # as a disk that cannot be read back
        sharded_checkpoints.sha256_file = lambda path: 1 / 0
    try:
        save_shards(content(world, 2)[0], newest, together(), before)
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("the save was to fail")
    finally:
        sharded_checkpoints.sha256_file = hash_file
    dist.barrier()
    assert_equal(with_tensors(open_shards(newest)), content(world, 1)[1])
    assert not before.exists()


def check_a_sharded_run_keeps_its_checkpoints_in_shards_and_its_best_in_one_file(world):
    world.train("run", parallelism="fsdp", keep_checkpoints=2)
    folder = world.folder / "run"
    names = {path.name for path in folder.iterdir()}
    assert {"ckpt", "ckpt.prev", "ckpt.step00000006", "ckpt.step00000012", "best.pt"} <= names
    assert not {"ckpt.pt", "ckpt.prev.pt", "best", "best.prev"} & names
    state = json.loads((folder / "ckpt" / "state.json").read_text())
    assert state["content"]["step"] == 12
    world.train("run", alone=True, resume=True, max_iters=18)
    names = {path.name for path in folder.iterdir()}
    assert {"ckpt.pt", "best.pt"} <= names
    assert not {"ckpt", "ckpt.prev"} & names
