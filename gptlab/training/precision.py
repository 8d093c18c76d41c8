"""The precision of a step: autocast, the loss scaler of float16, clipping, skipped steps."""

import contextlib

import torch

from gptlab.model.shards import local, total_norm


class MixedPrecision:
    """The precision of the matrix products, and the loss scaler that float16 needs."""

    def __init__(self, device: str, dtype: str, use_scaler: bool):
        self.kind = torch.device(device).type
        self.dtype = getattr(torch, dtype)
        self.scaler = torch.amp.GradScaler(self.kind) if use_scaler else None

    def autocast(self):
        """The context of a forward pass; weights, sums and losses stay float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.kind, dtype=self.dtype)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of the loss (scaled up for float16)."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def unscale(self, optimizers) -> None:
        """Bring gradients back to their own scale, before they are clipped."""
        if self.scaler is not None:
            for optimizer in optimizers.optimizers:
                self.scaler.unscale_(optimizer)

    def step(self, optimizers, grad_norm: torch.Tensor) -> torch.Tensor:
        """Update the weights unless grad_norm is not finite; 1.0 when skipped, else 0.0."""
        skipped = (~torch.isfinite(grad_norm)).float()
        optimizers.step(skipped)
        if self.scaler is not None:
            self.scaler.update()
        return skipped

    def state_dict(self) -> dict:
        """State of the scaler, or {}."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Take `state_dict` back; a run that changes its precision starts with a new scaler."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


def clip_grad_norm(model: torch.nn.Module, largest: float) -> torch.Tensor:
    """Scale all gradients together to a norm of at most `largest` (0 = off); the norm before.

    Pascanu et al. 2013.
    """
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    total = total_norm(grads)
    if largest > 0:
        factor = (largest / (total + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(grad) for grad in grads], factor)
    return total
