"""The source of a token: the file and the line, found again in the text itself."""

import json

import pytest

from gptlab.data import documents
from gptlab.data.documents import Place, places
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.token_files import open_dataset
from gptlab.errors import DataError

LINE = "{name} line {n} of a text in which every line tells where it stands\n"


def text_of(name: str, lines: int) -> str:
    return "".join(LINE.format(name=name, n=n) for n in range(1, lines + 1))


def line_starts(dataset) -> dict[int, str]:
    """{position of the first token of a line: the line}, by decoding all tokens (char only)."""
    text = dataset.tokenizer.decode(dataset.train, keep_special=True)
    text = text.replace("<|endoftext|>", "\0")
    assert len(text) == len(dataset.train)
    starts = [i for i in range(len(text)) if i == 0 or text[i - 1] in "\n\0"]
    lines = {i: text[i:].split("\n")[0] for i in starts}
    return {i: line for i, line in lines.items() if " line " in line and "\0" not in line}


def test_a_token_of_a_single_file_has_the_line_that_the_file_has_it_in(home):
    (home / "one.txt").write_bytes(text_of("one", 80).replace("\n", "\r\n").encode())
    dataset = prepare("one.txt", PrepareOptions(tokenizer="char")).dataset
    starts = line_starts(dataset)
    assert len(starts) > 60
    found = places(dataset, list(starts))
    assert [str(place) for place in found] == [
        f"one.txt:{line.split()[2]}" for line in starts.values()
    ]


@pytest.mark.parametrize("split", ["tail", "document"])
def test_a_token_of_a_folder_has_its_own_file_and_the_line_in_it(home, split):
    (home / "books").mkdir()
    for i in range(30):
        (home / "books" / f"b{i}.txt").write_text(text_of(f"b{i}", 3 + i % 5), encoding="utf-8")
    (home / "books" / "blank.txt").write_text("\n \n", encoding="utf-8")
    options = PrepareOptions(tokenizer="char", split=split)
    dataset = prepare("books", options).dataset
    starts = line_starts(dataset)
    shuffled = sorted(starts, key=lambda i: i * 7919 % 104729)
    for position, place in zip(shuffled, places(dataset, shuffled), strict=True):
        name, _, number = starts[position].split()[:3]
        assert str(place) == f"books/{name}.txt:{number}"


def test_a_token_of_a_table_has_its_row(home):
    rows = [{"text": text_of(f"r{n}", 2)} for n in range(1, 40)]
    rows.insert(5, {"text": None})
    (home / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = prepare("t.jsonl", PrepareOptions(tokenizer="char")).dataset
    starts = line_starts(dataset)
    for position, place in zip(starts, places(dataset, list(starts)), strict=True):
        row = int(starts[position].split()[0][1:])
        assert place == Place(f"t.jsonl line {row + (row > 5)}", None)


def test_an_end_of_text_belongs_to_the_document_that_it_ends(home):
    (home / "books").mkdir()
    for name in ("a", "b", "c"):
        (home / "books" / f"{name}.txt").write_text(text_of(name, 9), encoding="utf-8")
    dataset = prepare("books", PrepareOptions(tokenizer="char", split="tail")).dataset
    first = dataset.train.tolist().index(dataset.tokenizer.eot_id)
    before, eot, after = places(dataset, [first - 1, first, first + 1])
    assert before.name == eot.name != after.name
    assert (before.line, eot.line, after.line) == (9, 10, 1)


def test_a_dataset_from_before_the_record_names_a_single_file_and_numbers_others(home):
    (home / "one.txt").write_text(text_of("one", 80), encoding="utf-8")
    one = prepare("one.txt", PrepareOptions(tokenizer="char")).dataset
    (one.folder / documents.FILE).unlink()
    assert str(places(open_dataset("one"), [0])[0]) == "one.txt:1"
    (home / "books").mkdir()
    for name in ("a", "b", "c"):
        (home / "books" / f"{name}.txt").write_text(text_of(name, 9), encoding="utf-8")
    many = prepare("books", PrepareOptions(tokenizer="char", split="tail")).dataset
    (many.folder / documents.FILE).unlink()
    last = len(many.train) - 1
    assert [p.name for p in places(open_dataset("books"), [last, 0])] == [
        "document 3",
        "document 1",
    ]


def test_documents_beyond_the_record_are_numbered(home, monkeypatch):
    monkeypatch.setattr(documents, "MOST_DOCUMENTS", 1)
    (home / "books").mkdir()
    for name in ("a", "b", "c"):
        (home / "books" / f"{name}.txt").write_text(text_of(name, 9), encoding="utf-8")
    dataset = prepare("books", PrepareOptions(tokenizer="char", split="tail")).dataset
    first, last = places(dataset, [0, len(dataset.train) - 1])
    assert first.name.startswith("books/") and last.name == "document 3"


def test_the_record_changes_no_fingerprint_and_a_damaged_one_is_named(home):
    (home / "one.txt").write_text(text_of("one", 80), encoding="utf-8")
    dataset = prepare("one.txt", PrepareOptions(tokenizer="char")).dataset
    before = dataset.fingerprint
    (dataset.folder / documents.FILE).write_text('{"format_version": 1, "train": [5]}')
    assert open_dataset("one").fingerprint == before
    assert prepare("one.txt", PrepareOptions(tokenizer="char")).skipped
    with pytest.raises(DataError, match=r"documents\.json is damaged"):
        places(open_dataset("one"), [0])
