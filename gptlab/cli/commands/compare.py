"""`python gpt.py compare`: train two recipes side by side and say whether they differ."""

import contextlib
import functools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.started import STARTED
from gptlab.cli.ui.console import write_page
from gptlab.cli.ui.verdict_table import print_comparison
from gptlab.errors import ConfigError
from gptlab.files import display, out_home, quoted, runnable
from gptlab.training.units import duration

WAYS = "name A and B, or one recipe with --set name=value or --against REVISION"
SET_HERE = {"seed": "--seeds", "minutes": "--both max_iters=N"}


@dataclass(frozen=True)
class CompareOptions:
    """Comparison."""

    set: Annotated[
        tuple[str, ...], "B is A with this option: name=value; several times for several"
    ] = ()
    both: Annotated[tuple[str, ...], "set this option in A and in B: name=value"] = ()
    against: Annotated[
        str | None, "A is trained by the code of this git revision, B by the code here"
    ] = None
    seeds: Annotated[
        int | Literal["auto"],
        "pairs of runs, judged once, after the last; auto = look after each of 3 to 10 and stop "
        "when it is decided",
    ] = "auto"
    max_minutes: Annotated[float, "begin no run that would end later than this; 0 = no limit"] = 0.0
    smallest: Annotated[float, "the smallest difference that matters, in the unit of the loss"] = (
        0.01
    )
    noise_floor: Annotated[
        bool, "also train A from shuffled initial weights: how far A differs from itself"
    ] = False
    bits_per_byte: Annotated[
        bool, "compare in bits per byte, also recipes of other data or another tokenizer"
    ] = False
    out_dir: Annotated[str | None, "the folder of results and runs [out/compare/NAME]"] = None
    json: Annotated[bool, "print the result as JSON"] = False


def main(argv: list[str]) -> int:
    """Compare; the exit code: 0, or 128 + the signal that stopped it."""
    given = COMMANDS["compare"].parse(argv)
    words = list(given.pop("recipes", ()))
    options = CompareOptions(**given)
    _check(words, options)
    from gptlab.analysis.revisions import checkout, commit_of

    commit = commit_of(options.against) if options.against else ""
    say = functools.partial(print, file=sys.stderr if options.json else sys.stdout)
    arms = _arms(words, options, commit)
    with contextlib.ExitStack() as stack:
        trees = {commit: stack.enter_context(checkout(commit))} if commit else {}
        runs = _open(arms, options, trees)
        for line in _opening(runs, options):
            say(line)
        try:
            stopped = _train(runs, options)
        except KeyboardInterrupt:
            stopped = 130
    if stopped:
        print(f"Stopped; nothing is lost. {runnable(_again(argv))} continues.", file=sys.stderr)
        return stopped
    return _show(runs, options, words, argv, say)


# What is compared ---------------------------------------------------------------------------------


def _check(words: list[str], options: CompareOptions) -> None:
    """ConfigError for a command line that compares nothing, or too much."""
    if not words:
        raise ConfigError("compare needs something to compare", WAYS)
    if len(words) > 2:
        raise ConfigError(f"compare takes two recipes or runs, not {len(words)}", WAYS)
    if len(words) == 2 and (options.set or options.against):
        name = "--set" if options.set else "--against"
        raise ConfigError(f"{name} makes B from A, and B is named already", WAYS)
    if len(words) == 1 and not (options.set or options.against):
        raise ConfigError(f"{words[0]} is alone: there is nothing to compare it with", WAYS)
    if options.seeds != "auto" and options.seeds < 2:
        raise ConfigError(
            f"seeds is {options.seeds}: one pair of runs does not show how much is chance",
            "use 2 or more, or auto",
        )
    if options.noise_floor and options.against:
        raise ConfigError(
            "noise_floor trains A twice with the code here, and --against trains it with other "
            "code",
            "measure it in a comparison without --against",
        )
    for name in ("smallest", "max_minutes"):
        value = getattr(options, name)
        if value < 0 or (name == "smallest" and not value):
            raise ConfigError(f"{name} is {value:g}", "it must be above 0")


