"""The loss of a model on held-out tokens, in the same windows every time, to compare runs."""

import contextlib
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from gptlab.errors import DataError
from gptlab.inference.decoding import evaluating
from gptlab.model.documents import document_mask

LOGITS = 1 << 24  # held in memory at once: 64 MB in float32
PASS_TOKENS = 8192  # about the size of a forward pass


def read_windows(
    data: np.ndarray,
    starts: np.ndarray,
    block_size: int,
    rows: int,
    loss_mask: np.ndarray | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of the windows at `starts`, int64 [rows, block_size] each.

    Targets are -1 beyond the end of the data, in rows beyond the windows, and where loss_mask
    (bool, as long as data) is False.
    """
    inputs = np.zeros((rows, block_size), dtype=np.int64)
    targets = np.full((rows, block_size), -1, dtype=np.int64)
    for row, start in enumerate(starts):
        window = data[start : start + block_size + 1].astype(np.int64)
        inputs[row, : len(window) - 1] = window[:-1]
        targets[row, : len(window) - 1] = window[1:]
        if loss_mask is not None:
            left_out = ~loss_mask[start + 1 : start + block_size + 1]
            targets[row, : len(left_out)][left_out] = -1
    return torch.from_numpy(inputs), torch.from_numpy(targets)


@torch.no_grad()
def window_losses(
    model: torch.nn.Module,
    data: np.ndarray,
    windows: np.ndarray,
    block_size: int,
    batch_size: int,
    device: str | torch.device,
    *,
    autocast: Callable = nullcontext,
    progress: Callable[[int], object] | None = None,
    loss_mask: np.ndarray | None = None,
    share: tuple[int, int] = (0, 1),
    separator: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy of the windows that start at `windows`: (nats float64 [W], targets int64 [W]).

    data: token ids [n]; it may be a memory map. autocast: makes the context of each forward pass.
    progress(windows done) is called after each batch. loss_mask: as `read_windows` takes it. Every
    batch has the shape [batch_size, block_size], so that a compiled model is not compiled again.
    share: (rank, world size) of the processes that divide the batches; windows of others are 0.
    separator: the id at which attention begins anew, of a model that was trained so.
    The model's mode (train or eval) is left as it was.
    """
    rank, world_size = share
    sums, counts = np.zeros(len(windows)), np.zeros(len(windows), dtype=np.int64)
    found, places = [], []
    with evaluating(model):
        # all processes take equally many passes, some without a window: a sharded model waits
        for every in range(0, len(windows), world_size * batch_size):
            first = every + rank * batch_size
            starts = windows[first : first + batch_size]
            inputs, targets = read_windows(data, starts, block_size, batch_size, loss_mask)
            place = slice(first, first + len(starts))
            counts[place] = (targets != -1).sum(1)[: len(starts)].numpy()
            with autocast():
                losses = token_losses(model, inputs.to(device), targets.to(device), separator)
            found.append(losses.sum(1)[: len(starts)])  # float32: MPS has no float64
            places.append(place)
            if progress:
                progress(len(starts))
    for place, losses in zip(places, found, strict=True):  # reading waits for the device: once
        sums[place] = losses.cpu().numpy()
    return sums, counts


def evaluate_loss(model, data, windows, block_size: int, batch_size: int, device, **more) -> float:
    """Mean cross-entropy in nats per unmasked target of the windows, as `window_losses` takes them.

    The losses of the windows are added exactly, so the result repeats bitwise.
    """
    sums, counts = window_losses(model, data, windows, block_size, batch_size, device, **more)
    return math.fsum(sums) / int(counts.sum())


def bits_per_byte(loss: float, tokens: int, n_bytes: int) -> float:
    """A loss in nats per token as bits per UTF-8 byte, which any two tokenizers can compare.

    tokens and n_bytes: the size of the text that the loss stands for, in both units.
    """
    return loss * tokens / n_bytes / math.log(2)


@dataclass(frozen=True)
class TokenLoss:
    """Losses of tokens, summed by position: the token after p tokens of a window is at p - 1.

    sums: nats, float64 [block_size]; counts: int64 [block_size].
    """

    sums: np.ndarray
    counts: np.ndarray

    def __add__(self, other: "TokenLoss") -> "TokenLoss":
        return TokenLoss(self.sums + other.sums, self.counts + other.counts)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats per token."""
        return math.fsum(self.sums) / self.tokens

    @property
    def tokens(self) -> int:
        """How many tokens were predicted."""
        return int(self.counts.sum())

    def by_position(self) -> list[tuple[int, int, int, float]]:
        """(first, last, tokens, loss) of ranges of positions that double: 1, 2, 3-4, 5-8, ..."""
        rows, first = [], 1
        while first <= len(self.counts):
            last = min(max(1, 2 * (first - 1)), len(self.counts))
            count = int(self.counts[first - 1 : last].sum())
            if count:
                loss = math.fsum(self.sums[first - 1 : last]) / count
                rows.append((first, last, count, loss))
            first = last + 1
        return rows


def sliding_windows(n_tokens: int, block_size: int, stride: int) -> list[tuple[int, int]]:
    """(start, targets that earlier windows have predicted) of windows `stride` tokens apart.

    Each token but the first is predicted once. With a stride below block_size the first window that
    holds it predicts it, after at least block_size - stride others (except in the first window).
    """
    windows, start, end = [], 0, 0
    while end < n_tokens - 1:
        windows.append((start, end - start))
        end = min(start + block_size, n_tokens - 1)
        start += stride
    return windows


@torch.no_grad()
def measure_tokens(
    members: Sequence[torch.nn.Module],
    ids: np.ndarray,
    windows: list[tuple[int, int]],
    block_size: int,
    *,
    loss_mask: np.ndarray | None = None,
    separators: Sequence[int | None] | None = None,
    autocast: Callable = nullcontext,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> list[TokenLoss]:
    """The loss of each token of `windows` (as `sliding_windows` has them), by its position.

    First that of the members' averaged probabilities, then that of each; one member has its own
    only. ids: int [n]. loss_mask: bool [n], the tokens that are targets; without it all are.
    separators: of each member, as in `window_losses`.
    progress(windows, total) is called after each batch with its number of windows. Raises DataError
    without a target.
    """
    device = next(members[0].parameters()).device
    separators = separators or [None] * len(members)
    rows = max(1, PASS_TOKENS // block_size)
    results = 1 + len(members) if len(members) > 1 else 1
    sums, counts = np.zeros((results, block_size)), np.zeros(block_size, dtype=np.int64)
    with contextlib.ExitStack() as stack:
        for model in members:
            stack.enter_context(evaluating(model))
        for first in range(0, len(windows), rows):
            part = windows[first : first + rows]
            starts = [start for start, _ in part]
            inputs, targets = read_windows(ids, starts, block_size, len(part), loss_mask)
            for row, (_, known) in enumerate(part):
                targets[row, :known] = -1
            inputs, own = inputs.to(device), targets.to(device)
            with autocast():
                losses = torch.stack(
                    [
                        token_losses(model, inputs, own, separator)
                        for model, separator in zip(members, separators, strict=True)
                    ]
                )
            if len(members) > 1:
                averaged = averaged_losses(losses) * (own != -1)
                losses = torch.cat((averaged[None], losses))
            sums += losses.double().cpu().numpy().sum(1)
            counts += (targets != -1).numpy().sum(0)
            progress(len(part), len(windows))
    if not counts.any():
        raise DataError("There is no token to evaluate: name a longer text.")
    return [TokenLoss(each, counts) for each in sums]


def averaged_losses(losses):
    """The losses of tokens under the average of the members' probabilities: [M, ...] -> [...].

    The probability of the token itself is all that is needed, so no member's others are kept.
    """
    return math.log(len(losses)) - losses.neg().logsumexp(0)


def token_losses(model, tokens, targets, separator: int | None = None):
    """Cross-entropy of each token in nats, 0 for targets of -1: int64 [B, T] twice -> float32.

    separator: as in `window_losses`.
    """
    documents = document_mask(tokens, separator)
    hidden = model.features(tokens, documents=documents).flatten(0, 1)  # [B T, C]
    chunk = max(1, LOGITS // model.config.vocab_size)
    losses = [
        F.cross_entropy(model.unembed(part).float(), wanted, reduction="none", ignore_index=-1)
        for part, wanted in zip(hidden.split(chunk), targets.flatten().split(chunk), strict=True)
    ]
    return torch.cat(losses).view_as(targets)
