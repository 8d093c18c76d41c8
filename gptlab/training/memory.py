"""What a run needs in memory and on the disk, before it starts and when it turned out too much."""

import contextlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path

from gptlab.errors import HardwareError, RunError
from gptlab.files import display, in_bytes, nearest_existing
from gptlab.model.arithmetic import (
    TrainingMemory,
    count_parameters,
    trained_parameters,
    training_memory,
)
from gptlab.training.config import TrainConfig
from gptlab.training.optimizers.table import OPTIMIZERS

TIGHT = 0.9  # of the free memory: above it a warning
MOST_SEQUENCES = 1 << 16  # of a micro-batch that is looked for

# Beside its tensors a training process on a CPU holds code that the first step touches, and what
# the allocator cannot use again: glibc keeps freed blocks (`building.keep_freed_memory`) in one
# heap, which lies in pieces after a few steps. As measured on Linux, with models of 0.8M to 124M
# parameters and steps of 64 to 72,000 tokens, within 17%; one process takes up to a fifth more than
# the next.
LIBRARIES = 16_000_000
FRAGMENTATION = 0.7  # of the activations
REUSED = 0.7  # of the room of activations by the gradients that come while these go
# what a process holds on a GPU before the first tensor, and what its allocator leaves unused
GPU_CONTEXT = 600_000_000
GPU_FRAGMENTATION = 0.1


def needed_memory(config: TrainConfig) -> TrainingMemory:
    """Bytes of a training step with this configuration, by formula."""
    return training_memory(
        config.model,
        min(config.batch.batch_size, config.sequences_per_step),
        bytes_per_activation=4 if config.machine.dtype == "float32" else 2,
        optimizer_states=OPTIMIZERS[config.optimizer.optimizer].values_per_parameter,
        ema=config.optimizer.ema_decay > 0,
        trained=config.trained,
    )


def step_memory(config: TrainConfig, kind: str) -> dict[str, int]:
    """Bytes at the worst moment of a training process, by what they hold; the sum is the peak.

    kind: of the device, "cpu" or another. In a step of a single micro-batch the gradients come
    while the activations go, so that the smaller of the two needs no room of its own; in the heap
    of a CPU some of that room lies in pieces that are too small.
    """
    need = needed_memory(config)
    rows = {
        "weights": need.weights,
        "gradients": need.gradients,
        "optimizer": need.optimizer,
        "activations": need.activations,
        "loss": need.loss,
    }
    working = need.activations + need.loss
    if config.batch.gradient_accumulation_steps == 1:
        share = REUSED if kind == "cpu" else 1.0
        rows["gradients in the place of activations"] = -int(share * min(need.gradients, working))
    if kind == "cpu":
        rows["libraries and allocator"] = LIBRARIES + int(FRAGMENTATION * need.activations)
    else:
        rows["context and allocator"] = GPU_CONTEXT + int(GPU_FRAGMENTATION * working)
    return rows


def fits(config: TrainConfig, kind: str, free: int) -> bool:
    """Whether a step leaves something of `free` bytes, by formula."""
    return sum(step_memory(config, kind).values()) <= TIGHT * free


def largest_batch_size(
    config: TrainConfig, kind: str, free: int, most: int = MOST_SEQUENCES
) -> int:
    """The largest batch_size up to `most` with which a step fits into `free` bytes; 0 for none."""
    low, high = 0, 1
    while high <= most and fits(config.replace(batch_size=high), kind, free):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        is_enough = fits(config.replace(batch_size=middle), kind, free)
        low, high = (middle, high) if is_enough else (low, middle)
    return low


