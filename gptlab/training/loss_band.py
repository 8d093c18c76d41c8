"""The usual range of a step's loss; a spike lies above it."""

import math

BAND_STEPS = 50  # window of the mean and the deviation; earlier steps are never spikes


class LossBand:
    """The running mean and deviation of the loss of a step; a spike lies far above it."""

    def __init__(self, mean: float = 0.0, variance: float = 0.0, steps: int = 0):
        self.mean, self.variance, self.steps = mean, variance, steps

    def deviations(self, loss: float) -> float:
        """How many standard deviations `loss` lies above the mean; 0 in the first BAND_STEPS."""
        if self.steps < BAND_STEPS:
            return 0.0
        return (loss - self.mean) / max(1e-3, math.sqrt(self.variance))

    def add(self, loss: float) -> None:
        """Add the loss of one more step (West 1979, exponentially weighted)."""
        self.steps += 1
        weight = max(1 / BAND_STEPS, 1 / self.steps)
        away = loss - self.mean
        self.mean += weight * away
        self.variance = (1 - weight) * (self.variance + weight * away * away)

    def state(self) -> list:
        """The arguments of `LossBand(*state)`, which restores this band."""
        return [self.mean, self.variance, self.steps]
