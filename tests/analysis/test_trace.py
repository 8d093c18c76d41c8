"""Verbatim spans of a text in the training text: planted passages, and what stands by chance."""

import dataclasses
import itertools
import json
import random
import shutil
import string

import numpy as np
import pytest

from gptlab.analysis.trace import Span, TracedText, held_out_pieces, trace_texts, training_data
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.token_files import open_dataset
from gptlab.data.tokenizer import train_bpe
from gptlab.data.versions import forget_versions
from gptlab.errors import DataError, RunError
from gptlab.files import read_json, write_json
from gptlab.runs import Run

PASSAGE = "A planted passage, öf two lines:\nit stands in one file only, naïvely."


def noise(seed: int, lines: int) -> str:
    """Lines of letters in which nothing of 15 characters stands twice."""
    draw = random.Random(seed)
    return "".join("".join(draw.choices(string.ascii_letters, k=60)) + "\n" for _ in range(lines))


@pytest.fixture
def planted(home):
    """A folder of 30 files; the passage begins at line 8 of the seventh."""
    (home / "books").mkdir()
    for i in range(30):
        text = noise(i, 12)
        if i == 7:
            text = f"{noise(70, 7)}{PASSAGE} {noise(71, 3)}"
        (home / "books" / f"b{i:02}.txt").write_text(text, encoding="utf-8")
    return home


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_a_planted_passage_is_found_with_its_file_and_line(planted, tokenizer):
    size = 400 if tokenizer == "bpe" else None
    options = PrepareOptions(tokenizer=tokenizer, vocab_size=size, split="tail")
    dataset = prepare("books", options).dataset
    traced = trace_texts([dataset], [f"Mine, älso: {PASSAGE}; and mine.", noise(500, 4)])
    (span,) = traced.texts[0].spans
    assert traced.texts[0].text[span.begin : span.end].strip() == PASSAGE
    assert span.where == "books/b07.txt:8"
    assert traced.texts[0].longest == len(span)
    assert traced.texts[1].spans == () and traced.texts[1].share(30) == 0
    second_line = trace_texts([dataset], ["\n" + PASSAGE.split("\n")[1]]).texts[0]
    assert second_line.spans[0].where == "books/b07.txt:9"


