"""Encode the text into token files, on all cores and in constant memory."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from gptlab.data.text_store import PIECE_BYTES
from gptlab.data.tokenizer import Tokenizer
from gptlab.files import atomic_write

# Threads are enough for most texts: numpy and the tokenizers release the GIL.

Piece = tuple[str, bool]  # text, whether its document ends here


def write_tokens(
    pieces: Iterable[Piece],
    tokenizer: Tokenizer,
    path: Path,
    dtype: np.dtype,
    progress: Callable[[int], None],
    threads: int | None = None,
) -> tuple[int, str]:
    """Encode pieces of text into a headerless file of `dtype`; returns (tokens, SHA-256 as hex).

    progress: called with the bytes of text done since the last call. threads: all cores if None.
    The file has its name only when it is complete.
    """

    def encode(batch: list[Piece]) -> tuple[np.ndarray, int]:
        arrays, size = [], 0
        for text, closed in batch:
            arrays.append(tokenizer.encode_to_array(text))
            if closed and tokenizer.eot_id is not None:
                arrays.append(np.array([tokenizer.eot_id], np.uint32))
            size += len(text.encode())
        return np.concatenate(arrays).astype(dtype), size

    tokens, digest = 0, hashlib.sha256()
    with atomic_write(path) as file:
        for ids, size in _in_parallel(encode, _batches(pieces), threads or cores()):
            content = memoryview(ids).cast("B") if ids.size else b""
            file.write(content)
            digest.update(content)
            tokens += ids.size
            progress(size)
    return tokens, digest.hexdigest()


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
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


def _in_parallel(function: Callable, items: Iterable, threads: int) -> Iterator:
    """`map(function, items)` in so many threads, in order, with a few items in flight."""
    if threads == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        running = deque()
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) > 2 * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
