"""Random draws that follow from a seed and a name: the same for any number of processes."""

import hashlib

import torch
from torch import nn

# The versions of what is drawn, which a run keeps to its end.
# Initialisation 1: all weights in turn from one generator; 2: each from (seed, its name).
# Dropout 1: the model draws for a micro-batch of a process; 2: each sequence has its masks.
NUMERICS = {"initialisation": 2, "dropout": 2}
FIRST_NUMERICS = {"initialisation": 1, "dropout": 1}  # of files that do not say


def generator(seed: int, name: str, device: str = "cpu") -> torch.Generator:
    """A generator whose numbers follow from the seed, the name and the kind of device alone."""
    digest = hashlib.sha256(f"{seed % 2**64} {name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little"))


def normal(seed: int, name: str, shape: torch.Size, std: float) -> torch.Tensor:
    """Float32 values of N(0, std²) on the CPU, which follow from the seed and the name alone."""
    if not std:
        return torch.zeros(shape, device="cpu")
    values = torch.empty(shape, device="cpu")
    return nn.init.normal_(values, std=std, generator=generator(seed, name))