def test_a_span_has_whole_characters_and_ends_with_the_document(home):
    rows = [noise(n, 2) + "中文字符在这里" for n in range(20)]
    rows[3:5] = ["the first of the two ends here é", "è and here the second begins"]
    (home / "t.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    dataset = prepare("t.jsonl", PrepareOptions(tokenizer="bpe", vocab_size=300)).dataset
    # ë shares its first byte with é; the two documents lie side by side in the token file
    texts = ["the first of the two ends here ë", rows[3] + rows[4]]
    traced = trace_texts([dataset], texts, 8)
    spelled = [[text.text[s.begin : s.end] for s in text.spans] for text in traced.texts]
    assert spelled == [[texts[0][:-1]], [rows[3], rows[4]]]
    assert traced.texts[1].spans[1].where.startswith("t.jsonl")


def test_what_is_common_stands_by_chance_and_what_stands_once_does_not(home):
    common = "this sentence stands in every chapter of the book. "
    (home / "t.txt").write_text("".join(noise(n, 1) + common for n in range(400)))
    dataset = prepare("t.txt", PrepareOptions(tokenizer="char", split="tail")).dataset
    once = dataset.tokenizer.decode(dataset.train[5000:5250])
    traced = trace_texts([dataset], [once, noise(500, 4)])
    assert (traced.texts[0].longest, traced.texts[0].share(30)) == (250, 1)
    assert (traced.texts[1].longest, traced.texts[1].share(30)) == (0, 0)
    assert 0.3 < traced.share_by_chance(30) < 0.6  # 51 of 112 characters
    assert 51 <= traced.longest_by_chance <= 55


def test_pieces_of_validation_text_are_as_long_as_asked_and_do_not_overlap(home):
    (home / "t.txt").write_text(noise(1, 300))
    dataset = prepare("t.txt", PrepareOptions(tokenizer="char", split="tail")).dataset
    validation = dataset.tokenizer.decode(dataset.val)
    pieces = held_out_pieces([dataset], 50)
    places = [validation.index(piece) for piece in pieces]
    assert len(pieces) == 32 and {len(piece) for piece in pieces} == {50}
    assert all(b - a >= 50 for a, b in itertools.pairwise(places))
    assert held_out_pieces([dataset], len(validation) * 3) == [validation]


def test_shares_and_segments_follow_from_the_spans():
    a, b, c = Span(2, 12, "d"), Span(8, 28, "d"), Span(30, 39, "d")
    text = TracedText("x" * 40, (a, b, c))
    assert text.longest == 20
    assert text.share(10) == 26 / 40 and text.share(20) == 20 / 40 and text.share(21) == 0
    assert [(len(piece), span) for piece, span in text.segments(10)] == [
        (2, None), (6, a), (20, b), (12, None),
    ]  # fmt: skip
    assert TracedText("", ()).segments(10) == [] and TracedText("", ()).share(10) == 0


def test_an_answer_of_conversations_is_found(home):
    rows = [
        {"messages": [{"role": "user", "content": f"Question {n}?"},
                      {"role": "assistant", "content": f"{noise(n, 1).strip()} is {n}."}]}
        for n in range(60)
    ]  # fmt: skip
    (home / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_bpe(["Question User Assistant"] * 3, 300).save(home / "tokenizer.json")
    dataset = prepare("talks.jsonl", PrepareOptions(tokenizer="tokenizer.json")).dataset
    answers = [row["messages"][1]["content"] for row in rows]
    texts = trace_texts([dataset], answers).texts
    assert [text.longest for text in texts].count(0) < 15  # those of the validation part
    for line, text in enumerate(texts, 1):
        if text.longest:
            assert [(s.begin, s.end, s.where) for s in text.spans] == [
                (0, len(text.text), f"talks.jsonl line {line}")
            ]


def test_token_files_of_nanogpt_have_no_lines_but_spans(home):
    (home / "t.txt").write_text(noise(1, 100))
    dataset = prepare("t.txt", PrepareOptions(tokenizer="char")).dataset
    (dataset.folder / "meta.json").unlink()
    bare = open_dataset("t")
    text = bare.tokenizer.decode(bare.train[100:200])
    (span,) = trace_texts([bare], [text]).texts[0].spans
    assert (span.begin, span.end, span.where) == (0, 100, "t (source unknown)")


def test_a_text_that_is_empty_or_too_long_is_refused(planted):
    dataset = prepare("books", PrepareOptions(tokenizer="char")).dataset
    with pytest.raises(DataError, match="no text to trace"):
        trace_texts([dataset], ["", ""])
    with pytest.raises(DataError, match="trace a part of it"):
        trace_texts([dataset], ["ä" * (1 << 19) + "b"])


# The data of a run --------------------------------------------------------------------------------


def test_the_text_of_a_run_is_searched_as_long_as_it_is_there(train):
    folder = train(max_iters=2)
    (dataset,) = training_data(Run(folder))
    text = dataset.tokenizer.decode(dataset.train[10:90])
    assert trace_texts([dataset], [text]).texts[0].longest > 30
    with open("books/b1.txt", "a", encoding="utf-8") as file:
        file.write("another line\n")
    prepare("books", PrepareOptions(tokenizer="char", split="document", overwrite=True))
    (older,) = training_data(Run(folder))  # a version of the text as it was
    assert older.fingerprint == dataset.fingerprint != open_dataset("books").fingerprint
    forget_versions(open_dataset("books").folder, set())
    with pytest.raises(RunError, match="trained on other data"):
        training_data(Run(folder))
    shutil.rmtree("data/books")
    with pytest.raises(DataError, match="No prepared dataset"):
        training_data(Run(folder))


def test_a_run_that_names_no_text_is_refused(train):
    folder = train(max_iters=2)
    run = Run(folder)
    recorded = read_json(run.provenance)
    for broken in ({}, {"settings": 3, "data": []}, {**recorded, "data": {"fingerprint": 7}}):
        write_json(run.provenance, broken)
        with pytest.raises(RunError, match="does not name a dataset"):
            training_data(run)
    run.provenance.unlink()
    with pytest.raises(RunError, match=r"trace a run that began here with train\.py"):
        training_data(run)


def test_a_run_on_ids_without_a_tokenizer_is_refused(train, tmp_path):
    (tmp_path / "ids").mkdir()
    for part in ("train", "val"):
        np.arange(200, dtype=np.uint16).tofile(tmp_path / "ids" / f"{part}.bin")
    folder = train(max_iters=2, dataset="ids", vocab_size=200)
    with pytest.raises(DataError, match=r"tokenizer\.json beside"):
        training_data(Run(folder))


def test_every_dataset_of_a_mix_is_searched(train, tmp_path):
    other = "not of the books at all, these are the words of a letter"
    (tmp_path / "letters.txt").write_text(noise(3, 40) + f"{other}\n" + noise(4, 20))
    prepare("letters.txt", PrepareOptions(tokenizer="bpe", vocab_size=300, split="tail"))
    prepare("books", PrepareOptions(tokenizer="data/letters", dataset="again", split="document"))
    folder = train(max_iters=2, dataset="again:0.5,letters:0.5")
    datasets = training_data(Run(folder))
    texts = [other, "the 3 and the 5 are what the book of line 5 is about"]
    found = trace_texts(datasets, texts).texts
    assert [text.share(30) for text in found] == [1, 1]
    assert [text.spans[0].where for text in found] == ["letters.txt:41", "books/b3.txt:6"]


def test_without_validation_text_the_spans_are_found_and_nothing_is_said_of_chance(planted):
    dataset = prepare("books", PrepareOptions(tokenizer="char", split="tail")).dataset
    traced = trace_texts([dataclasses.replace(dataset, val=dataset.val[:0])], [PASSAGE])
    assert traced.texts[0].longest == len(PASSAGE) and traced.held_out == ()
    assert traced.longest_by_chance is None and traced.share_by_chance(30) is None
