"""A ladder of small models: which sizes for how many tokens, and their training.

    scaling.json     the text, the time, the speeds that were measured, the compute of each level
    points.jsonl     one line for each trained point
    48x2.540/        an ordinary run directory: width, layers, steps

At each level all sizes get the same FLOPs, so small models read more tokens: an isoFLOP group
(Hoffmann et al. 2022, approach 2). A level goes on to smaller or larger sizes until its lowest loss
lies inside; a ladder in which one does not is refused. What comes next follows from the lines that
are there, so a process may be killed anywhere: a point that has its line is never trained again.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gptlab import hardware
from gptlab.analysis.measured_run import train_quietly
from gptlab.analysis.paired_runs import Ledger
from gptlab.analysis.scaling_sizes import FIRST_SEED, Point, Size, sizes_for
from gptlab.data.token_files import open_dataset
from gptlab.errors import ConfigError, RunError
from gptlab.files import FORMAT_VERSIONS, display, read_json, write_json
from gptlab.planning.plan import AS_GOOD_AS_NEW, CHINCHILLA, Machine
from gptlab.runs import Run
from gptlab.training.resolving import TextSize

LEVELS, RATIO = 3, 3  # of compute; the FLOPs of a level in those of the one below
LEAST_RATIO = 1.5  # where the text has no tokens for RATIO
BELOW, ABOVE = 1, 2  # sizes on each side of the expected best
FURTHER = 3  # more of them at most, where the best is at an end
SPACING = 1.7  # neighbouring sizes differ by this factor in parameters, at least
REPEATS = 3  # seeds of the lowest level's best size: how much chance moves a loss
FEWEST_STEPS = 100  # of a point: fewer are mostly warm-up
TOKENS_PER_PARAMETER = CHINCHILLA  # of the best size, before anything is measured
EVAL_TOKENS = 65_536  # on which each point is measured once, at its end
RUN_SECONDS = 4.0  # of a run beside its steps: its start, its picture, its checkpoint
USED = 0.9  # of the time: the rest is for further sizes and for what the estimate forgets
TIMED_SECONDS = 1.0


class Ladder:
    """The points of a ladder in one folder. minutes: of the whole; seeds: of each point.

    word: what the option `dataset` of its runs is.
    """

    def __init__(self, folder: Path, word: str, minutes: float, seeds: int = 1):
        self.folder, self.word, self.dataset = Path(folder), word, open_dataset(word)
        self.minutes, self.seeds = minutes, seeds
        self.ledger = Ledger(self.folder / "points.jsonl")
        self.speeds: list[tuple[float, float]] = []  # (FLOPs per token, FLOP/s), of timed steps
        self.levels: list[float] = []  # FLOPs of a point

    # The folder -----------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """What the ladder is."""
        return self.folder / "scaling.json"

    def belongs_here(self) -> bool:
        """Whether the folder is free, or holds this very ladder."""
        if not self.path.exists():
            return not self.folder.exists() or not any(self.folder.iterdir())
        return read_json(self.path).get("ladder") == self._identity()

    def _identity(self) -> dict:
        return {
            "dataset": self.word,
            "text": self.dataset.fingerprint,
            "minutes": self.minutes,
            "device": self.choice.device,
        }

    def open(self, note: Callable[[str], object]) -> None:
        """Plan the ladder and make its folder, or read what was planned.

        Raises RunError where the folder holds another ladder, ConfigError for one that cannot be.
        """
        if not self.belongs_here():
            raise RunError(
                f"{display(self.folder)} holds another ladder", "choose another --out_dir"
            )
        if self.path.exists():
            content = read_json(self.path)
            self.levels = content["levels"]
            self.speeds = [tuple(pair) for pair in content["speeds"]]
            return
        note("Timing a few steps of small models ...")
        self.speeds = self._time_steps()
        self.levels = self._plan()
        self.folder.mkdir(parents=True, exist_ok=True)
        version = {"format_version": FORMAT_VERSIONS["scaling"]}
        planned = {"levels": self.levels, "speeds": self.speeds}
        write_json(self.path, version | {"ladder": self._identity()} | planned)

    # Sizes and speeds -----------------------------------------------------------------------------

    @functools.cached_property
    def choice(self) -> hardware.Choice:
        """The device and the precision."""
        return hardware.choose(_this_machine(), "auto", "auto")

    @functools.cached_property
    def sizes(self) -> list[Size]:
        """All sizes that are considered, the smallest first."""
        dataset = self.dataset
        text = TextSize(dataset.vocab_size, len(dataset.train), len(dataset.val))
        return sizes_for(text, self.choice.device, self.choice.dtype)

    @property
    def most_tokens(self) -> int:
        """The tokens of a point at most: repeated text is nearly as good as new until then."""
        return AS_GOOD_AS_NEW * len(self.dataset.train)

    def _time_steps(self) -> list[tuple[float, float]]:
        machine = Machine.of(_this_machine(), self.choice)
        found = []
        for size in self._chain(0, 0, 9)[::2]:
            config = size.config.replace(max_iters=100, warmup_iters=1, lr_decay_iters=100)
            step = machine.measure(config, time.perf_counter(), TIMED_SECONDS).step
            found.append((size.flops, size.flops * config.tokens_per_step / step))
        return found

    def speed(self, size: Size) -> float:
        """FLOP/s of a size: of the timed steps, corrected by what trained points took."""
        trained: dict[float, list[float]] = {}
        for line in self.lines():
            if line["level"] is not None and line.get("tokens_per_second"):
                flops = line["flops"] / line["tokens"]
                found = flops * line["tokens_per_second"] / _between(flops, self.speeds)
                trained.setdefault(flops, []).append(found)
        corrections = sorted((f, sorted(n)[len(n) // 2]) for f, n in trained.items())
        timed = _between(size.flops, self.speeds)
        return timed * _between(size.flops, corrections) if corrections else timed

    def seconds(self, size: Size, tokens: float) -> float:
        """About how long a training takes, with its start and its evaluation."""
        # a forward pass is a third of a step
        evaluated = min(len(self.dataset.val), EVAL_TOKENS) / 3
        return RUN_SECONDS + (tokens + evaluated) * size.flops / self.speed(size)

    # The plan -------------------------------------------------------------------------------------

    def _chain(self, centre: int, below: int, above: int) -> list[Size]:
        """Sizes about one, each SPACING times the one before or more; fewer where they end."""
        chain, sizes = [centre], self.sizes
        for _ in range(above):
            least = SPACING * sizes[chain[-1]].parameters
            chain += [i for i in range(chain[-1], len(sizes)) if sizes[i].parameters >= least][:1]
        for _ in range(below):
            most = sizes[chain[0]].parameters / SPACING
            chain[:0] = [i for i in range(chain[0]) if sizes[i].parameters <= most][-1:]
        return [sizes[i] for i in dict.fromkeys(chain)]

    def _centre(self, compute: float, tokens_per_parameter: float) -> int:
        """The size that reads about so many tokens for each parameter."""
        wanted = math.log(tokens_per_parameter)
        return min(
            range(len(self.sizes)),
            key=lambda i: abs(
                math.log(compute / self.sizes[i].flops / self.sizes[i].parameters) - wanted
            ),
        )

    def _level(self, compute: float, ratio: float) -> list[Size]:
        return self._chain(self._centre(compute, ratio), BELOW, ABOVE)

    def _fault(self, levels: list[float], by_text: bool = True) -> str:
        """Why there can be no such ladder; "" where there can."""
        for compute in levels:
            sizes = self._level(compute, TOKENS_PER_PARAMETER)
            if len(sizes) <= BELOW + ABOVE or sizes[-1].steps(compute) < FEWEST_STEPS:
                return "time"
            if by_text and sizes[0].tokens(compute) > self.most_tokens:
                return "text"
        return ""

    def planned_seconds(self, levels: list[float]) -> float:
        """About how long these levels take."""
        total = 0.0
        for number, compute in enumerate(levels):
            sizes = self._level(compute, TOKENS_PER_PARAMETER)
            each = [self.seconds(size, size.tokens(compute)) for size in sizes]
            total += self.seeds * sum(each)
            if number == 0:
                total += max(0, REPEATS - self.seeds) * each[len(each) // 2]
        return total

    def check_seconds(self, times: float) -> float:
        """About how long the best size takes for so many times the FLOPs of the highest level."""
        compute = times * self.levels[-1]
        size = self.sizes[self._centre(compute, TOKENS_PER_PARAMETER)]
        return self.seconds(size, size.tokens(compute))

    def seconds_left(self) -> float:
        """About how long the rest takes, if no level needs further sizes."""
        sizes = {size.parameters: size for size in self.sizes}
        done = [line for line in self.lines() if line["level"] is not None]
        spent = sum(self.seconds(sizes[n["parameters"]], n["tokens"]) for n in done)
        return max(0.0, self.planned_seconds(self.levels) - spent)

    def _plan(self) -> list[float]:
        """The FLOPs of a point at each level, as many as the time and the text allow.

        Raises ConfigError where they allow no ladder.
        """
        ladders = [[1e9 * 1.05**i * RATIO**level for level in range(LEVELS)] for i in range(400)]
        possible = [levels for levels in ladders if self._fault(levels, by_text=False) != "time"]
        shortest = possible[0]
        minutes = math.ceil(self.planned_seconds(shortest) / 60 / USED)
        if self._fault(shortest) == "text":
            raise self._short_text(self._level(shortest[-1], TOKENS_PER_PARAMETER)[0], shortest[-1])
        if minutes > self.minutes:
            raise ConfigError(
                f"{self.minutes:g} minutes are too short for a ladder on this machine",
                f"the shortest takes about {minutes}: --minutes {minutes}",
            )
        seconds = 60 * USED * self.minutes
        fitting = [n for n in possible if not self._fault(n) and self.planned_seconds(n) <= seconds]
        return fitting[-1]

    # Points ---------------------------------------------------------------------------------------

    def lines(self) -> list[dict]:
        """The line of each trained point: the first one, if a point has two."""
        found: dict[str, dict] = {}
        for line in self.ledger.lines():
            found.setdefault(line["point"], line)
        return list(found.values())

    def points(self) -> Iterator[tuple[Point, dict | None]]:
        """Each point of the ladder with its line, as far as the lines that are there tell.

        A caller that trains the point before it goes on gets them all. Raises ConfigError where the
        lowest loss of a level lies at its end.
        """
        ratios: dict[float, float] = {}  # {FLOPs of a level: tokens per parameter of its best size}
        for level in range(len(self.levels)):
            compute, ratio = self._next_level(level, ratios)
            centre, below, above = self._centre(compute, ratio), BELOW, ABOVE
            while True:
                sizes = self._chain(centre, below, above)
                sizes = [s for s in sizes if s.tokens(compute) <= self.most_tokens]
                sizes = [s for s in sizes if s.steps(compute) >= FEWEST_STEPS]
                for size in sizes:
                    yield from self._seeds(size, compute, level, self.seeds)
                losses = [self.loss(size, compute) for size in sizes]
                best = losses.index(min(losses))
                if 0 < best < len(sizes) - 1:
                    break
                below, above = below + (best == 0), above + (best > 0)
                if below + above > BELOW + ABOVE + FURTHER:
                    raise self._refusal(sizes[best], compute, best == 0)
            if level == 0 and self.seeds < REPEATS:
                yield from self._seeds(sizes[best], compute, level, REPEATS)
            ratios[compute] = sizes[best].tokens(compute) / sizes[best].parameters

    def _next_level(self, level: int, ratios: dict[float, float]) -> tuple[float, float]:
        """(FLOPs, tokens per parameter of the size to begin with) of a level.

        Its planned FLOPs, or as many as the text has tokens for; where those are hardly more than
        the highest level has, one below the lowest. Raises ConfigError where that is too short.
        """
        planned = self.levels[level]
        if not ratios:
            return planned, TOKENS_PER_PARAMETER
        highest, lowest = max(ratios), min(ratios)
        compute = self._within_text(planned, ratios[highest])
        if compute >= LEAST_RATIO * highest:
            return compute, ratios[highest]
        compute, ratio = lowest / RATIO, ratios[lowest]
        sizes = self._level(compute, ratio)
        if len(sizes) <= BELOW + ABOVE or sizes[-1].steps(compute) < FEWEST_STEPS:
            above = LEAST_RATIO * highest
            raise self._short_text(self._smallest(above, ratios[highest]), above)
        return compute, ratio

    def _within_text(self, compute: float, ratio: float) -> float:
        """The FLOPs of a level, or as many as the text has tokens for where they are fewer.

        One size more must fit below, because the best size of the level before is known roughly.
        """
        while self._smallest(compute, ratio).tokens(compute) > self.most_tokens:
            compute *= 0.95
        return compute

    def _smallest(self, compute: float, ratio: float) -> Size:
        return self._chain(self._centre(compute, ratio), BELOW + 1, 0)[0]

    def _seeds(self, size: Size, compute: float, level: int, count: int):
        for seed in range(FIRST_SEED, FIRST_SEED + count):
            point = Point(size, size.steps(compute), seed, level)
            yield point, self.line(point)

    def _short_text(self, size: Size, compute: float) -> ConfigError:
        needed = size.tokens(compute) / AS_GOOD_AS_NEW
        return ConfigError(
            f"The training text of {self.dataset.name} has {len(self.dataset.train):,} tokens, and "
            f"a ladder needs {needed:,.0f}",
            "name a longer text with --dataset",
        )

    def _refusal(self, size: Size, compute: float, is_small: bool) -> ConfigError:
        end = "smallest" if is_small else "largest"
        return ConfigError(
            f"The ladder is too short: with {compute:.2g} FLOPs its {end} model, {size.name}, is "
            "the best, so the best size may lie beyond",
            "give it more --minutes, or a longer text with --dataset",
        )

    def line(self, point: Point) -> dict | None:
        """The line of a point; None where it has none yet."""
        return next((n for n in self.lines() if n["point"] == point.key), None)

    def loss(self, size: Size, compute: float) -> float:
        """The mean loss of a size's seeds; infinite where one diverged."""
        points = (p for p, _ in self._seeds(size, compute, 0, self.seeds))
        lines = [self.line(point) for point in points]
        return math.fsum(line.get("loss", math.inf) for line in lines if line) / self.seeds

    def train(self, point: Point, shows_bar: bool = False) -> bool:
        """Train a point and add its line; False: a signal stopped it. Raises a GPTLabError."""
        found = self._trained(point, shows_bar)
        if found is not None:
            size = point.size
            counts = {"parameters": size.parameters, "non_embedding": size.non_embedding}
            work = {"steps": point.steps, "tokens": point.tokens, "flops": point.flops}
            place = {"point": point.key, "level": point.level, "seed": point.seed}
            self.ledger.add({**place, **counts, **work, **found})
        return found is not None

    def _trained(self, point: Point, shows_bar: bool) -> dict | None:
        """{"loss", "tokens_per_second"} of a point's run, or {"diverged"}; None: it was stopped."""
        run = Run(self.folder / point.key)
        values = {**point.size.options, "dataset": self.word, "seed": point.seed}
        values |= {"max_iters": point.steps, "eval_interval": point.steps}
        values |= {"eval_tokens": EVAL_TOKENS, "log_interval": max(1, min(10, point.steps // 10))}
        values |= {"checkpoint_minutes": 1.0, "sample_interval": 0, "log_to": "none"}
        found = train_quietly(values, dict.fromkeys(values, "scaling"), str(run.folder), shows_bar)
        if found != {}:
            return found
        records = run.records()
        rates = [r["tokens_per_second"] for r in records if r.get("tokens_per_second")][1:]
        return {
            "loss": [r["val_loss"] for r in records if r.get("val_loss")][-1],
            "tokens_per_second": sorted(rates)[len(rates) // 2] if rates else None,
        }


def _between(x: float, pairs: list[tuple[float, float]]) -> float:
    """The value at x of a curve through these (x, y), linear in log x and level at its ends."""
    places, values = zip(*pairs, strict=True)
    return float(np.interp(math.log(x), np.log(places), values))


@functools.cache
def _this_machine() -> hardware.Hardware:
    return hardware.detect()  # its trials take a second
