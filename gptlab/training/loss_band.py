"""The band in which the loss of a step usually lies."""

import math

BAND_STEPS = 50  # over which the loss has its mean and its deviation, and before which none spikes


class LossBand:
    """The running mean and deviation of the loss of a step; a spike lies far above it."""

    def __init__(self, mean: float = 0.0, variance: float = 0.0, steps: int = 0):
        self.mean, self.variance, self.steps = mean, variance, steps

    def deviations(self, loss: float) -> float:
        """How many standard deviations `loss` lies above the mean; 0 while that is not known."""
        if self.steps < BAND_STEPS:
            return 0.0
        return (loss - self.mean) / max(1e-3, math.sqrt(self.variance))

    def add(self, loss: float) -> None:
        """Take the loss of one more step into the band (West 1979, exponentially weighted)."""
        self.steps += 1
        weight = max(1 / BAND_STEPS, 1 / self.steps)
        away = loss - self.mean
        self.mean += weight * away
        self.variance = (1 - weight) * (self.variance + weight * away * away)

    def state(self) -> list:
        """What `LossBand(*state)` is made from again."""
        return [self.mean, self.variance, self.steps]
