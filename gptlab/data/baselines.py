"""Baselines: how well simple models predict the validation text, in bits per byte.

All work on bytes: `lzma` (how much the validation text adds to the compressed training text),
unigrams, and a 5-gram that is interpolated down to them. The 5-gram also tells whether the
validation text is of the same kind as the training text.
"""

import lzma
from concurrent.futures import ThreadPoolExecutor

import numpy as np

TRAIN_BYTES = 8 << 20
VAL_BYTES = 1 << 20
LZMA_TRAIN_BYTES = 2 << 20  # lzma compresses about a megabyte per second
ORDER = 5
SLICES = 8  # of the training text, held out to compare the validation text with
HELD_OUT = 0.16  # share of the training text in them
SLICE_BYTES = 1 << 15
COMPARED_BYTES = 2 << 20
LEAST_BYTES = 16_000  # of training text; in less, slices are a few sentences
# The validation text is of another kind if it is so much harder than the hardest slice. Measured:
# of 60 windows of tiny Shakespeare (30 to 500 kB) none, the hardest 1.23; with another text as the
# last tenth (a licence, code, manuals) all of 60, the easiest 1.27.
UNLIKE = 1.25
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


def compare_parts(train: bytes, val: bytes) -> dict[str, float]:
    """Bits per byte under a 5-gram of the training text without SLICES slices: `val`, the slices'
    mean, and the hardest slice. {} for a text that is too short to tell.

    train: at most COMPARED_BYTES of it are used, val: the first VAL_BYTES / 8.
    """
    train, val = train[-COMPARED_BYTES:], val[: VAL_BYTES // 8]
    if len(train) < LEAST_BYTES or not val:
        return {}
    size = min(int(len(train) * HELD_OUT / SLICES), SLICE_BYTES)
    starts = [int((len(train) - size) * (i + 0.5) / SLICES) for i in range(SLICES)]
    ends = [start + size for start in starts]
    rest = [train[i:j] for i, j in zip([0, *ends], [*starts, len(train)], strict=True)]
    held_out = b"".join(train[i:j] for i, j in zip(starts, ends, strict=True))
    bits = ngram_bits(b"".join(rest), held_out + val, ORDER)
    slices = bits[: len(held_out)].reshape(SLICES, size).mean(1)
    return {
        "val_5gram": round(float(bits[len(held_out) :].mean()), 4),
        "held_out_5gram": round(float(slices.mean()), 4),
        "hardest_5gram": round(float(slices.max()), 4),
    }


def unlike(split: dict) -> str:
    """What `compare_parts` says of a validation text of another kind, as a sentence; else ""."""
    val, hardest = split.get("val_5gram"), split.get("hardest_5gram")
    if val is None or hardest is None or val < UNLIKE * hardest:
        return ""
    return (
        f"the validation text is unlike the training text: a 5-gram needs {val:.2f} bits per byte "
        f"for it, and {split['held_out_5gram']:.2f} (at most {hardest:.2f}) for parts held out of "
        "the training text, so the validation loss says little about what is learned"
    )


def lzma_bits_per_byte(train: bytes, val: bytes) -> float:
    """Compressed size of train + val minus that of train, in bits per byte of val."""
    with ThreadPoolExecutor(2) as pool:  # lzma releases the GIL
        both, alone = pool.map(lambda text: len(lzma.compress(text)), (train + val, train))
    return 8 * (both - alone) / len(val)


def ngram_bits_per_byte(train: bytes, val: bytes, order: int) -> float:
    """Cross-entropy of `val` under a byte n-gram model of `train`, in bits per byte."""
    return float(ngram_bits(train, val, order).mean())


def ngram_bits(train: bytes, val: bytes, order: int) -> np.ndarray:
    """Bits of each byte of `val` under a byte n-gram model of `train`: float64 [len(val)].

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
    return -np.log2(probability)[place]


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
