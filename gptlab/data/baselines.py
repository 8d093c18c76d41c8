"""Baselines: how well simple models predict the validation text, in bits per byte.

All work on bytes: `lzma` (how much the validation text adds to the compressed training text),
unigrams, and a 5-gram that is interpolated down to them.
"""

import lzma
from concurrent.futures import ThreadPoolExecutor

import numpy as np

TRAIN_BYTES = 8 << 20
VAL_BYTES = 1 << 20
LZMA_TRAIN_BYTES = 2 << 20  # lzma compresses about a megabyte per second
ORDER = 5
END = b"\xff"  # of a document, a byte that UTF-8 never has: it is predicted too, but is no text


def measure_baselines(train: bytes, val: bytes) -> dict:
    """Bits per byte of `val` under the three baselines, and the numbers of bytes used.

    Long texts are cut: the end of `train` and the start of `val` are used. Where END marks the ends
    of documents, its bits count as those of the end-of-text id do, and the byte itself does not.
    """
    train, val = train[-TRAIN_BYTES:], val[:VAL_BYTES]
    per_text_byte = len(val) / max(1, len(val) - val.count(END))
    return {
        "lzma": round(per_text_byte * lzma_bits_per_byte(train[-LZMA_TRAIN_BYTES:], val), 4),
        "unigram": round(per_text_byte * ngram_bits_per_byte(train, val, 1), 4),
        "5gram": round(per_text_byte * ngram_bits_per_byte(train, val, ORDER), 4),
        "train_bytes_used": len(train),
        "lzma_train_bytes_used": min(len(train), LZMA_TRAIN_BYTES),
        "val_bytes_used": len(val),
    }


def lzma_bits_per_byte(train: bytes, val: bytes) -> float:
    """Compressed size of train + val minus that of train, in bits per byte of val."""
    with ThreadPoolExecutor(2) as pool:  # lzma releases the GIL
        both, alone = pool.map(lambda text: len(lzma.compress(text)), (train + val, train))
    return 8 * (both - alone) / len(val)


def ngram_bits_per_byte(train: bytes, val: bytes, order: int) -> float:
    """Cross-entropy of `val` under a byte n-gram model of `train`, in bits per byte.

    Interpolation as in Witten and Bell (1991): if a context occurs N times in training, T different
    bytes follow it and this byte follows it n times, then p = (n + T p_shorter) / (N + T). Unigrams
    fall back to the uniform 1/256. Contexts of val reach back into the end of train.
    """
    history = order - 1
    text = np.frombuffer(bytes(history) + train, np.uint8)
    grams = _windows(text, order)  # [len(train)], the oldest byte in the highest bits
    before = (bytes(history) + train)[len(train) :] if history else b""
    asked = _windows(np.frombuffer(before + val, np.uint8), order)  # [len(val)]
    asked, place = np.unique(asked, return_inverse=True)
    probability = np.full(len(asked), 1 / 256)
    # A window's last `length` bytes are an n-gram of that length: sort by them for each length.
    for length in range(1, order + 1):
        mask = np.uint64((1 << 8 * length) - 1)
        pairs, n_pair = _distinct(grams & mask)
        contexts = pairs >> np.uint64(8)
        first = np.flatnonzero(np.r_[True, contexts[1:] != contexts[:-1]])
        n_context = np.add.reduceat(n_pair, first)
        n_distinct = np.diff(np.r_[first, len(contexts)])
        n = _looked_up(asked & mask, pairs, n_pair)
        context = (asked & mask) >> np.uint64(8)
        total = _looked_up(context, contexts[first], n_context)
        distinct = _looked_up(context, contexts[first], n_distinct)
        seen = total > 0
        probability[seen] = (n[seen] + distinct[seen] * probability[seen]) / (
            total[seen] + distinct[seen]
        )
    return float(-np.log2(probability)[place].mean())


def _windows(text: np.ndarray, size: int) -> np.ndarray:
    """Every `size` consecutive bytes packed into one number, uint64 [len(text) - size + 1]."""
    count = len(text) - size + 1
    packed = np.zeros(count, np.uint64)
    for i in range(size):
        packed = packed << np.uint64(8) | text[i : i + count]
    return packed


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, sorted, and how often each occurs."""
    values = np.sort(values)
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    return values[first], np.diff(np.r_[first, len(values)])


def _looked_up(wanted: np.ndarray, known: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The count of each wanted value; 0 for values that are not in `known`."""
    index = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[index] == wanted, counts[index], 0)
