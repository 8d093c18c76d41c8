"""Teachers: each process asks them about its own micro-batches, and the run is that of one."""

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from gptlab.checkpoints import Checkpoint
from gptlab.data.batches import Batches, Sequences
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.training.building import new_state
from gptlab.training.config import build
from gptlab.training.distillation import Teacher
from gptlab.training.loop import train_step
from gptlab.training.parallel import Parallel
from gptlab.training.resolving import Resolved
from gptlab.training.setup import Setup
from gptlab.training.sharding import make_mesh, trained_model

SIZES = dict(
    vocab_size=67, block_size=16, n_layer=2, n_head=4, n_embd=24, dropout=0.1, device="cpu",
    dtype="float32", batch_size=3, gradient_accumulation_steps=3, max_iters=50, warmup_iters=2,
    lr_decay_iters=50, min_lr=1e-4, learning_rate=1e-2, compile_model=False, seed=5,
)  # fmt: skip


def taught(parallel):
    """(setup, state) of a training with two teachers of unlike architectures; a third of the
    targets count."""
    config, random = build(SIZES), np.random.default_rng(0)
    tokens, mask = random.integers(67, size=3000), random.random(3000) < 1 / 3
    batches = Batches(
        Sequences(tokens, mask, vocab_size=67, block_size=16, seed=5),
        batch_size=3,
        sequences_per_step=9,
        rank=parallel.rank,
        world_size=parallel.world_size,
    )
    models = []
    for seed, sizes in enumerate((dict(n_layer=1, n_embd=32), dict(n_layer=2, block_size=24))):
        torch.manual_seed(seed)
        settings = dict(vocab_size=67, block_size=16, n_head=4, n_embd=16, init_std=0.3)
        model = GPT(GPTConfig(**(settings | sizes))).eval()
        models.append(Checkpoint(model, None, Path("teacher"), 0, None, {}))
    teacher = Teacher(["a", "b"], models, 0.7, 67, parallel)
    state = new_state(trained_model(config, parallel), config, False)
    return Setup(Resolved(config, {}), parallel, batches, teacher=teacher), state


def losses(setup, state):
    """Loss, divergence and gradient norm of each of four steps."""
    found = []
    for _ in range(4):
        result = train_step(setup, state)
        apart = setup.teacher.beside(state.step)["distill_loss"]
        found.append([float(result.loss), apart, float(result.grad_norm)])
    return torch.tensor(found)


def check_teachers_teach_many_processes_what_they_teach_one(world):
    expected = losses(*taught(Parallel.alone("cpu")))
    for parallelism in ("ddp", "fsdp"):
        parallel = Parallel()
        parallel._control = dist.group.WORLD
        make_mesh(parallelism, parallel)
        found = losses(*taught(parallel))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


check_teachers_teach_many_processes_what_they_teach_one.sizes = (2,)
