"""What a dataset holds, against plain Python on small texts."""

import random
from collections import Counter

import numpy as np
import pytest

from gptlab.analysis import dataset_statistics as view
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.token_files import Dataset

WORDS = "the quick brown fox jumps over a lazy dog while seven wizards brew potions".split()


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Prepare documents (a folder) or one text, and open it."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def make(documents, **options):
        folder = tmp_path / "texts"
        folder.mkdir()
        for number, text in enumerate(documents):
            (folder / f"{number}.txt").write_text(text, encoding="utf-8")
        return prepare("texts", PrepareOptions(**options)).dataset

    return make


def sentences(number, seed=0):
    source = random.Random(seed)
    return " ".join(WORDS[int(source.random() * len(WORDS))] for _ in range(number))


def of_ids(train, val, vocab_size=1000):
    return Dataset(
        "ids", None, None, np.array(train, "<u2"), np.array(val, "<u2"), None, vocab_size
    )


def test_tokens_are_counted_over_both_parts(prepared):
    dataset = prepared([sentences(500)], tokenizer="char")
    counts = view.count_tokens(dataset)
    expected = Counter(dataset.train.tolist()) + Counter(dataset.val.tolist())
    assert {i: int(n) for i, n in enumerate(counts) if n} == dict(expected)
    top = view.most_frequent(dataset, counts, 3)
    assert [t.token_id for t in top] == [i for i, _ in expected.most_common(3)]
    assert top[0].text == b" " and top[0].count == expected[top[0].token_id]


def test_tokens_that_never_occur_are_not_among_the_frequent(prepared):
    dataset = prepared([sentences(300)], tokenizer="char")
    counts = view.count_tokens(dataset)
    shown = view.most_frequent(dataset, counts, 10_000)
    assert len(shown) == int((counts > 0).sum()) and all(t.count for t in shown)


def test_excerpts_are_pieces_of_the_training_text_and_repeatable(prepared):
    dataset = prepared([sentences(2000)], tokenizer="bpe", vocab_size=300)
    text = dataset.tokenizer.decode(dataset.train)
    pieces = view.excerpts(dataset, 3, 30, seed=4)
    assert 1 <= len(pieces) <= 3
    for ids in pieces:
        assert len(ids) == 30 and dataset.tokenizer.decode(ids).strip("\ufffd") in text
    again = view.excerpts(dataset, 3, 30, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(pieces, again, strict=True))


def test_an_excerpt_longer_than_the_text_is_the_text():
    dataset = of_ids([1, 2, 3], [4, 5])
    assert [ids.tolist() for ids in view.excerpts(dataset, 3, 50)] == [[1, 2, 3]]


def test_repeated_documents_are_counted(prepared):
    dataset = prepared(
        [sentences(30, n) for n in range(8)] + [sentences(30, 0), sentences(30, 3)],
        split="document",
    )
    assert view.count_documents(dataset) == view.Documents(total=10, repeated=2)


def test_documents_are_the_same_however_the_file_is_cut(prepared, monkeypatch):
    texts = [sentences(20 + n % 7, n % 11) for n in range(40)]
    dataset = prepared(texts, split="document")
    whole = view.count_documents(dataset)
    monkeypatch.setattr(view, "SCAN_TOKENS", 13)
    assert view.count_documents(dataset) == whole
    assert whole.total == 40 and whole.repeated == 40 - len(set(texts))


def test_a_document_that_the_split_cuts_is_one(prepared):
    dataset = prepared([sentences(400)], split="tail")
    assert view.count_documents(dataset) == view.Documents(total=1, repeated=0)


def test_text_without_a_tokenizer_has_no_documents_to_count():
    assert view.count_documents(of_ids([1] * 50, [2] * 50)) is None


def test_validation_text_that_repeats_the_training_text_is_found(prepared):
    text = sentences(800)
    dataset = prepared([text + " " + text], tokenizer="char")
    leaks = view.leaks_of(dataset)
    assert leaks.share > 0.98 and leaks.length == 64
    start, stop = leaks.ranges[0]
    assert dataset.tokenizer.decode(dataset.val[start:stop]) in text


def test_new_validation_text_is_not(prepared):
    assert view.leaks_of(prepared([sentences(3000)], tokenizer="char")).tokens == 0
