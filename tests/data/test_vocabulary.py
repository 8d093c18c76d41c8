import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data import vocabulary
from gptlab.data.text_store import TextStore
from gptlab.data.vocabulary import learn_tokenizer, short_words


@given(st.lists(st.tuples(st.sampled_from("a日1 !。\n_"), st.integers(1, 600)), max_size=6))
@settings(deadline=None)
def test_long_words_are_cut_for_the_trainer_and_nothing_is_lost(runs):
    text = "".join(letter * length for letter, length in runs)
    pieces = list(short_words(text))
    assert "".join(pieces) == text
    words = [w for piece in pieces for w in re.findall(r"\w+|[^\w\s]+|\s+", piece)]
    assert max(map(len, words), default=0) <= 256
    if not re.search(r"\S{256}|\s{256}", text):
        assert pieces == [text]


@pytest.fixture
def learn(tmp_path):
    """Learn a BPE from the training part of documents: (tokenizer, notes, bytes that it read)."""

    def learn(documents, vocab_size=400):
        read, notes = [], []

        def progress(stage, advance, total):
            read.append(advance)

        with TextStore(tmp_path / "text.tmp", 1) as store:
            for document in documents:
                store.add([document])
            store.finish()
            train, _ = store.split("tail", 0.1)
            tokenizer = learn_tokenizer(store, train, "bpe", vocab_size, progress, notes.append)
        return tokenizer, notes, len(read) - 1

    return learn


def test_a_vocabulary_is_learned_from_an_even_share_of_a_large_text(learn, monkeypatch):
    monkeypatch.setattr(vocabulary, "BPE_TRAIN_BYTES", 10_000)
    monkeypatch.setattr(vocabulary, "BPE_PIECE_BYTES", 100)
    first, second = "early words here. " * 3000, "later others there. " * 3000
    tokenizer, notes, pieces = learn([first + second])
    assert any("learns from 10% of the training text" in note for note in notes)
    assert 80 < pieces < 130
    for word in (" early", " others"):  # of both ends
        assert len(tokenizer.encode(word)) == 1


def test_a_vocabulary_is_learned_from_a_bounded_amount_of_different_words(learn, monkeypatch):
    monkeypatch.setattr(vocabulary, "BPE_WORD_BYTES", 20_000)
    monkeypatch.setattr(vocabulary, "BPE_PIECE_BYTES", 1000)
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=8)) for _ in range(20_000)]
    _, notes, many = learn([" ".join(words)])
    assert re.search("learns from 1[0-9]% of the training text", notes[0])
    _, notes, all_of_it = learn([" ".join(words[:100] * 200)])
    assert not notes  # as much text, few words
    assert all_of_it > 6 * many


def test_the_trainer_never_sees_a_word_of_more_than_256_letters(learn):
    tokenizer, _, _ = learn([("a" * 255 + "b") * 100], vocab_size=290)
    tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    assert b"aa" in tokens
    assert not any(b"ba" in token for token in tokens)  # that pair lies across every cut
