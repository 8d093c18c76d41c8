import bz2
import csv
import gzip
import json
import lzma

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data import text_files
from gptlab.data.csv_tables import csv_rows
from gptlab.data.opening import NotTextError
from gptlab.data.rows import documents_of_rows
from gptlab.data.tables import jsonl_rows, parquet_rows
from gptlab.data.text_files import Reading, check_is_text, clean, file_format, text_blocks
from gptlab.errors import ConfigError, DataError


def read_text(path, **how):
    reading = Reading(**how)
    return "".join(clean(text_blocks(path, reading), reading)), +reading.counts


def read_rows(rows, path, **how):
    reading = Reading(**how)
    texts = list(documents_of_rows(rows(path, reading), reading))
    return texts, +reading.counts


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"\xef\xbb\xbf", "utf-8"),
        (b"\xff\xfe", "utf-16-le"),
        (b"\xfe\xff", "utf-16-be"),
        (b"\xff\xfe\0\0", "utf-32-le"),
        (b"\0\0\xfe\xff", "utf-32-be"),
    ],
)
def test_a_mark_says_the_encoding_and_is_removed(write, mark, encoding):
    path = write("a.txt", mark + "smörgås 😀".encode(encoding))
    check_is_text(path, None)
    text, counts = read_text(path)
    assert text == "smörgås 😀"
    assert counts == {"byte-order marks removed": 1}


def test_a_named_encoding_is_used_and_its_mark_removed(write):
    assert read_text(write("w.txt", b"caf\xe9"), encoding="cp1252")[0] == "café"
    assert read_text(write("u.txt", b"\xef\xbb\xbfa"), encoding="utf-8")[0] == "a"
    assert read_text(write("x.txt", "é".encode("utf-16")), encoding="utf-16")[0] == "é"


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 1 << 20])
def test_letters_and_line_ends_may_span_blocks(write, monkeypatch, block_bytes):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block_bytes)
    path = write("a.txt", "é\r\n日本\r\r\n😀\n\r")
    text, counts = read_text(path)
    assert text == "é\n日本\n\n😀\n\n"
    assert counts["Windows line ends (CR LF) normalised"] == 2
    assert counts["old Mac line ends (CR) normalised"] == 2
    assert read_text(path, keep_line_endings=True) == ("é\r\n日本\r\r\n😀\n\r", {})


@given(st.text(alphabet="a\r\n", max_size=30), st.integers(1, 30))
@settings(deadline=None)
def test_line_ends_are_those_of_python_universal_newlines(text, place):
    import io

    expected = io.TextIOWrapper(io.BytesIO(text.encode()), newline=None).read()
    assert "".join(clean([text[:place], text[place:]], Reading())) == expected


@pytest.mark.parametrize("block_bytes", [1, 5, 64, 1 << 20])
@pytest.mark.parametrize("wrong", [b"It\x92s", b"Is\xe9\n"])
def test_a_wrong_byte_is_named_with_its_place(write, monkeypatch, block_bytes, wrong):
    monkeypatch.setattr(text_files, "BLOCK_BYTES", block_bytes)
    path = write("w.txt", b"\xef\xbb\xbf" + b"It is fine \xc3\xa9\n" * 10 + wrong)
    expected = rf"w\.txt is not UTF-8 at byte 145 \(0x{wrong[2]:02X}\).*--encoding \w+"
    with pytest.raises(DataError, match=expected):
        read_text(path)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "C\u2019était déjà l\u2019été, n\u2019est-ce pas? " * 20),
        ("cp932", "①これは日本語の文章です。ひらがなとカタカナ。" * 20),
        ("cp949", "이것은 한국어 문장입니다. 안녕하세요. " * 20),
        ("gb18030", "这是一个中文的句子\uff0c我们在这里测试编码。" * 20),
        ("big5", "這是一個中文的句子。我們在這裡測試編碼。" * 20),
        ("euc_jp", "これは日本語の文章です。ひらがなとカタカナ。" * 20),
        ("koi8_r", "это русское предложение, мы проверяем кодировку. " * 20),
        ("cp1251", "это русское предложение, мы проверяем кодировку. " * 20),
        ("cp866", "это русское предложение, мы проверяем кодировку. " * 20),
        ("cp1253", "αυτό είναι ένα ελληνικό κείμενο και το διαβάζουμε. " * 20),
        ("cp1255", "זהו טקסט בעברית לבדיקה של הקידוד. " * 20),
        ("cp1256", "هذا نص باللغة العربية لاختبار الترميز. " * 20),
        ("cp874", "นี่คือข้อความภาษาไทยสำหรับทดสอบการเข้ารหัส " * 20),
        ("cp1250", "Zażółć gęślą jaźń, to jest polskie zdanie. " * 20),
        ("cp1254", "Bu bir Türkçe cümledir, ışığı gördüğümüz için. " * 20),
        ("cp1252", "Das ist ein schöner Satz über Grüße und Äpfel. " * 20),
    ],
)
def test_the_likely_encoding_is_the_true_one(write, encoding, text):
    path = write("x.txt", text.encode(encoding))
    with pytest.raises(DataError, match=f"--encoding {encoding}"):
        read_text(path)
    assert read_text(path, encoding=encoding)[0] == text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("cp932", "元気ですか。"), ("cp949", "이것은 한국어 문장입니다."), ("cp1251", "как дела?")],
)
def test_the_likely_encoding_is_the_true_one_among_time_codes_and_tags(write, encoding, text):
    cues = (f"{n}\n00:00:{n},000 --> 00:00:{n},900\n<i>{text}</i>\n\n" for n in range(10, 60))
    with pytest.raises(DataError, match=f"--encoding {encoding}"):
        read_text(write("x.srt", "".join(cues).encode(encoding)))


