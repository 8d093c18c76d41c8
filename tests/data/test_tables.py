"""JSON in every layout, JSON Lines, odd rows, and several fields in one text."""

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data import text_files
from gptlab.data.corpora import find
from gptlab.data.forms import find_form
from gptlab.data.rows import documents_of_rows
from gptlab.data.tables import json_rows, jsonl_rows
from gptlab.data.text_files import Reading
from gptlab.errors import ConfigError, DataError

TEXTS = st.lists(st.text(max_size=20).filter(lambda t: "\0" not in t), max_size=8)


def read(path, **how):
    """(texts of the documents, counts, notes) of one file, as preparing reads it."""
    notes = []
    reading = Reading(note=notes.append, **how)
    source = find([str(path)], how.get("encoding"), notes.append, how=reading)
    return ["".join(d) for d in source.documents(reading)], +reading.counts, notes


ROWS = [{"text": "one", "n": 1}, {"text": "two", "n": 2}, {"text": "th\nree", "n": 3}]
LAYOUTS = {
    "a list": json.dumps(ROWS),
    "an indented list": json.dumps(ROWS, indent=2),
    "lines": "".join(json.dumps(row) + "\n" for row in ROWS),
    "lines without the last end": "\n".join(json.dumps(row) for row in ROWS),
    "indented objects": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "an object with a list": json.dumps({"version": 1, "tags": ["a"], "data": ROWS}),
    "an indented object with a list": json.dumps({"data": ROWS, "x": [1] * 9}, indent=2),
    "an object of objects": json.dumps({str(i): row for i, row in enumerate(ROWS)}),
    "a list under no name": json.dumps({"": ROWS}),
    "a list of texts": json.dumps([row["text"] for row in ROWS]),
    "with a mark": "\ufeff" + json.dumps(ROWS),
}


