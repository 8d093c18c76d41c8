"""Try many settings of a recipe, halve them by tokens, and measure the best few afresh.

    sweep.json     the recipe, the space and how it is searched; written first
    trials.jsonl   one line for each trial and rung
    study.db       of Optuna's samplers: what they know, shared by all processes
    trial.7/       an ordinary run directory; it goes on from rung to rung
    fresh/         the recipe and the best trials with seeds that no trial had (paired_runs.py)
    best.py        the winner as a recipe

Successive halving (Jamieson & Talwalkar 2016): all trials train for a few tokens, the best third
for three times as many, and so on to the recipe's length, under the schedule of that length. The
best of many is partly luck, so nothing is concluded from the trials: the fresh seeds decide.
"""

import dataclasses
import itertools
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlab.analysis.measured_run import train_and_measure
from gptlab.analysis.paired_runs import Arm, Ledger, make_arm
from gptlab.errors import ConfigError, RunError
from gptlab.files import FORMAT_VERSIONS, display, read_json, write_json
from gptlab.options import coerce, format_value
from gptlab.runs import Run
from gptlab.training.config import LENGTHS, OPTIONS, START_OPTIONS, Overrides, layer

FEWEST_STEPS, MOST_RUNGS = 20, 3  # of the first rung; of a sweep
MOST_LISTED = 10_000
OPTUNA = {"tpe": "TPESampler", "gp": "GPSampler", "cmaes": "CmaEsSampler"}


