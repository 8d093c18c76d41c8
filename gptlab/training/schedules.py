"""The learning rate of a step: pure functions of the step number and of recorded decisions."""

import math
from typing import NamedTuple

from gptlab.training.config import TrainConfig


class Stretch(NamedTuple):
    """How fast a run walks through its schedule since its end was moved.

    At step `step` it stood at `position`, a step of the schedule as first planned; it reaches
    `planned`, the last one of that, at step `end`. So the rate has no jump where an end is moved.
    """

    step: int
    position: float
    end: int
    planned: int

    def at(self, step: int) -> float:
        """The step of the schedule as first planned that belongs to a step of the run."""
        if step >= self.end:
            return float(self.planned)
        share = (step - self.step) / (self.end - self.step)
        return self.position + share * (self.planned - self.position)


def learning_rate(config: TrainConfig, step: float) -> float:
    """The learning rate with which step number `step` (from 0) updates the weights.

    Linear warm-up, then "cosine" (Loshchilov & Hutter 2017) down to min_lr at lr_decay_iters, or
    "wsd" (Hu et al. 2024): constant, then linear decay over the last decay_fraction of the run.
    """
    highest, lowest = config.optimizer.learning_rate, config.schedule.min_lr
    warmup, end = config.schedule.warmup_iters, config.schedule.lr_decay_iters
    if step < warmup:
        return highest * (step + 1) / (warmup + 1)
    if step >= end:
        return lowest
    if config.schedule.schedule == "cosine":
        progress = (step - warmup) / max(1, end - warmup)
        return lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * progress))
    decay = end - decay_start(config)
    return lowest + (highest - lowest) * min(1.0, (end - step) / decay)


def decay_start(config: TrainConfig) -> int:
    """The step at which schedule "wsd" begins to decay."""
    warmup, end = config.schedule.warmup_iters, config.schedule.lr_decay_iters
    return end - max(1, min(end - warmup, round(config.schedule.decay_fraction * end)))
