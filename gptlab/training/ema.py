"""An exponential average of the weights beside a training (Polyak & Juditsky 1992)."""

import torch

from gptlab.model.shards import local


class Ema:
    """An exponential average of the weights (Polyak & Juditsky 1992), kept in float32.

    The average is corrected for its start: its divisor after t steps is 1 - decay^t.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.weights = {n: p.detach().clone() for n, p in _trained(model)}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        """Add the weights after step number `step` (from 0)."""
        # the share of the newest: 1 at the first step, then falling to 1 - decay
        newest = (1 - self.decay) / (1 - self.decay ** (step + 1))
        weights = [local(parameter) for _, parameter in _trained(model)]
        torch._foreach_lerp_([local(kept) for kept in self.weights.values()], weights, newest)

    @torch.no_grad()
    def swap(self, model: torch.nn.Module) -> None:
        """Exchange the model's weights and the averaged ones; a second call undoes it."""
        for name, parameter in _trained(model):
            weights, averaged = local(parameter), local(self.weights[name])
            kept = weights.clone()
            weights.copy_(averaged)
            averaged.copy_(kept)


def _trained(model: torch.nn.Module):
    """(name, parameter) of those that are not frozen."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
