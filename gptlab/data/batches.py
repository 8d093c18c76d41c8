"""Which tokens a step trains on: a pure function of the sequence's number.

Sequence j of a run is a window of the token file that depends only on (seed, j). Each epoch is cut
into N windows of block_size tokens, starting at its own random offset. A keyed permutation orders
the windows; it is computed on demand and never stored. The whole state of the data is therefore one
number, the sequences seen so far: the batch size and the number of ranks may change between
resumes, and the text of any step can be shown again.
"""

import mmap
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gptlab.data.token_files import check_ids
from gptlab.errors import DataError

_ROUNDS = 6
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFT, _HIGH = np.uint64(29), np.uint64(32)
_MASK = (1 << 64) - 1
_AHEAD = 4096  # sequences whose starts are computed at once


def mix(*numbers: int) -> int:
    """A 64-bit hash of `numbers` (splitmix64, Steele 2014)."""
    state = 0
    for number in numbers:
        state = (state + (number & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def permute(indices: np.ndarray, size: int, key: int) -> np.ndarray:
    """Apply a keyed permutation of range(size) to `indices`: int64 -> int64, same shape.

    A balanced Feistel network over the next power of four (Luby & Rackoff 1988), applied again
    until the result is below `size` (cycle walking, Black & Rogaway 2002).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(mix(key, turn)) for turn in range(_ROUNDS)]

    def encrypt(values):
        left, right = values >> half, values & low
        for round_key in keys:
            noise = right ^ round_key
            noise *= _FIRST  # in place: allocation is half of the time for short arrays
            noise ^= noise >> _SHIFT
            noise *= _SECOND
            noise >>= _HIGH
            noise &= low
            noise ^= left
            left, right = right, noise
        return (left << half) | right

    values = encrypt(np.asarray(indices, dtype=np.uint64))
    while (outside := values >= size).any():
        values[outside] = encrypt(values[outside])
    return values.astype(np.int64)


def windows_per_epoch(n_tokens: int, block_size: int) -> int:
    """N, the number of sequences in an epoch over n_tokens."""
    return max(1, (n_tokens - 1) // block_size - 1)


def sequence_starts(numbers: np.ndarray, n_tokens: int, block_size: int, seed: int) -> np.ndarray:
    """Start of each sequence's window in the token file: numbers int64 [n] -> int64 [n]."""
    per_epoch = windows_per_epoch(n_tokens, block_size)
    slack = n_tokens - 1 - per_epoch * block_size
    starts = np.empty(len(numbers), dtype=np.int64)
    epochs = np.asarray(numbers) // per_epoch
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        window = permute(np.asarray(numbers)[rows] % per_epoch, per_epoch, mix(seed, int(epoch)))
        offset = mix(seed, int(epoch), 1) % (slack + 1)
        starts[rows] = offset + window * block_size
    return starts


def check_length(n_tokens: int, block_size: int, part: str, name: str) -> None:
    """Raise DataError if `part` ("train" or "val") of dataset `name` is shorter than one window."""
    if n_tokens <= block_size:
        raise DataError(
            f"The {part} part of {name} has {n_tokens:,} tokens, but a window of block_size "
            f"{block_size} needs {block_size + 1:,}",
            f"use --block_size {max(1, n_tokens - 1)} or less, or more text",
        )


def _give_pages_back(tokens: np.ndarray) -> None:
    """Release the resident pages of a mapped file; the system still caches them.

    Otherwise the memory of a run grows to the size of its token file and looks like a leak.
    """
    if isinstance(tokens.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        tokens.base.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class MicroBatch:
    """The sequences of one forward pass: tokens and targets, int64 [b, block_size], on the device.

    A target of -1 is masked out of the loss.
    """

    tokens: object
    targets: object
    index: int
    is_last: bool


class Batches:
    """The micro-batches of each step for one rank of a run.

    A step trains on `sequences_per_step` consecutive sequence numbers. Each rank takes an equal
    slice of them (some take one fewer if it does not divide evenly), in micro-batches of
    batch_size. loss_mask: bool, as long as tokens, True for targets of the loss; None means all.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        loss_mask: np.ndarray | None = None,
        *,
        vocab_size: int,
        block_size: int,
        batch_size: int,
        sequences_per_step: int,
        seed: int,
        device: str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        path: str = "train.bin",
    ):
        check_length(len(tokens), block_size, "train", path)
        self.tokens, self.loss_mask = tokens, loss_mask
        self.vocab_size, self.path = vocab_size, path
        self.block_size, self.batch_size = block_size, batch_size
        self.sequences_per_step, self.seed = sequences_per_step, seed
        self.device = device
        self.rank, self.world_size = rank, world_size
        self.seconds = 0.0  # spent on reading and copying, so far
        self._known = range(0), np.empty(0, dtype=np.int64)  # sequence numbers, their starts

    def count_targets(self, first: int) -> int:
        """Unmasked targets, over all ranks, of the step that begins with sequence `first`."""
        if self.loss_mask is None:
            return self.sequences_per_step * self.block_size
        numbers = np.arange(first, first + self.sequences_per_step)
        return max(1, sum(int(self._target_mask(s).sum()) for s in self._starts(numbers)))

    def _starts(self, numbers: np.ndarray) -> np.ndarray:
        """`sequence_starts`, computed ahead: thousands cost about as much as a few."""
        first, last = int(numbers.min()), int(numbers.max())
        if last - first >= _AHEAD:
            return sequence_starts(numbers, len(self.tokens), self.block_size, self.seed)
        known, starts = self._known
        if first not in known or last not in known:
            known = range(first, first + _AHEAD)
            starts = sequence_starts(
                np.asarray(known), len(self.tokens), self.block_size, self.seed
            )
            self._known = known, starts
        return starts[numbers - known.start]

    def _target_mask(self, start: int) -> np.ndarray:
        return self.loss_mask[start + 1 : start + self.block_size + 1]

    def rows(self, first: int) -> np.ndarray:
        """This rank's sequence numbers, int64, of the step that begins with sequence `first`."""
        total = self.sequences_per_step
        begin, end = (total * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return np.arange(first + begin, first + end, dtype=np.int64)

    def windows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets of these sequences: int64 [n, block_size] each.

        Raises DataError for an id outside the vocabulary. Masked targets are -1.
        """
        starts = self._starts(numbers)
        rows = np.stack([self.tokens[start : start + self.block_size + 1] for start in starts])
        _give_pages_back(self.tokens)
        for row, start in zip(rows, starts, strict=True):
            if row.max() >= self.vocab_size:
                check_ids(row, self.vocab_size, self.path, int(start))
        rows = rows.astype(np.int64)
        tokens, targets = rows[:, :-1].copy(), rows[:, 1:].copy()
        if self.loss_mask is not None:
            targets[~np.stack([self._target_mask(start) for start in starts])] = -1
        return tokens, targets

    def micro_batches(self, first: int) -> Iterator[MicroBatch]:
        """The micro-batches of the step that begins with sequence number `first`."""
        import torch

        rows = self.rows(first)
        count = -(-len(rows) // self.batch_size)
        for index in range(count):
            begin = time.perf_counter()
            part = rows[index * self.batch_size : (index + 1) * self.batch_size]
            pair = [torch.from_numpy(array) for array in self.windows(part)]
            if self.device.startswith("cuda"):  # the copy overlaps with computation
                pair = [tensor.pin_memory() for tensor in pair]
            pair = [tensor.to(self.device, non_blocking=True) for tensor in pair]
            self.seconds += time.perf_counter() - begin
            yield MicroBatch(*pair, index, is_last=index == count - 1)