@pytest.mark.parametrize(
    "head",
    ['<?xml version="1.0" encoding="windows-1251"?>\n<a>', '<html><meta charset="windows-1251">'],
)
def test_a_file_is_read_in_the_encoding_that_it_declares(write, head):
    text = f"{head}это русское предложение"
    read, counts = read_text(write("x.xml", text.encode("cp1251")))
    assert read == text
    assert counts == {"files read in the encoding that they declare, windows-1251": 1}
    read, counts = read_text(write("x.xml", text.encode()))  # many pages say what they are not
    assert read == text and "UTF-8 that they are, not as windows-1251" in next(iter(counts))
    assert read_text(write("x.xml", text.encode("koi8_r")), encoding="koi8_r")[0] == text


def test_japanese_in_escape_sequences_is_recognised(write):
    with pytest.raises(DataError, match="--encoding iso2022_jp"):
        read_text(write("x.txt", "これは日本語です。".encode("iso2022_jp")))


def test_utf16_without_a_mark_is_recognised(write):
    with pytest.raises(DataError, match="--encoding utf-16-le"):
        check_is_text(write("x.txt", "plain words".encode("utf-16-le")), None)
    with pytest.raises(DataError, match="--encoding utf-16-be"):
        check_is_text(write("x.txt", "plain words".encode("utf-16-be")), None)


@pytest.mark.parametrize("name", ["nonsense", "hex", "rot13"])
def test_an_encoding_that_is_none_is_refused(write, name):
    with pytest.raises(ConfigError, match=f"--encoding {name} is not a text encoding"):
        read_text(write("a.txt", "abc"), encoding=name)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compression_is_recognised_by_the_first_bytes(write, compress):
    path = write("a.txt", compress("smörgås\n".encode() * 1000))
    check_is_text(path, None)
    assert read_text(path) == ("smörgås\n" * 1000, {})


def test_a_damaged_compressed_file_is_refused_by_name(write):
    whole = gzip.compress(bytes(range(32, 127)) * 5000)
    for damaged in (whole[:-20], whole[:100] + b"\0\0\0\0" + whole[104:], b"\x1f\x8b\x08\x00"):
        with pytest.raises(DataError, match=r"a\.gz is a damaged compressed file"):
            read_text(write("a.gz", damaged))


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("x.pdf", b"anything", "a PDF"),
        ("x.txt", b"%PDF-1.7 ...", "a PDF"),
        ("x.docx", b"PK\x03\x04...", "a Word document"),
        ("x", b"PK\x03\x04...", "a zip archive"),
        ("x.xlsx", b"PK\x03\x04...", "a spreadsheet"),
        ("x.txt", b"\x89PNG\r\n\x1a\n", "a picture"),
        ("x.txt", bytes(range(256)), "a binary file"),
        ("x.txt", gzip.compress(b"\0" * 99, mtime=0), "a binary file"),
        (
            "x.txt.gz",
            gzip.compress(b"name".ljust(257, b"\0") + b"ustar\x0000", mtime=0),
            "a tar archive",
        ),
    ],
)
def test_what_is_no_text_is_refused_with_a_cure(write, name, content, what):
    with pytest.raises(NotTextError, match=f"is {what}") as refused:
        check_is_text(write(name, content), None)
    assert "plain text" in str(refused.value) or "unpack" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", "jsonl"),
        ("a.JSONL.gz", "jsonl"),
        ("a.ndjson", "jsonl"),
        ("a.csv", "csv"),
        ("a.tsv.xz", "csv"),
        ("a.parquet", "parquet"),
        ("a.txt", "text"),
        ("README", "text"),
        ("a.json", "text"),
        ("my.jsonl.txt", "text"),
    ],
)
def test_the_name_says_the_format(tmp_path, name, expected):
    assert file_format(tmp_path / name) == expected


