"""Statistics of a prepared dataset: counts, frequent tokens, excerpts, repetitions (no torch).

All functions read the token files in pieces, so a large dataset needs little memory.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gptlab.data.leaks import Leaks, find_leaks, passage_length
from gptlab.data.token_files import SCAN_TOKENS, Dataset

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


def leaks_of(dataset: Dataset, progress: Progress = lambda n: None) -> Leaks:
    """Validation passages that stand anywhere in the training text."""
    length = passage_length(len(dataset.val), (dataset.meta or {}).get("val_bytes"))
    return find_leaks(dataset.train, dataset.val, length, dataset.val_loss_mask, progress)


def _pieces(dataset: Dataset, progress: Progress) -> Iterator[np.ndarray]:
    """The ids of both parts, in order."""
    for split in ("train", "val"):
        tokens = getattr(dataset, split)
        for start in range(0, len(tokens), SCAN_TOKENS):
            ids = np.asarray(tokens[start : start + SCAN_TOKENS])
            progress(len(ids))
            yield ids
