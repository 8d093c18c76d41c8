"""The memory that a run needs: checked before it starts, explained when it runs out."""

import contextlib
import dataclasses
from collections.abc import Callable

from gptlab.errors import HardwareError
from gptlab.model.arithmetic import count_parameters
from gptlab.model.memory import TrainingMemory, fits, process_memory, training_memory
from gptlab.training.config import TrainConfig
from gptlab.training.optimizers.table import OPTIMIZERS

MOST_SEQUENCES = 1 << 16  # in a micro-batch


def _tensors(config: TrainConfig) -> TrainingMemory:
    """Bytes of the tensors of a training step, with the parameters that the module really has."""
    from gptlab.model.building import module_parameters  # needs torch

    optimizer = OPTIMIZERS[config.optimizer.optimizer]
    tensors = training_memory(
        config.model,
        min(config.batch.batch_size, config.sequences_per_step),
        bytes_per_activation=4 if config.machine.dtype == "float32" else 2,
        optimizer_states=optimizer.values_per_parameter,
        ema=config.optimizer.ema_decay > 0,
        trained=config.trained,
    )
    # an edited model page has parameters that no formula knows; adapters leave them frozen
    edited = 4 * (module_parameters(config.model) - count_parameters(config.model))
    changed = 0 if config.finetune.lora_rank else edited
    return dataclasses.replace(
        tensors,
        weights=tensors.weights + edited + (changed if config.optimizer.ema_decay else 0),
        gradients=tensors.gradients + changed,
        optimizer=tensors.optimizer + int(changed * optimizer.values_per_parameter),
    )


def step_memory(config: TrainConfig, kind: str, shards: int = 1) -> dict[str, int]:
    """Bytes at the worst moment of a training process with this configuration, by what they hold.

    kind: of the device, "cpu" or another. The sum is the peak. shards: the processes among which
    the model is divided; then what is outside of the blocks, and two of these, are whole meanwhile.
    """
    tensors = _tensors(config)
    if shards > 1:
        model = config.model
        outside = model.vocab_size * model.n_embd * (1 if model.tie_weights else 2)
        blocks = max(0, count_parameters(model) - outside)
        whole = 4 * (outside + 4 * blocks // model.n_layer)  # of both, weights and gradients
        tensors = dataclasses.replace(
            tensors,
            weights=-(-tensors.weights // shards) + whole,
            gradients=-(-tensors.gradients // shards),
            optimizer=-(-tensors.optimizer // shards),
        )
    return process_memory(tensors, kind, config.batch.gradient_accumulation_steps)


def memory_needed(config: TrainConfig, shards: int = 1) -> int:
    """Bytes at the worst moment of a training process, on the device of a resolved run."""
    return sum(step_memory(config, config.machine.device.partition(":")[0], shards).values())


def step_fits(config: TrainConfig, kind: str, free: int | None, shards: int = 1) -> bool:
    """Whether a step leaves something of `free` bytes, by formula."""
    return fits(sum(step_memory(config, kind, shards).values()), free)


def largest_batch_size(
    config: TrainConfig, kind: str, free: int, most: int = MOST_SEQUENCES
) -> int:
    """The largest batch_size up to `most` with which a step fits into `free` bytes; 0 for none."""
    low, high = 0, 1
    while high <= most and step_fits(config.replace(batch_size=high), kind, free):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        is_enough = step_fits(config.replace(batch_size=middle), kind, free)
        low, high = (middle, high) if is_enough else (low, middle)
    return low


def fitting_batch_size(
    config: TrainConfig,
    kind: str,
    free: int | None,
    world_size: int,
    attempt: Callable[[int], None],
    shards: int = 1,
) -> int:
    """The largest divisor of the step's sequences that fits, by formula and then by trial.

    world_size: processes that share the sequences. attempt: runs a micro-batch of so many
    sequences, and may raise torch.OutOfMemoryError. shards: of `step_memory`. Returns 1
    where not even one sequence fits: training then explains what would.
    """
    import torch

    sequences = config.sequences_per_step
    for size in range(-(-sequences // world_size), 1, -1):
        if sequences % size:
            continue
        cut = config.replace(batch_size=size, gradient_accumulation_steps=sequences // size)
        if not step_fits(cut, kind, free, shards):
            continue
        try:
            attempt(size)
            return size
        except torch.OutOfMemoryError:
            continue
    return 1


def smaller_options(config: TrainConfig) -> str:
    """Options that need less memory and train on the same tokens per step, as on a command line."""
    batch, steps = config.batch.batch_size, config.batch.gradient_accumulation_steps
    if batch > 1:
        smaller = next(b for b in range(batch // 2, 0, -1) if batch % b == 0)
        return f"--batch_size {smaller} --gradient_accumulation_steps {steps * (batch // smaller)}"
    if not config.model.gradient_checkpointing:
        return "--gradient_checkpointing true"
    block = config.model.block_size // 2
    if not block:
        return "a smaller model"
    return f"--block_size {block} --gradient_accumulation_steps {2 * steps} or a smaller model"


def in_gigabytes(size: float) -> str:
    """Bytes as GB with two significant digits."""
    return f"{size / 1e9:.2g} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"


def memory_warning(config: TrainConfig, free: int | None, shards: int = 1) -> HardwareError | None:
    """The warning for a run that does not fit into `free` bytes, else None."""
    needed = memory_needed(config, shards)
    if fits(needed, free):
        return None
    who = "Each process of this run" if shards > 1 else "This run"
    return HardwareError(
        f"{who} needs about {in_gigabytes(needed)}, but {config.machine.device} has "
        f"{in_gigabytes(free)} free: it may run out of memory",
        f"{smaller_options(config)} needs less and trains on the same tokens per step",
        sep="; ",
    )


@contextlib.contextmanager
def explained_out_of_memory(config: TrainConfig, shards: int = 1):
    """Turn running out of memory into a HardwareError with the numbers and options that help."""
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
        need = step_memory(config, config.machine.device.partition(":")[0], shards)
        who = "each process of this run" if shards > 1 else "this run"
        raise HardwareError(
            f"Out of memory on {config.machine.device}: {who} needs about "
            f"{in_gigabytes(sum(need.values()))} "
            f"({in_gigabytes(need['weights'] + need['gradients'])} weights and gradients, "
            f"{in_gigabytes(need['optimizer'])} optimizer, "
            f"{in_gigabytes(need['activations'] + need['loss'])} activations)",
            f"to train the same in less memory, use {smaller_options(config)}",
            sep="; ",
        ) from error
