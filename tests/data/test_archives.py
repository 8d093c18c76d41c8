"""Zip and tar archives, zstd, and what must not come out of them."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.corpora import find
from gptlab.data.opening import NotTextError
from gptlab.data.text_files import Reading
from gptlab.errors import DataError

MEMBERS = {
    "books/a.txt": b"the first text\n",
    "books/b.txt": "der zweite Text: \u00e4\r\n".encode(),
    "rows.jsonl": b'{"text": "row one"}\n{"text": "row two"}\n',
    "table.csv": b"id,text\n1,row three\n2,row four\n",
    "page.html": b"<!doctype html><p>It&#39;s</p>",
}
TEXTS = ["the first text\n", "der zweite Text: \u00e4\n", "row one", "row two", "row three"]
TEXTS += ["row four", "It's\n"]


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def write_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def read(path, **how):
    notes = []
    reading = Reading(note=notes.append, **how)
    source = find([str(path)], how.get("encoding"), notes.append, how=reading)
    texts = ["".join(document) for document in source.documents(reading)]
    return texts, +reading.counts, " ".join(notes)


@pytest.fixture(autouse=True)
def empty_temporary_folder(tmp_path, monkeypatch):
    """Nothing stays in the temporary folder."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert os.listdir(folder) == []


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x"])
def test_members_of_every_form_are_documents(tmp_path, name):
    if name in ("x.zip", "x"):
        path = write_zip(tmp_path / name, MEMBERS)
    else:
        mode = {"x.tar": "w", "x.tar.bz2": "w:bz2"}.get(name, "w:gz")
        path = write_tar(tmp_path / name, MEMBERS, mode)
    texts, counts, _ = read(path)
    assert texts == TEXTS
    assert counts["members of archives read"] == len(MEMBERS)


def test_what_is_no_text_is_left_out_and_named(tmp_path):
    members = {
        "a.txt": b"text\n",
        "p.png": b"\x89PNG\r\n",
        "__MACOSX/._a.txt": b"\0\5\x16\7",
        ".DS_Store": b"\0\0",
        "empty.txt": b"",
    }
    for path in (write_zip(tmp_path / "x.zip", members), write_tar(tmp_path / "x.tar", members)):
        texts, counts, notes = read(path)
        assert texts == ["text\n"]
        assert "p.png (a picture)" in notes
        assert counts["members of archives left out that are not text"] == 1
    with pytest.raises(DataError, match=r"y\.zip holds no text: only p\.png \(a picture\)"):
        read(write_zip(tmp_path / "y.zip", {"p.png": b"\x89PNG"}))
    with pytest.raises(DataError, match=r"z\.zip holds no text: it is empty"):
        read(write_zip(tmp_path / "z.zip", {}))


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_archives_in_an_archive_are_read_and_those_inside_them_left_out(tmp_path, write):
    deepest = write_zip(tmp_path / "deepest.zip", {"c.txt": b"too deep\n"}).read_bytes()
    inner = {**MEMBERS, "p.png": b"\x89PNG\r\n", "deepest.zip": deepest}
    members = {
        "a.txt": b"text\n",
        "in.zip": write_zip(tmp_path / "in.zip", inner).read_bytes(),
        "in.tar.gz": write_tar(tmp_path / "in.tar.gz", {"b.txt": b"last\n"}).read_bytes(),
    }
    texts, counts, notes = read(write(tmp_path / "x", members))
    assert texts == ["text\n", *TEXTS, "last\n"]
    assert counts["archives in archives read"] == 2
    assert counts["members of archives read"] == 2 + len(MEMBERS)
    assert counts["members of archives left out that are not text"] == 2
    assert "in.zip/p.png (a picture), in.zip/deepest.zip (an archive inside an arch" in notes


def test_json_of_programs_in_an_archive_is_text_and_a_table_without_text_says_its_fields(tmp_path):
    odd = json.dumps({"title": "N", "body": "note"}).encode()
    path = write_zip(tmp_path / "x.zip", {"odd.json": odd, "a.txt": b"text\n"})
    texts, _, notes = read(path)
    assert (
        texts == [odd.decode(), "text\n"]
        and "Read as plain text, because their JSON is no" in notes
    )
    assert read(path, column="body")[0] == ["note", "text\n"]
    tables = {"good.jsonl": b'{"text": "a"}\n', "odd.json": odd}
    with pytest.raises(DataError, match=r"--column body.* leave the file out with --exclude odd\."):
        read(write_zip(tmp_path / "y.zip", tables))
    assert read(tmp_path / "y.zip", exclude=("odd.json",))[0] == ["a"]


def test_the_names_of_members_lead_nowhere(tmp_path):
    before = sorted(tmp_path.rglob("*"))
    names = ["../outside.txt", "/tmp/absolute.txt", "a/../../b.txt", "x" * 250 + ".txt"]
    members = dict.fromkeys(names, b"text\n")
    for path in (write_zip(tmp_path / "x.zip", members), write_tar(tmp_path / "x.tar", members)):
        assert len(read(path)[0]) >= 1
        path.unlink()
    assert sorted(tmp_path.rglob("*")) == before and not os.path.exists("/tmp/absolute.txt")


