"""Keep a budget in minutes: plan the end of the training again while it runs.

The first plan rests on a few seconds of measuring (resolving.py), and machines change their speed.
So before a checkpoint is written, the first process works out from the times since the last plan
how many steps still fit, and all move the end of the run (`TrainState.move_end`). The decision is
in that checkpoint and in metrics.jsonl, so resumes and replays repeat it.
"""

import math
import statistics
import time
from dataclasses import dataclass, field

from gptlab.training.config import TrainConfig
from gptlab.training.evaluation import evaluation_is_due
from gptlab.training.picture import Picture
from gptlab.training.resolving import PLOT_SECONDS
from gptlab.training.setup import Setup
from gptlab.training.state import TrainState
from gptlab.training.times import saving_seconds

REPLAN_SHARE = 0.25  # of the time left after a plan, until the next one
SAVES_APART = 6  # times what a checkpoint takes, at least, between checkpoints for a plan
LEAST_SECONDS = 0.5  # between them
LEAST_STEPS, LEAST_SHARE = 5, 0.02  # that a plan rests on: steps, or a share of the budget
LEAVING_SECONDS = 0.8  # from the last word to the end of the process, on two busy cores
LEAST_MOVE = 0.005  # of the steps: a smaller move is not worth a record
OUTLIER = 3.0  # times the median: a longer time counts as this (a machine that slept)


@dataclass(frozen=True)
class Times:
    """What a plan rests on, in seconds: left of the budget, of a step, of an evaluation with its
    checkpoint, of a checkpoint alone, and of drawing at the end."""

    left: float
    step: float
    pause: float
    save: float
    drawing: float


def steps_that_fit(config: TrainConfig, step: int, times: Times) -> int:
    """The step at which to end so that all that is still to come fits into the time left."""
    interval = config.evaluation.eval_interval

    def takes(end: int) -> float:
        pauses = math.ceil(end / interval) - (step - 1) // interval  # one may be due at this step
        if step % interval and end > step:
            return times.save + pauses * times.pause + (end - step) * times.step
        return pauses * times.pause + (end - step) * times.step

    seconds = times.left - times.drawing - LEAVING_SECONDS
    fits, too_many = step, step + max(1, int(seconds / times.step)) + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if takes(middle) <= seconds else (fits, middle)
    return fits


