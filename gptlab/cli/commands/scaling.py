"""`python gpt.py scaling`: train a ladder of small models and predict larger ones."""

import functools
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.scaling_table import in_powers, print_ladder, print_law
from gptlab.errors import ConfigError, DownloadError
from gptlab.files import as_installed, atomic_write, data_home, display, out_home, quoted, read_json
from gptlab.training.units import duration, in_words

DEFAULT_MINUTES = 30.0
CHECKED = 2  # times the largest point's FLOPs
PLAYS = "plays"


@dataclass(frozen=True)
class ScalingOptions:
    """Scaling."""

    minutes: Annotated[
        float | None, "the time for the ladder [that of the ladder that is there, or 30]"
    ] = None
    dataset: Annotated[
        str | None,
        "name of a prepared dataset [38 plays of Shakespeare, prepared at the first use]",
    ] = None
    seeds: Annotated[int, "runs of each point"] = 1
    for_minutes: Annotated[
        float | None, "say the best model for so many minutes of training on this machine"
    ] = None
    check: Annotated[
        bool,
        "train a predicted model, and say whether its loss lies in the predicted interval: that of "
        "--for_minutes, or that for 2 times the FLOPs of the largest point",
    ] = False
    out_dir: Annotated[str | None, "the folder of results and runs [out/scaling/DATASET]"] = None
    json: Annotated[bool, "print the result as JSON"] = False


def main(argv: list[str]) -> int:
    """Train the ladder, fit the law, predict; the exit code."""
    options = ScalingOptions(**COMMANDS["scaling"].parse(argv))
    _check(options)
    say = functools.partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    ladder = _open(options)
    for line in _opening(ladder, options):
        say(line)
    try:
        if not _climb(ladder):
            return _stopped(argv)
        shown = _Shown(ladder, options, say)
        if options.check and not shown.train_check():
            return _stopped(argv)
    except KeyboardInterrupt:
        return _stopped(argv)
    return shown.show()


