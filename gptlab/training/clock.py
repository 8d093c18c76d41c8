"""The clock of one start: when it must stop, when a checkpoint is due, whether steps are slow."""

import contextlib
import logging
import math
import time

from gptlab.training.budget import Budget
from gptlab.training.config import TrainConfig
from gptlab.training.evaluation import checkpoint_is_planned
from gptlab.training.state import TrainState

logger = logging.getLogger(__name__)

GRACE_SECONDS = 30  # that torchrun gives its processes between a signal and the kill


class Clock:
    """Times steps and checkpoints. started: time.perf_counter() when the process began."""

    def __init__(self, config: TrainConfig, started: float, world_size: int = 1):
        self.config, self.world_size = config, world_size
        minutes = config.batch.max_minutes
        self.deadline = started + 60 * minutes if minutes else math.inf
        self.step_seconds = self.slowest = 0.0  # of the last step, of the slowest
        self.save_seconds = 0.0  # of writing the last checkpoint
        self.last_save = time.perf_counter()
        self.budget = Budget(config, started)

    def begin(self, state: TrainState) -> None:
        """The loop begins, or goes on."""
        self.last_save = time.perf_counter()
        self.budget.begin(state)

    @contextlib.contextmanager
    def timing_a_step(self):
        """Time a step, and warn once about one that takes longer than torchrun waits."""
        began = time.perf_counter()
        yield
        ended = time.perf_counter()
        self.step_seconds = ended - began
        self.budget.add_step(began, ended)
        if self.world_size > 1 and self.step_seconds > GRACE_SECONDS > self.slowest:
            logger.warning(
                "A step takes %.0f s, but torchrun kills its processes %d s after a signal, which "
                "loses the steps since the last checkpoint: use --checkpoint_minutes.",
                self.step_seconds,
                GRACE_SECONDS,
            )
        self.slowest = max(self.slowest, self.step_seconds)

    @contextlib.contextmanager
    def timing_a_save(self):
        """Time the writing of a checkpoint."""
        began = time.perf_counter()
        yield
        self.last_save = time.perf_counter()
        self.save_seconds = self.last_save - began

    def is_out_of_time(self, state: TrainState) -> bool:
        """Whether another step, and saving after it, would not end within max_minutes."""
        if state.is_finished:
            return False
        return time.perf_counter() + self.step_seconds + self.save_seconds >= self.deadline

    def checkpoint_is_due(self, state: TrainState) -> bool:
        """Whether a checkpoint is due after this step, by its number or by the clock."""
        options = self.config.evaluation
        if checkpoint_is_planned(self.config, state) or self.budget.plan_is_due(
            state, self.save_seconds
        ):
            return True
        is_logged = state.step % options.log_interval == 0  # only then is the loss checked
        minutes = (time.perf_counter() - self.last_save) / 60
        return is_logged and 0 < options.checkpoint_minutes <= minutes