@dataclass(frozen=True)
class Axis:
    """An option that is varied: over `choices`, or between low and high on a logarithmic scale."""

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0

    def draw(self, source: random.Random) -> Any:
        """A value at random."""
        if self.choices:
            return source.choice(self.choices)
        return float(f"{self.low * (self.high / self.low) ** source.random():.3g}")

    def suggest(self, trial) -> Any:
        """The value that Optuna proposes."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        return trial.suggest_float(self.name, self.low, self.high, log=True)


def read_axis(name: str, text: str) -> Axis:
    """`3e-3,7e-3`, `3..6` (each whole number) or `1e-3..1e-2` (any number). Raises ConfigError."""
    option = OPTIONS[name]
    if name in LENGTHS or name in START_OPTIONS or name in ("seed", "dataset"):
        raise ConfigError(f"{name} cannot be swept", "it must be the same for all trials")
    low, dots, high = text.partition("..")
    if dots and option.type in (int, float):
        ends = coerce(option, low), coerce(option, high)
        if not ends[0] < ends[1]:
            raise ConfigError(f"{name} {text} is empty", "write the smaller number first")
        if option.type is int:
            if ends[1] - ends[0] >= MOST_LISTED:
                raise ConfigError(f"{name} {text} has too many values", "name some of them")
            return Axis(name, tuple(range(ends[0], ends[1] + 1)))
        if ends[0] <= 0:
            raise ConfigError(
                f"{name} {text} begins at {ends[0]:g}, and its scale is logarithmic",
                "begin above 0, or name the values",
            )
        return Axis(name, low=ends[0], high=ends[1])
    choices = tuple(coerce(option, word) for word in text.split(",") if word.strip())
    if len(set(choices)) < 2:
        raise ConfigError(f"{name} {text} is one value", f"write {name} = {text} in the recipe")
    return Axis(name, tuple(dict.fromkeys(choices)))


@dataclass(frozen=True)
class SearchPlan:
    """What a sweep does. trials: how many. halving: the factor between rungs; 1 = no halving.

    best: how many reach the whole length at least, because they are compared in the end.
    """

    recipe: Overrides
    label: str
    axes: tuple[Axis, ...]
    sampler: str
    trials: int
    halving: int = 3
    best: int = 1

    @property
    def points(self) -> int | None:
        """The number of points of the space; None where an option takes any number."""
        sizes = [len(axis.choices) for axis in self.axes]
        return math.prod(sizes) if all(sizes) else None

    def identity(self) -> dict:
        """What decides the trials, for sweep.json; more trials of the same sweep are the same."""
        axes = [dataclasses.asdict(axis) for axis in self.axes]
        known = {"values": self.recipe.values, "axes": axes, "sampler": self.sampler}
        return json.loads(json.dumps({**known, "halving": self.halving}))


class Sweep:
    """The trials of a sweep in one folder. Raises RunError where it holds another one."""

    def __init__(self, folder: Path, plan: SearchPlan):
        self.folder, self.plan = Path(folder), plan
        self.base = make_arm("A", plan.label, plan.recipe)
        self.ledger = Ledger(self.folder / "trials.jsonl")

    def belongs_here(self) -> bool:
        """Whether the folder is free, or holds this very sweep."""
        path = self.folder / "sweep.json"
        if not path.exists():
            return not self.folder.exists() or not any(self.folder.iterdir())
        return read_json(path).get("plan") == self.plan.identity()

    def open(self) -> None:
        """Make the folder, or go on in it."""
        if not self.belongs_here():
            raise RunError(
                f"{display(self.folder)} holds another sweep", "choose another --out_dir"
            )
        if not (self.folder / "sweep.json").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            version = {"format_version": FORMAT_VERSIONS["sweep"]}
            write_json(self.folder / "sweep.json", version | {"plan": self.plan.identity()})

    # Lengths --------------------------------------------------------------------------------------

    def rungs(self) -> list[int]:
        """The steps of the recipe at the end of each rung; the last is its whole length."""
        steps, factor = self.base.config.batch.max_iters, self.plan.halving
        found = [steps]
        while factor > 1 and found[0] // factor >= FEWEST_STEPS and len(found) < MOST_RUNGS:
            found.insert(0, found[0] // factor)
        return found

    def survivors(self, rung: int) -> int:
        """How many trials train in a rung."""
        plan = self.plan
        return min(plan.trials, max(plan.best, plan.trials // plan.halving**rung))

    def share(self) -> float:
        """The whole sweep's tokens, in trainings of the recipe's length."""
        rungs, total, before = self.rungs(), 0.0, 0
        for rung, steps in enumerate(rungs):
            total += self.survivors(rung) * (steps - before) / rungs[-1]
            before = steps
        return total

    # Trials ---------------------------------------------------------------------------------------

    def arm(self, number: int, values: dict) -> Arm:
        """A trial as a side of a comparison: as many tokens as the recipe, its own settings."""
        tokens = self.base.config.batch.max_iters * self.base.config.tokens_per_step
        label = ", ".join(f"{name}={format_value(value)}" for name, value in values.items())
        merged = layer(self.plan.recipe.values, values, self.plan.label)
        probe = make_arm(f"T{number}", label, merged)
        steps = max(1, round(tokens / probe.config.tokens_per_step))
        return make_arm(f"T{number}", label, layer(merged.values, {"max_iters": steps}, "sweep"))

    def result(self, number: int, rung: int) -> dict | None:
        """The line of a trial at a rung; None where it has none yet."""
        found = [n for n in self.ledger.lines() if (n["trial"], n["rung"]) == (number, rung)]
        return found[0] if found else None

    def train(self, number: int, values: dict, rung: int, shows_bar: bool) -> dict | None:
        """Train a trial to the end of a rung; None: a signal stopped it. Raises a GPTLabError."""
        try:
            arm = self.arm(number, values)
        except ConfigError as error:  # such as heads that do not divide the width
            found: dict | None = {"refused": str(error)}
        else:
            config, rungs = arm.config, self.rungs()
            steps = max(1, round(config.batch.max_iters * rungs[rung] / rungs[-1]))
            whole = {n: config.flat()[n] for n in ("warmup_iters", "lr_decay_iters", "min_lr")}
            options = {**arm.overrides.values, **whole, "max_iters": steps}
            options["seed"] = self.base.config.run.seed
            sources = {n: arm.overrides.sources.get(n, "sweep") for n in options}
            folder = str(self.folder / f"trial.{number}")
            found = train_and_measure(options, sources, folder, shows_bar=shows_bar)
        if found is not None:
            found = {"trial": number, "rung": rung, "values": values, **found}
            self.ledger.add(found)
        return found

    def is_taken(self, number: int) -> bool:
        """Whether another process trains this trial."""
        return Run(self.folder / f"trial.{number}").is_running()

    def best(self, rung: int, count: int) -> list[dict]:
        """The lines of the best trials of a rung, the best first."""
        lines = [line for line in self.ledger.lines() if line["rung"] == rung and "loss" in line]
        unique = {line["trial"]: line for line in reversed(lines)}
        return sorted(unique.values(), key=lambda line: (line["loss"], line["trial"]))[:count]

    def run(
        self, begin: Callable[[int, int, dict], object], must_stop: Callable[[], bool], bar: bool
    ) -> bool:
        """Train what is missing, rung by rung; False where a signal stopped it.

        begin(trial, rung, values) is called before each; where must_stop() no other begins.
        """
        proposals = OptunaStudy(self) if self.plan.sampler in OPTUNA else Listed(self)
        for rung in range(len(self.rungs())):
            if rung == 0:
                source = proposals.trials()
            else:
                lines = self.best(rung - 1, self.survivors(rung))
                source = ((line["trial"], line["values"]) for line in lines)
            waiting = []
            for number, values in source:
                if must_stop():
                    return True
                if self.result(number, rung) is None and self.is_taken(number):
                    waiting.append((number, values))
                    continue
                if not self._train_once(number, values, rung, begin, bar, proposals):
                    return False
            for number, values in waiting:  # what another process left, or has done by now
                if not self._train_once(number, values, rung, begin, bar, proposals):
                    return False
        return True

    def _train_once(self, number, values, rung, begin, bar, proposals) -> bool:
        """Train a trial in a rung, or wait for the process that does; False: a signal came."""
        while (found := self.result(number, rung)) is None:
            if self.is_taken(number):
                time.sleep(0.5)
                continue
            begin(number, rung, values)
            try:
                found = self.train(number, values, rung, bar)
                break
            except RunError:  # another process was faster
                if not self.is_taken(number) and self.result(number, rung) is None:
                    raise
        if found is not None and rung == 0:
            proposals.tell(number, found.get("loss"))
        return found is not None


# Proposals ----------------------------------------------------------------------------------------


class Listed:
    """A grid in a fixed random order, or random settings: a pure function of the plan."""

    def __init__(self, sweep: Sweep):
        self.plan, self.seed = sweep.plan, sweep.base.config.run.seed

    def trials(self):
        """(number, values) of each trial."""
        source = random.Random(self.seed)
        axes = self.plan.axes
        if self.plan.sampler == "grid":
            points = list(itertools.product(*(axis.choices for axis in axes)))
            source.shuffle(points)  # whatever the time allows is spread over the grid
        else:
            points, wanted = {}, min(self.plan.trials, self.plan.points or self.plan.trials)
            while len(points) < wanted:  # a dict: each point once, in the order of drawing
                points[tuple(axis.draw(source) for axis in axes)] = None
        for number, point in enumerate(itertools.islice(points, self.plan.trials)):
            yield number, {axis.name: value for axis, value in zip(axes, point, strict=True)}

    def tell(self, number: int, loss: float | None) -> None:
        """Nothing: these do not learn."""


class OptunaStudy:
    """Optuna's samplers, with a study in SQLite that several processes share."""

    def __init__(self, sweep: Sweep):
        try:
            import optuna
        except ModuleNotFoundError:
            raise ConfigError(
                f"The sampler {sweep.plan.sampler} is Optuna's, which is not installed",
                "pip install optuna, or use --sampler random",
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep, self.states = sweep, optuna.trial.TrialState
        self.study = optuna.create_study(
            study_name="sweep",
            storage=f"sqlite:///{(sweep.folder / 'study.db').resolve()}",
            sampler=getattr(optuna.samplers, OPTUNA[sweep.plan.sampler])(),
            load_if_exists=True,
        )

    def trials(self):
        """(number, values): those that a kill left, new ones, those that other processes asked."""
        seen = set()

        def known():
            for trial in self.study.get_trials(deepcopy=False):
                # one without its values: a kill came in between
                if trial.number not in seen and len(trial.params) == len(self.sweep.plan.axes):
                    seen.add(trial.number)
                    yield trial.number, dict(trial.params)

        yield from known()
        while len(self.study.get_trials(deepcopy=False)) < self.sweep.plan.trials:
            trial = self.study.ask()
            seen.add(trial.number)
            yield trial.number, {axis.name: axis.suggest(trial) for axis in self.sweep.plan.axes}
        yield from known()

    def tell(self, number: int, loss: float | None) -> None:
        """The loss of a trial at the end of the first rung; None: it failed."""
        if self.study.get_trials(deepcopy=False)[number].state.is_finished():
            return
        if loss is None or not math.isfinite(loss):
            self.study.tell(number, state=self.states.FAIL)
        else:
            self.study.tell(number, loss)


# The winner ---------------------------------------------------------------------------------------


def recipe_text(sweep: Sweep, values: dict, comment: list[str]) -> str:
    """A trial's settings as a recipe, with what was tried as a comment."""
    config = sweep.arm(0, values).config
    merged = layer(sweep.plan.recipe.values, values).values
    kept = {name: value for name, value in merged.items() if name not in (*LENGTHS, "model_preset")}
    lines = [f"# {line}".rstrip() for line in comment] + [""]
    for name, value in (kept | {"max_iters": config.batch.max_iters}).items():
        if name not in START_OPTIONS:
            lines.append(f"{name} = {value!r}" + ("  # swept" if name in values else ""))
    return "\n".join(lines) + "\n"
