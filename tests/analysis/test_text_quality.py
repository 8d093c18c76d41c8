"""The quality of text in numbers: each against counts by hand, and judged only beyond chance."""

import dataclasses
import json
import random

import numpy as np
import pytest

from gptlab.analysis import text_quality as module
from gptlab.analysis.text_quality import (
    held_out_texts,
    known_spellings,
    measure_quality,
    quality_of_samples,
)
from gptlab.analysis.trace import TracedText
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.words import words_of

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "ar", "en", "ist")]


def prose(seed: int, words: int, many: int = len(WORDS)) -> str:
    """Sentences of eight words, the frequent ones first in WORDS."""
    draw = random.Random(seed)
    weights = [1 / (1 + i) for i in range(many)]
    chosen = draw.choices(WORDS[:many], weights, k=words)
    return "".join(f"{word}{'. ' if i % 8 == 7 else ' '}" for i, word in enumerate(chosen))


def plain(*texts: str) -> list[TracedText]:
    return [TracedText(text, ()) for text in texts]


def figures(quality) -> dict:
    return {figure.measure.name: figure for figure in quality.figures}


@pytest.fixture
def plays(home):
    """A dataset of prose, by characters, one text."""
    (home / "plays.txt").write_text(prose(0, 3000), encoding="utf-8")
    return prepare("plays.txt", PrepareOptions(tokenizer="char")).dataset


def test_each_measure_is_what_one_counts_by_hand():
    ours = ["A b a b a b a b. Out! Out?", "Brief candle ... one \u2013 two 3.5 three"]
    # ten words have 7 runs of four: abab (3 times), baba (twice), "b a b out" and "a b out out"
    found = figures(measure_quality(plain(*ours), plain("x y. z", "x y z"), [], ""))
    assert found["repetition"].samples == 3 / (7 + 4)
    # the first six words of both: a b a b a b; and x y z, x y z
    assert found["different words"].samples == 2 / 6
    assert found["different words"].held_out == 3 / 6
    assert found["different pairs"].samples == 2 / 5
    assert found["different pairs"].held_out == 2 / 4  # x y, y z in each text
    # sentences end at "b.", "Out!", "Out?" and "..."
    assert found["words a sentence"].samples == 17 / 4
    assert found["known words"].samples is None and found["verbatim"].samples is None


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("你好。我是谁？好！", 3),  # noqa: RUF001
        ("यह है। वह है॥", 2),
        ("He said: 'Go!' And (she left.) Ends", 2),
        ("ROMEO:\nAy me.\n\nJULIET:\nO Romeo\n \nNurse", 2),
        ("Version 3.5 and a.b.c", 0),
    ],
)
def test_a_sentence_ends_at_a_mark_of_its_script_or_at_an_empty_line(text, sentences):
    found = figures(measure_quality(plain(text), [], []))["words a sentence"].samples
    assert found == (len(words_of(text)) / sentences if sentences else None)


def test_known_words_are_those_of_the_whole_training_text_wherever_it_is_cut(plays, monkeypatch):
    monkeypatch.setattr(module, "PIECE_TOKENS", 97)
    monkeypatch.setattr(module, "LONGEST_WORD", 6)
    last = plays.tokenizer.encode_to_array(" tutuso").astype(np.uint16)  # across the last cut
    plays = dataclasses.replace(plays, train=np.concatenate([plays.train[: 97 * 20 - 4], last]))
    text = plays.tokenizer.decode(plays.train.tolist())
    stands = set(words_of(text))
    # words, their beginnings and ends: cuts must make none of these known, and hide no word
    wanted = {w[i:j] for w in WORDS for i in range(3) for j in range(1, 5)} - {""} | {"zzz"}
    wanted |= stands
    steps = []
    found = known_spellings([plays], wanted, lambda stage, n, total: steps.append((n, total)))
    assert found == wanted & stands and found < wanted
    assert sum(n for n, _ in steps) == len(plays.train) == steps[0][1]


