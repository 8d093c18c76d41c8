"""The disk space of a run's checkpoints."""

import math
import shutil
from pathlib import Path

from gptlab.errors import RunError
from gptlab.files import display, in_bytes, nearest_existing
from gptlab.model.arithmetic import count_parameters, trained_parameters
from gptlab.training.config import TrainConfig
from gptlab.training.optimizers.table import OPTIMIZERS


def checkpoint_bytes(config: TrainConfig) -> int:
    """The most bytes that a run's files take: two states, a third being written, best.pt.

    Adapters are kept without the model that they stand beside, which is there once.
    """
    parameters = 4 * count_parameters(config.model)
    changed = 4 * trained_parameters(config.model, config.trained)
    # rounded up: Muon's share of a model varies, and the rest keeps two values
    moments = math.ceil(OPTIMIZERS[config.optimizer.optimizer].values_per_parameter)
    average = 1 if config.optimizer.ema_decay else 0
    if config.finetune.lora_rank:
        states = (3 + config.evaluation.keep_checkpoints) * (1 + moments + average)
        return parameters + (states + 1) * changed
    state = parameters + changed * (moments + average)
    return (3 + config.evaluation.keep_checkpoints) * state + parameters


def refuse_full_disk(config: TrainConfig, folder: Path) -> None:
    """RunError when the checkpoints of a run do not fit on the disk of its folder."""
    files = [*folder.glob("*.pt"), *folder.glob("*/shard-*")]
    held = sum(path.stat().st_size for path in files)
    needed = checkpoint_bytes(config) - held
    existing = nearest_existing(folder)
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise RunError(
            f"{display(existing)} has {in_bytes(free)} free, but the checkpoints of this run take "
            f"{in_bytes(needed)}",
            "free some space, or choose another disk with --out_dir",
        )
