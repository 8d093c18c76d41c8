"""What a document is, is the user's to say."""

import json
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.corpora import find
from gptlab.data.documents import places
from gptlab.data.intake import Changes, Cleaning, Intake, Unit
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.text_files import Reading
from gptlab.data.tokenizer_json import END_OF_TEXT
from gptlab.errors import ConfigError, DataError

NAMES = [f"{first}{last}" for first in ("ba", "ko", "ri", "el") for last in map(str, range(75))]


def prepared(name, **options):
    return prepare(name, PrepareOptions(tokenizer="char", overwrite=True, **options)).dataset


def texts(dataset):
    """The documents of both parts, sorted."""
    joined = "".join(
        dataset.tokenizer.decode(part, keep_special=True) for part in (dataset.train, dataset.val)
    )
    assert joined.endswith(END_OF_TEXT)
    return sorted(joined.split(END_OF_TEXT)[:-1])


def test_one_name_a_line_is_one_document_each(write):
    write("names.txt", "\r\n".join(NAMES) + "\r\n\r\n")
    dataset = prepared("names.txt", document="line")
    assert texts(dataset) == sorted(NAMES)
    assert dataset.meta["split"]["how"] == "document" and dataset.meta["documents"] == 300
    assert dataset.meta["counts"]["blank lines left out"] == 1
    position = len(dataset.train) - 3  # in the last name
    name = dataset.tokenizer.decode(dataset.train.tolist()).strip()[-4:]
    line = next(i for i, each in enumerate(NAMES, 1) if name.endswith(each))
    assert str(places(dataset, [position])[0]) == f"names.txt:{line}"


def test_a_separator_is_cut_out_and_the_documents_know_their_lines(write):
    stories = [f"story {i}\nhas two lines\n" for i in range(300)]
    write("s.txt", "<|endoftext|>\n".join(stories))
    dataset = prepared("s.txt", separator=("<|endoftext|>",))
    assert texts(dataset) == sorted(stories)
    ends = (dataset.train == dataset.tokenizer.eot_id).nonzero()[0]
    after = int(ends[40]) + 1
    number = int(dataset.tokenizer.decode(dataset.train[after : after + 12]).split()[1])
    assert str(places(dataset, [after])[0]) == f"s.txt:{3 * number + 1}"


def test_paragraphs_of_a_folder_are_documents_with_file_and_line(write):
    for book in ("a", "b"):
        paragraphs = [f"{book} paragraph {i}\nsecond line" for i in range(60)]
        write(f"books/{book}.txt", "\n\n".join(paragraphs))
    dataset = prepared("books", document="paragraph")
    assert len(texts(dataset)) == 120 and dataset.meta["split"]["how"] == "document"
    book, _, number = dataset.tokenizer.decode(dataset.train[:20]).split()[:3]
    assert str(places(dataset, [0])[0]) == f"books/{book}.txt:{3 * int(number) + 1}"


def test_rows_of_a_file_are_one_document_where_the_file_is_the_unit(write):
    for name in ("a", "b"):
        write(f"t/{name}.jsonl", "".join(json.dumps({"text": f"{name}{i}"}) + "\n" for i in "123"))
    assert texts(prepared("t", document="file")) == ["a1\na2\na3\n", "b1\nb2\nb3\n"]
    assert len(texts(prepared("t", document="row"))) == 6


@pytest.mark.parametrize(("given", "found"), [(r"\n---\n", 3), ("\n---\n", 3), (r"\new", 2)])
def test_escapes_in_a_separator_are_read_unless_they_stand_in_the_text(write, given, found):
    write("s.txt", "one\n---\ntwo \\new line\n---\nthree\n" + "more" * 30)
    assert len(texts(prepared("s.txt", separator=(given,)))) == found


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"separator": ("<|end|>",)}, DataError, r"'<\|end\|>' never occurs in s\.txt; copy it"),
        ({"separator": ("<|end|>",), "max_bytes": 60}, DataError, "never occurs"),
        ({"separator": ("",)}, ConfigError, "separator is empty"),
        ({"separator": ("a",), "document": "line"}, ConfigError, "both say what a document is"),
        ({"document": "row"}, DataError, "is text and has no rows; leave out --document row"),
    ],
)
def test_a_unit_without_effect_is_refused_and_leaves_nothing(write, home, options, error, sentence):
    write("s.txt", "some text\n" * 50)
    with pytest.raises(error, match=sentence):
        prepare("s.txt", PrepareOptions(**options))
    assert not list((home / "data").glob("[!.]*"))


