import lzma
import math
import random
from collections import Counter

import pytest

from gptlab.data.baselines import END, lzma_bits_per_byte, measure_baselines, ngram_bits_per_byte


def plain_ngram_bits(train: bytes, val: bytes, order: int) -> float:
    """Witten and Bell's interpolation, counted with dictionaries."""
    history = order - 1
    text = bytes(history) + train
    followers = {}  # context -> Counter of the bytes after it
    for end in range(history, len(text)):
        for length in range(order):
            followers.setdefault(text[end - length : end], Counter())[text[end]] += 1

    def probability(context: bytes, byte: int) -> float:
        shorter = probability(context[1:], byte) if context else 1 / 256
        seen = followers.get(context)
        if seen is None:
            return shorter
        return (seen[byte] + len(seen) * shorter) / (seen.total() + len(seen))

    whole = text + val
    start = len(text)
    bits = [
        -math.log2(probability(whole[i - history : i], whole[i])) for i in range(start, len(whole))
    ]
    return sum(bits) / len(bits)


def random_text(seed: int, size: int) -> bytes:
    rng = random.Random(seed)
    words = [bytes(rng.choices(b"abcdef\xc3\xa9\x00\xff", k=rng.randint(1, 6))) for _ in range(30)]
    return b" ".join(rng.choices(words, k=size))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_ngram_is_that_of_the_formula(order):
    train, val = random_text(1, 400), random_text(1, 100) + random_text(2, 30)
    expected = plain_ngram_bits(train, val, order)
    assert ngram_bits_per_byte(train, val, order) == pytest.approx(expected, abs=1e-9)


def test_unseen_bytes_cost_more_than_eight_bits_but_not_endlessly():
    bits = ngram_bits_per_byte(b"a" * 1000, b"\xfe" * 100, 5)
    assert 8 < bits < 60


def test_lzma_counts_what_the_validation_text_adds():
    train, val = random_text(1, 4000), random_text(1, 4000)
    assert lzma_bits_per_byte(train, val) < 0.1  # a repetition
    noise = random.Random(0).randbytes(5000)
    assert 8 <= lzma_bits_per_byte(train, noise) < 8.3
    alone = 8 * len(lzma.compress(random_text(3, 4000))) / len(random_text(3, 4000))
    assert 0.5 * alone < lzma_bits_per_byte(train, random_text(3, 4000)) <= alone + 0.1


def test_tiny_shakespeare_lands_where_such_models_do(tiny_shakespeare):
    text = tiny_shakespeare.read_bytes()
    bits = measure_baselines(text[:1_003_854], text[1_003_854:])
    assert 4.7 < bits["unigram"] < 4.9
    assert 2.3 < bits["5gram"] < 2.6
    assert 2.4 < bits["lzma"] < 3.0
    assert (bits["train_bytes_used"], bits["val_bytes_used"]) == (1_003_854, 111_540)


def test_long_texts_are_measured_on_a_part_and_the_sizes_recorded(monkeypatch):
    monkeypatch.setattr("gptlab.data.baselines.TRAIN_BYTES", 5000)
    monkeypatch.setattr("gptlab.data.baselines.LZMA_TRAIN_BYTES", 3000)
    monkeypatch.setattr("gptlab.data.baselines.VAL_BYTES", 700)
    parts = random_text(1, 4000), random_text(1, 1000)
    train, val = (part.replace(END, b"f") for part in parts)
    bits = measure_baselines(train, val)
    assert bits["train_bytes_used"] == 5000
    assert bits["lzma_train_bytes_used"] == 3000
    assert bits["val_bytes_used"] == 700
    assert bits["5gram"] == round(ngram_bits_per_byte(train[-5000:], val[:700], 5), 4)
    assert bits["lzma"] == round(lzma_bits_per_byte(train[-3000:], val[:700]), 4)


def test_ends_of_documents_are_predicted_but_are_no_bytes_of_text():
    rng = random.Random(0)
    words = [
        "".join(rng.choices(["ba", "ko", "ri", "el"], k=rng.randint(2, 4))) for _ in range(4000)
    ]
    marked = [
        END.join(word.encode() for word in part) + END for part in (words[:3600], words[3600:])
    ]
    glued = [text.replace(END, b"") for text in marked]
    bits, without = measure_baselines(*marked), measure_baselines(*glued)
    per_word = math.log2(3) + 3 * 2  # how many syllables, and which: what no model can beat
    least = per_word * 400 / len(glued[1])
    assert without["5gram"] < 0.95 * least < least < bits["5gram"] < 1.4 * least
