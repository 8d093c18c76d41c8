"""Fit the law L(N, D) = E + A / N^a + B / D^b to losses (Hoffmann et al. 2022, approach 3).

N: parameters, D: training tokens, L: loss in nats per token. The Huber loss of log L is summed, not
averaged, and minimised until nothing changes: a mean of 1e-3-sized terms ends an optimizer before
its time, and intervals from such ends are far too narrow (Besiroglu et al. 2024).
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from gptlab.analysis.statistics import LEVEL

DELTA = 1e-3  # of the Huber loss, in log L
FREE = 5  # numbers that the law is fitted with
REFITS = 400
_STEPS, _PATIENCE = 500, 8  # of an optimisation at most; without a gain
_EXPONENTS, _TERMS = (0.01, 3.0), (-12.0, 12.0)  # where a fit looks; terms are logarithms


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^a + B / D^b."""

    E: float
    A: float
    B: float
    a: float
    b: float

    def loss(self, parameters, tokens):
        """The loss in nats per token; arrays give arrays."""
        return self.E + self.A / parameters**self.a + self.B / tokens**self.b


def fit_law(parameters, tokens, losses) -> Law:
    """The law with the lowest Huber loss, of all that a grid of starts leads to.

    parameters, tokens, losses: [n], a number for each run, n > 5.
    """
    y = np.log(np.asarray(losses, float))
    x, z, centre = _centred(parameters, tokens)
    shares = itertools.product((0.1, 0.3, 0.5, 0.7, 0.9), (0.2, 0.5, 0.8), (0.2, 0.5, 1.0),
                               (0.2, 0.5, 1.0))  # fmt: skip
    starts, middle = [], math.exp(float(y.mean()))
    for rest, by_size, a, b in shares:
        p, q = math.log(middle * rest * by_size), math.log(middle * rest * (1 - by_size))
        starts.append([p, a, q, b, math.log(middle * (1 - rest))])
    found, value = _minimised(np.array(starts), x, z, np.tile(y, (len(starts), 1)))
    return _as_law(found[int(value.argmin())], centre)


def refitted(law: Law, parameters, tokens, noise: float, degrees: int, seed: int = 0):
    """[(law, noise)] of noisy copies of the fitted losses: what other runs might have led to.

    noise: the standard deviation of log L, which was estimated with so many degrees of freedom, so
    each copy draws its own from a scaled inverse chi-squared distribution.
    """
    random = np.random.default_rng(seed)
    x, z, centre = _centred(parameters, tokens)
    drawn = noise * np.sqrt(degrees / random.chisquare(degrees, REFITS))
    copies = np.log(law.loss(np.asarray(parameters, float), np.asarray(tokens, float)))
    copies = copies + drawn[:, None] * random.standard_normal((REFITS, len(x)))
    start = [math.log(law.A) - law.a * centre[0], law.a, math.log(law.B) - law.b * centre[1],
             law.b, math.log(law.E)]  # fmt: skip
    found, _ = _minimised(np.tile(np.array(start), (REFITS, 1)), x, z, copies)
    return [(_as_law(row, centre), float(sd)) for row, sd in zip(found, drawn, strict=True)]


def residual_noise(law: Law, parameters, tokens, losses) -> tuple[float, int]:
    """(standard deviation of log L about the law, its degrees of freedom)."""
    fitted = law.loss(np.asarray(parameters, float), np.asarray(tokens, float))
    residuals = np.log(np.asarray(losses, float)) - np.log(fitted)
    degrees = len(residuals) - FREE
    return math.sqrt(float((residuals**2).sum()) / degrees), degrees


def interval(values) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles."""
    low, high = np.quantile(np.asarray(values, float), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def loss_interval(refits, parameters: float, tokens: float, seed: int = 1) -> tuple[float, float]:
    """The 95% prediction interval of one more run's loss: the law's uncertainty and the noise."""
    random = np.random.default_rng(seed)
    return interval(
        [law.loss(parameters, tokens) * math.exp(sd * random.standard_normal())
         for law, sd in refits]
    )  # fmt: skip


# Optimisation -------------------------------------------------------------------------------------


def _centred(parameters, tokens):
    """log N and log D about their means, and these means: A and a are hardly correlated then."""
    x, z = np.log(np.asarray(parameters, float)), np.log(np.asarray(tokens, float))
    return x - x.mean(), z - z.mean(), (float(x.mean()), float(z.mean()))


def _as_law(found: np.ndarray, centre: tuple[float, float]) -> Law:
    p, a, q, b, e = map(float, found)
    return Law(math.exp(e), math.exp(p + a * centre[0]), math.exp(q + b * centre[1]), a, b)


def _terms(at: np.ndarray, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The logarithms of the law's three terms: [S, 5] -> [S, 3, n]."""
    p, a, q, b, e = (column[:, None] for column in at.T)
    return np.stack([p - a * x, q - b * z, np.broadcast_to(e, (len(at), len(x)))], axis=1)


def _value(at: np.ndarray, x: np.ndarray, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The summed Huber loss: [S]."""
    size = np.abs(np.logaddexp.reduce(_terms(at, x, z), axis=1) - y)
    return np.where(size < DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum(axis=1)


def _minimised(at: np.ndarray, x, z, y) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt with Huber's weights from all starts at once: [S, 5] -> ([S, 5], [S]).

    y: log losses, [S, n]. Each weighted least-squares step lowers the Huber loss or is damped more;
    a start is left where no step has lowered it for a while.
    """
    at, value = at.copy(), _value(at, x, z, y)
    damping, still = np.full(len(at), 1e-2), np.zeros(len(at), int)
    for _ in range(_STEPS):
        live = np.flatnonzero(still <= _PATIENCE)
        if not len(live):
            break
        trial = at[live] - _step(at[live], x, z, y[live], damping[live])
        trial[:, [1, 3]] = trial[:, [1, 3]].clip(*_EXPONENTS)
        trial[:, [0, 2, 4]] = trial[:, [0, 2, 4]].clip(*_TERMS)
        reached = _value(trial, x, z, y[live])
        better, gained = reached < value[live], value[live] - reached > 1e-7 * value[live]
        still[live] = np.where(better & gained, 0, still[live] + 1)
        damping[live] = (damping[live] * np.where(better, 1 / 3, 4)).clip(1e-9, 1e6)
        at[live[better]], value[live[better]] = trial[better], reached[better]
    return at, value


def _step(at: np.ndarray, x, z, y, damping: np.ndarray) -> np.ndarray:
    """The damped least-squares step of each start: [S, 5]."""
    terms = _terms(at, x, z)
    total = np.logaddexp.reduce(terms, axis=1)
    size, data, rest = np.exp(terms - total[:, None]).swapaxes(0, 1)  # each [S, n]
    slopes = np.stack([size, -size * x, data, -data * z, rest], axis=2)  # [S, n, 5]
    residual = total - y
    weighted = slopes * np.minimum(1, DELTA / np.maximum(np.abs(residual), 1e-300))[:, :, None]
    curvature = weighted.transpose(0, 2, 1) @ slopes  # [S, 5, 5]
    gradient = (weighted * residual[:, :, None]).sum(axis=1)
    diagonal = np.einsum("sii->si", curvature)  # a view
    diagonal += damping[:, None] * diagonal + 1e-15
    return np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0].clip(-2, 2)
