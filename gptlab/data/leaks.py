"""Passages of the validation text that stand in the training text too: their loss is too low.

A window of PASSAGE_BYTES (64 characters, or as many tokens as hold them) at every eighth of its
length in the validation tokens is looked for at every position of the training tokens, by 64-bit
hashes (Karp and Rabin 1987). So every passage of 71 characters is found, and none shorter than 64.
Repetitions by chance are shorter: in n characters of text with h bits each, the longest is expected
to have about 2 log2(n) / h (Arratia and Waterman 1985), 40 for a gigabyte at 1.5 bits.

One pass over both parts. Memory: a byte of hashes for a token of validation text (more for ids of
long tokens, at most 8), a table of 64 MB at most, and a piece of the training text.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptlab.data.token_shards import SPLITS, TokenShards, find_token_files, map_files

FILE = "val.leaks.npy"
PASSAGE_BYTES = 64
DISTINCT_TOKENS = 6  # a passage has at least these; rulers and empty lines have fewer
TELLING = 0.01  # of the validation tokens: from here on the loss of the rest is given too
_PIECE = 1 << 16  # tokens that are hashed at once: they fit into the cache
_MOST_TABLE = 1 << 26

Progress = Callable[[int], None]  # called with tokens read


@dataclass(frozen=True)
class Leaks:
    """Where the validation tokens repeat training text. ranges: int64 [n, 2], [start, stop) in
    ascending order, without overlap. length: tokens of a window. share: of the targets."""

    ranges: np.ndarray
    length: int
    share: float

    @property
    def tokens(self) -> int:
        """How many validation tokens they hold."""
        return int((self.ranges[:, 1] - self.ranges[:, 0]).sum())


def passage_length(tokens: int, size: int | None) -> int:
    """Tokens of a passage: the power of two that holds PASSAGE_BYTES of a text of `size` bytes."""
    per_token = max(0.5, size / max(1, tokens)) if size else 1.0
    length = 4
    while length * per_token < PASSAGE_BYTES:
        length *= 2
    return length


def find_leaks(
    train: np.ndarray | TokenShards,
    val: np.ndarray | TokenShards,
    length: int,
    loss_mask: np.ndarray | None = None,
    progress: Progress = lambda n: None,
) -> Leaks:
    """The validation passages that stand anywhere in the training tokens.

    train, val: ids [n], uint16 or uint32, memory-mapped or not. length: tokens of a window, a power
    of two from 4 on. loss_mask: bool, as long as val: passages without a target are left out.
    """
    step = max(1, length // 8)
    found = [window_hashes(piece, length)[::step] for piece in _pieces(val, length, step)]
    hashes = np.concatenate([np.empty(0, np.uint64), *found])
    is_met = _met(train, hashes, length, progress)
    starts = np.flatnonzero(is_met) * step
    starts = starts[_are_varied(val, starts, length)]
    ranges = _merged(starts, length)
    if loss_mask is None:
        leaked = int((ranges[:, 1] - ranges[:, 0]).sum())
        return Leaks(ranges, length, leaked / max(1, len(val)))
    targets = np.array([int(loss_mask[a:b].sum()) for a, b in ranges.tolist()], np.int64)
    return Leaks(ranges[targets > 0], length, int(targets.sum()) / max(1, int(loss_mask.sum())))


def _pieces(tokens: np.ndarray, length: int, step: int = 1):
    """Pieces of tokens that together hold each window once; all begin at a multiple of step."""
    size = _PIECE // step * step
    for start in range(0, len(tokens) - length + 1, size):
        yield np.ascontiguousarray(tokens[start : start + size + length - 1])


def window_hashes(ids: np.ndarray, length: int) -> np.ndarray:
    """A hash of every window of `length` ids: [n] -> uint64 [n - length + 1].

    Words of 8 bytes, of several ids each, are mixed and added with a factor for each place
    (multilinear hashing, Carter and Wegman 1979).
    """
    per_word = 8 // ids.itemsize
    count = len(ids) - per_word + 1
    words = np.ndarray((count,), "<u8", memoryview(ids).cast("B"), 0, (ids.itemsize,)).copy()
    words ^= words >> np.uint64(29)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(32)
    windows = len(ids) - length + 1
    sums = np.zeros(windows, np.uint64)
    for place in range(length // per_word):
        sums += words[place * per_word :][:windows] * _factors()[place]
    return sums


@functools.cache
def _factors() -> np.ndarray:
    """Odd numbers, one for each word of the longest window."""
    numbers = np.random.default_rng(0).integers(0, 1 << 63, 2 * PASSAGE_BYTES, np.uint64)
    return numbers << np.uint64(1) | np.uint64(1)


def _met(train: np.ndarray, sought: np.ndarray, length: int, progress: Progress) -> np.ndarray:
    """Which hashes of windows occur among those of the training tokens: bool, as `sought`."""
    wanted, place = np.unique(sought, return_inverse=True)
    if not len(wanted):
        return np.zeros(0, bool)
    bits = min(_MOST_TABLE, 1 << max(12, (8 * len(wanted)).bit_length())).bit_length() - 1
    shift = np.uint64(64 - bits)
    table = np.zeros(1 << bits, bool)  # a Bloom filter with one hash: most windows end here
    table[wanted >> shift] = True
    met = np.zeros(len(wanted), bool)
    for piece in _pieces(train, length):
        hashes = window_hashes(piece, length)
        values = hashes[table[hashes >> shift]]
        index = np.minimum(np.searchsorted(wanted, values), len(wanted) - 1)
        met[index[wanted[index] == values]] = True
        progress(len(hashes))
    return met[place]


def _are_varied(val: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Whether each window has DISTINCT_TOKENS different tokens: bool, as `starts`."""
    kept = np.zeros(len(starts), bool)
    for first in range(0, len(starts), 1 << 14):
        rows = starts[first : first + (1 << 14), None] + np.arange(length)
        ordered = np.sort(val[rows], axis=1)
        distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)
        kept[first : first + len(rows)] = distinct >= min(DISTINCT_TOKENS, length)
    return kept


