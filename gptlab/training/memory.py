"""What a run needs in memory, before it starts and when it turned out too much."""

import contextlib

from gptlab.errors import HardwareError
from gptlab.model.arithmetic import TrainingMemory, training_memory
from gptlab.training.config import TrainConfig

TIGHT = 0.9  # of the free memory: above it a warning


def needed_memory(config: TrainConfig) -> TrainingMemory:
    """Bytes of a training step with this configuration, by formula."""
    return training_memory(
        config.model,
        min(config.batch.batch_size, config.sequences_per_step),
        bytes_per_activation=4 if config.machine.dtype == "float32" else 2,
        optimizer_states=1.2 if config.optimizer.optimizer == "muon" else 2.0,
        ema=config.optimizer.ema_decay > 0,
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


def memory_warning(config: TrainConfig, free: int | None) -> str:
    """A sentence when the plan does not fit into `free` bytes, else ""."""
    needed = needed_memory(config).total
    if free is None or needed < TIGHT * free:
        return ""
    return (
        f"This run needs about {in_gigabytes(needed)} and {config.machine.device} has "
        f"{in_gigabytes(free)} free: it may run out of memory; {smaller_options(config)} needs "
        "less and trains on the same tokens per step."
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
