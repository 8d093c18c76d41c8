"""Muon: momentum whose matrices are orthogonalised before they are applied (Jordan et al. 2024)."""

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist

from gptlab.model.lora import LoRALinear
from gptlab.model.shards import is_sharded, local, rows_of_each, shard_group
from gptlab.model.transformer import GPT
from gptlab.training.optimizers.optimizer import Optimizer

# Newton-Schulz: a quintic whose iteration pulls all singular values towards 1 (Jordan et al. 2024)
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_STEPS = 4
GRAM_RATIO = 1.5  # of the sides, above which multiplying the small side alone is faster


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype, steps: int = NS_STEPS):
    """The nearest (semi-)orthogonal matrices, roughly: [n, A, B] -> [n, A, B] in `dtype`.

    Singular values end between about 0.7 and 1.2, by `steps` Newton-Schulz iterations on the
    smaller side. dtype: the precision in which this device multiplies fast.
    """
    a, b, c = NS_COEFFICIENTS
    wide = matrices.size(1) <= matrices.size(2)
    x = matrices if wide else matrices.mT  # [n, small, large]
    # to unit norm first: small gradients would underflow in float16
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    if dtype == torch.float32 and x.size(2) > GRAM_RATIO * x.size(1):
        x = _gram_polynomial(x @ x.mT, steps) @ x
        return x if wide else x.mT
    for _ in range(steps):
        gram = x @ x.mT  # [n, small, small]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def _gram_polynomial(gram: torch.Tensor, steps: int) -> torch.Tensor:
    """P [n, S, S] with which P @ x is what `steps` iterations make of x, from gram = x @ x.mT.

    All iterates are polynomials of the first one's Gram matrix times x, so only small matrices
    are multiplied: a third less work where x is 2.7 times as long as high. Rounding errors add up
    more, so this is for float32.
    """
    a, b, c = NS_COEFFICIENTS
    product = None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if step < steps - 1:
            gram = factor @ gram @ factor
    return product


class Muon(Optimizer):
    """Momentum whose matrices are orthogonalised before they are applied (Jordan et al. 2024).

    Equal shapes are stacked and orthogonalised together. The update is scaled to the root mean
    square of an AdamW update, 0.2 sqrt(max(A, B)) (Liu et al. 2025), so both take the same rate.
    """

    @staticmethod
    def takes(model: GPT) -> Iterator[torch.nn.Parameter]:
        """The hidden matrices: those of the blocks' linear layers, and of their adapters."""
        for module in model.blocks.modules():
            if isinstance(module, torch.nn.Linear | LoRALinear):
                yield from (p for p in module.parameters(recurse=False) if p.dim() == 2)

    def new_state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """The mean of the gradients."""
        return {"momentum": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, found_inf: torch.Tensor | None = None) -> None:
        """Update every matrix that has a gradient, unless found_inf is 1.0."""
        for group in self.param_groups:
            by_shape = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group, found_inf)

    def _update(self, parameters, group, found_inf) -> None:
        buffers = [local(self.state_of(parameter)["momentum"]) for parameter in parameters]
        grads = [local(parameter.grad) for parameter in parameters]
        kept = 1.0
        if found_inf is not None:  # without asking the device: zero rate, old momentum
            skip = found_inf > 0
            grads = [torch.where(skip, buf, grad) for buf, grad in zip(buffers, grads, strict=True)]
            kept = torch.where(skip, 0.0, 1.0)
        momentum, rate = self.options.muon_momentum, group["lr"]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        # Nesterov: look ahead by one more step of the mean
        ahead = torch.stack(torch._foreach_lerp(grads, buffers, momentum))  # [n, A or own rows, B]
        if is_sharded(parameters[0]):
            update = self._orthogonalize_shards(ahead, parameters[0])
        else:
            update = orthogonalize(ahead, self.fast_dtype)
        update = update.to(ahead.dtype)
        scale = 0.2 * math.sqrt(max(parameters[0].shape)) * rate * kept
        weights = [local(parameter) for parameter in parameters]
        torch._foreach_mul_(weights, 1 - rate * group["weight_decay"] * kept)
        torch._foreach_sub_(weights, list((update * scale).unbind(0)))

    def _orthogonalize_shards(self, shards: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """This process's rows of orthogonalised matrices, from its rows of each: [n, own, B] twice.

        like: one of the parameters. Process k gets matrices k, k + size, ... whole, one at a time,
        and sends the rows of the result back.
        """
        group, chunk = shard_group(like), rows_of_each(like)
        size, rank, (rows, columns) = group.size(), group.rank(), like.shape
        found = torch.empty_like(shards)
        for first in range(0, len(shards), size):
            part = shards[first : first + size]
            sent = part.new_zeros(size, chunk, columns)
            sent[: len(part), : part.size(1)] = part
            received = torch.empty_like(sent)
            dist.all_to_all_single(received, sent, group=group)
            if rank < len(part):
                matrix = received.view(-1, columns)[:rows]  # [A, B]
                matrix.copy_(orthogonalize(matrix[None], self.fast_dtype)[0])
            dist.all_to_all_single(sent, received, group=group)
            found[first : first + size] = sent[: len(part), : part.size(1)]
        return found
