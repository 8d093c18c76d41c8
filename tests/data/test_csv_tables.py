"""CSV and TSV files as programs and people write them, understood by their content."""

import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.csv_tables import csv_rows, find_dialect
from gptlab.data.rows import documents_of_rows
from gptlab.data.text_files import Reading
from gptlab.errors import ConfigError, DataError


def read(path, **how):
    notes = []
    reading = Reading(note=notes.append, **how)
    texts = list(documents_of_rows(csv_rows(path, reading), reading))
    return texts, +reading.counts, notes


def dialect(head, suffix=".csv", **how):
    return find_dialect(head, True, suffix, Reading(**how))


def test_a_file_of_one_column_without_a_header_keeps_its_first_row(write):
    rows = ["a first row", *(f"row {i} of the file" for i in range(300))]
    quoted = "".join(f'"{row}"\n' for row in rows)
    assert read(write("one.csv", quoted))[0] == rows
    assert read(write("one.csv", "\n".join(rows)))[0] == rows
    assert read(write("one.csv", quoted), header="yes")[0] == rows[1:]
    assert "one column, without a header" in str(dialect(quoted))


def test_commas_in_a_single_column_are_letters(write):
    rows = ["To be, or not to be", "that is the question:", "Whether 'tis nobler, in the mind, ay"]
    rows = rows * 20
    assert read(write("x.csv", "\n".join(rows)))[0] == rows
    assert read(write("x.csv", "text\n" + "\n".join(rows)))[0] == rows


def test_a_mark_in_a_tsv_is_a_letter_unless_it_encloses_a_field_as_a_whole(write):
    plain = [f"plain row {i}" for i in range(2, 301)]
    rows = ['"Hello he said', *plain, 'bye"', "end", 'an "end" again', 'loose " mark']
    content = "id\ttext\n" + "".join(f"{i}\t{row}\n" for i, row in enumerate(rows))
    assert read(write("q.tsv", content))[0] == rows
    whole = "id\ttext\n" + "".join(f'{i}\t"say ""{row}"""\n' for i, row in enumerate(plain))
    assert read(write("q.tsv", whole))[0] == [f'say "{row}"' for row in plain]
    assert read(write("q.tsv", whole), quoting="no")[0][0] == '"say ""plain row 2"""'


def test_comments_above_a_table_are_left_out_and_a_header_among_them_stays(write):
    rows = "".join(f"{n}\tword {n}\tx\n" for n in range(30))
    texts, counts, _ = read(write("anki.tsv", f"#separator:tab\n#html:true\n{rows}"), column="2")
    assert texts == [f"word {n}" for n in range(30)]
    assert counts["lines of comments above a table left out"] == 2
    path = write("genes.tsv", f"# of 2021\n#n\ttext\tx\n{rows}")
    assert read(path)[0] == [f"word {n}" for n in range(30)]
    tags = "".join(f"#tag {n}\nword {n}\n" for n in range(30))
    assert len(read(write("tags.csv", tags))[0]) == 60


def test_a_loose_mark_in_a_csv_is_a_letter(write):
    rows = ['5" pipe', '"Hello', *["row"] * 200, "the end"]
    content = "id,text\n" + "".join(f"{i},{row}\n" for i, row in enumerate(rows))
    assert read(write("x.csv", content))[0] == rows


def test_a_field_that_takes_in_hundreds_of_lines_is_said(write):
    rows = [f'{i},"row {i}"' for i in range(200)]
    rows += ['200,"a loose mark', *(f"{i},row {i}" for i in range(201, 500)), '500,closed"']
    rows += [f'{i},"row {i}"' for i in range(501, 600)]
    path = write("x.csv", "id,text\n" + "\n".join(rows))
    texts, counts, notes = read(path)
    assert len(texts) == 300 and counts["fields with more than 100 line ends"] == 1
    assert any("x.csv line 502 has more than 100 line ends" in note for note in notes)
    assert any("--quoting no" in note for note in notes)


@pytest.mark.parametrize("delimiter", ",;\t|")
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_the_delimiter_is_found_in_the_content(write, delimiter, quoting):
    rows = [["title", "body"]]
    rows += [[f"Title {i}", f"one, two; three | four\tfive {i}\nsecond line"] for i in range(30)]
    path = write("x.csv", "")
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter, quoting=quoting).writerows(rows)
    assert read(path, column="body")[0] == [row[1] for row in rows[1:]]


def test_decimal_commas_do_not_hide_the_semicolon():
    head = "a;b\n" + "".join(f"{i},5;{i},7\n" for i in range(50))
    assert dialect(head).delimiter == ";"


