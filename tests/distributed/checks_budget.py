"""A budget in minutes: the first process decides, and all end at the step that it says."""

import time
from unittest.mock import patch

from gptlab.checkpoints import read_checkpoint
from gptlab.runs import Run
from gptlab.training import loop, starting
from gptlab.training.resolving import Measurements


def check_processes_of_other_speeds_move_the_end_alike(world):
    """Measured at 6 s a step, the first one then takes 3 s by its clock, and the next one 6 s."""
    train_step, real, steps = loop.train_step, time.perf_counter, []

    def step(setup, state):
        steps.append(3.0 * (world.rank + 1))
        return train_step(setup, state)

    with (
        patch.object(time, "perf_counter", lambda: real() + sum(steps)),
        patch.object(loop, "train_step", step),
        patch.object(starting, "measure", lambda *_, **__: Measurements(2.0, 6.0, 1e-6, 0.01)),
    ):
        outcome = world.train("run", max_iters=None, eval_interval=None, minutes=2)
    assert outcome.step == len(steps)
    moves = [r["planned"] for r in Run(world.folder / "run").records() if "planned" in r]
    assert moves[-1]["end"] == len(steps) > 1.5 * moves[0]["schedule"]
    stored = read_checkpoint(world.folder / "run" / "ckpt.pt")
    assert stored["decided"]["max_iters"] == stored["stretch"][2] == len(steps)


check_processes_of_other_speeds_move_the_end_alike.sizes = (2,)
