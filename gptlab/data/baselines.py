"""Baselines: how well simple models predict the validation text.

Unigrams, and a 5-gram that is interpolated down to them, predict the same token ids as the model;
`lzma` works on bytes: how much the validation text adds to the compressed training text. All are
given in bits per byte of text. A 5-gram of bytes also tells whether the validation text is of the
same kind as the training text.
"""

import lzma
from concurrent.futures import ThreadPoolExecutor

import numpy as np

TRAIN_TOKENS = 8 << 20
VAL_TOKENS = 1 << 20
RANGES = 16  # evenly spread, where a longer text is measured on a part
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


def measure_baselines(
    train: np.ndarray, val: np.ndarray, vocab_size: int, text: tuple[bytes, bytes], val_bytes: int
) -> dict:
    """Bits per byte of the validation text under the three baselines, and what they were shown.

    train, val: all token ids, the end-of-text id among them: it is predicted too, but is no byte of
    text. text: training and validation bytes for lzma, with END where a document ends. val_bytes:
    of the whole validation text.
    """
    per_byte = len(val) / val_bytes
    train, val = _part(train, TRAIN_TOKENS), _part(val, VAL_TOKENS)
    train_text, val_text = text[0][-LZMA_TRAIN_BYTES:], text[1][:VAL_BYTES]
    ends = len(val_text) / max(1, len(val_text) - val_text.count(END))
    bits = {order: per_byte * ngram_bits(train, val, order, vocab_size).mean() for order in (1, 5)}
    return {
        "lzma": round(ends * lzma_bits_per_byte(train_text, val_text), 4),
        "unigram": round(float(bits[1]), 4),
        "5gram": round(float(bits[5]), 4),
        "train_tokens_used": len(train),
        "val_tokens_used": len(val),
        "lzma_train_bytes_used": len(train_text),
        "lzma_val_bytes_used": len(val_text),
    }


def _part(tokens: np.ndarray, most: int) -> np.ndarray:
    """All tokens, or `most` of them in evenly spread ranges."""
    if len(tokens) <= most:
        return tokens
    starts = np.linspace(0, len(tokens) - most // RANGES, RANGES).astype(int)
    return np.concatenate([tokens[start : start + most // RANGES] for start in starts])


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
    bits = ngram_bits(_bytes(b"".join(rest)), _bytes(held_out + val), ORDER, 256)
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


def ngram_bits(train: np.ndarray, val: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """Bits of each id of `val` under an n-gram model of the ids of `train`: float64 [len(val)].

    Interpolation as in Witten and Bell (1991): if a context occurs N times in training, T different
    ids follow it and this id follows it n times, then p = (n + T p_shorter) / (N + T). Unigrams
    fall back to the uniform 1 / vocab_size. Contexts of val reach back into the end of train.
    """
    start = np.zeros(order - 1, np.uint64)
    tokens = np.concatenate([start, train, val], dtype=np.uint64, casting="unsafe")
    width = np.uint64((vocab_size - 1).bit_length())
    probability = np.full(len(val), 1 / vocab_size)
    for length in range(1, order + 1):
        grams = _grams(tokens, order, length, width)  # [len(train) + len(val)]
        pairs, n_pair = _distinct(grams[: len(train)])
        contexts = pairs >> width
        first = np.flatnonzero(np.r_[True, contexts[1:] != contexts[:-1]])
        n_context = np.add.reduceat(n_pair, first)
        n_distinct = np.diff(np.r_[first, len(contexts)])
        asked, place = np.unique(grams[len(train) :], return_inverse=True)
        total = _looked_up(asked >> width, contexts[first], n_context)[place]
        distinct = _looked_up(asked >> width, contexts[first], n_distinct)[place]
        n = _looked_up(asked, pairs, n_pair)[place]
        seen = total > 0
        probability[seen] = (n[seen] + distinct[seen] * probability[seen]) / (
            total[seen] + distinct[seen]
        )
    return -np.log2(probability)


def _bytes(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def _grams(tokens: np.ndarray, order: int, length: int, width: np.uint64) -> np.ndarray:
    """Each token in the lowest `width` bits, and the `length` - 1 before it in the others: uint64
    [len(tokens) - order + 1].

    A context that does not fit its bits, of ids of a large vocabulary, is hashed. With 200,000 ids
    that leaves 46 bits: among 8 million contexts, two are expected to share a hash in every other
    text.
    """
    room = np.uint64(64) - width
    is_exact = int(width) * (length - 1) <= int(room)
    factor = np.uint64(1) << width if is_exact else np.uint64(0x9E3779B97F4A7C15)
    count = len(tokens) - order + 1
    context = np.zeros(count, np.uint64)
    for i in range(order - length, order - 1):
        context = context * factor + tokens[i : i + count]
    if not is_exact:
        context = (context * factor) >> width
    return context << width | tokens[order - 1 :]


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, sorted, and how often each occurs."""
    values = np.sort(values)
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    return values[first], np.diff(np.r_[first, len(values)])


def _looked_up(wanted: np.ndarray, known: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The count of each wanted value; 0 for values that are not in `known`."""
    index = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[index] == wanted, counts[index], 0)
