"""Weights in fewer bits, for faster decoding and for exported pages."""

import torch

from gptlab.model.transformer import GPT

GROUP = 64  # int8 weights of a row that share a scale, as in native.cpp and in a page's model.js


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix [R, C] as int8 [R, C] and float32 scales [R, ceil(C / GROUP)], symmetric.

    Each group of GROUP weights in a row has its own scale, so that one large weight affects few
    others (block-wise quantization, Dettmers & Zettlemoyer 2023).
    """
    rows, cols = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -cols % GROUP)).view(rows, -1, GROUP)
    scales = padded.abs().amax(-1) / 127
    steps = (padded / scales.clamp_min(1e-30)[..., None]).round_()
    return steps.to(torch.int8).view(rows, -1)[:, :cols].contiguous(), scales


def dequantize(steps: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float32 matrix [R, C] of an int8 matrix and its scales."""
    return steps * scales.repeat_interleave(GROUP, dim=1)[:, : steps.size(1)]


@torch.no_grad()
def round_weights(model: GPT, dtype: str) -> None:
    """Round the model's float32 matrices, in place, to values that `dtype` represents exactly.

    Prefill, evaluation and decoding then agree, whether torch computes them or not.
    """
    if dtype == "float32":
        return
    for weight in {id(w): w for w in model.parameters() if w.dim() == 2}.values():
        rounded = dequantize(*quantize(weight)) if dtype == "int8" else weight.bfloat16().float()
        weight.copy_(rounded)
