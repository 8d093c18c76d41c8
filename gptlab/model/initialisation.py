"""Initial weights: the same on every device and mesh, for any number of processes."""

import hashlib

import torch
from torch import nn


def normal(seed: int, name: str, shape: torch.Size, std: float) -> torch.Tensor:
    """Float32 values of N(0, std²) on the CPU, which follow from the seed and the name alone."""
    if not std:
        return torch.zeros(shape, device="cpu")
    digest = hashlib.sha256(f"{seed % 2**64} {name}".encode()).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little"))
    return nn.init.normal_(torch.empty(shape, device="cpu"), std=std, generator=generator)