@dataclass
class Budget:
    """The times of one start, on this process. started: as time.perf_counter() counts.

    steps: seconds from the beginning of each step since the last plan to that of the next one, or
    to a pause. pauses: of evaluations with their checkpoints in this start, and drawing: of the
    last picture, both in steps as long as the plan before them says: a slow machine is slow in all.
    """

    config: TrainConfig
    started: float
    spent_before: float = 0.0  # by earlier starts, up to their last checkpoint
    steps: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    drawing: float | None = None
    planned_step: float | None = None  # seconds of a step, as the last plan has it
    next_plan: float = math.inf  # in seconds of the budget
    _last: tuple[float, float] | None = None  # the beginning and the end of the last step
    _drawn: float = 0.0
    _pausing: str = ""  # what came after it: "" for the next step at once

    @property
    def seconds(self) -> float:
        """Of the whole budget; infinite without one."""
        minutes = self.config.batch.minutes
        return math.inf if minutes is None else 60 * minutes

    @property
    def knows_enough(self) -> bool:
        """Whether a plan can rest on the steps since the last one."""
        long = LEAST_SHARE * self.seconds
        return len(self.steps) >= LEAST_STEPS or math.fsum(self.steps) >= long

    def spent(self) -> float:
        """Seconds that are used, of this start and of those before it."""
        return self.spent_before + time.perf_counter() - self.started

    def begin(self, state: TrainState) -> None:
        """The loop begins: the time before a resume counts as the checkpoint says."""
        if state.spent is not None:
            self.spent_before = state.spent
            self._set_next_plan()

    def _set_next_plan(self) -> None:
        spent = self.spent()
        self.next_plan = spent + REPLAN_SHARE * (self.seconds - spent)

    def add_step(self, began: float, ended: float) -> None:
        """A step is done."""
        if self._last is not None:
            before, before_ended = self._last
            self.steps.append((before_ended if self._pausing else began) - before)
            if self._pausing == "evaluation" and self.planned_step:
                self.pauses.append((began - before_ended) / self.planned_step)
        self._last, self._pausing = (began, ended), ""

    def plan_is_due(self, state: TrainState, save_seconds: float) -> bool:
        """Whether this step should have a checkpoint, to plan before it."""
        if state.spent is None or state.is_finished or not self.knows_enough:
            return False
        options = self.config.evaluation
        if self.config.machine.device != "cpu" and state.step % options.log_interval:
            return False  # only then is the loss checked
        spent, least = self.spent(), max(LEAST_SECONDS, SAVES_APART * save_seconds)
        return spent >= self.next_plan and REPLAN_SHARE * (self.seconds - spent) >= least

    def before_save(self, state: TrainState, picture: Picture) -> None:
        """A checkpoint follows, perhaps with an evaluation.

        Drawing happens at some evaluations only, and takes long the first time: it counts apart.
        """
        drawn = picture.all_seconds - self._drawn
        if drawn and self.pauses and self.planned_step:
            self.pauses[-1] -= drawn / self.planned_step
            if picture.seconds is not None:
                self.drawing = picture.seconds / self.planned_step
        self._drawn = picture.all_seconds
        is_evaluated = evaluation_is_due(self.config, state)
        self._pausing = "evaluation" if is_evaluated else "checkpoint"

    def times(self, save_seconds: float) -> Times:
        """What was measured; an evaluation that was not is as long as its FLOPs say."""
        step = self.step_seconds()
        save = save_seconds or saving_seconds(self.config)
        if self.pauses:
            pause = statistics.median(self.pauses) * step
        else:
            weights = 2 if self.config.optimizer.ema_decay else 1
            steps = weights * self.config.evaluation.eval_tokens / self.config.tokens_per_step
            pause = save + steps * self.config.forward_share * step
        drawing = PLOT_SECONDS if self.drawing is None else self.drawing * step
        return Times(self.seconds - self.spent(), step, pause, save, drawing)

    def step_seconds(self) -> float:
        """The mean time of a step, in which none counts more than some times the median.

        Taken over log_interval steps each, because a device is waited for that often only.
        """
        together = self.config.evaluation.log_interval
        if len(self.steps) < 3 * together:
            together = 1 if self.config.machine.device == "cpu" else len(self.steps)
        rounds = range(0, len(self.steps) - together + 1, together)
        means = [math.fsum(self.steps[i : i + together]) / together for i in rounds]
        most = OUTLIER * statistics.median(means)
        return max(1e-9, math.fsum(min(mean, most) for mean in means) / len(means))

    def planned(self, times: Times) -> None:
        """A plan was made: the next one rests on what comes now."""
        self.planned_step = times.step
        self.steps.clear()
        self._set_next_plan()


def plan_again(setup: Setup, state: TrainState, observers) -> None:
    """Before a checkpoint is written: move the end so that a budget in minutes is kept.

    All processes call it; the first one decides. Without a budget, nothing happens.
    """
    config, clock, budget = setup.config, observers.clock, observers.clock.budget
    if state.spent is None or config.batch.minutes is None:
        return
    budget.before_save(state, observers.picture)

    def decide() -> tuple[float, int, Times | None]:
        spent, end = budget.spent(), state.end
        if state.is_finished or not budget.knows_enough:
            return spent, end, None
        times = budget.times(clock.save_seconds)
        fits = steps_that_fit(config, state.step, times)
        return spent, fits if abs(fits - end) > LEAST_MOVE * end else end, times

    state.spent, end, times = setup.parallel.from_first(decide)
    if times is None:
        return
    budget.planned(times)
    if end != state.end:
        is_set = setup.overrides.values.get("lr_decay_iters") is not None
        planned = None if is_set else config.schedule.lr_decay_iters
        state.move_end(end, planned)
        seconds = {"seconds_left": times.left, "step_seconds": times.step}
        rounded = {name: round(value, 6) for name, value in seconds.items()}
        rounded["pause_seconds"] = round(times.pause, 6)
        observers.metrics.end_moved(state.step, end, planned, rounded)