def test_links_and_devices_in_a_tar_are_left_out(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        content = tarfile.TarInfo("a.txt")
        content.size = 5
        archive.addfile(content, io.BytesIO(b"text\n"))
        for name, kind in (("link.txt", tarfile.SYMTYPE), ("fifo", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    texts, _, notes = read(path)
    assert texts == ["text\n"]
    assert "link.txt (a link), fifo (a device)" in notes


def test_an_encrypted_member_is_left_out_and_said(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.txt": b"text\n", "b.txt": b"secret\n"})
    content = bytearray(path.read_bytes())
    header = content.rindex(b"PK\1\2")
    content[header + 8] |= 1  # the flag of encryption in the directory
    path.write_bytes(content)
    texts, _, notes = read(path)
    assert texts == ["text\n"] and "b.txt (encrypted with a password)" in notes


def test_a_bomb_is_left_out_without_unpacking_it(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "text\n")
        with archive.open("bomb.txt", "w", force_zip64=True) as member:
            for _ in range(300):
                member.write(bytes(1 << 20))
    texts, _, notes = read(path)
    assert texts == ["text\n"] and "bomb.txt (0.3 GB packed into" in notes


def test_damaged_archives_are_refused_by_name(tmp_path):
    whole = write_zip(tmp_path / "x.zip", {"a.txt": os.urandom(50).hex().encode() * 50})
    content = whole.read_bytes()
    for damaged in (content[:-30], content[:60] + bytes(40) + content[100:]):
        whole.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.zip.* is a damaged archive"):
            read(whole)
    tar = write_tar(tmp_path / "x.tgz", {"a.txt": os.urandom(5000).hex().encode()})
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"x\.tgz.* is a damaged"):
        read(tar)


@pytest.mark.parametrize(
    ("member", "what"),
    [("[Content_Types].xml", "an Office document"), ("META-INF/MANIFEST.MF", "a Java archive")],
)
def test_a_zip_that_is_another_document_is_no_archive_of_texts(tmp_path, member, what):
    with pytest.raises(NotTextError, match=what):
        read(write_zip(tmp_path / "x", {member: b"<a/>", "xl/workbook.xml": b"<b/>"}))


def test_an_archive_in_a_folder_is_read_with_the_texts_beside_it(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_zip(folder / "x.zip", {"a.txt": b"in the archive\n"})
    (folder / "b.txt").write_bytes(b"beside it\n")
    assert sorted(read(folder)[0]) == ["beside it\n", "in the archive\n"]


def test_columns_and_odd_rows_work_in_archives_too(tmp_path):
    rows = [json.dumps({"a": str(i), "b": "x"}) for i in range(200)]
    rows[9] = "broken"
    path = write_zip(tmp_path / "x.zip", {"x.jsonl": "\n".join(rows)})
    texts, counts, notes = read(path, column="a,b")
    assert texts[0] == "0\nx" and len(texts) == 199 and counts["odd rows skipped"] == 1
    assert "x.zip/x.jsonl line 10 is not valid JSON" in notes


def test_zstd_is_read_in_several_frames(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    line = (json.dumps({"text": "smörgås " * 200}) + "\n").encode()
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(zstandard.compress(line * 900) + zstandard.compress(line * 100))
    assert len(read(path)[0]) == 1000
    path.write_bytes(zstandard.compress(line * 900)[:-90])
    with pytest.raises(DataError, match=r"x\.jsonl\.zst is a damaged compressed file \(it ends"):
        read(path)
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(50))
    with pytest.raises(DataError, match=r"x\.jsonl\.zst is a damaged compressed file"):
        read(path)


def test_without_the_package_zstd_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    path = tmp_path / "a b.txt.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(50))
    with pytest.raises(NotTextError, match=r"zstandard, or unpack it with `zstd -d '.*a b\.txt\.z"):
        read(path)


@given(
    st.lists(st.text(max_size=30).map(lambda t: t.replace("\0", "").replace("\r", "")), max_size=6),
    st.booleans(),
)
@settings(deadline=None, max_examples=40)
def test_archives_give_every_text_back(tmp_path_factory, texts, is_zip):
    folder = tmp_path_factory.mktemp("archive")
    members = {f"{i}.md": f"= {text}\n".encode() for i, text in enumerate(texts)}
    members["z.png"] = b"\x89PNG"
    path = write_zip(folder / "x", members) if is_zip else write_tar(folder / "x", members)
    if not texts:
        with pytest.raises(DataError):
            read(path)
        return
    read_texts, counts, _ = read(path)
    assert read_texts == [f"= {text}\n" for text in texts]
    left_out = counts["members of archives left out that are not text"]
    assert counts["members of archives read"] + left_out == len(members)


def open_large(stack, path, kind):
    """The file to write a large text to, so that it lies as it is or packed at `path`."""
    if kind == "zip":
        archive = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        return stack.enter_context(
            stack.enter_context(archive).open("x.json", "w", force_zip64=True)
        )
    file = stack.enter_context(open(path, "wb"))
    if kind == "json":
        return file
    zstandard = pytest.importorskip("zstandard")
    return stack.enter_context(zstandard.ZstdCompressor(1).stream_writer(file))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures as Linux does")
@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("zip", 3_000),  # 57 MB
        *(pytest.param(kind, 16_000, marks=pytest.mark.slow) for kind in ("json", "zip", "zst")),
    ],
)
def test_a_large_list_needs_little_memory(tmp_path, kind, rows):
    path = tmp_path / f"x.{kind}"
    row = json.dumps({"text": "word " * 3_000 + os.urandom(2_000).hex()}).encode()
    with contextlib.ExitStack() as stack:
        member = open_large(stack, path, kind)
        member.write(b"[" + row)
        for _ in range(rows - 1):
            member.write(b"," + row)
        member.write(b"]")
    # (ru_maxrss would begin with what the process that started this one has needed)
    program = (
        "import re, sys\n"
        "from gptlab.data.corpora import find\n"
        "from gptlab.data.text_files import Reading\n"
        "def peak():\n"
        "    return int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = peak()\n"
        "source = find([sys.argv[1]], None, print)\n"
        f"assert sum(1 for d in source.documents(Reading()) for _ in d) == {rows}\n"
        "print(f'{(peak() - before) / 1e3:.0f} MB more at the peak')\n"
        "assert peak() - before < 50_000\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
