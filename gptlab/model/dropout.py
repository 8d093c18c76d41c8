"""Dropout by masks that belong to a sequence, not to the batch or the process that trains on it."""

from collections.abc import Sequence

import torch
from torch import nn

from gptlab.model.config import GPTConfig
from gptlab.model.initialisation import generator


class Dropout(nn.Dropout):
    """Zero some values in training and scale the others up (Srivastava et al. 2014).

    By a mask that was drawn outside: bool, of the shape of x, True for what stays. Without one it
    draws its own in training, as nn.Dropout does.
    """

    def __init__(self, config: GPTConfig):
        super().__init__(config.dropout)
        self.scale = 256 / (256 - config.dropped_of_256)

    def forward(self, x, mask=None):
        return super().forward(x) if mask is None else x * mask * self.scale


def dropout_masks(config: GPTConfig, seed: int, numbers: Sequence[int], device: str) -> list | None:
    """The masks of `GPT.features` for the sequences of a run with these numbers; None without any.

    Of the embedding [B, T, C], then of each block's branches, in a list. Each sequence's are random
    bytes that follow from (seed, its number) and the kind of device, wherever it is trained on.
    """
    if not config.dropout:
        return None
    device = "cpu" if device.startswith("mps") else device  # which draws no 64-bit integers
    layers, shape = config.n_layer, (config.block_size, config.n_embd)  # [T, C]
    parts = 1 + layers * config.branches
    size = parts * config.block_size * config.n_embd
    kept = torch.empty(parts, len(numbers), *shape, dtype=torch.bool, device=device)
    drawn = torch.empty(-(-size // 8), dtype=torch.int64, device=device)
    for row, number in enumerate(numbers):
        drawn.random_(-(2**63), None, generator=generator(seed, f"sequence {number}", device))
        values = drawn.view(torch.uint8)[:size].view(parts, *shape)
        torch.ge(values, config.dropped_of_256, out=kept[:, row])
    embedding, *branches = kept.to(device)
    return [embedding, *(branches[i::layers] for i in range(layers))]