@pytest.mark.parametrize("name", ["x.json", "x.txt", "x.jsonl", "x", "x.ndjson"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_json_is_read_as_rows_in_any_layout_under_any_name(write, layout, name):
    assert read(write(name, LAYOUTS[layout]))[0] == ["one", "two", "th\nree"]


@pytest.mark.parametrize(
    "text",
    [
        "[Verse 1]\nla la\n", "[1] Introduction\n", '["Hello," she said]\n', "{ curly }\n",
        '{"a"} is a set\n', "[]\n[]\n", '[ "a", b ]\n', "{\n  int a;\n}\n", "[[wiki]] link\n",
    ],
)  # fmt: skip
def test_a_text_that_begins_like_json_stays_a_text(write, text):
    assert read(write("x.txt", text))[0] == [text]


def test_broken_json_is_named_by_its_line_and_is_no_text(write):
    path = write("x.json", '[\n{"text": "one"},\n{"text": "two"\n{"text": "three"}]\n')
    with pytest.raises(DataError, match=r"x\.json line 4 is not valid JSON \(Expecting ','"):
        read(path)
    with pytest.raises(DataError, match=r"x\.json line 2 is not valid JSON"):
        read(write("x.json", '[{"text": "one"},\n{"text": "t\n"}]'))
    with pytest.raises(DataError, match=r"x\.json line 1 is not valid JSON"):
        read(write("x.json", '[{"text": "one"}'))
    with pytest.raises(DataError, match=r"x\.json line 2 is not valid JSON \(Extra data"):
        read(write("x.json", '[{"text": "one"}]\n]'))


def test_an_option_for_tables_is_refused_for_a_text(write):
    with pytest.raises(ConfigError, match=r"column has no effect: .*x\.txt is read as plain text"):
        read(write("x.txt", "text\n"), column="text")
    with pytest.raises(ConfigError, match="header is for CSV and TSV files"):
        read(write("x.jsonl", '{"text": "a"}\n'), header="no")


def test_the_field_with_the_longest_list_of_objects_holds_the_rows(write):
    content = {"ids": [1, 2, 3], "one": [{"text": "no"}], "two": [{"text": "a"}, {"text": "b"}]}
    texts, _, notes = read(write("x.json", json.dumps(content)))
    assert texts == ["a", "b"] and "'two'" in " ".join(notes)


def test_one_conversation_in_a_file_is_one_document(write):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (text,), _, _ = read(write("x.json", json.dumps({"messages": messages}, indent=2)))
    assert json.loads(text) == messages


@given(
    TEXTS,
    st.sampled_from([None, 0, 2]),
    st.booleans(),
    st.sampled_from([1, 2, 3, 7, 50, 1 << 20]),
)
@settings(deadline=None)
def test_a_json_list_gives_every_text_back(tmp_path_factory, texts, indent, plain, block_bytes):
    path = tmp_path_factory.mktemp("json") / "x.json"
    rows = [text if plain else {"n": [1.5, None], "text": text} for text in texts]
    path.write_bytes(json.dumps(rows, indent=indent, ensure_ascii=len(texts) % 2 > 0).encode())
    reading = Reading()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "BLOCK_BYTES", block_bytes)
        places = [place for place, _ in json_rows(path, reading)]
        assert list(documents_of_rows(json_rows(path, reading), reading)) == texts
    if indent == 0 and plain:
        assert [int(place.split()[-1]) for place in places] == [i + 2 for i in range(len(texts))]
    assert find_form(path, reading).kind == "json"


def test_a_long_list_needs_little_memory(tmp_path):
    path = tmp_path / "x.json"
    row = json.dumps({"text": "abc " * 2_000})
    with open(path, "w", encoding="utf-8") as file:
        file.write("[" + ",\n".join([row] * 3_000) + "]")  # 24 MB
    tracemalloc.start()
    try:
        assert sum(1 for _ in json_rows(path, Reading())) == 3_000
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


def test_odd_rows_are_skipped_up_to_the_share_and_the_first_is_named(write):
    lines = [json.dumps({"text": f"row {i}"}) for i in range(300)]
    lines[7], lines[20], lines[41] = '{"text": "cut', '{"body": "x", "n": 1}', '{"text": 3}'
    path = write("x.jsonl", "\n".join(lines))
    texts, counts, notes = read(path)
    assert len(texts) == 297 and counts["odd rows skipped"] == 3
    assert any("line 8 is not valid JSON" in n and "and 2 other rows" in n for n in notes), notes
    with pytest.raises(DataError, match=r"line 8 is not .* and 2 other rows of 300; .*_rows 2%"):
        read(path, max_bad_rows=0.005)
    assert len(read(path, max_bad_rows=1)[0]) == 297
    with pytest.raises(DataError, match="line 8 is not valid JSON"):
        read(path, max_bad_rows=0)


def test_where_most_rows_are_read_the_way_out_is_not_another_field(write):
    rows = [{"post": "shared"} if i % 5 == 0 else {"post": {"text": "own"}} for i in range(300)]
    path = write("outbox.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"59 other rows of 300; skip .*_rows 21%") as caught:
        read(path, column="post.text")
    assert "--column" not in str(caught.value)
    with pytest.raises(DataError, match=r"--column post.text, .* skip such rows with .* 81%"):
        read(path, column="post")
    assert read(path, column="post.text", max_bad_rows=0.21)[0] == ["own"] * 240


def test_documents_read_and_skipped_are_all_the_rows(write):
    rows = ['{"text": "a"}', "broken", '{"text": null}', "{}", "", '{"text": 1}', '"plain"']
    path = write("x.jsonl", "\n".join(rows * 5) + "\n")
    texts, counts, _ = read(path, max_bad_rows=1)
    assert len(texts) + sum(counts.values()) == 5 * len(rows)


def test_many_odd_rows_end_the_reading_early(write):
    path = write("x.jsonl", "no json\n" * 100_000)
    with pytest.raises(DataError, match="line 1 is not valid JSON"):
        read(path)
    reading = Reading()
    with pytest.raises(DataError):
        list(documents_of_rows(jsonl_rows(path, reading), reading))
    assert reading.rows == 100


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("title,body", ["A\none", "two", "C"]),
        ("body, title", ["one\nA", "two", "C"]),
        ("{title}\\n\\n{body}", ["A\n\none", "\n\ntwo", "C\n\n"]),
        ("Q: {title} ({n})", ["Q: A (1)", "Q:  (2)", "Q: C (3)"]),
    ],
)
def test_several_fields_are_one_text(write, column, expected):
    rows = [
        {"title": "A", "body": "one", "n": 1},
        {"title": None, "body": "two", "n": 2},
        {"title": "C", "body": "", "n": 3},
    ]
    assert read(write("x.json", json.dumps(rows)), column=column)[0] == expected
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = write("x.parquet", b"")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read(path, column=column)[0] == expected


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("data.text", ["one", "two"]),
        ("title,data.text", ["A\none", "two"]),
        ("{title}: {data.text}", ["A: one", ": two"]),
        ("data.parts.body", ["x\ny"]),
        ("tags", ["a\nb"]),
    ],
)
def test_fields_in_fields_are_named_with_dots_and_lists_of_them_are_lines(write, column, expected):
    rows = [
        {"title": "A", "data": {"text": "one", "parts": [{"body": "x"}, {"body": "y"}]}},
        {"title": None, "data": {"text": "two", "parts": []}},
    ]
    rows[0]["tags"] = ["a", "b"]
    rows[1]["tags"] = None
    for name, content in (
        ("x.json", json.dumps(rows)),
        ("x.jsonl", "\n".join(map(json.dumps, rows))),
    ):
        assert read(write(name, content), column=column, max_bad_rows=1)[0] == expected
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = write("x.parquet", b"")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    if column not in ("data.parts.body", "tags"):  # other paths there: data.parts.list.element
        assert read(path, column=column)[0] == expected


