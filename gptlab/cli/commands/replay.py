"""`python gpt.py replay`: repeat the first steps of a run and compare them bit by bit."""

import itertools
from dataclasses import dataclass
from typing import Annotated

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.progress import Bars
from gptlab.errors import ConfigError
from gptlab.files import display

SHOWN = 5  # number of tensors, and of changed places per file, to list
CAUSES = {
    "loss": "the weights before it are equal, so the text or the forward pass differs",
    "grad_norm": "its loss is equal, so the backward pass differs",
    "weights": "its loss and gradient norm are equal, so the update or single gradients differ",
}


@dataclass(frozen=True)
class ReplayOptions:
    """Replay"""

    steps: Annotated[int, "number of steps, at most the 50 that a run records"] = 50


def main(argv: list[str]) -> int:
    """Replay a run and print the result; 1 when it differs."""
    overrides = COMMANDS["replay"].parse(argv)
    steps = overrides.get("steps", ReplayOptions.steps)
    if steps < 1:
        raise ConfigError(f"--steps is {steps}", "it must be at least 1")
    from gptlab.runs import find_run, newest_run

    folder = find_run(overrides["run"]) if "run" in overrides else newest_run()
    from gptlab.analysis.replay import replay

    with Bars(unit="step") as bars:
        # the record of step 0 has the initial weights
        result = replay(
            folder, steps, lambda step: bars.progress("replaying", 1 if step else 0, steps)
        )
    print("\n".join(_in_words(result, display(folder))))
    return 1 if result.difference else 0


def _in_words(result, name: str) -> list[str]:
    """The lines to print."""
    changes = _changes(result)
    if result.difference is None:
        steps = f"The first {result.steps} steps" if result.steps > 1 else "The first step"
        equal = f"{steps} of {name}: bitwise equal"
        rest = (
            "Compared: every loss and gradient norm, and the weights after steps "
            f"{', '.join(map(str, result.digested))}."
        )
        return [f"{equal}, although:", *changes, rest] if changes else [f"{equal}.", rest]
    lines = _difference(result.difference, name)
    if changes:
        return [*lines, "Changed since the run:", *changes]
    why = ""
    if result.device != "cpu":
        why = f", and on {result.device} sums may be added in another order each time"
    return [*lines, f"Nothing that a run records has changed since{why}."]


def _difference(difference, name: str) -> list[str]:
    step, what = difference.step, difference.what
    if what == "weights":
        where = f"the weights after step {step}" if step else "the initial weights"
        cause = CAUSES[what] if step else "the random numbers or the initialisation differ"
        lines = [f"{name} differs first in {where}: {cause}."]
    else:
        before, after = (float.fromhex(v) for v in (difference.before, difference.after))
        words = "loss" if what == "loss" else "gradient norm"
        lines = [f"{name} differs first in the {words} of step {step}: {CAUSES[what]}."]
        lines.append(f"  {words}: {before!r} -> {after!r}")
    if difference.tensors:
        shown = ", ".join(difference.tensors[:SHOWN])
        if len(difference.tensors) > SHOWN:
            shown += f" and {len(difference.tensors) - SHOWN} more"
        lines.append(f"  tensors that differ at step {difference.tensors_step}: {shown}")
        lines[-1] += f" (of {difference.total})"
    return lines


def _changes(result) -> list[str]:
    lines = []
    for what, before, after in result.changes:
        fix = f" (OMP_NUM_THREADS={before} restores them)" if what == "threads" else ""
        lines.append(f"  {what}: {before} -> {after}{fix}")
    by_file = itertools.groupby(sorted(result.code, key=_by_package), lambda place: place.path)
    for path, places in by_file:
        lines += _code_lines(path, list(places), SHOWN if result.difference else 1)
    lines += [f"  {path}: changed, and its former text is gone" for path in result.unread_code]
    return lines


def _by_package(place) -> tuple:
    """The model first, because users change it most."""
    return not place.path.startswith("gptlab/model/"), place.path, place.line


def _code_lines(path: str, places: list, most: int) -> list[str]:
    lines = []
    for place in places[:most]:
        change = f"`{place.before}` -> `{place.after}`"
        if not place.before or not place.after:
            change = f"added `{place.after}`" if place.after else f"removed `{place.before}`"
        lines.append(f"  {path}:{place.line}: {change}")
    if len(places) > most:
        lines[-1] += f" (and {len(places) - most} more in this file)"
    return lines