def _check(options: ScalingOptions) -> None:
    for name in ("minutes", "for_minutes"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {value:g}", "it must be above 0")
    if options.seeds < 1:
        raise ConfigError(f"seeds is {options.seeds}", "it must be at least 1")


def _stopped(argv: list[str]) -> int:
    again = as_installed(" ".join(map(quoted, ["python", "gpt.py", "scaling", *argv])))
    print(f"Stopped; nothing is lost. {again} continues.", file=sys.stderr)
    return 130


# The ladder ---------------------------------------------------------------------------------------


def _text(word: str | None) -> str:
    """The dataset: the one named, or the plays, else tiny Shakespeare, prepared where it is not."""
    if word is not None:
        return word
    from gptlab.cli.commands.prepare import prepare_sources
    from gptlab.data.prepare_options import PrepareOptions
    from gptlab.data.shakespeare import plays_file
    from gptlab.data.token_shards import has_tokens

    def is_here(name: str) -> bool:
        return has_tokens(data_home() / name)

    if is_here(PLAYS):
        return PLAYS
    try:
        source, name = str(plays_file()), PLAYS
    except DownloadError as error:
        source = name = "shakespeare"
        print(f"{error.problem}: taking the dataset shakespeare instead of the plays.",
              file=sys.stderr)  # fmt: skip
    if not is_here(name):
        from contextlib import redirect_stdout

        with redirect_stdout(sys.stderr):
            prepare_sources([source], PrepareOptions(dataset=name), says_next=False)
    return name


def _open(options: ScalingOptions):
    """The ladder in its folder; without --out_dir the first that is free or its own."""
    from gptlab.analysis.scaling import Ladder

    word, number = _text(options.dataset), 1
    while True:
        name = Path(word).name if number == 1 else f"{Path(word).name}-{number}"
        folder = Path(options.out_dir).expanduser() if options.out_dir else None
        folder = folder or out_home() / "scaling" / name
        minutes = options.minutes or _minutes_of(folder) or DEFAULT_MINUTES
        ladder = Ladder(folder, word, minutes, options.seeds)
        if options.out_dir or ladder.belongs_here():
            break
        number += 1
    ladder.open(lambda line: print(line, file=sys.stderr, flush=True))
    return ladder


def _minutes_of(folder: Path) -> float | None:
    """The time of the ladder in a folder."""
    path = folder / "scaling.json"
    return read_json(path).get("ladder", {}).get("minutes") if path.exists() else None


def _opening(ladder, options: ScalingOptions) -> list[str]:
    """What is about to be trained, and by which rules."""
    from gptlab.analysis.scaling_sizes import BLOCK_SIZE, RATE, RATE_WIDTH, SEQUENCES
    from gptlab.reports.charts import short

    levels = in_words([in_powers(compute) for compute in ladder.levels])
    seconds, done = ladder.planned_seconds(ladder.levels), len(ladder.lines())
    lines = [
        f"A ladder on {ladder.word} ({short(len(ladder.dataset.train))} training tokens): about "
        f"{duration(seconds)}, into {display(ladder.folder)}"
        + (f"; {done} points are there." if done else ".")
    ]
    if seconds < 60 * ladder.minutes / 2:
        lines.append(
            f"It needs no more of its {ladder.minutes:g} minutes: its smallest models read the "
            "text 4 times, and more would be no new text."
        )
    lines.append(
        f"Levels of {levels} FLOPs. Each size: {SEQUENCES} sequences of {BLOCK_SIZE} tokens a "
        f"step; Muon, its rate {RATE:g} at width {RATE_WIDTH} and falling with the root of the "
        "width; linear decay to 0 at the end of each run."
    )
    if options.check:
        seconds = 60 * (options.for_minutes or 0) or ladder.check_seconds(CHECKED)
        lines.append(f"The check at the end takes about {duration(seconds)} more.")
    return lines


def _climb(ladder) -> bool:
    """Train what is missing; False where a signal stopped it."""
    for point, line in ladder.points():
        if line is None:
            _announce(ladder, point, f"Point {len(ladder.lines()) + 1}")
            if not ladder.train(point, shows_bar=sys.stderr.isatty()):
                return False
    return True


def _announce(ladder, point, name: str) -> None:
    from gptlab.reports.charts import short

    own = ladder.seconds(point.size, point.tokens)
    left = max(own, ladder.seconds_left()) if point.level is not None else own
    print(
        f"{name}: {point.size.name}, {short(point.size.parameters)} parameters, "
        f"{point.steps:,} steps; about {duration(left)} left",
        file=sys.stderr,
        flush=True,
    )


# The result ---------------------------------------------------------------------------------------


class _Shown:
    """What a finished ladder says, as tables, sentences, a picture, JSON."""

    def __init__(self, ladder, options: ScalingOptions, say):
        from gptlab.analysis.scaling_verdict import ScalingResult

        self.ladder, self.options, self.say = ladder, options, say
        self.result = ScalingResult(ladder)
        self.best = None
        if options.for_minutes:
            self.best = self.result.best_for_seconds(60 * options.for_minutes)
            if self.best is None:
                raise ConfigError(
                    f"In {options.for_minutes:g} minutes no model takes enough steps",
                    "ask for more --for_minutes",
                )
        self.checked = None
        if options.check:
            compute = CHECKED * self.result.largest
            self.checked = self.best or self.result.best_for_compute(compute)

    def train_check(self) -> bool:
        """Train the predicted model; False where a signal stopped it."""
        point = self.checked.point
        if self.ladder.line(point) is None:
            _announce(self.ladder, point, "The check")
            return self.ladder.train(point, shows_bar=sys.stderr.isatty())
        return True

    def show(self) -> int:
        """Print it all, draw the picture, write the recipe; the exit code."""
        picture = self.ladder.folder / "isoflops.png"
        self._draw(picture)
        recipe = self._recipe() if self.best else None
        following = as_installed(self._next(recipe))
        if self.options.json:
            print(json.dumps(self._as_json(picture, recipe, following), indent=2))
            return 0
        print_ladder(self.result)
        print_law(self.result)
        self.say("L: loss, N: parameters, D: training tokens, C: FLOPs.")
        for line in self._sentences():
            self.say(line)
        self.say(f"Wrote {display(picture)}{f' and {display(recipe)}' if recipe else ''}.")
        self.say(f"Next: {following}")
        return 0

    def _sentences(self) -> list[str]:
        result, lines = self.result, []
        if result.diverged:
            lines.append(f"Diverged and left out: {', '.join(result.diverged)}.")
        lines.append(self._noise())
        power, low, high = result.fits["parameters"].intervals()["power"]
        lines.append(
            f"With 10 times the compute, the best model has {10**power:.1f} times as many "
            f"parameters ({10**low:.1f} to {10**high:.1f}) and reads {10 ** (1 - power):.1f} times "
            "as much text."
        )
        if self.best:
            lines += self._budget()
        if self.checked:
            lines.append(self._verdict())
        return lines

    def _noise(self) -> str:
        (scatter, _), (chance, degrees) = self.result.scatter, self.result.chance
        taken = "the seeds'" if chance > scatter else "the law's"
        return (
            f"Noise of a loss: {scatter:.2%} about the law, {chance:.2%} between seeds "
            f"({degrees} degrees of freedom). The intervals take the larger, {taken}."
        )

    def _budget(self) -> list[str]:
        from gptlab.reports.charts import short

        best, model = self.best, self.best.size.config.model
        lines = [
            f"The best model for {self.options.for_minutes:g} minutes: {model.n_layer} layers of "
            f"width {model.n_embd}, {short(best.size.parameters)} parameters "
            f"(95%: {short(best.smallest)} to {short(best.largest)}), {best.steps:,} steps, "
            f"{best.epochs:.1f} epochs. Its loss: {best.loss:.3f} (95%: {best.low:.3f} to "
            f"{best.high:.3f}).",
        ]
        if best.guess:
            lines.append(f"That is a guess: {best.guess}.")
        return lines

    def _outcome(self) -> dict:
        """The line of the check, and whether it fell into the interval."""
        line, asked = self.ladder.line(self.checked.point), self.checked
        loss = line.get("loss")
        return {
            "point": line["point"],
            "loss": loss,
            "predicted": {"loss": asked.loss, "low": asked.low, "high": asked.high},
            "flops": line["flops"],
            "is_inside": loss is not None and asked.low <= loss <= asked.high,
            "guess": asked.guess,
        }

    def _verdict(self) -> str:
        found, asked = self._outcome(), self.checked
        times = found["flops"] / self.result.largest
        head = f"The check: {asked.size.name}, {times:.2g} times the largest point's FLOPs, "
        if found["loss"] is None:
            return f"{head}diverged: nothing is said about the law."
        head += (
            f"reached {found['loss']:.4f}; predicted {asked.loss:.4f} ({asked.low:.4f} to "
            f"{asked.high:.4f}): "
        )
        if found["is_inside"]:
            return f"{head}inside the 95% interval. Nothing contradicts the law that far."
        off = found["loss"] - asked.loss
        return f"{head}outside, by {off:+.4f} from the middle. The law does not hold that far."

    # Files ----------------------------------------------------------------------------------------

    def _draw(self, path: Path) -> None:
        from gptlab.plots import plot_isoflops

        law, sizes = self.result.fits["parameters"].law, self.ladder.sizes
        groups = []

        def add(compute: float, lines: list[dict], label: str, **more) -> None:
            measured = [line["parameters"] for line in lines]
            shown = [s for s in sizes if min(measured) / 2 < s.parameters < max(measured) * 2]
            curve = [(s.parameters, law.loss(s.parameters, compute / s.flops)) for s in shown]
            points = [(line["parameters"], line["loss"]) for line in lines]
            groups.append({"label": label, "points": points, "curve": curve, **more})

        for lines in self.result.levels():
            compute = math.fsum(line["flops"] for line in lines) / len(lines)
            add(compute, lines, f"{in_powers(compute)} FLOPs")
        line = self.checked and self.ladder.line(self.checked.point)
        if line and "loss" in line:
            add(line["flops"], [line], f"{in_powers(line['flops'])} FLOPs, the check", hollow=True)
        title = f"Losses of equal FLOPs on {self.ladder.dataset.name}; x is the law's best size"
        plot_isoflops(groups, path, title=title)

    def _recipe(self) -> Path:
        """Write the recipe of the best model."""
        best, minutes = self.best, self.options.for_minutes
        path = self.ladder.folder / f"for_{minutes:g}_minutes.py"
        values = {"dataset": self.ladder.word, **best.size.options, "max_iters": best.steps}
        values = {n: v for n, v in values.items() if n not in ("device", "dtype")}
        lines = [
            f"# The best model for {minutes:g} minutes by the ladder in "
            f"{display(self.ladder.folder)}.",
            f"# Predicted loss: {best.loss:.3f} ({best.low:.3f} to {best.high:.3f}, 95%).",
            *([f"# A guess: {best.guess}."] if best.guess else []),
            "",
            *(f"{name} = {value!r}" for name, value in values.items()),
        ]
        with atomic_write(path, "w") as file:
            file.write("\n".join(lines) + "\n")
        return path

    def _next(self, recipe: Path | None) -> str:
        from gptlab.analysis.scaling_verdict import FARTHEST

        ladder = self.ladder
        if self.checked:
            folder = ladder.folder / self.checked.point.key
            return f"python gpt.py report {quoted(display(folder))}"
        if recipe:
            return f"python train.py --config {quoted(display(recipe))}"
        words = ["python", "gpt.py", "scaling"]
        if self.options.dataset:
            words += ["--dataset", self.options.dataset]
        if self.options.out_dir:
            words += ["--out_dir", self.options.out_dir]
        farthest = self.result.best_for_compute(FARTHEST * self.result.largest)
        minutes = max(1, int(farthest.seconds / 60))  # the longest that is no guess
        return " ".join(map(quoted, [*words, "--for_minutes", str(minutes)]))

    def _as_json(self, picture: Path, recipe: Path | None, following: str) -> dict:
        result, best = self.result, self.best
        content = {
            "dataset": self.ladder.word,
            "points": result.lines,
            "diverged": result.diverged,
            "law": {kind: fitted.intervals() for kind, fitted in result.fits.items()},
            "noise": {"about_the_law": result.scatter[0], "between_seeds": result.chance[0]},
            "picture": display(picture),
        }
        if best:
            content["best"] = {
                "minutes": self.options.for_minutes,
                "options": best.size.options | {"max_iters": best.steps},
                "parameters": [best.size.parameters, best.smallest, best.largest],
                "loss": [best.loss, best.low, best.high],
                "epochs": best.epochs,
                "guess": best.guess,
                "recipe": display(recipe),
            }
        if self.checked:
            content["check"] = self._outcome()
        return content | {"next": following}
