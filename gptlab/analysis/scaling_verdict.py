"""What a trained ladder says: the law with its intervals, the best model for a budget, a check."""

import functools
import math
from dataclasses import dataclass

from gptlab.analysis.scaling import FEWEST_STEPS, Ladder
from gptlab.analysis.scaling_fit import (
    Law,
    fit_law,
    interval,
    loss_interval,
    refitted,
    residual_noise,
)
from gptlab.analysis.scaling_sizes import FIRST_SEED, Point, Size

FARTHEST = 4  # times the largest point's FLOPs: beyond it a prediction is a guess
KINDS = ("parameters", "non_embedding")  # how N can be counted; the first one predicts


@dataclass(frozen=True)
class Fitted:
    """The law of one way to count N, and what noisy copies of the losses lead to: (law, noise)."""

    law: Law
    refits: list[tuple[Law, float]]

    def intervals(self) -> dict[str, tuple[float, float, float]]:
        """(value, 2.5%, 97.5%) of each number of the law, and of the exponent of the best size.

        The best N grows with C to the power b / (a + b) (Hoffmann et al. 2022, equation 4).
        """
        laws = [law for law, _ in self.refits]
        found = {n: (getattr(self.law, n), *interval([getattr(law, n) for law in laws]))
                 for n in "EAaBb"}  # fmt: skip
        powers = [law.b / (law.a + law.b) for law in laws]
        return found | {"power": (self.law.b / (self.law.a + self.law.b), *interval(powers))}


@dataclass(frozen=True)
class Prediction:
    """The best model of a budget. low, high: of its loss, noise included; 95%.

    smallest, largest: the parameters of the best size, 95%. guess: why it is no more than that.
    """

    size: Size
    steps: int
    seconds: float
    epochs: float
    loss: float
    low: float
    high: float
    smallest: int
    largest: int
    guess: str

    @property
    def point(self) -> Point:
        """Its training."""
        return Point(self.size, self.steps, FIRST_SEED, None)


class ScalingResult:
    """What the points of a finished ladder say."""

    def __init__(self, ladder: Ladder):
        self.ladder = ladder
        points = [line for line in ladder.lines() if line["level"] is not None]
        self.lines = [line for line in points if "loss" in line]
        self.diverged = [line["point"] for line in points if "loss" not in line]

    def levels(self) -> list[list[dict]]:
        """The lines of each level, of few FLOPs first, each by size."""
        found: dict[int, list[dict]] = {}
        for line in sorted(self.lines, key=lambda line: (line["parameters"], line["seed"])):
            found.setdefault(line["level"], []).append(line)
        return sorted(found.values(), key=lambda lines: lines[0]["flops"])

    @functools.cached_property
    def fits(self) -> dict[str, Fitted]:
        """The law for each way to count parameters."""
        found = {}
        tokens, losses = ([line[n] for line in self.lines] for n in ("tokens", "loss"))
        for kind in KINDS:
            sizes = [line[kind] for line in self.lines]
            law = fit_law(sizes, tokens, losses)
            noise, degrees = residual_noise(law, sizes, tokens, losses)
            noise = max(noise, self.chance[0])  # of few seeds: it has fewer degrees of freedom
            found[kind] = Fitted(law, refitted(law, sizes, tokens, noise, degrees))
        return found

    @functools.cached_property
    def chance(self) -> tuple[float, int]:
        """(standard deviation of log L between seeds of a point, its degrees of freedom)."""
        points: dict[tuple, list[float]] = {}
        for line in self.lines:
            points.setdefault((line["parameters"], line["steps"]), []).append(
                math.log(line["loss"])
            )
        total, degrees = 0.0, 0
        for losses in points.values():
            mean = math.fsum(losses) / len(losses)
            total += math.fsum((loss - mean) ** 2 for loss in losses)
            degrees += len(losses) - 1
        return (math.sqrt(total / degrees), degrees) if degrees else (0.0, 0)

    @functools.cached_property
    def scatter(self) -> tuple[float, int]:
        """(standard deviation of log L about the law, its degrees of freedom)."""
        columns = ([line[n] for line in self.lines] for n in (KINDS[0], "tokens", "loss"))
        return residual_noise(self.fits[KINDS[0]].law, *columns)

    @property
    def largest(self) -> float:
        """The FLOPs of the largest point."""
        return max(line["flops"] for line in self.lines)

    # Predictions ----------------------------------------------------------------------------------

    def best_for_seconds(self, seconds: float) -> Prediction | None:
        """The model with the lowest loss after so long; None where no size takes enough steps."""
        ladder = self.ladder

        def steps(size: Size) -> int:
            rate = ladder.speed(size) / size.flops / size.config.tokens_per_step  # steps a second
            return int((seconds - ladder.seconds(size, 0)) * rate)

        return self._best(steps)

    def best_for_compute(self, compute: float) -> Prediction | None:
        """The model with the lowest loss after so many FLOPs."""
        return self._best(lambda size: size.steps(compute))

    def _best(self, steps_of) -> Prediction | None:
        possible = [(s, n) for s in self.ladder.sizes if (n := steps_of(s)) >= FEWEST_STEPS]
        if not possible:
            return None
        fitted = self.fits[KINDS[0]]
        tokens_of = {s.name: n * s.config.tokens_per_step for s, n in possible}

        def best_under(law: Law) -> Size:
            return min((s for s, _ in possible),
                       key=lambda s: law.loss(s.parameters, tokens_of[s.name]))  # fmt: skip

        size = best_under(fitted.law)
        tokens, steps = tokens_of[size.name], dict((s.name, n) for s, n in possible)[size.name]
        low, high = loss_interval(fitted.refits, size.parameters, tokens)
        ends = interval([best_under(law).parameters for law, _ in fitted.refits])
        epochs = tokens / len(self.ladder.dataset.train)
        return Prediction(
            size=size,
            steps=steps,
            seconds=self.ladder.seconds(size, tokens),
            epochs=epochs,
            loss=fitted.law.loss(size.parameters, tokens),
            low=low,
            high=high,
            smallest=round(ends[0]),
            largest=round(ends[1]),
            guess=self._guess(tokens * size.flops, tokens),
        )

    def _guess(self, compute: float, tokens: float) -> str:
        if compute > FARTHEST * self.largest:
            return f"it takes more than {FARTHEST} times the largest point's FLOPs"
        if tokens > self.ladder.most_tokens:
            return "it reads the text more than 4 times, and the law knows new text only"
        return ""