def test_odd_rows_of_json_lines_are_skipped_and_counted(write):
    lines = ['{"text": "one"}', '{"text": null}', "{}", "", "  ", '{"text": "two", "n": 1}', '"x"']
    texts, counts = read_rows(jsonl_rows, write("x.jsonl", "\n".join(lines)))
    assert texts == ["one", "two", "x"]
    assert counts == {
        "rows without text skipped": 1,
        "empty rows skipped": 1,
        "blank lines skipped": 2,
    }


def test_a_broken_line_is_named_by_its_number(write):
    path = write("x.jsonl", '{"text": "one"}\n\n{"text": "two"\n{"text": "three"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl line 3 is not valid JSON"):
        read_rows(jsonl_rows, path)


def test_a_missing_field_lists_those_that_are_there(write):
    path = write("x.jsonl", '{"text": "a", "n": 1}\n{"body": "one", "id": 3}\n')
    with pytest.raises(DataError, match=r"line 2 has no field 'text': its fields are body, id"):
        read_rows(jsonl_rows, path)
    path = write("y.jsonl", '{"body": "one", "id": 3}\n')
    assert read_rows(jsonl_rows, path, column="body")[0] == ["one"]
    with pytest.raises(DataError, match="field 'id', holds int, not text"):
        read_rows(jsonl_rows, path, column="id")


def test_an_only_field_needs_no_name(write):
    assert read_rows(jsonl_rows, write("x.jsonl", '{"body": "one"}\n'))[0] == ["one"]
    assert read_rows(csv_rows, write("x.csv", "body\none\n"))[0] == ["one"]


@given(st.lists(st.text(max_size=20), max_size=8))
@settings(deadline=None)
def test_json_lines_give_every_text_back(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("jsonl") / "x.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=bool(i % 2)) for i, text in enumerate(texts)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    assert read_rows(jsonl_rows, path) == (texts, {})


@given(
    st.lists(st.text(max_size=20).map(lambda t: t.replace("\0", "")).filter(str.strip), max_size=8),
    st.sampled_from(",;\t|"),
)
@settings(deadline=None)
def test_csv_gives_every_text_back(tmp_path_factory, texts, delimiter):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([["id", "text"], *([str(i), text] for i, text in enumerate(texts))])
    assert read_rows(csv_rows, path) == (texts, {})


def test_odd_rows_of_csv_are_skipped_and_counted(write):
    path = write("x.csv", 'id,text\r\n1,one\r\n,\r\n\r\n2\r\n3,"two\r\nlines"\r\n')
    texts, counts = read_rows(csv_rows, path)
    assert texts == ["one", "two\r\nlines"]
    assert counts == {"empty rows skipped": 2, "rows without text skipped": 1}


def test_csv_without_the_field_lists_its_header(write):
    with pytest.raises(DataError, match=r"no field 'text': its fields are id, body"):
        read_rows(csv_rows, write("x.csv", "id,body\n1,one\n"))
    with pytest.raises(DataError, match=r"x\.csv line 2 is not valid CSV"):
        read_rows(csv_rows, write("x.csv", 'text\n"never closed\n'), quoting="yes")


def test_parquet_gives_every_text_back(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = ["one", None, "zwei\n\n", "日本語"]
    table = pyarrow.table({"id": list(range(4)), "text": texts, "n": [1.5] * 4})
    parquet.write_table(table, tmp_path / "x.parquet")
    read, counts = read_rows(parquet_rows, tmp_path / "x.parquet")
    assert read == ["one", "zwei\n\n", "日本語"]
    assert counts == {"rows without text skipped": 1}
    with pytest.raises(DataError, match="no field 'body': its fields are id, text, n"):
        read_rows(parquet_rows, tmp_path / "x.parquet", column="body")
    (tmp_path / "y.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(DataError, match=r"y\.parquet is not a readable Parquet file"):
        read_rows(parquet_rows, tmp_path / "y.parquet")


def test_lone_surrogates_of_json_become_replacement_marks_and_are_counted(write):
    path = write("x.jsonl", r'{"text": "a\ud800b \ud83d\ude00"}')
    reading = Reading()
    (text,) = documents_of_rows(jsonl_rows(path, reading), reading)
    assert "".join(clean([text], reading)) == "a\ufffdb 😀"
    assert reading.counts["lone surrogates replaced by U+FFFD"] == 1


def test_progress_counts_the_bytes_of_the_file(write):
    for content in (b"abc\n" * 700_000, gzip.compress(b"abc\n" * 700_000)):
        seen = []
        reading = Reading(progress=seen.append)
        list(text_blocks(path := write("a.txt", content), reading))
        assert sum(seen) == path.stat().st_size