def _assigned(words: tuple[str, ...], option: str) -> dict:
    """{name: value} of words like `qk_norm=False`. Raises ConfigError."""
    from gptlab.options import coerce, unknown_option
    from gptlab.training.config import OPTIONS, START_OPTIONS

    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not equals:
            raise ConfigError(f"--{option} {word} sets nothing", "write it as name=value")
        if name not in OPTIONS:
            raise unknown_option(f"{name} in --{option}", name, OPTIONS)
        if name in START_OPTIONS or name in SET_HERE:
            fix = f"use {SET_HERE[name]}" if name in SET_HERE else "leave it out"
            raise ConfigError(f"{name} is set by compare itself", fix)
        if name in found:
            raise ConfigError(f"--{option} sets {name} twice", "say it once")
        found[name] = coerce(OPTIONS[name], value)
    return found


def _arms(words: list[str], options: CompareOptions, commit: str) -> list:
    """The sides: A, B and, for the noise floor, A again. Raises a GPTLabError."""
    from gptlab.analysis.paired_runs import make_arm, with_shuffled
    from gptlab.training.named_config import open_config

    both, changed = _assigned(options.both, "both"), _assigned(options.set, "set")
    if twice := both.keys() & changed.keys():
        raise ConfigError(f"--both and --set both set {min(twice)}", "say it once")
    first = open_config(words[0], both)
    if len(words) == 2:
        other = open_config(words[1], both)
        labels = first.name, other.name
    else:
        other = open_config(words[0], {**both, **changed})
        labels = first.name, ", ".join(options.set) or f"{first.name}, the code here"
        if commit:
            labels = f"{first.name} at {options.against} ({commit[:9]})", labels[1]
    a = make_arm("A", labels[0], first.overrides, commit)
    b = make_arm("B", labels[1], other.overrides)
    _refuse_other_text(a, b, options)
    return [a, b, *([with_shuffled(a)] if options.noise_floor else [])]


def _refuse_other_text(a, b, options: CompareOptions) -> None:
    from gptlab.training.units import TextUnits

    if options.bits_per_byte:
        for arm in (a, b):
            if TextUnits(arm.dataset.meta).tokens_per_byte is None:
                raise ConfigError(
                    f"The bytes of {arm.dataset.name} are not known", "leave --bits_per_byte out"
                )
    elif a.dataset.fingerprint != b.dataset.fingerprint:
        raise ConfigError(
            f"A trains on {a.dataset.name} and B on {b.dataset.name}, whose texts or tokenizers "
            "differ: a loss per token means something else in each",
            "compare on the same data, or ask for --bits_per_byte",
        )


def _open(arms: list, options: CompareOptions, trees: dict):
    """The comparison in its folder; without --out_dir the first that is free or its own."""
    from gptlab.analysis.paired_runs import PairedRuns

    if options.out_dir:
        runs = PairedRuns(Path(options.out_dir).expanduser(), arms, trees)
    else:
        name = _name(arms, options)
        number = 1
        while True:
            runs = PairedRuns(
                out_home() / "compare" / (name if number == 1 else f"{name}-{number}"), arms, trees
            )
            if runs.belongs_here():
                break
            number += 1
    runs.open()
    return runs


def _name(arms: list, options: CompareOptions) -> str:
    """A folder's name that says what is compared."""
    parts = [Path(arms[0].label.split(" at ")[0]).stem]
    if options.against:
        parts.append(f"against {options.against}")
    parts += options.set or (() if options.against else (Path(arms[1].label).stem,))
    kept = "".join(c if c.isalnum() or c in "._=-" else "-" for c in "-".join(parts))
    return kept[:80].strip(".-")


