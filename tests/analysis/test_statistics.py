"""Intervals and tests against scipy, and their rates of error against simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from gptlab.analysis.statistics import (
    FIRST_LOOK,
    LAST_LOOK,
    LEVEL,
    REPEATED_LEVEL,
    Interval,
    paired_interval,
    seeds_to_decide,
    t_cdf,
    t_quantile,
    text_interval,
)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 30, 101])
def test_students_distribution_is_that_of_scipy(df):
    for t in (-40.0, -3.2, 0.0, 0.5, 2.0, 12.0):
        assert t_cdf(t, df) == pytest.approx(stats.t.cdf(t, df), abs=1e-12)
    for p in (0.6, 0.975, 1 - REPEATED_LEVEL / 2, 0.9999):
        assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9)


@pytest.mark.parametrize("level", [LEVEL, REPEATED_LEVEL])
@pytest.mark.parametrize("n", [2, 3, 10])
def test_the_paired_interval_is_that_of_the_paired_t_test(n, level):
    random = np.random.default_rng(n)
    a, b = random.normal(2, 0.1, (2, n))
    found, known = paired_interval(list(b - a), level), stats.ttest_rel(b, a)
    low, high = known.confidence_interval(1 - level)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.deviation == pytest.approx(np.std(b - a, ddof=1))
    assert found.excludes_zero == (known.pvalue < level)


def test_looking_after_each_seed_errs_in_5_percent_of_comparisons_of_equals():
    """And in 16.6% with the plain level, which is why there is another one."""
    sums = np.cumsum(np.random.default_rng(1).standard_normal((200_000, LAST_LOOK)), axis=1)
    squares = np.cumsum(np.diff(sums, axis=1, prepend=0) ** 2, axis=1)
    errs = {LEVEL: np.zeros(len(sums), bool), REPEATED_LEVEL: np.zeros(len(sums), bool)}
    for n in range(FIRST_LOOK, LAST_LOOK + 1):
        mean = sums[:, n - 1] / n
        deviation = np.sqrt((squares[:, n - 1] - n * mean**2) / (n - 1))
        for level, wrong in errs.items():
            wrong |= np.abs(mean) / deviation * math.sqrt(n) > stats.t.ppf(1 - level / 2, n - 1)
    assert 0.048 < errs[REPEATED_LEVEL].mean() < 0.0505
    assert errs[LEVEL].mean() == pytest.approx(0.166, abs=0.003)


def test_the_exact_law_of_the_looks_gives_the_same_rate_as_the_simulation():
    """The t-statistic at n is cot of an angle that is a Markov chain (Jennison & Turnbull 1991)."""
    looks = range(FIRST_LOOK, LAST_LOOK + 1)
    limit = {}
    for n in looks:
        t = stats.t.ppf(1 - REPEATED_LEVEL / 2, n - 1)
        limit[n] = t / math.sqrt(t * t + n - 1)  # of c = sum / sqrt(n * sum of squares)
    c = np.linspace(-1, 1, 401)
    nodes, weights = np.polynomial.legendre.leggauss(800)
    turn = nodes * np.pi / 2  # the next value is tan(turn) times the root of the sum of squares
    crossing = np.zeros_like(c)  # probability of a later look that errs, given c now
    for n in reversed(looks[:-1]):
        chance = weights * np.cos(turn) ** (n - 1)
        after = (np.sqrt(n) * c[:, None] * np.cos(turn) + np.sin(turn)) / np.sqrt(n + 1)
        later = np.where(np.abs(after) > limit[n + 1], 1.0, np.interp(after, c, crossing))
        crossing = later @ (chance / chance.sum())
    first = np.where(np.abs(c) > limit[FIRST_LOOK], 1.0, crossing)  # c is uniform at 3
    assert np.trapezoid(first, c) / 2 == pytest.approx(0.049, abs=0.001)


def test_the_number_of_seeds_that_would_decide_is_the_first_whose_interval_decides():
    found = paired_interval([0.01, 0.05, -0.02])
    n = seeds_to_decide(found, 0.001)
    for seeds, decides in ((n - 1, False), (n, True)):
        half = stats.t.ppf(0.975, seeds - 1) * found.deviation / math.sqrt(seeds)
        assert (half < found.mean) == decides
    assert seeds_to_decide(Interval(0.0, -1.0, 1.0, 3, 0.4), 0.1) == 64  # by being small enough
    assert seeds_to_decide(Interval(0.0, -1.0, 1.0, 3, 0.4), 1e-6) is None


def test_the_interval_from_the_text_is_the_normal_one_for_independent_windows():
    random = np.random.default_rng(3)
    tokens = np.full(2000, 64)
    nats = random.normal(0.5, 4.0, 2000)
    low, high = text_interval(nats, tokens)
    error = nats.std() / math.sqrt(2000) / 64
    assert (low, high) == pytest.approx(
        (nats.mean() / 64 - 1.96 * error, nats.mean() / 64 + 1.96 * error), abs=0.2 * error
    )


def test_the_interval_from_the_text_knows_that_neighbouring_windows_resemble_each_other():
    """Moving sums of five: the deviation of the mean is near five times that of one draw's."""
    random = np.random.default_rng(4)
    nats = np.convolve(random.normal(0, 1, 4004), np.ones(5), "valid")
    low, high = text_interval(nats, np.ones(4000))
    apart = text_interval(random.permutation(nats), np.ones(4000))
    known = 2 * 1.96 * 5 / math.sqrt(4000)
    assert high - low == pytest.approx(known, rel=0.2)
    assert apart[1] - apart[0] < 0.55 * known