def test_a_refusal_names_a_field_that_works(write):
    rows = [{"id": 1, "tweet": {"full_text": f"My tweet {i}", "id": "1"}} for i in range(9)]
    path = write("tweets.js", "window.YTD.tweets.part0 = " + json.dumps(rows, indent=1) + ";\n")
    with pytest.raises(DataError, match=r"for example --column tweet\.full_text"):
        read(path)
    assert read(path, column="tweet.full_text")[0] == [f"My tweet {i}" for i in range(9)]
    program = "const a = {};\nlet b = [1];\nconsole.log(a)\n"
    assert read(write("program.js", program))[0] == [program]


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=9), min_size=1
    ),
    st.sampled_from([(), ("rows",), ("data", "rows")]),
    st.integers(0, 3),
)
@settings(deadline=None, max_examples=60)
def test_every_row_of_a_list_in_an_object_comes_back(tmp_path_factory, texts, path, indent):
    file = tmp_path_factory.mktemp("json") / "x.json"
    value = [{"text": text} for text in texts]
    for name in reversed(path):
        value = {"version": 1, name: value, "more": {"x": [1, 2], "y": []}}
    file.write_text(json.dumps(value, indent=indent or None), encoding="utf-8")
    assert read(file)[0] == texts


def test_a_field_of_a_pattern_that_is_not_there_is_named(write):
    path = write("x.json", '[{"title": "a", "body": "b"}]')
    with pytest.raises(DataError, match="no field 'text': its fields are title, body"):
        read(path, column="{title} {text}")
    with pytest.raises(DataError, match="no field 'x'"):
        read(path, column="title,x")
    assert read(write("y.json", '[{"a,b": "c"}]'), column="a,b")[0] == ["c"]


def test_an_export_of_telegram_is_its_messages(write):
    pieces = ["see ", {"type": "link", "text": "here"}, "!"]
    messages = [{"id": i, "type": "message", "text": "plain"} for i in range(200)]
    messages[1]["text"], messages[2]["text"] = pieces, ["one", "two"]
    export = {"name": "x", "type": "personal_chat", "id": 1, "messages": messages}
    texts, counts, _ = read(write("result.json", json.dumps(export)))
    assert texts[:3] == ["plain", "see here!", "plain"] and counts["odd rows skipped"] == 1


def test_parquet_is_known_by_its_first_bytes(write):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = write("x.bin", b"")
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "a"}, {"text": "b"}]), path)
    assert read(path)[0] == ["a", "b"]


def test_a_table_in_utf16_from_a_spreadsheet_is_read(write):
    path = write("x.csv", 'id\ttext\r\n1\t"a, ""b"""\r\n2\tc\r\n'.encode("utf-16"))
    assert read(path)[0] == ['a, "b"', "c"]
