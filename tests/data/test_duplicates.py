"""Copies of documents, against planted ones and the resemblance by its definition."""

import random
import tracemalloc

import numpy as np
import pytest

from gptlab.data.duplicates import find_copies
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.text_store import TextStore
from gptlab.errors import ConfigError, DataError

RANDOM = random.Random(7)
WORDS = ["".join(RANDOM.choices("abcdefghijklmnop", k=RANDOM.randint(2, 9))) for _ in range(2000)]


def document(words=150):
    return RANDOM.choices(WORDS, k=words)


def changed(words, share):
    """With so many of the words replaced."""
    words = list(words)
    for place in RANDOM.sample(range(len(words)), round(share * len(words))):
        words[place] = RANDOM.choice(WORDS)
    return words


@pytest.fixture
def copies_of(tmp_path):
    """Finds the copies among documents."""

    def find(documents, most_bytes=float("inf")):
        with TextStore(tmp_path / "text.tmp", 1) as store:
            for text in documents:
                store.add([text])
            store.finish()
            return find_copies(store, most_bytes)

    return find


def test_planted_copies_are_counted(copies_of):
    originals = [document() for _ in range(120)]
    exact = originals[:15]
    near = [changed(words, 0.05) for words in originals[20:50]]
    unlike = [changed(words, 0.5) for words in originals[60:90]]
    documents = [" ".join(words) for words in [*originals, *exact, *near, *unlike]]
    found = copies_of(documents)
    assert (found.exact, found.near, found.kept_apart) == (15, 30, 0)
    assert found.first.tolist() == [
        *range(120), *range(15), *range(20, 50), *range(165, 195),
    ]  # fmt: skip


def test_copies_are_those_that_resemble_each_other(copies_of):
    def sequences(text):
        return {text[i : i + 16] for i in range(len(text) - 15)}

    for share in np.linspace(0, 0.5, 60):
        pair = document(300)
        pair = [" ".join(pair), " ".join(changed(pair, share))]
        one, other = map(sequences, pair)
        resemblance = len(one & other) / len(one | other)
        is_copy = copies_of(pair).first[1] == 0
        if not 0.22 < resemblance < 0.58:  # the estimate is off by 0.09, its standard deviation
            assert is_copy == (resemblance > 0.4), resemblance


def test_short_documents_are_copies_only_if_they_are_equal(copies_of):
    found = copies_of(["tom smith", "tom smyth", "tom smith", "ann", "tom smith"])
    assert found.first.tolist() == [0, 1, 0, 3, 0] and (found.exact, found.near) == (2, 0)


def test_documents_of_one_form_are_no_copies(copies_of):
    form = " ".join(document())
    alike = [f"{form} {number}" for number in range(50)]
    found = copies_of([*alike, alike[3], " ".join(document())], most_bytes=10_000)
    assert found.first.tolist() == [*range(50), 3, 51]
    assert (found.exact, found.near, found.kept_apart) == (1, 0, 49)


def test_memory_grows_with_the_documents_and_not_with_their_text(tmp_path):
    peaks = []
    for words in (1_000, 10_000):
        with TextStore(tmp_path / "text.tmp", 1) as store:
            for _ in range(100):
                store.add([" ".join(document(words))])
            store.finish()
            tracemalloc.start()
            find_copies(store, 1e9)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 8_000_000


# Preparing ----------------------------------------------------------------------------------------


@pytest.fixture
def texts():
    """Paragraphs: 200 documents, of which 10 stand again and 30 again with words changed."""
    originals = [document(60) for _ in range(160)]
    again = [*originals[:10], *(changed(words, 0.03) for words in originals[100:130])]
    return [" ".join(words) for words in [*originals, *again]]


def parts(dataset):
    ends = dataset.tokenizer.eot_id
    return [
        [dataset.tokenizer.decode(ids) for ids in np.split(part, np.flatnonzero(part == ends) + 1)]
        for part in (dataset.train, dataset.val)
    ]


def test_copies_are_on_one_side_of_the_split(write, texts):
    write("t.txt", "\n\n".join(texts))
    for seed in range(5):
        options = PrepareOptions(document="paragraph", seed=seed, overwrite=True, val_fraction=0.4)
        done = prepare("t.txt", options)
        train, val = parts(done.dataset)
        beginnings = [{text[:20] for text in side if text} for side in (train, val)]
        assert len(beginnings[1]) > 20
        assert not beginnings[0] & beginnings[1]
        assert done.dataset.meta["counts"]["documents that repeat another"] == 10
        assert done.dataset.meta["counts"]["documents that nearly repeat another"] == 30
    listed = (done.dataset.folder / "copies.txt").read_text(encoding="utf-8").splitlines()
    assert len(listed) == 40 and listed[0] == "t.txt:321\tt.txt:1"


def test_dedup_drops_copies_and_lists_them(write, texts):
    write("t.txt", "\n\n".join(texts))
    done = prepare("t.txt", PrepareOptions(document="paragraph", dedup=True))
    meta = done.dataset.meta
    assert meta["documents"] == 160 and meta["counts"]["copies dropped"] == 40
    assert meta["options"]["dedup"] is True
    kept = sorted(text for side in parts(done.dataset) for text in side if text)
    assert kept == sorted(texts[:160])
    assert meta["characters"] == sum(map(len, texts[:160]))
    assert "Copies dropped: 40 documents, which copies.txt lists." in done.notes


def test_dedup_of_text_of_its_own_is_refused(write, home):
    write("t.txt", "\n\n".join(" ".join(document(60)) for _ in range(20)))
    with pytest.raises(ConfigError, match="--dedup has no effect: no document is a copy"):
        prepare("t.txt", PrepareOptions(document="paragraph", dedup=True))
    assert not (home / "data" / "t").exists()


def test_dedup_keeps_a_validation_file_free_of_training_text(write, texts):
    write("a.txt", "\n\n".join(texts[:160]))
    write("b.txt", "\n\n".join([*texts[160:], "some words of its own " * 20]))
    options = dict(document="paragraph", val="b.txt", tokenizer="char")
    assert prepare("a.txt", PrepareOptions(**options)).dataset.meta["val_documents"] == 41
    kept = prepare("a.txt", PrepareOptions(**options, dedup=True)).dataset
    assert (kept.meta["train_documents"], kept.meta["val_documents"]) == (160, 1)
    write("b.txt", "\n\n".join(texts[160:]))
    with pytest.raises(DataError, match="whole validation text stands in the training text"):
        prepare("a.txt", PrepareOptions(**options, dedup=True))


def test_texts_without_near_copies_are_split_as_before(write, tmp_path):
    """By the hashes of their contents alone, equal ones together."""
    documents = [" ".join(document(60)) for _ in range(50)] * 2
    write("t.txt", "\n\n".join(documents))
    dataset = prepare("t.txt", PrepareOptions(document="paragraph", split="document")).dataset
    with TextStore(tmp_path / "other.tmp", PrepareOptions.seed) as store:
        for text in documents:
            store.add([text])
        store.finish()
        expected = [text for text, _ in store.pieces(store.split("document", 0.1)[1])]
    assert [text for text in parts(dataset)[1] if text] == expected