def test_another_unit_prepares_again_and_the_same_does_nothing(write):
    write("names.txt", "\n".join(NAMES))
    prepare("names.txt")
    lines = PrepareOptions(document="line")
    again = prepare("names.txt", lines)
    assert any("document None -> line" in note for note in again.notes) and not again.skipped
    assert prepare("names.txt", lines).skipped
    assert not prepare("names.txt", PrepareOptions(separator=("0",))).skipped


def test_a_conversation_is_not_cut(write):
    chat = {"messages": [{"role": "user", "content": "a\nb"}]}
    write("c.jsonl", (json.dumps(chat) + "\n") * 20)
    with pytest.raises(ConfigError, match="A conversation is always one document"):
        prepare("c.jsonl", PrepareOptions(document="line"))


def test_marks_of_starts_and_ends_are_both_cut_out(write):
    stories = [f"story {i}\n" for i in range(40)]
    marked = "".join(f"<|startoftext|>\n{story}<|endoftext|>\n" for story in stories)
    write("s.txt", marked)
    dataset = prepared("s.txt", separator=("<|startoftext|>", "<|endoftext|>"))
    assert texts(dataset) == sorted(stories)
    with pytest.raises(DataError, match=r"'<\|sep\|>' never occurs"):
        prepared("s.txt", separator=("<|endoftext|>", "<|sep|>"))


@given(st.text(alphabet="ab|\n \r", min_size=1, max_size=80), st.sampled_from(["line", "|"]))
@settings(deadline=None, max_examples=150)
def test_documents_in_are_documents_read_and_blank_ones(tmp_path_factory, text, how):
    path = tmp_path_factory.getbasetemp() / "generated.txt"
    path.write_bytes(text.encode())
    unit = Unit("line") if how == "line" else Unit(separators=("|",))
    source = find([str(path)], None, lambda _: None)
    intake = Intake(source, Reading(), unit, Cleaning(), Changes())
    found = ["".join(blocks) for blocks in intake.documents()]
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    if how == "line":
        assert found == plain.removesuffix("\n").split("\n")
    else:
        assert len(found) in (plain.count("|"), plain.count("|") + 1)
        letters = Counter("".join(found)) + Counter({"|": plain.count("|")})
        assert letters - Counter({"\n": math.inf}) == Counter(plain.replace("\n", ""))


@pytest.mark.parametrize("document", ["line", "paragraph"])
def test_documents_and_blank_lines_add_up_in_the_record(write, document):
    lines = [f"line {i}" if i % 5 else " " for i in range(200)]
    write("t.txt", "\n".join(lines))
    meta = prepared("t.txt", document=document).meta
    if document == "line":
        assert meta["documents"] + meta["counts"]["blank lines left out"] == 200
    else:
        assert meta["documents"] == 40 and "blank documents left out" not in meta["counts"]


def test_a_limit_inside_a_character_makes_no_document_of_the_rest(write):
    write("t.txt", "\n".join([*["ééééé"] * 20, "é", "abc"]))
    dataset = prepared("t.txt", document="line", max_bytes=201)
    assert set(texts(dataset)) == {"ééééé"} and dataset.meta["documents"] == 20


@given(st.lists(st.sampled_from(["", " ", "\n", "a text", "two\nlines"]), min_size=2, max_size=12))
@settings(deadline=None, max_examples=40)
def test_rows_are_read_or_counted_as_blank(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("rows") / "x.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    reading = Reading()
    source = find([str(path)], None, lambda _: None, how=reading)
    intake = Intake(source, reading, Unit(), Cleaning(), Changes())
    found = ["".join(document) for document in intake.documents()]
    assert found == [text for text in texts if text]
    assert len(found) + reading.counts["blank documents left out"] == len(texts)
