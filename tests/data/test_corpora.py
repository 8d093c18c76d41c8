import gzip
import io
import json
import os
import sys
import tempfile
from types import SimpleNamespace

import pytest

from gptlab.data.corpora import dataset_name, find
from gptlab.data.text_files import Reading
from gptlab.errors import ConfigError, DataError, DownloadError


def look(*words, encoding=None, **how):
    notes = []
    reading = Reading(encoding, **how)
    return find(words, encoding, notes.append, how=reading), notes


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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_what_comes_through_a_pipe_is_read_and_no_copy_stays(home, monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"text\n"), isatty=bool))
    source, notes = look("-")
    assert (source.name, source.label, notes) == ("stdin", "stdin", [])
    assert documents(source) == ["text\n"] and source.files[0].origin == "stdin"
    reader, writer = os.pipe()
    os.write(writer, b'[{"text": "a"}, {"text": "b"}]')
    os.close(writer)
    pipe = look(f"/dev/fd/{reader}")[0]
    os.close(reader)
    assert pipe.name == "pipe" and documents(pipe) == ["a", "b"]
    assert source.identity != pipe.identity
    del source, pipe
    assert os.listdir(folder) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_an_empty_pipe_is_refused_and_no_copy_stays(home, monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"\x89PNG"), isatty=bool))
    with pytest.raises(DataError, match="stdin is a picture"):
        look("-")
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(DataError, match="standard input, which is closed"):
        look("-")
    assert os.listdir(folder) == []


def test_a_path_that_exists_is_no_pattern(write):
    write("subs/Talk 1 [a1].srt", "one\n")
    write("subs/Talk 2 [b2].srt", "two\n")
    write("books [old]/a.txt", "three\n")
    one, two, old = look("subs/Talk 1 [a1].srt"), look("subs/Talk 2 [b2].srt"), look("books [old]")
    assert [s.name for s, _ in (one, two, old)] == ["Talk_1_a1", "Talk_2_b2", "books_old"]
    assert documents(two[0]) == ["two\n"] and documents(old[0]) == ["three\n"]


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
def test_a_name_that_is_not_utf8_is_shown_with_a_mark(home):
    (home / "n").mkdir()
    name = os.fsdecode(b"n/caf\xe9.txt")
    (home / name).write_text("text\n", encoding="utf-8")
    for source, _ in (look("n"), look(name)):
        reading = Reading()
        assert ["".join(d) for d in source.documents(reading)] == ["text\n"]
        for shown in (source.label, source.identity, source.files[0].origin, reading.document[0]):
            assert shown.encode()
        assert reading.document[0].endswith("caf\ufffd.txt")
    (home / name).write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"n/caf\ufffd\.txt is not UTF-8"):
        documents(look("n")[0])


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_linked_folders_are_followed_once_and_broken_links_said(write, home):
    write("far/big.txt", "far away\n")
    write("s/own.txt", "own\n")
    (home / "s/more").symlink_to("../far")
    (home / "s/again").symlink_to("../far")
    (home / "far/cycle").symlink_to("../s")
    (home / "s/broken.txt").symlink_to("nothing")
    source, notes = look("s")
    assert sorted(documents(source)) == ["far away\n", "own\n"]
    notes = " ".join(notes)
    assert "Followed links to folders: s/again." in notes
    assert "Left out links to folders that are read anyway: 2." in notes
    assert "s/broken.txt (a broken link)" in notes


def test_what_is_hidden_is_said(write):
    write("f/a.txt", "a\n")
    write("f/.git/config", "x")
    write("f/.hidden.txt", "x")
    assert look("f")[1] == ["Left out what is hidden (names that begin with a dot): 2."]


def test_names_can_be_left_out(write):
    for name in ("a.txt", "b.min.js", "node_modules/x/y.txt", "deep/node_modules/z.txt"):
        write(f"f/{name}", name)
    source, _ = look("f", exclude=("node_modules", "*.min.js"))
    assert documents(source) == ["a.txt"]
    assert documents(look("f/*.*", exclude=("*.js",))[0]) == ["a.txt"]
    with pytest.raises(ConfigError, match="exclude has no effect"):
        look("f", exclude=("*.rst",))


def test_json_of_programs_among_texts_is_text(write):
    write("repo/a.py", "print(1)\n")
    config = json.dumps({"name": "x", "authors": [{"name": "a"}]}, indent=2)
    write("repo/package.json", config)
    write("repo/list.json", '[{"a": 1, "b": 2}]')
    write("repo/texts.json", '[{"text": "one"}]')
    source, notes = look("repo")
    assert sorted(documents(source)) == sorted(["print(1)\n", config, '[{"a": 1, "b": 2}]', "one"])
    assert "because their JSON is not a list of texts: repo/" in notes[0]
    assert "--exclude" in notes[0]
    assert len(documents(look("repo", exclude=("package.json", "list.json"))[0])) == 2
    with pytest.raises(DataError, match="no field 'text': its fields are a, b"):
        documents(look("repo/list.json")[0])


def test_an_encoding_is_for_the_files_that_need_it(write):
    write("mix/a.txt", "Wörtchen\n".encode("cp1252"))
    write("mix/b.txt", "Wörtchen\n")
    write("mix/c.txt", "plain\n")
    source, _ = look("mix", encoding="cp1252")
    reading = Reading("cp1252")
    texts = ["".join(d) for d in source.documents(reading)]
    assert sorted(texts) == ["Wörtchen\n", "Wörtchen\n", "plain\n"]
    assert reading.counts["files read as the UTF-8 that they are, not as cp1252"] == 1
    with pytest.raises(ConfigError, match=r"encoding cp1252 would damage mix/b\.txt"):
        look("mix/b.txt", encoding="cp1252")


@pytest.mark.parametrize("place", [0, 100, 100_000, 199_999])
def test_a_stray_nul_is_removed_and_counted_wherever_it_stands(write, place):
    text = "a line of words\n" * 12_500
    write("n.txt", text[:place] + "\0" + text[place:])
    reading = Reading()
    assert ["".join(d) for d in look("n.txt")[0].documents(reading)] == [text]
    assert reading.counts["NUL characters removed"] == 1
    write("n.jsonl", json.dumps({"text": "a\0b"}))
    assert documents(look("n.jsonl")[0]) == ["ab"]


def test_each_way_to_read_csv_files_is_said_once(write):
    for i in range(3):
        write(f"f/{i}.csv", f"id,text\n1,row {i}\n")
    write("f/x.tsv", "id\ttext\n1\ta\n")
    notes = look("f")[1]
    assert len(notes) == 2 and "and others (3 files) as comma-separated" in " ".join(notes)


def test_the_way_a_csv_file_is_read_is_part_of_the_fingerprint(write):
    write("a.csv", "text\nx\n")
    with_header, without = look("a.csv")[0], look("a.csv", header="no")[0]
    assert with_header.fingerprint != without.fingerprint


def test_the_kinds_of_names_that_are_read_as_text_are_said(write):
    for name in ("main.tex", "chapter.tex", "main.log", "README"):
        write(f"thesis/{name}", f"text of {name}")
    notes = []
    find(["thesis"], None, notes.append)
    (said,) = [each for each in notes if "Read as plain text: 2 .tex, 1 " in each]
    assert "1 .log" in said and "1 without a suffix" in said and "--exclude" in said
    notes.clear()
    find(["thesis/main.tex", "thesis/chapter.tex"], None, notes.append)
    assert not any("Read as plain text" in each for each in notes)