def fitting_batch_size(
    config: TrainConfig,
    kind: str,
    free: int | None,
    world_size: int,
    attempt: Callable[[int], None],
) -> int:
    """The largest divisor of the step's sequences that fits, by formula and then by trial.

    world_size: processes among which the sequences are shared out. attempt: runs a micro-batch of
    so many sequences, and may raise torch.OutOfMemoryError. Where not even one sequence fits, 1:
    training then says what would.
    """
    import torch

    sequences = config.sequences_per_step
    for size in range(-(-sequences // world_size), 1, -1):
        if sequences % size:
            continue
        cut = config.replace(batch_size=size, gradient_accumulation_steps=sequences // size)
        if free is not None and not fits(cut, kind, free):
            continue
        try:
            attempt(size)
            return size
        except torch.OutOfMemoryError:
            continue
    return 1


def checkpoint_bytes(config: TrainConfig) -> int:
    """The most bytes that a run's files take: two states and a third in the making, best.pt."""
    parameters = 4 * count_parameters(config.model)
    changed = 4 * trained_parameters(config.model, config.trained)
    # rounded up: the share of a model that Muon takes varies, and the rest keeps two
    moments = math.ceil(OPTIMIZERS[config.optimizer.optimizer].values_per_parameter)
    average = 1 if config.optimizer.ema_decay else 0
    adapters = 1 if config.finetune.lora_rank else 0
    state = parameters + changed * (moments + average + adapters)
    return (3 + config.evaluation.keep_checkpoints) * state + parameters


def check_space(config: TrainConfig, folder: Path) -> None:
    """RunError when the checkpoints of a run do not fit on the disk of its folder."""
    held = sum(path.stat().st_size for path in folder.glob("*.pt")) if folder.is_dir() else 0
    needed = checkpoint_bytes(config) - held
    existing = nearest_existing(folder)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RunError(
            f"{display(existing)} has {in_bytes(free)} free and the checkpoints of this run take "
            f"{in_bytes(needed)}: free some space, or choose another disk with --out_dir."
        )


def smaller_options(config: TrainConfig) -> str:
    """Options that need less memory and train on the same tokens per step, as on a command line."""
    batch, steps = config.batch.batch_size, config.batch.gradient_accumulation_steps
    if batch > 1:
        smaller = next(b for b in range(batch // 2, 0, -1) if batch % b == 0)
        return f"--batch_size {smaller} --gradient_accumulation_steps {steps * (batch // smaller)}"
    if not config.model.gradient_checkpointing:
        return "--gradient_checkpointing true"
    return f"--block_size {max(1, config.model.block_size // 2)}, or a smaller model"


def in_gigabytes(size: float) -> str:
    """Bytes as GB with two digits that matter."""
    return f"{size / 1e9:.2g} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"


def memory_warning(config: TrainConfig, free: int | None) -> HardwareError | None:
    """What to say when the plan does not fit into `free` bytes, else None."""
    kind = config.machine.device.partition(":")[0]
    if free is None or fits(config, kind, free):
        return None
    needed = sum(step_memory(config, kind).values())
    return HardwareError(
        f"This run needs about {in_gigabytes(needed)} and {config.machine.device} has "
        f"{in_gigabytes(free)} free: it may run out of memory",
        f"{smaller_options(config)} needs less and trains on the same tokens per step",
        sep="; ",
    )


@contextlib.contextmanager
def explained_out_of_memory(config: TrainConfig):
    """Turn running out of memory into a HardwareError with the numbers and what to write."""
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        text = str(error).lower()
        if isinstance(error, RuntimeError) and not (
            isinstance(error, torch.OutOfMemoryError)
            or "allocate memory" in text
            or "out of memory" in text
        ):
            raise
        need = needed_memory(config)
        raise HardwareError(
            f"Out of memory on {config.machine.device}: this run needs about "
            f"{in_gigabytes(need.total)} ({in_gigabytes(need.weights + need.gradients)} weights "
            f"and gradients, {in_gigabytes(need.optimizer)} optimizer, "
            f"{in_gigabytes(need.activations + need.loss)} activations); the same training in "
            f"less memory is {smaller_options(config)}."
        ) from error