def _opening(runs, options: CompareOptions) -> list[str]:
    """What is about to be compared, and by which rules."""
    from gptlab.analysis.paired_runs import shares_initial_tensors
    from gptlab.model.building import parameter_shapes
    from gptlab.options import format_value
    from gptlab.training.config_diff import differing

    a, b = runs.arms[:2]
    lines = [f"A: {a.label}", f"B: {b.label}"]
    flat = [(arm.config.flat(), {}) for arm in (a, b)]
    differ = [d for d in differing(*flat) if d.name != "eval_interval"]
    if differ:
        shown = "; ".join(f"{d.name} {' -> '.join(map(format_value, d.values))}" for d in differ)
        lines.append(f"B differs from A in {shown}.")
    shapes = [parameter_shapes(arm.config.model) for arm in (a, b)]
    if shares_initial_tensors(a, b) and not a.commit:
        same = sum(shapes[0].get(name) == shape for name, shape in shapes[1].items())
        rest = len(shapes[1]) - same
        own = f"; {rest} of other names or shapes are its own" if rest else ""
        lines.append(f"{same} initial tensors of B are copies of A's{own}.")
    seeds = "3 to 10 seeds" if options.seeds == "auto" else f"{options.seeds} seeds"
    steps = " and ".join(f"{n:,}" for n in dict.fromkeys(x.config.batch.max_iters for x in (a, b)))
    done = len(runs.results())
    lines.append(
        f"{seeds}, runs of {steps} steps, measured on all {a.dataset.val_tokens:,} validation "
        f"tokens, into {display(runs.folder)}" + (f"; {done} of them done." if done else ".")
    )
    return lines


# Training -----------------------------------------------------------------------------------------


def _seeds(runs, options: CompareOptions) -> list[int]:
    from gptlab.analysis.statistics import LAST_LOOK

    first = runs.arms[0].config.run.seed
    return [first + i for i in range(LAST_LOOK if options.seeds == "auto" else options.seeds)]


def _train(runs, options: CompareOptions) -> int:
    """Train until it is decided, or all seeds are done, or the time is up; an exit code."""
    from gptlab.analysis.verdict import UNDECIDED

    seeds, progress = _seeds(runs, options), _Progress(runs, options)
    for done, seed in enumerate(seeds):
        if progress.is_out_of_time():
            break
        if not runs.train(seed, progress.begin, shows_bar=sys.stderr.isatty()):
            return 130
        progress.end()
        if options.seeds == "auto" and _judged(runs, options, done + 1).state != UNDECIDED:
            break
    return 0


