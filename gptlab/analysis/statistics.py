"""Tests and intervals for paired differences (no scipy).

A difference is what the same seed, data order and text give two trainings, subtracted. Seeds are
independent, so their mean has Student's interval. Looking after each seed and stopping when the
interval leaves zero errs far more often than a single look; `REPEATED_LEVEL` makes up for it.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05  # how often a comparison of equals may be called different
FIRST_LOOK, LAST_LOOK = 3, 10  # seeds after which `--seeds auto` looks
# The level of each of these looks at which all of them together err in LEVEL of the comparisons:
# constant over the looks (Pocock 1977), for t-tests with unknown variance (Jennison & Turnbull
# 1991, "Exact calculations for sequential t, chi-squared and F tests"). The t-statistics of a
# growing sample are a Markov chain without unknown parameters; the test integrates it.
REPEATED_LEVEL = 0.0118
RESAMPLES = 4000
MOST_SEEDS = 200


@dataclass(frozen=True)
class Interval:
    """A mean difference and its interval. deviation: of the single differences, over n seeds."""

    mean: float
    low: float
    high: float
    n: int
    deviation: float

    @property
    def excludes_zero(self) -> bool:
        """Whether all of the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0

    @property
    def farthest(self) -> float:
        """The largest size of a difference in the interval."""
        return max(abs(self.low), abs(self.high))


def t_cdf(t: float, df: int) -> float:
    """Student's distribution function, exact for whole degrees of freedom.

    The finite sums of Abramowitz & Stegun (1964), 26.7.3 and 26.7.4.
    """
    angle = math.atan2(t, math.sqrt(df))
    cosine, total = math.cos(angle), 0.0
    term = cosine if df % 2 else 1.0
    for k in range(2 + df % 2, df + 1, 2):
        total += term
        term *= cosine * cosine * (k - 1) / k
    if df % 2:
        within = 2 / math.pi * (angle + math.sin(angle) * total)
    else:
        within = math.sin(angle) * total
    return 0.5 + within / 2


@functools.cache
def t_quantile(p: float, df: int) -> float:
    """The t that Student's variable stays below with probability p, 0.5 <= p < 1."""
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def paired_interval(differences, level: float = LEVEL) -> Interval:
    """Student's interval of the mean of at least 2 paired differences."""
    n = len(differences)
    mean = math.fsum(differences) / n
    deviation = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1))
    half = t_quantile(1 - level / 2, n - 1) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, deviation)


def seeds_to_decide(found: Interval, smallest: float) -> int | None:
    """About how many seeds in all would decide, if the next differ as these do; None: too many.

    Decided: the interval excludes 0, or lies within `smallest` on both sides of it.
    """
    for n in range(found.n + 1, MOST_SEEDS):
        half = t_quantile(1 - LEVEL / 2, n - 1) * found.deviation / math.sqrt(n)
        if half < abs(found.mean) or half + abs(found.mean) <= smallest:
            return n
    return None


def block_length(windows: int) -> int:
    """The usual number of neighbouring windows in a block: the cube root of all (Künsch 1989)."""
    return max(1, round(windows ** (1 / 3)))


def text_interval(nats: np.ndarray, tokens: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The interval of a mean difference per token over other texts of the same kind.

    nats: differences of the windows' losses, float64 [W], in the order of the text; tokens: their
    targets, int64 [W]. A circular block bootstrap (Politis & Romano 1992): neighbouring windows
    resemble each other, so they are drawn in blocks. The 2.5% and 97.5% quantiles.
    """
    windows = len(nats)
    length = block_length(windows)
    sums, counts = (_circular_sums(values, length) for values in (nats, tokens))
    random = np.random.default_rng(seed)
    starts = random.integers(0, windows, (RESAMPLES, max(1, round(windows / length))))
    means = sums[starts].sum(1) / counts[starts].sum(1)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def _circular_sums(values: np.ndarray, length: int) -> np.ndarray:
    """The sum of `length` values from each place on, around the end: [W]."""
    around = np.concatenate([[0.0], np.cumsum(np.concatenate([values, values[:length]]))])
    return around[length : length + len(values)] - around[: len(values)]
