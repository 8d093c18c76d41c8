"""Encode a split of the text into a token file, on all cores and in constant memory."""

import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gptlab.data.text_store import PIECE_BYTES, Split, TextStore
from gptlab.data.tokenizer import Tokenizer

# Threads are enough: numpy and the tokenizers release the GIL.


def write_tokens(
    store: TextStore,
    split: Split,
    tokenizer: Tokenizer,
    path: Path,
    dtype: np.dtype,
    counts: Counter,
    progress: Callable[[int], None],
) -> tuple[int, str]:
    """Encode a split into a headerless file of `dtype`; returns (tokens, SHA-256 as hex).

    counts: receives how often a piece had to be cut inside a word. progress: called with the bytes
    of text done since the last call.
    """
    pieces = store.pieces(split, can_be_cut=tokenizer.can_be_cut, counts=counts)

    def encode(batch: list[tuple[str, bool]]) -> tuple[np.ndarray, int]:
        arrays, size = [], 0
        for text, closed in batch:
            arrays.append(tokenizer.encode_to_array(text))
            if closed and tokenizer.eot_id is not None:
                arrays.append(np.array([tokenizer.eot_id], np.uint32))
            size += len(text.encode())
        return np.concatenate(arrays).astype(dtype), size

    tokens, digest = 0, hashlib.sha256()
    with open(path, "wb") as file:
        for ids, size in _in_parallel(encode, _batches(pieces)):
            content = memoryview(ids).cast("B") if ids.size else b""
            file.write(content)
            digest.update(content)
            tokens += ids.size
            progress(size)
        file.flush()
        os.fsync(file.fileno())
    return tokens, digest.hexdigest()


def _batches(pieces: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    """Groups of pieces of about PIECE_BYTES: short documents together, a long piece alone."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0])
        if size >= PIECE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_parallel(function: Callable, items: Iterable) -> Iterator:
    """`map(function, items)` on all cores, in order, with a few items in flight."""
    workers = _cores()
    with ThreadPoolExecutor(workers) as pool:
        running = deque()
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) > 2 * workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
