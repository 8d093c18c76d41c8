import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.encode import write_tokens
from gptlab.data.text_store import TextStore, safe_cut
from gptlab.data.tokenizer import char_tokenizer, train_bpe

# Text of several scripts, with runs of spaces, of letters without spaces, and of punctuation.
WORDS = (
    "the cat's 'tis don't over-ride 12345 3.14 über 日本語の、文章。 привет! x_y __init__ \n\n "
    "  \t a1b2 naïve, (so) [it] 'll \u3000全角　 ½ e\u0301t\u0301 --- ... 🌲🌲🌲 I\u2019m \r\n"
).split(" ")


def stored(folder, documents, seed=1):
    store = TextStore(folder / "text.tmp", seed)
    for document in documents:
        store.add([document] if isinstance(document, str) else document)
    store.finish()
    return store


def texts_of(store, split, **how):
    """The documents of a split, joined from their pieces."""
    documents = [""]
    for text, _ in store.pieces(split, **how):
        documents[-1] += text
        documents.append("")
    return "".join(documents)


def mixed_text(seed, words):
    rng = random.Random(seed)
    return "".join(rng.choice(WORDS) + rng.choice(["", " ", " ", "  ", "\n"]) for _ in range(words))


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([mixed_text(0, 20_000)], 700)


def ids_from_file(store, split, tokenizer, path, **how):
    counts = Counter()
    pieces = store.pieces(split, can_be_cut=tokenizer.can_be_cut, counts=counts)
    tokens, _ = write_tokens(pieces, tokenizer, path, np.dtype("<u2"), lambda _: None, **how)
    ids = np.fromfile(path, "<u2")
    assert len(ids) == tokens
    return ids.tolist(), counts


@pytest.mark.parametrize("size", [16, 100, 1000])
def test_ids_of_the_pieces_are_the_ids_of_the_whole_text(tmp_path, bpe, size):
    text = mixed_text(7, 20_000)
    store = stored(tmp_path, [text])
    everything, _ = store.split("tail", 1e-9)
    counts = Counter()
    pieces = [piece for piece, _ in store.pieces(everything, size=size, counts=counts)]
    whole = text[: len("".join(pieces))]
    assert len(whole) >= len(text) - 1 and "".join(pieces) == whole
    assert len(pieces) > len(text.encode()) / size / 4
    assert not counts
    ids = [i for piece in pieces for i in bpe.encode(piece)]
    assert ids == bpe.encode(whole)


@given(st.text(alphabet="ab1é日本 \n\t'\u2019.,_-、。\u3000\u0301", max_size=60))
@settings(deadline=None, max_examples=500)
def test_a_text_may_be_cut_where_safe_cut_says(bpe, text):
    place = safe_cut(text)
    assert 0 <= place < max(1, len(text))
    assert bpe.encode(text[:place]) + bpe.encode(text[place:]) == bpe.encode(text)


def test_a_text_without_a_safe_place_is_cut_by_force_and_counted(tmp_path, bpe):
    text = "森" * 40_000
    store = stored(tmp_path, [text])
    train, _ = store.split("tail", 0.1)
    counts = Counter()
    pieces = [piece for piece, _ in store.pieces(train, size=1000, counts=counts)]
    assert "".join(pieces) == text[:36_000]
    assert max(map(len, pieces)) <= 4000 + 1000
    assert counts["pieces cut inside a word"] == len(pieces) - 1
    whole = [piece for piece, _ in store.pieces(train, size=1000, can_be_cut=False)]
    assert whole == [text[:36_000]]


def test_token_files_hold_the_text_with_one_separator_after_each_document(tmp_path, bpe):
    documents = [mixed_text(i, 300) + "x" for i in range(60)]
    store = stored(tmp_path, documents)
    train, val = store.split("document", 0.2)
    ids = ids_from_file(store, train, bpe, tmp_path / "train.bin")[0]
    ids += ids_from_file(store, val, bpe, tmp_path / "val.bin")[0]
    assert ids.count(bpe.eot_id) == len(documents)
    decoded = [[]]
    for i in ids:
        if i == bpe.eot_id:
            decoded.append([])
        else:
            decoded[-1].append(i)
    assert decoded.pop() == []
    assert sorted(map(bpe.decode, decoded)) == sorted(documents)


def test_many_batches_in_flight_are_written_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr("gptlab.data.encode.PIECE_BYTES", 10)
    documents = [f"document {i}. " for i in range(500)]
    store = stored(tmp_path, documents)
    tokenizer = char_tokenizer("".join(documents))
    train, _ = store.split("tail", 1e-9)
    ids = ids_from_file(store, train, tokenizer, tmp_path / "t")[0]
    text = "".join(documents)
    assert tokenizer.decode(ids) == text[: int(len(text) * (1 - 1e-9))]


def test_a_single_text_has_no_separator(tmp_path):
    store = stored(tmp_path, ["abcdefghij"])
    tokenizer = char_tokenizer("abcdefghij")
    train, val = store.split("tail", 0.2)
    assert ids_from_file(store, train, tokenizer, tmp_path / "t")[0] == list(range(8))
    assert ids_from_file(store, val, tokenizer, tmp_path / "v")[0] == [8, 9]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1 / 3, 0.5])
def test_the_tail_is_the_last_share_of_the_characters_exactly(tmp_path, fraction):
    text = mixed_text(3, 5000)
    store = stored(tmp_path, [[text[:999], text[999:20_000], text[20_000:]]])
    train, val = store.split("tail", fraction)
    cut = int(len(text) * (1 - fraction))
    assert texts_of(store, train) == text[:cut]
    assert texts_of(store, val) == text[cut:]


