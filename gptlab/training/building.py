"""Build a training: torch's settings, model, optimizers, batches, windows."""

import contextlib
import ctypes

import torch

from gptlab import sharded_checkpoints
from gptlab.checkpoints import Checkpoint, model_from
from gptlab.data.batches import Batches
from gptlab.data.mixture import Mixture
from gptlab.data.windows import Windows
from gptlab.model.transformer import GPT
from gptlab.runs import Run
from gptlab.training.config import CHANGEABLE_MODEL_OPTIONS, TrainConfig
from gptlab.training.ema import Ema
from gptlab.training.optimizers.combined import Optimizers
from gptlab.training.parallel import Parallel
from gptlab.training.precision import MixedPrecision
from gptlab.training.resolving import Resolved
from gptlab.training.sharding import make_mesh, trained_model
from gptlab.training.state import DECISIONS, TrainState

KEPT_BYTES = 1 << 30
RETURNED_BYTES = 1 << 16


def settle_torch(device: str) -> None:
    """Configure torch, once, in a process that trains on this device."""
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32 where products stay float32
    if device == "cpu":
        keep_freed_memory()
        # as use_deterministic_algorithms, which would import the compiler for three seconds
        torch.set_deterministic_debug_mode("error")
        torch.utils.deterministic.fill_uninitialized_memory = False


def keep_freed_memory() -> None:
    """Make glibc keep the large blocks of one step for the next; without glibc, do nothing.

    By default it returns them to the system and requests them again, page by page and filled with
    zeros: 250,000 page faults, a fifth of a step at 10M parameters.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc: musl, macOS, Windows
        mallopt = ctypes.CDLL(None).mallopt
        trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        for option in (trim, mmap):
            if not mallopt(option, KEPT_BYTES):
                mallopt(option, 32 << 20)  # the most that older versions accept


def return_freed_memory() -> None:
    """Make glibc return large blocks to the system at once, where memory matters more than time.

    A sharded model's blocks are whole one after the other. In one heap their freed pieces lie
    between others that stay: two processes of 28M parameters held 1,090 MB each, not 690.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(-3, RETURNED_BYTES)  # M_MMAP_THRESHOLD


def build_state(
    resolved: Resolved, run: Run, parallel: Parallel, stored: dict | None, start: Checkpoint | None
) -> TrainState:
    """Build the model and all that trains it, in a fixed order; restore what is stored."""
    config = resolved.config
    torch.manual_seed(config.run.seed)
    make_mesh(config.machine.parallelism, parallel)
    if parallel.is_sharded and config.machine.device == "cpu":
        return_freed_memory()
    device, filled = "cpu" if parallel.is_sharded else config.machine.device, None
    if stored is not None and not parallel.is_sharded:
        stored = sharded_checkpoints.with_tensors(stored)
        changes = {name: getattr(config.model, name) for name in CHANGEABLE_MODEL_OPTIONS}
        filled = run.model_to_continue(stored, device, **changes)
    elif stored is None and start is not None:
        before = start.model.config.to_dict()
        changes = {n: v for n, v in config.model.to_dict().items() if before.get(n) != v}
        filled = model_from(start.content, start.path, device, **changes)
    if filled is not None and parallel.world_size > 1 and not parallel.is_sharded:
        for parameter in filled.parameters():  # not in the file any more
            parameter.data = parameter.data.clone()
    model = trained_model(config, parallel, filled, stored["model"] if stored else None)
    if stored is not None and parallel.is_sharded:
        run.check_code(stored, model)
        model.reshard()
    state = new_state(model, config, resolved.use_scaler)
    if stored is not None:
        state.restore(stored)
    return state


def new_state(model: GPT, config: TrainConfig, use_scaler: bool) -> TrainState:
    """The state of a training of this model, at step 0."""
    device, dtype = config.machine.device, config.machine.dtype
    model.train()
    flat = config.flat()
    return TrainState(
        model=model,
        # Newton-Schulz tolerates low precision, so it runs in the one that is fast on this device
        optimizers=Optimizers(model, config, getattr(torch, dtype)),
        precision=MixedPrecision(device, dtype, use_scaler),
        ema=Ema(model, config.optimizer.ema_decay) if config.optimizer.ema_decay else None,
        end=config.batch.max_iters,
        spent=0.0 if config.batch.minutes is not None else None,
        decisions={name: flat[name] for name in (*DECISIONS, "dtype", "device")},
    )


def make_batches(config: TrainConfig, data: Mixture, parallel: Parallel) -> Batches:
    """The micro-batches of this process, from the datasets' training parts."""
    return Batches(
        data.sequences(config.model.block_size, config.run.seed),
        batch_size=config.batch.batch_size,
        sequences_per_step=config.sequences_per_step,
        device=config.machine.device,
        rank=parallel.rank,
        world_size=parallel.world_size,
    )


def checked_windows(config: TrainConfig, data: Mixture) -> tuple[Windows, ...]:
    """The evaluation's windows of each dataset, by its share of eval_tokens. DataError for ids
    outside the vocabulary."""
    return tuple(
        part.validation(config.model.block_size, round(share * config.evaluation.eval_tokens))
        for part, share in zip(data.parts, data.shares, strict=True)
    )
