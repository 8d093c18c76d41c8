"""The search for verbatim spans, against one that tries every span of the text."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data import verbatim
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.verbatim import find_matches


def every_match(spelled: list[bytes], texts: list[bytes], least: int) -> list[tuple]:
    """(text, begin, end, dataset, place) by trying: the longest from each byte, if it is new."""
    found = []
    for number, text in enumerate(texts):
        reached = 0
        for begin in range(len(text)):
            end = begin
            while end < len(text) and any(text[begin : end + 1] in one for one in spelled):
                end += 1
            if end > max(reached, begin) and end - begin >= least:
                places = [one.find(text[begin:end]) for one in spelled]
                dataset = next(i for i, place in enumerate(places) if place >= 0)
                found.append((number, begin, end, dataset, places[dataset]))
            reached = max(reached, end)
    return found


def as_dataset(ids: list[int], tokens: list[bytes]) -> SimpleNamespace:
    """A dataset whose tokenizer spells ids by a list; b"" is a special token."""
    spelled = SimpleNamespace(token_bytes=tokens.__getitem__)
    return SimpleNamespace(
        train=np.array(ids, np.uint16), tokenizer=spelled, vocab_size=len(tokens)
    )


@st.composite
def searches(draw):
    """(ids of two datasets, tokens, texts): few letters, so that much stands several times."""
    letters = draw(st.sampled_from([b"a", b"ab", b"abcd"]))
    longer = st.lists(st.sampled_from(letters), min_size=2, max_size=9).map(bytes)
    tokens = [b"", *(bytes([one]) for one in letters), *draw(st.lists(longer, max_size=4))]
    ids = st.lists(st.integers(0, len(tokens) - 1), max_size=120)
    datasets = [draw(ids), draw(ids)]
    spelled = b"".join(tokens[i] for i in datasets[0] + datasets[1])
    texts = []
    for _ in range(draw(st.integers(1, 3))):
        at, size = draw(st.integers(0, len(spelled))), draw(st.integers(0, 80))
        around = st.lists(st.sampled_from(letters), max_size=12).map(bytes)
        texts.append(draw(around) + spelled[at : at + size] + draw(around))
    return datasets, tokens, texts


@settings(max_examples=150, deadline=None)
@given(searches(), st.integers(8, 25), st.sampled_from([2, 9, 1 << 20]), st.sampled_from([1, 64]))
def test_it_finds_what_trying_every_span_finds(search, least, piece_tokens, most_pairs):
    datasets, tokens, texts = search
    spelled = [b"".join(tokens[i] or b"\xff" for i in ids) for ids in datasets]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verbatim, "PIECE_TOKENS", piece_tokens)
        patch.setattr(verbatim, "MOST_PAIRS", most_pairs)
        found = find_matches([as_dataset(ids, tokens) for ids in datasets], texts, least)
    assert [tuple(vars(match).values()) for match in found] == every_match(spelled, texts, least)


def test_a_passage_is_found_where_the_tokenizer_splits_it_otherwise(home):
    (home / "t.txt").write_text("the cat sat on the mat, " * 40 + "and then it overslept.\n" * 9)
    dataset = prepare("t.txt", PrepareOptions(tokenizer="bpe", vocab_size=300)).dataset
    text = "erslept.\nand then it oversl"
    begin, ids = dataset.train.tolist(), dataset.tokenizer.encode(text)
    assert not any(begin[i : i + len(ids)] == ids for i in range(len(begin)))
    (match,) = find_matches([dataset], [text.encode()], 15)
    assert (match.begin, match.end) == (0, len(text))


def test_progress_counts_every_token():
    calls = []
    dataset = as_dataset([1] * 50, [b"", b"a"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verbatim, "PIECE_TOKENS", 20)
        find_matches([dataset, dataset], [b"a" * 10], 8, lambda *call: calls.append(call))
    assert calls == [("searching", n, 100) for n in (20, 20, 10) * 2]
