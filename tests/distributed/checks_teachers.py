"""Teachers: each process asks them about its own micro-batches, and the run is that of one."""

import dataclasses
from pathlib import Path

import torch
from checks_engine import prepared, together

from gptlab.checkpoints import Checkpoint
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.training.distillation import Teacher
from gptlab.training.loop import train_step
from gptlab.training.parallel import Parallel


def taught(parallel):
    """(setup, state) of a training with two teachers of unlike architectures."""
    setup, state = prepared(parallel)
    models = []
    for seed, sizes in enumerate((dict(n_layer=1, n_embd=32), dict(n_layer=2, block_size=24))):
        torch.manual_seed(seed)
        settings = dict(vocab_size=67, block_size=16, n_head=4, n_embd=16, init_std=0.3)
        model = GPT(GPTConfig(**(settings | sizes))).eval()
        models.append(Checkpoint(model, None, Path("teacher"), 0, None, {}))
    teacher = Teacher(["a", "b"], models, 0.7, 67, parallel)
    return dataclasses.replace(setup, teacher=teacher), state


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
        found = losses(*taught(together(world, parallelism)))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
