import lzma
import math
import random
from collections import Counter

import numpy as np
import pytest

from gptlab.data.baselines import END, lzma_bits_per_byte, measure_baselines, ngram_bits
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.training.units import TextUnits


def plain_ngram_bits(train: list[int], val: list[int], order: int, vocab_size: int) -> float:
    """Witten and Bell's interpolation, counted with dictionaries."""
    history = order - 1
    text = [0] * history + train
    followers = {}  # context -> Counter of the ids after it
    for end in range(history, len(text)):
        for length in range(order):
            context = tuple(text[end - length : end])
            followers.setdefault(context, Counter())[text[end]] += 1

    def probability(context: tuple, token: int) -> float:
        shorter = probability(context[1:], token) if context else 1 / vocab_size
        seen = followers.get(context)
        if seen is None:
            return shorter
        return (seen[token] + len(seen) * shorter) / (seen.total() + len(seen))

    whole = text + val
    bits = [
        -math.log2(probability(tuple(whole[i - history : i]), whole[i]))
        for i in range(len(text), len(whole))
    ]
    return sum(bits) / len(bits)


def ids(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8)


def random_text(seed: int, size: int) -> bytes:
    rng = random.Random(seed)
    words = [bytes(rng.choices(b"abcdef\xc3\xa9\x00\xff", k=rng.randint(1, 6))) for _ in range(30)]
    return b" ".join(rng.choices(words, k=size))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("spread", [1, 257, 200_003])  # the ids of a vocabulary of any size
def test_the_ngram_is_that_of_the_formula(order, spread):
    train, val = random_text(1, 400), random_text(1, 100) + random_text(2, 30)
    rng = random.Random(3)
    id_of = rng.sample(range(256 * spread), 256)
    train, val = ([id_of[byte] for byte in text] for text in (train, val))
    expected = plain_ngram_bits(train, val, order, 256 * spread)
    bits = ngram_bits(np.array(train, np.uint32), np.array(val, np.uint32), order, 256 * spread)
    assert bits.mean() == pytest.approx(expected, abs=1e-9) and len(bits) == len(val)


def test_unseen_ids_cost_more_than_the_uniform_distribution_but_not_endlessly():
    bits = ngram_bits(ids(b"a" * 1000), ids(b"\xfe" * 100), 5, 256).mean()
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
    parts = text[:1_003_854], text[1_003_854:]
    bits = measure_baselines(*map(ids, parts), 256, parts, len(parts[1]))
    assert 4.7 < bits["unigram"] < 4.9
    assert 2.3 < bits["5gram"] < 2.6
    assert 2.4 < bits["lzma"] < 3.0
    assert (bits["train_tokens_used"], bits["val_tokens_used"]) == (1_003_854, 111_540)


def test_long_texts_are_measured_on_a_part_and_the_sizes_recorded(monkeypatch):
    monkeypatch.setattr("gptlab.data.baselines.TRAIN_TOKENS", 5000)
    monkeypatch.setattr("gptlab.data.baselines.VAL_TOKENS", 700)
    monkeypatch.setattr("gptlab.data.baselines.LZMA_TRAIN_BYTES", 3000)
    monkeypatch.setattr("gptlab.data.baselines.VAL_BYTES", 600)
    train, val = random_text(1, 4000).replace(END, b"f"), random_text(1, 1000).replace(END, b"f")
    bits = measure_baselines(ids(train), ids(val), 256, (train, val), len(val))
    assert bits["train_tokens_used"] == 16 * (5000 // 16)
    assert bits["val_tokens_used"] == 16 * (700 // 16)
    assert (bits["lzma_train_bytes_used"], bits["lzma_val_bytes_used"]) == (3000, 600)
    assert bits["lzma"] == round(lzma_bits_per_byte(train[-3000:], val[:600]), 4)
    assert ngram_bits(ids(train), ids(val), 5, 256).mean() < bits["5gram"] < bits["unigram"]


def test_in_any_script_the_levels_are_those_of_guessing_the_model_s_tokens(tmp_path, monkeypatch):
    """Characters of three bytes, drawn evenly: nothing can beat ln(62), and no byte is foreseen."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    rng = random.Random(7)
    letters = [chr(0x4E00 + 37 * i) for i in range(62)]
    (tmp_path / "zh.txt").write_text("".join(rng.choices(letters, k=30_000)), encoding="utf-8")
    meta = prepare(str(tmp_path / "zh.txt"), PrepareOptions(tokenizer="char")).dataset.meta
    levels = TextUnits(meta).levels()
    assert levels["unigram"] == pytest.approx(math.log(62), abs=0.02)
    assert math.log(62) - 0.02 < levels["5-gram"] < 1.25 * math.log(62)


def test_with_bpe_the_unigram_counts_the_tokens_of_the_vocabulary(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    text = random_text(1, 6000).decode("latin-1").replace("\x00", "x")
    (tmp_path / "words.txt").write_text(text, encoding="utf-8")
    options = PrepareOptions(tokenizer="bpe", vocab_size=300)
    dataset = prepare(str(tmp_path / "words.txt"), options).dataset
    counts = Counter(dataset.train.tolist())
    entropy = -sum(n * math.log(counts[i] / len(dataset.train)) for i, n in
                   Counter(i for i in dataset.val.tolist() if counts[i]).items())  # fmt: skip
    levels = TextUnits(dataset.meta).levels()
    assert levels["unigram"] == pytest.approx(entropy / len(dataset.val), rel=0.01)
    assert levels["5-gram"] < levels["unigram"]


def test_baselines_of_bytes_are_not_taken_for_those_of_tokens():
    """Older datasets counted bytes: only where each token is a byte is that the same."""
    old = {"baselines": {"lzma": 2.0, "unigram": 4.0, "5gram": 1.5}, "val_bytes": 300}
    assert set(TextUnits({**old, "val_tokens": 100}).baselines) == {"lzma"}
    assert set(TextUnits({**old, "val_tokens": 300}).baselines) == {"lzma", "unigram", "5-gram"}


def test_ends_of_documents_are_predicted_but_are_no_bytes_of_text():
    rng = random.Random(0)
    words = [
        "".join(rng.choices(["ba", "ko", "ri", "el"], k=rng.randint(2, 4))) for _ in range(4000)
    ]
    marked = [
        END.join(word.encode() for word in part) + END for part in (words[:3600], words[3600:])
    ]
    glued = [text.replace(END, b"") for text in marked]
    size = len(glued[1])
    bits, without = (
        measure_baselines(*map(ids, texts), 256, tuple(texts), size) for texts in (marked, glued)
    )
    per_word = math.log2(3) + 3 * 2  # how many syllables, and which: what no model can beat
    least = per_word * 400 / size
    assert without["5gram"] < 0.95 * least < least < bits["5gram"] < 1.4 * least
