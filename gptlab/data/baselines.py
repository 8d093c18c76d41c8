"""What simple models make of the validation text, so that a loss has something beside it.

All are byte-level and in bits per byte: `lzma` (how much the validation text adds to the
compressed training text), unigrams, and a 5-gram interpolated down to them.
"""

import lzma
from concurrent.futures import ThreadPoolExecutor

import numpy as np

TRAIN_BYTES = 8 << 20
VAL_BYTES = 1 << 20
LZMA_TRAIN_BYTES = 2 << 20  # it reads a megabyte a second
ORDER = 5


def measure_baselines(train: bytes, val: bytes) -> dict:
    """Bits per byte of `val` under the three baselines, with the sizes that were used.

    Of longer texts the end of `train` and the start of `val` are taken.
    """
    train, val = train[-TRAIN_BYTES:], val[:VAL_BYTES]
    return {
        "lzma": round(lzma_bits_per_byte(train[-LZMA_TRAIN_BYTES:], val), 4),
        "unigram": round(ngram_bits_per_byte(train, val, 1), 4),
        "5gram": round(ngram_bits_per_byte(train, val, ORDER), 4),
        "train_bytes_used": len(train),
        "lzma_train_bytes_used": min(len(train), LZMA_TRAIN_BYTES),
        "val_bytes_used": len(val),
    }


def lzma_bits_per_byte(train: bytes, val: bytes) -> float:
    """(compressed size of train + val, less that of train) in bits, per byte of val."""
    with ThreadPoolExecutor(2) as pool:  # lzma works outside Python's lock
        both, alone = pool.map(lambda text: len(lzma.compress(text)), (train + val, train))
    return 8 * (both - alone) / len(val)


def ngram_bits_per_byte(train: bytes, val: bytes, order: int) -> float:
    """Cross-entropy of `val` under a byte n-gram model of `train`, in bits per byte.

    Interpolated by Witten and Bell's method (1991): with N occurrences of a context in training, T
    different bytes after it, and n of them this byte, p = (n + T p_shorter) / (N + T); below the
    unigrams lies the uniform 1/256. Contexts of val reach back into the end of train.
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
        pairs, n_pair = _loss_mask(grams & mask)
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
    """Every run of `size` bytes as one number, uint64 [len(text) - size + 1]."""
    count = len(text) - size + 1
    packed = np.zeros(count, np.uint64)
    for i in range(size):
        packed = packed << np.uint64(8) | text[i : i + count]
    return packed


def _loss_mask(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distinct values, sorted; how often each occurs)."""
    values = np.sort(values)
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    return values[first], np.diff(np.r_[first, len(values)])


def _looked_up(wanted: np.ndarray, known: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The count of each wanted value, 0 where it is not known."""
    index = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[index] == wanted, counts[index], 0)
