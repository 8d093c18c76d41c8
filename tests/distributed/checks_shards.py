"""Optimizers, norms and averages on tensors of which each process holds some rows."""

from types import SimpleNamespace

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from gptlab.model.shards import local, place, shard_group
from gptlab.training.config import OptimizerOptions
from gptlab.training.ema import Ema
from gptlab.training.optimizers.adamw import AdamW
from gptlab.training.optimizers.muon import Muon
from gptlab.training.precision import MixedPrecision, clip_grad_norm
from gptlab.training.provenance import digests

# square, wide, tall; rows that do not divide; fewer rows than processes; two of a shape, and three
SHAPES = [(8, 8), (6, 20), (20, 6), (7, 5), (7, 5), (3, 9), (3, 9), (3, 9), (1, 4)]


def meshes(world):
    """(mesh, placements): all processes share the rows; of four, also two replicas of two."""
    yield init_device_mesh("cpu", (world.size,)), [Shard(0)]
    if world.size == 4:
        yield init_device_mesh("cpu", (2, 2)), [Replicate(), Shard(0)]


def drawn(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in (*SHAPES, (5,))]


def parameters(mesh, placements):
    """(plain ones, the same in shards)."""
    plain = [torch.nn.Parameter(values) for values in drawn(0)]
    sharded = [torch.nn.Parameter(distribute_tensor(p.detach(), mesh, placements)) for p in plain]
    return plain, sharded


def give_grads(plain, sharded, seed):
    for one, other, grad in zip(plain, sharded, drawn(seed), strict=False):
        one.grad = grad.clone()
        other.grad = torch.zeros_like(other)
        place(other.grad, grad)


def check_a_step_of_muon_and_of_adamw_updates_each_matrix_as_on_one_process(world):
    for mesh, placements in meshes(world):
        for kind in (Muon, AdamW):
            plain, sharded = parameters(mesh, placements)
            if kind is Muon:
                plain, sharded = plain[:-1], sharded[:-1]
            options = OptimizerOptions(learning_rate=0.1, weight_decay=0.1)
            one, other = (
                kind([{"params": each, "weight_decay": 0.1}], options, torch.float32)
                for each in (plain, sharded)
            )
            before = [p.detach().clone() for p in plain]
            for seed, skipped in ((1, 0.0), (2, 1.0), (3, 0.0)):
                give_grads(plain, sharded, seed)
                one.step(torch.tensor(skipped))
                other.step(torch.tensor(skipped))
            for start, p, q in zip(before, plain, sharded, strict=True):
                moved = q.full_tensor().detach() - start
                torch.testing.assert_close(moved, p.detach() - start, rtol=1e-5, atol=1e-6)
                assert moved.abs().mean() > 1e-3


def check_gradients_are_clipped_by_the_norm_over_all_processes(world):
    for mesh, placements in meshes(world):
        plain, sharded = parameters(mesh, placements)
        give_grads(plain, sharded, 1)
        plain[2].grad = sharded[2].grad = None
        expected = torch.nn.utils.clip_grad_norm_(plain, 1.0)
        found = clip_grad_norm(torch.nn.ParameterList(sharded), 1.0)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
        for p, q in zip(plain, sharded, strict=True):
            if p.grad is not None:
                torch.testing.assert_close(q.grad.full_tensor(), p.grad, rtol=1e-5, atol=1e-8)


def check_the_average_and_the_digests_of_shards_are_those_of_whole_weights(world):
    for mesh, placements in meshes(world):
        lists = [torch.nn.ParameterList(each) for each in parameters(mesh, placements)]
        averages = [Ema(model, 0.9) for model in lists]
        for step, seed in enumerate((1, 2)):
            for model, average in zip(lists, averages, strict=True):
                with torch.no_grad():
                    for parameter, values in zip(model, drawn(seed), strict=True):
                        place(parameter, values)
                average.update(model, step)
        assert digests(lists[0]) == digests(lists[1])
        for model, average in zip(lists, averages, strict=True):
            average.swap(model)
        assert digests(lists[0]) == digests(lists[1])


def check_a_gradient_that_overflows_in_one_process_lowers_the_scale_of_all(world):
    """float16, whose gradients are scaled up: no update in any process, and half the scale."""
    for mesh, placements in meshes(world):
        plain, sharded = parameters(mesh, placements)
        give_grads(plain, sharded, 1)
        if shard_group(sharded[0]).rank() == 0:
            local(sharded[0].grad)[0, 0] = torch.inf
        optimizer = AdamW([{"params": sharded, "weight_decay": 0.1}], OptimizerOptions(), None)
        both = SimpleNamespace(optimizers=[optimizer], step=optimizer.step)
        precision = MixedPrecision("cpu", "float16", True)
        scale = float(precision.scaler.scale(torch.ones(())))
        precision.unscale(both)
        expected = plain[1].grad / scale
        torch.testing.assert_close(sharded[1].grad.full_tensor(), expected, rtol=1e-6, atol=0)
        norm = clip_grad_norm(torch.nn.ParameterList(sharded), 1.0)
        assert float(precision.step(both, norm)) == 1.0
        assert precision.state_dict()["scale"] == scale / 2
        for p, q in zip(plain, sharded, strict=True):
            assert torch.equal(q.full_tensor(), p)
