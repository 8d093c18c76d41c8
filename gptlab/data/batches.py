"""Which tokens a step trains on: a pure function of the sequence's number.

Sequence j of a run is a window of the token file that depends only on (seed, j). Each epoch is cut
into N windows of block_size tokens, starting at its own random offset. A keyed permutation orders
the windows; it is computed on demand and never stored. The whole state of the data is therefore one
number, the sequences seen so far: the batch size and the number of ranks may change between
resumes, and the text of any step can be shown again.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gptlab.data.token_shards import TokenShards, give_pages_back
from gptlab.errors import DataError
from gptlab.files import display

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


def random_numbers(key: int, numbers: np.ndarray, count: int) -> list[list[int]]:
    """`count` random numbers below 2**64 for each of `numbers`, int64 [n]: a pure function
    (splitmix64, Steele 2014)."""
    state = numbers.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(
        1, count + 1, dtype=np.uint64
    )
    state = np.uint64(key) + state * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return (state ^ (state >> np.uint64(31))).tolist()


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


def interleave(numbers: np.ndarray, weights: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(dataset, number within it) of each sequence of a mix: int64 [n] -> int64 [n] twice.

    Each dataset in turn takes its share, evenly spread (Bresenham 1965), of the sequences that
    those before it leave. So every prefix has the proportions of `weights`, to less than one
    sequence for each dataset. numbers must stay below 2**61 / sum(weights).
    """
    which = np.full(len(numbers), len(weights) - 1, dtype=np.int64)
    within = np.array(numbers, dtype=np.int64)
    is_left = np.ones(len(within), dtype=bool)
    left = sum(weights)
    for dataset, weight in enumerate(weights[:-1]):
        before, after = ((2 * weight * (within + more) + left) // (2 * left) for more in (0, 1))
        taken = is_left & (after > before)
        which[taken] = dataset
        within = np.where(taken, before, np.where(is_left, within - before, within))
        is_left &= ~taken
        left -= weight
    return which, within


def sequences_of_each(count: int, weights: Sequence[int]) -> list[int]:
    """How many of the first `count` sequences of a mix are from each dataset (`interleave`)."""
    counts, total = [], sum(weights)
    for weight in weights[:-1]:
        counts.append((2 * weight * count + total) // (2 * total))
        count, total = count - counts[-1], total - weight
    return [*counts, count]


def check_ids(ids: np.ndarray, vocab_size: int, path, offset: int = 0) -> None:
    """Raise DataError if an id lies outside the vocabulary.

    offset: position of `ids[0]` in the file at `path`, so that the error names the place.
    """
    if ids.size and int(ids.max()) >= vocab_size:
        position = int(np.argmax(ids >= vocab_size))
        raise DataError(
            f"{display(path)} holds the id {int(ids[position])} at position "
            f"{offset + position:,}, outside the vocabulary of {vocab_size:,} ids (0 to "
            f"{vocab_size - 1:,})",
            "prepare it again, or give the vocab_size that it was made with",
            sep="; ",
        )


def check_length(n_tokens: int, block_size: int, part: str, name: str) -> None:
    """Raise DataError if `part` ("train" or "val") of dataset `name` is shorter than one window."""
    if n_tokens <= block_size:
        raise DataError(
            f"The {part} part of {name} has {n_tokens:,} tokens, but a window of block_size "
            f"{block_size} needs {block_size + 1:,}",
            f"use --block_size {n_tokens - 1} or less, or more text"
            if n_tokens > 1
            else "give it more text",
        )


@dataclass(frozen=True)
class MicroBatch:
    """The sequences of one forward pass: tokens and targets, int64 [b, block_size], on the device.

    A target of -1 is masked out of the loss. numbers: int64 [b], those of the sequences in the run;
    -1 for a row without one, whose targets are all -1.
    """

    tokens: object
    targets: object
    numbers: np.ndarray
    index: int
    is_last: bool


class Sequences:
    """The sequences of one token file or of its shards, by their number.

    loss_mask: bool, as long as tokens, True for targets of the loss; None means all. path: of the
    file, for errors.
    """

    def __init__(
        self,
        tokens: np.ndarray | TokenShards,
        loss_mask: np.ndarray | None = None,
        *,
        vocab_size: int,
        block_size: int,
        seed: int,
        path: str = "train.bin",
    ):
        check_length(len(tokens), block_size, "train", path)
        self.tokens, self.loss_mask = tokens, loss_mask
        self.vocab_size, self.block_size = vocab_size, block_size
        self.seed, self.path = seed, path
        self._known = range(0), np.empty(0, dtype=np.int64)  # sequence numbers, their starts

    def starts(self, numbers: np.ndarray) -> np.ndarray:
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

    def count_targets(self, numbers: np.ndarray) -> int:
        """Unmasked targets of these sequences."""
        if self.loss_mask is None:
            return len(numbers) * self.block_size
        return sum(int(self._target_mask(start).sum()) for start in self.starts(numbers))

    def windows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets of these sequences: int64 [n, block_size] each.

        Raises DataError for an id outside the vocabulary. Masked targets are -1.
        """
        starts = self.starts(numbers)
        rows = np.stack([self.tokens[start : start + self.block_size + 1] for start in starts])
        give_pages_back(self.tokens)
        for row, start in zip(rows, starts, strict=True):
            if row.max() >= self.vocab_size:
                check_ids(row, self.vocab_size, self.path, int(start))
        rows = rows.astype(np.int64)
        tokens, targets = rows[:, :-1].copy(), rows[:, 1:].copy()
        if self.loss_mask is not None:
            targets[~np.stack([self._target_mask(start) for start in starts])] = -1
        return tokens, targets


class MixedSequences:
    """The sequences of several token files in the proportions of `weights`, as `Sequences`."""

    def __init__(self, parts: Sequence[Sequences], weights: Sequence[int]):
        self.parts, self.weights = parts, weights
        self.block_size = parts[0].block_size

    def _shared(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(index of a token file, its places among `numbers`, its own numbers) of each in them."""
        which, within = interleave(numbers, self.weights)
        for index in np.unique(which):
            places = np.flatnonzero(which == index)
            yield index, places, within[places]

    def origins(self, numbers: np.ndarray) -> list[tuple[int, int]]:
        """(index of its token file, start of its window there) of each sequence."""
        found = [(0, 0)] * len(numbers)
        for index, places, own in self._shared(numbers):
            for place, start in zip(places, self.parts[index].starts(own), strict=True):
                found[place] = int(index), int(start)
        return found

    def count_targets(self, numbers: np.ndarray) -> int:
        """Unmasked targets of these sequences."""
        return sum(self.parts[i].count_targets(own) for i, _, own in self._shared(numbers))

    def windows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets of these sequences: int64 [n, block_size] each. DataError."""
        tokens = np.empty((len(numbers), self.block_size), dtype=np.int64)
        targets = np.empty_like(tokens)
        for index, places, own in self._shared(numbers):
            tokens[places], targets[places] = self.parts[index].windows(own)
        return tokens, targets


class Batches:
    """The micro-batches of each step for one rank of a run.

    A step trains on `sequences_per_step` consecutive sequence numbers. Each rank takes an equal
    slice of them, in micro-batches of batch_size. Where they do not divide evenly, some ranks have
    an empty row: all ranks take equally many forward passes of the same shapes, because collective
    ones wait for each other.
    """

    def __init__(
        self,
        sequences: Sequences | MixedSequences,
        *,
        batch_size: int,
        sequences_per_step: int,
        device: str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ):
        self.sequences = sequences
        self.batch_size, self.sequences_per_step = batch_size, sequences_per_step
        self.device = device
        self.rank, self.world_size = rank, world_size
        self.seconds = 0.0  # spent on reading and copying, so far

    def count_targets(self, first: int) -> int:
        """Unmasked targets, over all ranks, of the step that begins with sequence `first`."""
        numbers = np.arange(first, first + self.sequences_per_step)
        return max(1, self.sequences.count_targets(numbers))

    def rows(self, first: int) -> np.ndarray:
        """This rank's sequence numbers, int64, of the step that begins with sequence `first`."""
        total = self.sequences_per_step
        begin, end = (total * rank // self.world_size for rank in (self.rank, self.rank + 1))
        return np.arange(first + begin, first + end, dtype=np.int64)

    def micro_batches(self, first: int) -> Iterator[MicroBatch]:
        """The micro-batches of the step that begins with sequence number `first`."""
        import torch

        rows = np.full(-(-self.sequences_per_step // self.world_size), -1, dtype=np.int64)
        own = self.rows(first)
        rows[: len(own)] = own
        count = -(-len(rows) // self.batch_size)
        for index in range(count):
            begin = time.perf_counter()
            part = rows[index * self.batch_size : (index + 1) * self.batch_size]
            pair = [torch.from_numpy(array) for array in self._windows(part)]
            if self.device.startswith("cuda"):  # the copy overlaps with computation
                pair = [tensor.pin_memory() for tensor in pair]
            pair = [tensor.to(self.device, non_blocking=True) for tensor in pair]
            self.seconds += time.perf_counter() - begin
            yield MicroBatch(*pair, part, index, is_last=index == count - 1)

    def _windows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`sequences.windows`, with an empty row for each number that is -1; these come last."""
        found = int((numbers >= 0).sum())
        if found == len(numbers):
            return self.sequences.windows(numbers)
        shape = len(numbers), self.sequences.block_size
        tokens, targets = np.zeros(shape, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
        if found:
            tokens[:found], targets[:found] = self.sequences.windows(numbers[:found])
        return tokens, targets
