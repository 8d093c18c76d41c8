"""`python gpt.py sweep`: try many settings of a recipe and measure the best few afresh."""

import dataclasses
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.started import STARTED
from gptlab.cli.ui.console import leading_words, make_console, make_table, print_table
from gptlab.errors import ConfigError
from gptlab.files import atomic_write, display, out_home, quoted, runnable
from gptlab.options import format_value

DEFAULT_TRIALS, MOST_TRIALS = 16, 1000
BESIDE_STEPS = 1.3  # of a run's time: its evaluations, checkpoints and start beside its steps


@dataclass(frozen=True)
class SweepOptions:
    """Sweep."""

    sampler: Annotated[
        Literal["auto", "grid", "random", "tpe", "gp", "cmaes"],
        "how settings are chosen; the last three are Optuna's (pip install optuna); auto = the "
        "whole grid where every option names its values, else random",
    ] = "auto"
    trials: Annotated[int | None, "number of settings [the grid, or as fit in --hours, or 16]"] = (
        None
    )
    hours: Annotated[float, "as many settings as fit in this time, fresh runs included"] = 0.0
    halving: Annotated[
        int,
        "after each rung, 1 of this many trials continues, for this many times as long; 1 = off",
    ] = 3
    best: Annotated[int, "trials that are compared with the recipe in the end"] = 3
    seeds: Annotated[int, "fresh seeds of that comparison"] = 3
    out_dir: Annotated[str | None, "the folder of results and runs [out/sweep/RECIPE]"] = None
    json: Annotated[bool, "print the result as JSON"] = False


def main(argv: list[str]) -> int:
    """Sweep; the exit code: 0, or 128 + the signal that stopped it."""
    words, rest = leading_words(argv)
    texts, rest = _swept(rest)
    options = SweepOptions(**COMMANDS["sweep"].parse(rest))
    _check(words, texts, options)
    say = (lambda line: print(line, file=sys.stderr)) if options.json else print
    sweep = _open(words[0], texts, options)
    try:
        finished = _search(sweep, options, say) and _train_fresh(sweep, options, say)
    except KeyboardInterrupt:
        finished = False
    if not finished:
        again = runnable(" ".join(map(quoted, ["python", "gpt.py", "sweep", *argv])))
        print(f"Stopped; nothing is lost. {again} continues.", file=sys.stderr)
        return 130
    return _show(sweep, options, say)


