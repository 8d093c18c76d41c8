import gzip
import json

import pytest

from gptlab.data.corpora import dataset_name, find
from gptlab.data.text_files import Reading
from gptlab.errors import DataError, DownloadError


@pytest.fixture
def write(home):
    def write(name, content):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def look(*words, encoding=None):
    notes = []
    return find(words, encoding, notes.append), notes


def documents(source, **how):
    reading = Reading(**how)
    return ["".join(blocks) for blocks in source.documents(reading)]


def test_a_file_is_one_document_named_by_its_stem(write):
    write("my text.v2.txt", "a\n\nb\n")
    source, notes = look("my text.v2.txt")
    assert source.name == "my_text" and not notes
    assert documents(source) == ["a\n\nb\n"]
    assert source.bytes == 5


def test_a_folder_is_all_its_texts_in_an_order_that_names_do_not_change(write):
    contents = [f"text number {i}\n" for i in range(8)]
    for i, content in enumerate(contents):
        write(f"one/deep{i % 3}/f{i}.txt", content)
        write(f"two/{7 - i}.md", content)
    write("one/.git/config", "hidden")
    write("one/.hidden.txt", "hidden")
    one, two = look("one")[0], look("two")[0]
    assert (one.name, two.name) == ("one", "two")
    assert documents(one) == documents(two)
    assert sorted(documents(one)) == contents
    assert one.fingerprint == two.fingerprint and one.identity != two.identity


def test_a_changed_byte_changes_the_fingerprint(write):
    write("a.txt", "abc")
    before = look("a.txt")[0]
    write("a.txt", "abd")
    after = look("a.txt")[0]
    assert before.fingerprint != after.fingerprint and before.identity == after.identity


def test_the_same_bytes_read_as_another_format_have_another_fingerprint(write):
    write("a.txt", "text\nx\n")
    write("a.csv", "text\nx\n")
    text, table = look("a.txt")[0], look("a.csv")[0]
    assert documents(text) != documents(table)
    assert text.fingerprint != table.fingerprint


def test_a_glob_and_several_files(write):
    for name in ("books/a.txt", "books/b.txt", "books/c.md", "books/deep/d.txt"):
        write(name, name)
    assert sorted(documents(look("books/*.txt")[0])) == ["books/a.txt", "books/b.txt"]
    assert len(documents(look("books/**/*.txt")[0])) == 3
    source = look("books/a.txt", "books/c.md")[0]
    assert source.name == "books" and len(source.files) == 2
    assert len(look("books/a.txt", "books/a.txt", "books")[0].files) == 4
    with pytest.raises(DataError, match=r"No file matches books/\*\.rst"):
        look("books/*.rst")


def test_tables_and_compressed_files_mix_with_texts(write):
    write("mix/a.jsonl", '{"text": "one"}\n{"text": "two"}\n')
    write("mix/b.csv", "text,n\nthree,1\n")
    write("mix/c.txt.gz", gzip.compress(b"four\r\n"))
    write("mix/d.txt", b"\xef\xbb\xbffive")
    source = look("mix")[0]
    assert sorted(documents(source)) == ["five", "four\n", "one", "three", "two"]
    assert "four\r\n" in documents(source, keep_line_endings=True)


def test_what_is_no_text_in_a_folder_is_left_out_and_reported(write):
    write("mix/a.txt", "text")
    write("mix/b.pdf", b"%PDF")
    write("mix/c.bin", bytes(100))
    source, notes = look("mix")
    assert documents(source) == ["text"]
    assert "Left out 2 of 3 files" in notes[0] and "b.pdf (a PDF)" in notes[0]
    assert source.counts["files left out that are not text"] == 2
    with pytest.raises(DataError, match=r"b\.pdf is a PDF"):
        look("mix/b.pdf")


def test_a_folder_without_text_is_refused(write, home):
    (home / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no text: it is empty"):
        look("empty")
    write("pictures/a.png", b"\x89PNG")
    with pytest.raises(DataError, match=r"pictures holds no text: only pictures/a\.png"):
        look("pictures")


def test_a_wrong_encoding_in_a_folder_is_not_left_out(write):
    write("mix/a.txt", "fine")
    write("mix/b.txt", b"caf\xe9")
    with pytest.raises(DataError, match=r"b\.txt is not UTF-8"):
        documents(look("mix")[0])


def test_a_name_that_is_nothing_says_what_may_be_named(home):
    with pytest.raises(DataError, match=r"nope\.txt does not exist.*hf:OWNER/NAME.*shakespeare"):
        look("nope.txt")


def test_a_folder_called_shakespeare_wins_over_the_corpus(write):
    write("shakespeare/a.txt", "mine")
    assert documents(look("shakespeare")[0]) == ["mine"]


def test_the_canonical_file_is_the_corpus_under_any_name(home, tiny_shakespeare, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    source = look(str(tiny_shakespeare))[0]
    assert source.name == "tinyshakespeare" and "canonical" in source.label
    again, notes = look("shakespeare")
    assert not notes  # nothing is downloaded
    assert again.fingerprint == source.fingerprint and again.identity == source.identity


@pytest.mark.parametrize("name", ["hf:", "hf:a:b:c:d", "hf:a/b::train"])
def test_a_malformed_hub_name_is_refused(home, name):
    with pytest.raises(DataError, match="not of the form hf:OWNER/NAME"):
        look(name)


def test_an_unreachable_hub_is_a_sentence(home, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    source = look("hf:owner/stories:subset:test")[0]
    assert (source.name, source.bytes) == ("stories", None)
    with pytest.raises(DownloadError, match=r"hf:owner/stories:subset:test needs http://127"):
        documents(source)
    with pytest.raises(DataError, match="cannot be combined"):
        look("hf:a/b", "c.txt")


@pytest.mark.parametrize(
    ("word", "expected"),
    [("a b", "a_b"), ("über-1.5", "über-1.5"), ("..", "text"), ("_x_", "x"), ("a/b", "a_b")],
)
def test_names_become_folder_names(word, expected):
    assert dataset_name(word) == expected


def test_json_lines_with_awkward_strings(write):
    texts = ["a\u2028b", "\x85", "tab\t", "  leading", 'quote"s']
    write("x.jsonl", "\r\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in texts))
    assert documents(look("x.jsonl")[0]) == texts