def _merged(starts: np.ndarray, length: int) -> np.ndarray:
    """Windows at ascending starts as ranges without overlap: int64 [n, 2]."""
    if not len(starts):
        return np.empty((0, 2), np.int64)
    breaks = np.flatnonzero(np.diff(starts) > length)
    first, last = np.r_[0, breaks + 1], np.r_[breaks, len(starts) - 1]
    return np.stack([starts[first], starts[last] + length], axis=1).astype(np.int64)


def write_leaks(
    folder: Path, written: Mapping, progress: Callable[[int, int], None]
) -> dict[str, int | float]:
    """Look for leaks in the token files of a folder and keep them beside val.bin, if there are any;
    returns what meta.json records.

    written: "dtype", "val_tokens" and "val_bytes" of the token files. progress: called with the
    training tokens read since the last call, and all of them.
    """
    dtype = np.dtype(written["dtype"])
    train, val = (map_files(find_token_files(folder, split), dtype) for split in SPLITS)
    path = folder / "val.mask.bin"
    leaks = find_leaks(
        train,
        val,
        passage_length(len(val), written.get("val_bytes")),
        np.memmap(path, bool, "r") if path.exists() else None,
        lambda n: progress(n, len(train)),
    )
    if len(leaks.ranges):
        np.save(folder / FILE, leaks.ranges, allow_pickle=False)
    return {"leaked_tokens": leaks.tokens, "leaked_share": leaks.share}


def are_clean(ranges: np.ndarray, starts: np.ndarray, block_size: int) -> np.ndarray:
    """Whether the targets of each window hold no leaked token: bool [W].

    A window at w has the targets w + 1 to w + block_size.
    """
    begun = np.searchsorted(ranges[:, 0], np.asarray(starts) + block_size, side="right")
    ended = np.searchsorted(ranges[:, 1], np.asarray(starts) + 1, side="right")
    return begun == ended


def leaked_remark(tokens: int, share: float) -> str:
    """So many validation tokens are in the training text, as the beginning of a sentence."""
    return (
        f"{tokens:,} of the validation tokens ({share:.1%}) stand in passages of {PASSAGE_BYTES} "
        "characters or more that are in the training text too"
    )


def leak_remark(split: Mapping) -> str:
    """What `write_leaks` recorded, as a sentence, where it is enough to lower the loss; else ""."""
    share = split.get("leaked_share") or 0
    if share <= TELLING:
        return ""
    return (
        f"{leaked_remark(split['leaked_tokens'], share)}, so the loss of all of them is lower than "
        "on new text"
    )