def _swept(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """({option of train.py: its values}, the other words)."""
    from gptlab.options import unknown_option
    from gptlab.training.config import OPTIONS

    own = {"help", *(field.name for field in dataclasses.fields(SweepOptions))}
    found: dict[str, str] = {}
    rest, words = [], list(words)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not word.startswith("--") or name in own:
            rest.append(word)
            continue
        if name not in OPTIONS:
            raise unknown_option(f"--{name}", name, {*own, *OPTIONS})
        if not equals and not words:
            raise ConfigError(f"{word} has no values", "write them as 3e-3,7e-3 or 3..6")
        if name in found:
            raise ConfigError(f"--{name} is given twice", "put all its values in one list")
        found[name] = value if equals else words.pop(0)
    return found, rest


def _check(words: list[str], texts: dict[str, str], options: SweepOptions) -> None:
    if len(words) != 1:
        raise ConfigError(
            f"sweep takes one recipe or run, not {len(words)}", "name it first, then its options"
        )
    if not texts:
        raise ConfigError(
            "sweep needs an option to vary", "name its values: --learning_rate 3e-3,7e-3"
        )
    least = {"trials": 2, "halving": 1, "best": 1, "seeds": 2}
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and value < low:
            raise ConfigError(f"{name} is {value}", f"it must be at least {low}")
    if options.hours < 0:
        raise ConfigError(f"hours is {options.hours:g}", "it must be above 0")
    if options.hours and options.trials:
        raise ConfigError("trials and hours both say how much is tried", "use one of the two")


def _open(word: str, texts: dict[str, str], options: SweepOptions):
    """The sweep in its folder; without --out_dir the first that is free or its own."""
    from gptlab.analysis.sweep import SearchPlan, Sweep, read_axis
    from gptlab.training.named_config import open_config

    recipe = open_config(word)
    axes = tuple(read_axis(name, text) for name, text in texts.items())
    plan = SearchPlan(recipe.overrides, recipe.name, axes, "", 0, options.halving, options.best)
    sampler = options.sampler
    if sampler == "auto":
        sampler = "grid" if plan.points is not None and plan.points <= MOST_TRIALS else "random"
    if sampler == "grid" and plan.points is None:
        ranges = ", ".join(axis.name for axis in axes if not axis.choices)
        raise ConfigError(
            f"A grid needs values, and {ranges} takes any number of a range",
            "name some (3e-3,7e-3), or use --sampler random",
        )
    trials = options.trials or (plan.points if sampler == "grid" else DEFAULT_TRIALS)
    if options.hours:
        trials = MOST_TRIALS
    if plan.points is not None:
        trials = min(trials, plan.points)
    plan = dataclasses.replace(plan, sampler=sampler, trials=trials)
    number, stem = 1, Path(recipe.name).stem
    while True:
        name = stem if number == 1 else f"{stem}-{number}"
        folder = Path(options.out_dir).expanduser() if options.out_dir else None
        sweep = Sweep(folder or out_home() / "sweep" / name, plan)
        if options.out_dir or sweep.belongs_here():
            break
        number += 1
    sweep.open()
    return sweep


# Searching ----------------------------------------------------------------------------------------


def _search(sweep, options: SweepOptions, say) -> bool:
    """Train the trials; False where a signal stopped it."""
    shows_bar = sys.stderr.isatty()

    def begin(number: int, rung: int, values: dict) -> None:
        shown = ", ".join(f"{name} {format_value(value)}" for name, value in values.items())
        rungs = sweep.rungs()
        print(
            f"Trial {number} of {sweep.plan.trials}, to step {rungs[rung]:,} of {rungs[-1]:,}: "
            f"{shown}",
            file=sys.stderr,
            flush=True,
        )

    if options.hours:
        whole = sweep.plan
        sweep.plan = dataclasses.replace(whole, trials=1)  # the first tells how fast the machine is
        if not sweep.run(begin, lambda: sweep.result(0, 0) is not None, shows_bar):
            return False
        sweep.plan = dataclasses.replace(whole, trials=_that_fit(sweep, whole, options))
    for line in _opening(sweep, options):
        say(line)
    deadline = STARTED + 3600 * options.hours - _fresh_seconds(sweep, options)
    return sweep.run(
        begin, lambda: bool(options.hours) and time.perf_counter() > deadline, shows_bar
    )


def _run_seconds(sweep) -> float:
    """About how long a run of the recipe's length takes here, by the first trial's speed."""
    speed = (sweep.result(0, 0) or {}).get("tokens_per_second")
    config = sweep.base.config
    tokens = config.batch.max_iters * config.tokens_per_step
    return BESIDE_STEPS * tokens / speed if speed else 0.0


def _fresh_seconds(sweep, options: SweepOptions) -> float:
    return (1 + options.best) * options.seeds * _run_seconds(sweep)


def _that_fit(sweep, whole, options: SweepOptions) -> int:
    """As many trials as fit in --hours, at least as many as are compared in the end."""
    left = 3600 * options.hours - _fresh_seconds(sweep, options)
    count = 2
    for trials in range(2, whole.trials + 1):
        sweep.plan = dataclasses.replace(whole, trials=trials)
        if sweep.share() * _run_seconds(sweep) > left:
            break
        count = trials
    return max(count, min(options.best, whole.trials))


def _opening(sweep, options: SweepOptions) -> list[str]:
    """What is about to be tried, and by which rules."""
    plan, rungs = sweep.plan, sweep.rungs()
    how = f"grid of {plan.points}" if plan.sampler == "grid" else plan.sampler
    lines = [
        f"{plan.trials} trials of {plan.label} over {', '.join(a.name for a in plan.axes)} "
        f"({how}), into {display(sweep.folder)}."
    ]
    counts = [sweep.survivors(rung) for rung in range(len(rungs))]
    if len(rungs) > 1:
        shown = ", ".join(f"{n} to step {s:,}" for n, s in zip(counts, rungs, strict=True))
        lines.append(f"Halving: {shown}; the rest stops.")
    lines.append(
        f"Then the recipe and the best {min(options.best, counts[-1])} with {options.seeds} fresh "
        f"seeds: about {sweep.share() + (1 + options.best) * options.seeds:.0f} trainings in all."
    )
    return lines


# The best, afresh ---------------------------------------------------------------------------------


def _fresh(sweep, options: SweepOptions):
    """(the comparison of the recipe with the best trials, their lines)."""
    from gptlab.analysis.paired_runs import PairedRuns

    for rung in reversed(range(len(sweep.rungs()))):
        if lines := sweep.best(rung, options.best):
            break
    else:
        raise ConfigError(
            "No trial trained to the end of a rung",
            f"{display(sweep.ledger.path)} says why; choose other values",
        )
    arms = [sweep.base, *(sweep.arm(line["trial"], line["values"]) for line in lines)]
    names = "-".join(arm.name for arm in arms[1:])
    runs = PairedRuns(sweep.folder / "fresh" / names, arms)
    runs.open()
    return runs, lines


def _fresh_seeds(sweep, options: SweepOptions) -> list[int]:
    return [sweep.base.config.run.seed + 1 + i for i in range(options.seeds)]


def _train_fresh(sweep, options: SweepOptions, say) -> bool:
    runs, _ = _fresh(sweep, options)

    def begin(arm, seed: int) -> None:
        what = "the recipe" if arm is runs.arms[0] else f"trial {arm.name[1:]}"
        print(f"Training {what} with fresh seed {seed}", file=sys.stderr, flush=True)

    seeds = _fresh_seeds(sweep, options)
    return all(runs.train(seed, begin, shows_bar=sys.stderr.isatty()) for seed in seeds)


def _show(sweep, options: SweepOptions, say) -> int:
    """Print what the fresh seeds say, write the winner's recipe; the exit code."""
    from gptlab.analysis.statistics import LEVEL, paired_interval
    from gptlab.analysis.sweep import recipe_text
    from gptlab.analysis.verdict import pairs_of

    runs, lines = _fresh(sweep, options)
    seeds = _fresh_seeds(sweep, options)
    rows = []
    for arm, line in zip(runs.arms[1:], lines, strict=True):
        pairs = [p for p in pairs_of(runs, seeds, arm) if not {"diverged"} & {*p.a, *p.b}]
        if len(pairs) >= 2:
            # all intervals hold together: the level is shared (Bonferroni)
            found = paired_interval([p.difference() for p in pairs], LEVEL / len(lines))
            mean = math.fsum(p.b["loss"] for p in pairs) / len(pairs)
            rows.append((mean, arm, line, found))
    if not rows:
        raise ConfigError("The best trials diverged with fresh seeds", "choose other values")
    rows.sort(key=lambda row: row[0])
    mean, winner, line, found = rows[0]
    words = (
        f"{winner.label}: loss {mean:.4f} with {found.n} fresh seeds, "
        f"{found.mean:+.4f} beside the recipe ({found.low:+.4f} to {found.high:+.4f})"
    )
    tried = sum(1 for n in sweep.ledger.lines() if n["rung"] == 0)
    comment = [
        f"The best of {tried} trials of {sweep.plan.label} ({sweep.plan.sampler}).",
        "Tried: " + "; ".join(_axis_in_words(axis) for axis in sweep.plan.axes) + ".",
        f"The winner, {words}.",
    ]
    path = sweep.folder / "best.py"
    with atomic_write(path, "w") as file:
        file.write(recipe_text(sweep, line["values"], comment))
    better = found.high < 0
    following = runnable(
        f"python train.py --config {quoted(display(path) if better else sweep.plan.label)}"
    )
    if options.json:
        content = {
            "trials": tried,
            "winner": {"trial": line["trial"], "values": line["values"], "loss": mean},
            "is_better": better,
            "fresh": [_as_json(row) for row in rows],
            "recipe": display(path),
            "next": following,
        }
        print(json.dumps(content, indent=2))
        return 0
    _print_rows(rows, found.n)
    say(f"Best: {words}.")
    flat = sweep.base.config.flat()
    if all(flat[name] == value for name, value in line["values"].items()):
        say("These are the recipe's own settings: keep it.")
    elif better:
        say("Use it: it predicts new text better than the recipe as it was.")
    else:
        say("No setting here is clearly better than the recipe as it was.")
    say(f"Wrote {display(path)}.")
    say(f"Next: {following}")
    return 0


def _axis_in_words(axis) -> str:
    shown = ", ".join(map(str, axis.choices)) or f"{axis.low:g} to {axis.high:g}"
    return f"{axis.name} {shown}"


def _as_json(row) -> dict:
    mean, _, line, found = row
    difference = {"mean": found.mean, "low": found.low, "high": found.high, "seeds": found.n}
    return {
        "trial": line["trial"],
        "values": line["values"],
        "loss": mean,
        "difference": difference,
    }


def _print_rows(rows: list, seeds: int) -> None:
    numbers = ("trial", "in the sweep", "fresh", "beside the recipe")
    table = make_table("settings", *numbers, "95% for all", numbers=numbers)
    for mean, arm, line, found in rows:
        words = f"{found.low:+.4f} to {found.high:+.4f}"
        trial = str(line["trial"])
        table.add_row(arm.label, trial, f"{line['loss']:.4f}", f"{mean:.4f}", f"{found.mean:+.4f}",
                      words)  # fmt: skip
    title = f"The best trials again, {seeds} fresh seeds; below 0 is better than the recipe"
    print_table(make_console(), title, table)