class _Progress:
    """Says which run is trained, and knows when the time of --max_minutes is up."""

    def __init__(self, runs, options: CompareOptions):
        self.runs, self.options = runs, options
        self.took: list[float] = []  # seconds of each run of this start
        self.began = 0.0

    def begin(self, arm, seed: int) -> None:
        """A run begins."""
        self.end()
        self.began = time.perf_counter()
        left = ""
        if self.took and self.options.seeds != "auto":
            runs = self.options.seeds * len(self.runs.arms) - len(self.runs.results())
            left = f", about {duration(runs * sum(self.took) / len(self.took))} left"
        print(f"Training {arm.name} with seed {seed}{left}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The run that began has ended."""
        if self.began:
            self.took.append(time.perf_counter() - self.began)
        self.began = 0.0

    def is_out_of_time(self) -> bool:
        """Whether the runs of another seed would end after --max_minutes."""
        if not self.options.max_minutes:
            return False
        next_seed = max(self.took, default=0.0) * len(self.runs.arms)
        now = time.perf_counter() - STARTED
        return now + next_seed > 60 * self.options.max_minutes


def _judged(runs, options: CompareOptions, seeds: int | None = None):
    """The verdict on the first `seeds` seeds, or on all that are there."""
    from gptlab.analysis.verdict import judge_in_turn, judge_once, pairs_of

    named, other = _seeds(runs, options)[:seeds], runs.arms[1]
    known = dict(
        smallest=options.smallest,
        unit="bits per byte" if options.bits_per_byte else "nats per token",
    )
    if options.noise_floor:
        known["floor"] = pairs_of(runs, named, runs.arms[2], options.bits_per_byte)
    pairs = pairs_of(runs, named, other, options.bits_per_byte)
    if options.seeds == "auto":
        return judge_in_turn(pairs, **known)
    return judge_once(pairs, auto=False, **known)


# Showing ------------------------------------------------------------------------------------------


def _show(runs, options: CompareOptions, words: list[str], argv: list[str], say) -> int:
    """Print the verdict, write the page; the exit code."""
    from gptlab.analysis.verdict import as_json, plain_sentence, verdict_line
    from gptlab.reports.paired_page import make_paired_page

    found = _judged(runs, options)
    a, b = (arm.label for arm in runs.arms[:2])
    warnings = _warnings(runs, options, found)
    if options.seeds != "auto" and found.interval and found.interval.n == options.seeds:
        if options.seeds not in runs.judgements():
            runs.ledger.add({"judged": options.seeds})
    following = _next_command(found, runs, options, words, argv)
    page = runs.folder / "report.html"
    html = make_paired_page(found, runs, warnings, following)
    if options.json:
        with contextlib.redirect_stdout(sys.stderr):
            write_page(page, html)
        content = {**as_json(found, a, b), "notes": warnings, "next": runnable(following)}
        print(json.dumps({**content, "folder": display(runs.folder)}, indent=2))
        return 0
    print_comparison(found)
    for line in warnings:
        say(line)
    say(f"Verdict: {verdict_line(found)}.")
    say(plain_sentence(found, a, b))
    say(runnable(f"Next: {following}"))
    write_page(page, html)
    return 0


def _warnings(runs, options: CompareOptions, found) -> list[str]:
    """What the reader must know beside the verdict."""
    lines = []
    for name, seeds in found.diverged.items():
        if seeds:
            shown = ", ".join(map(str, seeds))
            lines.append(f"{name} diverged with seed {shown}: its pairs are left out.")
    before = [n for n in runs.judgements() if n != options.seeds]
    if options.seeds != "auto" and before:
        lines.append(
            f"These runs were judged before, at {', '.join(map(str, before))} seeds: each further "
            "look adds to the 5% of error. --seeds auto counts its looks."
        )
    asked = len(_seeds(runs, options))
    if len(found.pairs) + len({s for lost in found.diverged.values() for s in lost}) < asked and (
        options.seeds != "auto" or found.state == "undecided"
    ):
        lines.append(
            f"Time was up after {len(found.pairs)} of {asked} seeds; the same command continues."
        )
    if found.text and found.interval.excludes_zero and found.text[0] < 0 < found.text[1]:
        lines.append(
            "On another text of this kind the difference may vanish: its interval holds 0."
        )
    return lines


def _next_command(found, runs, options: CompareOptions, words: list[str], argv: list[str]) -> str:
    """The command that follows from the verdict."""
    from gptlab.analysis.statistics import FIRST_LOOK

    if found.state == "undecided":
        if len(found.pairs) < (FIRST_LOOK if options.seeds == "auto" else options.seeds):
            return _again(argv)  # time was up
        wanted = found.more_seeds or 2 * len(_seeds(runs, options))
        kept, skip = [], False
        for word in argv:
            if skip or word.startswith(("--seeds", "--max_minutes", "--max-minutes")):
                skip = not skip and "=" not in word
                continue
            kept.append(word)
        return _again([*kept, "--seeds", str(wanted)])
    if found.state in ("A", "B") and not options.against:
        changed = _assigned(options.both, "both")
        if found.state == "B":
            changed |= _assigned(options.set, "set")
        word = words[-1] if found.state == "B" else words[0]
        if Path(word).is_dir():
            word = display(Path(word) / "config.py")
        extra = [part for name, value in changed.items() for part in (f"--{name}", str(value))]
        return " ".join(map(quoted, ["python", "train.py", "--config", word, *extra]))
    seed = runs.arms[0].config.run.seed
    folders = [display(runs.run_folder(arm, seed)) for arm in runs.arms[:2]]
    return " ".join(map(quoted, ["python", "gpt.py", "report", *folders]))


def _again(argv: list[str]) -> str:
    return " ".join(map(quoted, ["python", "gpt.py", "compare", *argv]))
