"""Mixture of experts: each token goes through the few MLPs that a router chooses for it.

Shazeer et al. 2017, as Qwen3-MoE has it (Yang et al. 2025): the router's softmax in float32, the
probabilities of the chosen divided by their sum, no token dropped. The matrices of an expert are
parameters of their own, so optimizers, shards and initial weights know nothing of experts.
"""

import contextlib
import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from gptlab.model.config import GPTConfig


class Reorder(torch.autograd.Function):
    """Rows [n, C] in another order; the gradient is gathered back, where indexing would add."""

    @staticmethod
    def forward(ctx, rows, order, back):
        ctx.save_for_backward(back)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class Experts(nn.Module):
    """n_expert MLPs, of which n_expert_active work on each token, in the place of one MLP.

    make_mlp: the class of an expert. imbalance: of the last pass in training, [B], by sequence
    (`with_balance`). counts: tokens that each expert had in evaluation, int64 [n_expert].
    """

    def __init__(self, config: GPTConfig, make_mlp: Callable[[GPTConfig], nn.Module]):
        super().__init__()
        self.n_active = config.n_expert_active
        self.router = nn.Linear(config.n_embd, config.n_expert, bias=False)
        one = dataclasses.replace(config, n_expert=0, intermediate_size=config.expert_size)
        self.experts = nn.ModuleList(make_mlp(one) for _ in range(config.n_expert))
        self.imbalance: torch.Tensor | None = None
        self.counts: torch.Tensor | None = None

    def forward(self, x):
        B, T, C = x.shape
        tokens, k, E = x.reshape(-1, C), self.n_active, len(self.experts)  # [N, C]
        probabilities = self.route(tokens)  # [N, E]
        weights, chosen = probabilities.topk(k, dim=-1)  # [N, k]
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        self.note(probabilities.view(B, T, E), chosen.view(B, T * k))
        # sorted by expert, so that each one multiplies its tokens at once
        order = chosen.flatten().argsort(stable=True)  # [N k]
        back = torch.empty_like(order).scatter_(0, order, torch.arange(B * T * k, device=x.device))
        copies = tokens[:, None].expand(-1, k, -1).reshape(-1, C)  # [N k, C]
        sizes = torch.bincount(chosen.flatten(), minlength=E).tolist()
        parts = Reorder.apply(copies, order, back).split(sizes)
        # an expert without tokens gets gradients too, zeros, because all processes must sum alike
        is_needed = torch.is_grad_enabled()
        pairs = zip(self.experts, parts, strict=True)
        done = [_apply(expert, part) for expert, part in pairs if is_needed or len(part)]
        y = Reorder.apply(torch.cat(done), back, order).view(-1, k, C)
        return (y * weights[..., None]).sum(1).view(B, T, C)

    def route(self, tokens):
        """The router's probabilities of tokens [N, C]: [N, E], in float32 also under autocast."""
        high, kind = torch.promote_types(tokens.dtype, torch.float32), tokens.device.type
        is_cast = torch.amp.is_autocast_available(kind)
        with torch.autocast(kind, enabled=False) if is_cast else contextlib.nullcontext():
            return F.linear(tokens.to(high), self.router.weight.to(high)).softmax(-1)

    def note(self, probabilities, chosen) -> None:
        """Keep what `with_balance` and `take_counts` read: of [B, T, E] and int64 [B, T k]."""
        B, T, E = probabilities.shape
        rows = torch.arange(B, device=chosen.device)[:, None] * E
        counts = torch.bincount((chosen + rows).flatten(), minlength=B * E).view(B, E)
        self.imbalance = None
        if self.training:
            shares = counts / (T * self.n_active)  # [B, E]
            self.imbalance = E * (shares * probabilities.mean(1)).sum(-1)  # [B]
        else:
            counts = counts.sum(0)
            self.counts = counts if self.counts is None else self.counts + counts


def _apply(expert: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """What an expert makes of its rows, which zeros round up to one of few numbers.

    On a CPU with bfloat16, oneDNN compiles a product for each new shape and keeps it: 50 MB a step.
    """
    size = len(rows)
    step = 1 << max(0, size.bit_length() - 4)  # an eighth of the power of two below
    return expert(F.pad(rows, (0, 0, 0, -size % step)))[:size]


def with_balance(loss: torch.Tensor, model: nn.Module, targets: torch.Tensor) -> torch.Tensor:
    """The summed loss of targets [B T], to whose gradient uneven use of experts adds.

    A sequence's imbalance in a layer is n_expert times the sum, over experts, of its share of the
    tokens and its mean probability: 1 where all are used alike (Fedus et al. 2021; by sequence:
    DeepSeek-AI 2024). It counts expert_balance times for each unmasked target, so the sum over a
    batch does not depend on micro-batches and processes. The value stays the cross-entropy.
    """
    found = [layer.imbalance for layer in layers_of(model) if layer.imbalance is not None]
    if not found:
        return loss
    imbalance = torch.stack(found).sum(0)  # [B]
    counted = (targets.view(len(imbalance), -1) != -1).sum(1)
    extra = model.config.expert_balance * (imbalance * counted).sum()
    return loss + (extra - extra.detach())


def layers_of(model: nn.Module) -> list[Experts]:
    """The experts of each block that has some."""
    return [block.mlp for block in model.blocks if isinstance(block.mlp, Experts)]


def take_counts(model: nn.Module) -> torch.Tensor:
    """Tokens that each expert had in evaluation since the last call, int64 [L, n_expert]."""
    layers = layers_of(model)
    counts = [layer.counts for layer in layers if layer.counts is not None]
    for layer in layers:
        layer.counts = None
    return torch.stack(counts).cpu() if counts else torch.zeros(0, 0, dtype=torch.int64)
