"""Statistics of a prepared dataset: counts, frequent tokens, excerpts, repetitions (no torch).

All functions read the token files in pieces, so a large dataset needs little memory.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gptlab.data.token_files import SCAN_TOKENS, Dataset

PASSAGE_BYTES = 64  # least size of a validation passage to look for in the training text
MOST_PASSAGES = 1 << 20
DISTINCT_TOKENS = 6  # a passage has at least these; rulers and empty lines have fewer

Progress = Callable[[int], None]  # called with tokens read


@dataclass(frozen=True)
class TokenCount:
    """A token and how often it occurs. text: its bytes, b"" for a special one."""

    token_id: int
    text: bytes
    count: int


@dataclass(frozen=True)
class Documents:
    """Documents separated by end-of-text ids: how many, and how many repeat an earlier one."""

    total: int
    repeated: int


@dataclass(frozen=True)
class Overlap:
    """Validation passages of `length` tokens, and how many of them occur in the training text."""

    length: int
    passages: int
    found: int
    example: np.ndarray | None  # ids of the first that was found

    @property
    def share(self) -> float:
        """Share of the passages that were found."""
        return self.found / max(1, self.passages)


def count_tokens(dataset: Dataset, progress: Progress = lambda n: None) -> np.ndarray:
    """How often each id occurs in both parts: int64 [vocab_size]."""
    counts = np.zeros(dataset.vocab_size, np.int64)
    for ids in _pieces(dataset, progress):
        found = np.bincount(ids, minlength=dataset.vocab_size)
        counts += found[: dataset.vocab_size]
    return counts


def most_frequent(dataset: Dataset, counts: np.ndarray, number: int) -> list[TokenCount]:
    """The most frequent tokens; equally frequent ones in the order of their ids."""
    order = np.argsort(-counts, kind="stable")[:number]
    return [
        TokenCount(int(i), dataset.tokenizer.token_bytes(int(i)), int(counts[i]))
        for i in order
        if counts[i]
    ]


def excerpts(dataset: Dataset, number: int, tokens: int, seed: int = 0) -> list[np.ndarray]:
    """Consecutive ids from random places of the training text, in the order of the text."""
    length = len(dataset.train)
    random = np.random.default_rng(seed)
    last = max(0, length - tokens)
    starts = np.unique(random.integers(0, last + 1, size=number))
    return [np.asarray(dataset.train[start : start + tokens]) for start in starts]


def count_documents(dataset: Dataset, progress: Progress = lambda n: None) -> Documents | None:
    """Documents and their repetitions, over both parts; None without an end-of-text id.

    A document that the split cuts in two counts as one, and so does text without any end mark.
    """
    eot = dataset.tokenizer.eot_id if dataset.tokenizer else None
    if eot is None:
        return None
    seen, total = set(), 0
    for digest in _document_digests(dataset, eot, progress):
        total += 1
        seen.add(digest)
    return Documents(total, total - len(seen))


def _document_digests(dataset: Dataset, eot: int, progress: Progress) -> Iterator[bytes]:
    """A digest of each document that has a token."""
    current, size = hashlib.blake2b(digest_size=12), 0
    for ids in _pieces(dataset, progress):
        start = 0
        for end in [*np.flatnonzero(ids == eot).tolist(), None]:
            piece = ids[start:end]
            current.update(piece.tobytes())
            size += len(piece)
            if end is None:
                break
            if size:
                yield current.digest()
                current, size = hashlib.blake2b(digest_size=12), 0
            start = end + 1
    if size:
        yield current.digest()


def find_overlap(dataset: Dataset, progress: Progress = lambda n: None) -> Overlap:
    """Validation passages that occur verbatim anywhere in the training text.

    The validation text is cut into passages of 64 bytes or more. Each is searched at every position
    of the training text, by 64-bit hashes of windows (Karp & Rabin 1987).
    """
    length = _passage_length(dataset)
    count = len(dataset.val) // length
    if not count or len(dataset.train) < length:
        return Overlap(length, 0, 0, None)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_PASSAGES)).astype(np.int64))
    hashes = np.empty(len(chosen), np.uint64)
    counts = np.zeros(len(chosen), bool)
    for first in range(0, len(chosen), 1 << 14):
        rows = chosen[first : first + (1 << 14)]
        passages = np.stack([dataset.val[r * length : (r + 1) * length] for r in rows])
        hashes[first : first + len(rows)] = window_hashes(passages, length)[:, 0]
        ordered = np.sort(passages, axis=1)
        distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)
        counts[first : first + len(rows)] = distinct >= min(DISTINCT_TOKENS, length)
    wanted = np.unique(hashes[counts])
    met = np.zeros(len(wanted), bool)
    train = dataset.train
    for start in range(0, len(train) - length + 1, SCAN_TOKENS):
        piece = np.asarray(train[start : start + SCAN_TOKENS + length - 1])
        found = window_hashes(piece[None], length)[0]
        place = np.minimum(np.searchsorted(wanted, found), max(0, len(wanted) - 1))
        if len(wanted):
            met[place[wanted[place] == found]] = True
        progress(min(SCAN_TOKENS, len(train) - start))
    is_found = counts & np.isin(hashes, wanted[met])
    example = None
    if is_found.any():
        row = int(chosen[np.argmax(is_found)])
        example = np.asarray(dataset.val[row * length : (row + 1) * length])
    return Overlap(length, int(counts.sum()), int(is_found.sum()), example)


def window_hashes(ids: np.ndarray, length: int) -> np.ndarray:
    """A hash of every window of `length` (a power of two) tokens: [n, T] -> uint64 [n, T-length+1].

    By doubling: the hash of a window combines those of its two halves.
    """
    values = _mix(ids.astype(np.uint64) + np.uint64(1))
    width = 1
    while width < length:
        values = _mix(values[:, :-width] * np.uint64(0x9E3779B97F4A7C15) + values[:, width:])
        width *= 2
    return values


def _mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele et al. 2014), on an array of its own."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _passage_length(dataset: Dataset) -> int:
    """Tokens of a passage: the power of two that holds PASSAGE_BYTES."""
    meta = dataset.meta or {}
    size, tokens = meta.get("val_bytes") or 0, max(1, len(dataset.val))
    per_token = max(0.5, size / tokens) if size else 1.0
    length = 4
    while length * per_token < PASSAGE_BYTES:
        length *= 2
    return length


def _pieces(dataset: Dataset, progress: Progress) -> Iterator[np.ndarray]:
    """The ids of both parts, in order."""
    for split in ("train", "val"):
        tokens = getattr(dataset, split)
        for start in range(0, len(tokens), SCAN_TOKENS):
            ids = np.asarray(tokens[start : start + SCAN_TOKENS])
            progress(len(ids))
            yield ids