def test_the_tail_of_a_text_of_many_blocks_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("gptlab.data.text_store.PIECE_BYTES", 100)
    blocks = [mixed_text(i, 30) + "x" for i in range(50)]
    text = "".join(blocks)
    store = stored(tmp_path, [blocks])
    for fraction in (0.01, 0.3, 0.77):
        train, val = store.split("tail", fraction)
        cut = int(len(text) * (1 - fraction))
        assert texts_of(store, train) == text[:cut]
        assert texts_of(store, val) == text[cut:]


def test_a_tail_across_documents_cuts_one_and_separates_once(tmp_path):
    store = stored(tmp_path, ["aaaa", "bbbb", "cc"])
    train, val = store.split("tail", 0.4)  # six characters for training
    assert list(store.pieces(train)) == [("aaaa", True), ("bb", False)]
    assert list(store.pieces(val)) == [("bb", True), ("cc", True)]
    train, val = store.split("tail", 0.6)
    assert list(store.pieces(train)) == [("aaaa", True)]
    assert list(store.pieces(val)) == [("bbbb", True), ("cc", True)]


def test_documents_are_split_by_content_whatever_their_order(tmp_path):
    documents = [f"document number {i} " * (1 + i % 7) for i in range(200)]
    shuffled = random.Random(5).sample(documents, len(documents))
    parts = []
    for folder, order in (("a", documents), ("b", shuffled)):
        (tmp_path / folder).mkdir()
        store = stored(tmp_path / folder, order)
        train, val = store.split("document", 0.1)
        parts.append([{t for t, _ in store.pieces(s)} for s in (train, val)])
        assert abs(val.bytes / store.bytes - 0.1) < 0.02
    assert parts[0] == parts[1]
    train, val = parts[0]
    assert train | val == set(documents) and not train & val


def test_another_seed_keeps_other_documents_for_validation(tmp_path):
    chosen = []
    for seed in (1, 2):
        store = stored(tmp_path, [f"document {i}" for i in range(100)], seed)
        _, val = store.split("document", 0.2)
        chosen.append({text for text, _ in store.pieces(val)})
    assert chosen[0] != chosen[1]


def test_equal_documents_are_on_one_side(tmp_path):
    store = stored(tmp_path, [f"document {i % 10}" for i in range(100)])
    assert len(set(store.keys.tolist())) == 10
    train, val = store.split("document", 0.25)  # in the middle of ten equal ones
    sides = [{text for text, _ in store.pieces(split)} for split in (train, val)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_a_blank_document_leaves_no_trace(tmp_path):
    store = TextStore(tmp_path / "text.tmp", 1)
    assert store.add(["one "])
    assert not store.add(["  ", "\n\t"])
    assert not store.add([])
    assert store.add(["", "two"])
    store.finish()
    assert (store.documents, store.bytes, store.characters) == (2, 7, 7)
    train, val = store.split("tail", 0.5)
    assert list(store.pieces(train)) + list(store.pieces(val)) == [
        ("one", False),
        (" ", True),
        ("two", True),
    ]


def test_a_long_blank_document_does_not_move_the_tail(tmp_path, monkeypatch):
    monkeypatch.setattr("gptlab.data.text_store.PIECE_BYTES", 10)
    text = "".join(f"é{i} " for i in range(300))
    store = stored(tmp_path, ["first", [" " * 9] * 40, [text[:100], text[100:]], [" "] * 50])
    train, val = store.split("tail", 0.3)
    cut = int((len(text) + 5) * 0.7)
    assert texts_of(store, train) == ("first" + text)[:cut]
    assert texts_of(store, val) == ("first" + text)[cut:]


def test_the_alphabet_is_every_character_that_occurs(tmp_path):
    text = mixed_text(11, 3000) + "😀\x00"
    assert stored(tmp_path, [text]).alphabet() == "".join(sorted(set(text)))


def test_a_sample_is_all_of_a_short_text_and_evenly_spread_of_a_long_one(tmp_path):
    numbers = "".join(f"{i:07} " for i in range(10_000))
    store = stored(tmp_path, [numbers[:30_000], numbers[30_000:]])
    train, _ = store.split("tail", 1e-9)
    assert store.sample(train, 10**6) == numbers.encode()[: train.bytes]
    sample = store.sample(train, 1600, parts=16)
    assert len(sample) == 1600
    starts = [sample[i : i + 100] for i in range(0, 1600, 100)]
    places = [numbers.encode().find(stretch) for stretch in starts]
    assert -1 not in places
    gaps = np.diff(places)
    assert places[0] == 0 and gaps.min() > 0.99 * gaps.max()
    assert places[-1] > 79_000


def test_the_first_of_some_characters_is_found_with_its_document_and_line(tmp_path, monkeypatch):
    monkeypatch.setattr("gptlab.data.text_store.PIECE_BYTES", 20)
    rng = random.Random(3)
    for _ in range(200):
        documents = ["".join(rng.choices("ab é\n", k=rng.randint(1, 60))) + "x" for _ in range(6)]
        number, place = rng.randrange(6), rng.randint(0, 60)
        document = documents[number]
        documents[number] = document[:place] + "?" + document[place:]
        documents[5] += "!"
        store = stored(tmp_path, documents)
        start = sum(len(each.encode()) for each in documents[:number])
        lines = documents[number].partition("?")[0].count("\n")
        assert store.first_of("!?") == ("?", start, lines)