def test_excel_says_its_delimiter_in_a_line_of_its_own(write):
    path = write("x.csv", "sep=;\ntext;n\na, b;1\nc;2\n")
    assert read(path)[0] == ["a, b", "c"]


def test_marks_that_backslashes_escape_are_read(write):
    path = write("x.csv", 'id,text\n1,"say \\"a\\", b"\n2,"c"\n')
    assert read(path)[0] == ['say "a", b', "c"]


def test_a_space_before_a_mark_is_no_letter(write):
    assert read(write("x.csv", 'id, text\n1, "a, b"\n2, "c"\n'))[0] == ["a, b", "c"]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("text\na\nb\n", ("text",)),
        ("Emma\nOlivia\nNoah\n", None),
        ("id,text\n1,a\n", ("id", "text")),
        ("1,a\n2,b\n", None),
        ("number,word\n1,a\n2,b\n", ("number", "word")),
        ("foo,bar\nxx,yy\nzz,aa\n", ("foo", "bar")),
        ("2020-01-01,Hello there.\n2020-01-02,Good day.\n", None),
        ("This is a sentence.,and another one\nMore,less\n", None),
        ("a,a\nb,c\n", None),
    ],
)
def test_the_header_is_found_by_what_it_says(head, expected):
    found = dialect(head)
    assert found.has_header == (expected is not None)
    if expected:
        assert found.header == expected


def test_columns_without_names_have_numbers(write):
    path = write("x.csv", "1,first text.\n2,second text.\n")
    assert read(path, column="2")[0] == ["first text.", "second text."]
    with pytest.raises(DataError, match="no field 'text': its fields are 1, 2"):
        read(path)


def test_names_that_stand_twice_or_are_empty_lose_no_column(write):
    path = write("x.csv", "text,text,\na,b,c\n")
    assert read(path, header="yes", column="text,text 2,column 3")[0] == ["a\nb\nc"]


def test_a_row_with_more_fields_than_the_header_is_odd_and_not_cut(write):
    rows = [f"{i},row {i}" for i in range(300)]
    rows[4] = "4,a text, with a comma"
    texts, counts, notes = read(write("x.csv", "id,text\n" + "\n".join(rows) + "\n"))
    assert len(texts) == 299 and counts == {"odd rows skipped": 1}
    assert any("x.csv line 6 has 3 fields where the table has 2" in note for note in notes)
    with pytest.raises(DataError, match="line 2 has 3 fields"):
        read(write("y.csv", "id,text\n1,a, b\n2,c, d\n"))


@pytest.mark.parametrize("word", ["semicolon", ";"])
def test_options_decide_what_the_content_leaves_open(write, word):
    path = write("x.csv", "text;n\na, b;1\n")
    assert read(path, delimiter=word)[0] == ["a, b"]
    assert read(path, delimiter="none", header="no")[0] == ["text;n", "a, b;1"]
    with pytest.raises(ConfigError, match="delimiter cannot be 'two'"):
        read(path, delimiter="two")


@given(
    st.lists(
        st.tuples(
            st.integers(0, 999),
            st.text(
                alphabet=st.characters(exclude_characters="\0\x1f", exclude_categories=["Cs"]),
                max_size=20,
            ),
        ).filter(lambda row: row[1].strip()),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(",;\t|"),
)
@settings(deadline=None)
def test_what_the_csv_module_writes_with_a_known_header_is_read(tmp_path_factory, rows, delimiter):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([["id", "text"], *rows])
    texts, _, _ = read(path, max_bad_rows=1)
    assert texts == [text for _, text in rows]


def test_a_mark_that_is_never_closed_needs_little_memory(write, monkeypatch):
    monkeypatch.setattr("gptlab.data.csv_tables._LARGEST_FIELD", 10_000)
    rows = [f'"row {i}"' for i in range(20_000)] + ['"loose', *["plain"] * 5_000]
    path = write("x.csv", "text\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"x\.csv line 20,002 is not valid CSV"):
        read(path)
    texts, counts, _ = read(path, max_bad_rows=1)
    assert texts[:20_000] == [f"row {i}" for i in range(20_000)]
    assert len(texts) + counts["odd rows skipped"] == len(rows)


def test_a_delimiter_that_leaves_rows_unreadable_is_not_the_one():
    head = '"id"\t"text"\n"0"\t"\n;0"\n'
    assert dialect(head).delimiter == "\t" and dialect(head).quoting
