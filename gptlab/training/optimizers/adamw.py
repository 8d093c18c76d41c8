"""AdamW (Loshchilov & Hutter 2019), by torch's fused kernels."""

import torch
from torch.optim.adamw import adamw

from gptlab.model.shards import local
from gptlab.training.optimizers.optimizer import Optimizer


class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019); it takes every parameter."""

    def new_state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """The number of steps, and the means of gradients and of their squares."""
        return {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    @torch.no_grad()
    def step(self, found_inf: torch.Tensor | None = None) -> None:
        """Update every parameter that has a gradient, unless found_inf is 1.0."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            states = [self.state_of(parameter) for parameter in parameters]
            adamw(
                [local(parameter) for parameter in parameters],
                [local(parameter.grad) for parameter in parameters],
                [local(state["exp_avg"]) for state in states],
                [local(state["exp_avg_sq"]) for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                found_inf=found_inf,
                amsgrad=False,
                beta1=self.options.beta1,
                beta2=self.options.beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=1e-8,
                maximize=False,
            )
