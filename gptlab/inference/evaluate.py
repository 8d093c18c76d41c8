"""The loss of a model on held-out tokens: the same windows every time, so runs can be compared."""

import math
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch

from gptlab.errors import DataError
from gptlab.inference.decoding import evaluating


def evaluation_windows(n_tokens: int, block_size: int, max_tokens: int | None = None) -> np.ndarray:
    """Where the windows of an evaluation start: int64 [W], ascending, none overlapping another.

    A window at w predicts tokens w + 1 to w + block_size from those before them in the window.
    Without max_tokens the windows tile the split: each token but the first is predicted exactly
    once, the last window may be shorter. With it, as many whole windows as fit into max_tokens (at
    least one) are spread evenly from the first token to the last. Neither depends on a batch size.
    Raises DataError when there is nothing to predict.
    """
    n_targets = n_tokens - 1
    if n_targets < 1:
        raise DataError(f"Evaluation needs at least 2 tokens, and there are {n_tokens}.")
    count = None if max_tokens is None else max(1, max_tokens // block_size)
    if count is None or count * block_size >= n_targets:
        return np.arange(0, n_targets, block_size, dtype=np.int64)
    # count * block_size < n_targets, so neighbours lie at least block_size apart
    return np.arange(count, dtype=np.int64) * (n_targets - block_size) // max(1, count - 1)


def read_windows(
    data: np.ndarray, starts: np.ndarray, block_size: int, rows: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of the windows at `starts`, int64 [rows, block_size] each.

    What lies beyond the end of the data, and rows beyond the windows, have targets of -1.
    """
    inputs = np.zeros((rows, block_size), dtype=np.int64)
    targets = np.full((rows, block_size), -1, dtype=np.int64)
    for row, start in enumerate(starts):
        window = data[start : start + block_size + 1].astype(np.int64)
        inputs[row, : len(window) - 1] = window[:-1]
        targets[row, : len(window) - 1] = window[1:]
    return torch.from_numpy(inputs), torch.from_numpy(targets)


@torch.no_grad()
def evaluate_loss(
    model: torch.nn.Module,
    data: np.ndarray,
    windows: np.ndarray,
    block_size: int,
    batch_size: int,
    device: str | torch.device,
    autocast: Callable = nullcontext,
    progress: Callable[[int], object] | None = None,
) -> float:
    """Mean cross-entropy in nats per predicted token of the windows that start at `windows`.

    data: token ids [n]; it may be a memory map. autocast: makes the context of each forward pass.
    progress(windows done) is called after each batch. Every batch has the shape [batch_size,
    block_size], so that a compiled model is not compiled again. The sums of the batches are added
    exactly (float64), so the result repeats bitwise, and with another batch size to the rounding of
    a batch's own sum. The model's mode (train or eval) is left as it was.
    """
    sums, count = [], 0
    with evaluating(model):
        for first in range(0, len(windows), batch_size):
            starts = windows[first : first + batch_size]
            inputs, targets = read_windows(data, starts, block_size, batch_size)
            count += int((targets != -1).sum())
            with autocast():
                _, loss = model(inputs.to(device), targets.to(device), reduction="sum")
            sums.append(loss.float())
            if progress:
                progress(len(starts))
    # one wait for the device instead of one per batch, and MPS has no float64
    return math.fsum(torch.stack(sums).tolist()) / count


def bits_per_byte(loss: float, tokens: int, n_bytes: int) -> float:
    """A loss in nats per token as bits per UTF-8 byte, which any two tokenizers can compare.

    tokens and n_bytes: the size of the text that the loss stands for, in both units.
    """
    return loss * tokens / n_bytes / math.log(2)