def test_a_script_without_spaces_is_known_by_pairs(home):
    (home / "t.txt").write_text("我喜欢猫。你喜欢狗。" * 300, encoding="utf-8")
    dataset = prepare("t.txt", PrepareOptions(tokenizer="char")).dataset
    wanted = {"我喜", "喜欢", "欢狗", "猫你", "狗欢", "我"}
    assert known_spellings([dataset], wanted) == {"我喜", "喜欢", "欢狗"}


def test_held_out_texts_are_parts_of_the_validation_text_in_whole_words(plays):
    val = plays.tokenizer.decode(plays.val.tolist())
    texts = held_out_texts([plays], 5, 150)
    places = [val.index(text) for text in texts]
    assert len(texts) == 5 and places == sorted(places)
    for text, place, following in zip(texts, places, [*places[1:], len(val)], strict=True):
        assert place + len(text) <= following and 130 < len(text) <= 150
        assert set(words_of(text)) <= set(WORDS)
    assert len(held_out_texts([plays], 10_000, 150)) == len(plays.val) // 150
    assert held_out_texts([plays], 3, len(plays.val) + 1) == []


def test_held_out_texts_of_short_documents_are_whole_documents(home):
    rows = [f"name{n} of {n * n}" for n in range(200)]
    (home / "t.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    dataset = prepare("t.jsonl", PrepareOptions(tokenizer="char")).dataset
    texts = held_out_texts([dataset], 8, 100)
    assert len(set(texts)) == 8 and set(texts) <= set(rows)


def test_what_differs_is_named_and_what_is_alike_is_not(plays):
    same = quality_of_samples([prose(n, 150) for n in range(1, 9)], 400, [plays])
    assert same.why == "" and same.texts == len(held_out_texts([plays], 8, 400))
    assert {f.word for f in same.figures} <= {"alike", ""}
    assert "By none of these 6 measures" in same.verdict
    poor = plain(*(prose(n, 60, many=30) + "gi gu ga go bu, " * 12 for n in range(8)))
    odd = measure_quality(poor, plain(*(prose(n, 120) for n in range(50, 58))), [])
    words = {figure.measure.name: figure.word for figure in odd.figures}
    assert words["different words"] == "lower" and words["repetition"] == "higher"
    assert "repeats itself more, uses fewer different words" in odd.verdict


def test_the_same_kind_of_text_is_called_different_as_rarely_as_promised():
    wrong = total = 0
    for seed in range(30):
        ours, theirs = (
            plain(*(prose(1000 * seed + 50 * side + n, 120) for n in range(8))) for side in (0, 1)
        )
        for figure in measure_quality(ours, theirs, []).figures:
            if figure.side is not None:
                wrong, total = wrong + abs(figure.side), total + 1
    assert total >= 90 and wrong <= 0.03 * total


def test_without_training_text_the_rest_is_measured_and_the_reason_is_said():
    quality = quality_of_samples([prose(1, 50), prose(2, 50)], 100, [], "the model is a stranger")
    found = figures(quality)
    assert found["different words"].samples and found["different words"].held_out is None
    assert found["known words"].samples is None and found["verbatim"].samples is None
    assert "the model is a stranger" in quality.verdict
    assert "known words and verbatim need the training text" in quality.notes[0]


def test_too_short_validation_text_one_sample_and_no_words_are_said(plays):
    long = quality_of_samples([prose(1, 500)] * 2, len(plays.val) + 1, [plays])
    assert "the validation text is shorter than a sample" in long.verdict
    assert figures(long)["known words"].samples == 1
    one = quality_of_samples([prose(1, 100)], 300, [plays])
    assert "One sample is too little" in one.verdict and one.figures[0].held_out
    assert "it wrote no word" in quality_of_samples(["", "..."], 10, [plays]).verdict
    few = quality_of_samples([prose(n, 100) for n in range(30)], 400, [plays])
    assert f"so {few.texts} samples count" in few.notes[0] and few.texts < 30
