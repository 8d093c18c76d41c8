"""Corpora: noise, tables with odd rows, damaged archives."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import docx
import pyarrow
import pyarrow.parquet
import zstandard
from hypothesis import strategies as st

from gptlab.data import corpora
from gptlab.data.text_files import Reading

JSONL = b'{"text": "to be"}\n{"text": null}\n\n{"text": "or not", "n": 1}\n'
CSV = b'text,n\n"to be",1\n"or\nnot",2\n,\n'
TEXT = "to be \u00e9 or not \U0001f600\r\nthat is\n".encode() * 30
ROWS = [{"text": "to be", "n": 1}, {"text": None}, {"text": "or\nnot"}]
CELLS = [{"cell_type": "code", "source": ["to be\n"], "outputs": [{"data": "x"}]}]


def _zip() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in (("a.txt", TEXT), ("b.jsonl", JSONL), ("c.png", b"\x89PNG")):
            archive.writestr(zipfile.ZipInfo(name), member)
    return content.getvalue()


def _epub() -> bytes:
    rootfile = b'<container><rootfiles><rootfile full-path="a.opf"/></rootfiles></container>'
    package = b'<package><item id="a" href="a.xhtml"/><itemref idref="a"/></package>'
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(zipfile.ZipInfo("META-INF/container.xml"), rootfile)
        archive.writestr(zipfile.ZipInfo("a.opf"), package)
        archive.writestr(zipfile.ZipInfo("a.xhtml"), b"<html><p>to <b>be</b></p></html>")
    return content.getvalue()


def _parquet() -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), content)
    return content.getvalue()


def _word(kind: str) -> bytes:
    content = io.BytesIO()
    if kind == "docx":
        document = docx.Document()
        document.add_paragraph("to be")
        document.save(content)
        return content.getvalue()
    odt = b'<a xmlns:t="u"><t:p>to<t:s t:c="2"/>be</t:p><t:h>or<t:tab/></t:h></a>'
    with zipfile.ZipFile(content, "w") as archive:
        mimetype = "application/vnd.oasis.opendocument.text"
        archive.writestr(zipfile.ZipInfo("mimetype"), mimetype)
        archive.writestr(zipfile.ZipInfo("content.xml"), odt)
    return content.getvalue()


def _nested() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(zipfile.ZipInfo("in.zip"), _zip())
        archive.writestr(zipfile.ZipInfo("in.tar.gz"), gzip.compress(_tar(), mtime=0))
    return content.getvalue()


PDF = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj "
    b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj "
    b"3 0 obj<</Type/Page/Parent 2 0 R/Resources<</Font<</F1 5 0 R>>>>/Contents 4 0 R>>endobj "
    b"4 0 obj<</Length 33>>stream\nBT /F1 12 Tf 9 9 Td (to be) Tj ET\nendstream endobj "
    b"5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj "
    b"trailer<</Root 1 0 R/Size 6>>\n%%EOF"
)
MAIL = (
    b"From a@b Mon Jan 01 10:00:00 2021\nFrom: a@b\nSubject: =?utf-8?q?Gr=C3=BC?=\n"
    b"Message-ID: <1>\nContent-Type: multipart/mixed; boundary=x\n\n--x\n"
    b"Content-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: base64\n\n"
    b"PHA+dG8gYmU8L3A+\n--x--\n\n"
)
WIKI = (
    b'<mediawiki xmlns="u"><page><title>to</title><ns>0</ns><revision><text>be &amp;</text>'
    b"</revision></page><page><title>or</title><ns>1</ns></page></mediawiki>"
)
TALKS = [
    {"prompt": "to be", "chosen": [{"role": "assistant", "content": "yes"}], "rejected": "no"},
    {"conversation": [{"human": "to be", "assistant": "or not"}]},
    [{"role": "user", "content": "to be"}, {"role": "assistant", "content": "or not"}],
]


def _tar() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, member in (("a.txt", TEXT), ("b.csv", CSV)):
            info = tarfile.TarInfo(name)
            info.size = len(member)
            archive.addfile(info, io.BytesIO(member))
    return content.getvalue()


FILES = {
    "list.json": json.dumps(ROWS).encode(),
    "object.json": json.dumps({"n": 1, "rows": ROWS}, indent=1).encode(),
    "list.txt": json.dumps(ROWS, indent=1).encode(),
    "odd.ipynb": json.dumps({"nbformat": 4, "cells": CELLS}).encode(),
    "odd.html": b"<!doctype html><p>to <b>be</b><pre>or\n</pre><script>x</script>&#39;</p>",
    "odd.srt": b"1\n00:00:01,000 --> 00:00:02,000\nto <i>be</i>\n\n",
    "odd.vtt": b"WEBVTT\n\n00:01.000 --> 00:02.000\nto be\n",
    "odd.zip": _zip(),
    "odd.epub": _epub(),
    "odd.docx": _word("docx"),
    "odd.odt": _word("odt"),
    "odd.pdf": PDF,
    "odd.rtf": b"{\\rtf1\\ansi{\\fonttbl{\\f0 A;}}to \\b be\\b0\\'e9\\u8217?\\par or}",
    "odd.mbox": MAIL * 2,
    "odd.xml": WIKI,
    "odd.fb2": '<?xml version="1.0" encoding="windows-1251"?><FictionBook><p>да'.encode("cp1251"),
    "odd.ass": b"[Script Info]\n\n[Events]\nDialogue: 0,0:00:01.00,0:00:02.00,D,,0,0,0,,to\\Nbe\n",
    "odd.lrc": b"[ti:x]\n[00:01.00]to be\n[00:02.00]or\n[00:03.00]not\n",
    "odd.parquet": _parquet(),
    "odd.txt.zst": zstandard.compress(TEXT),
    "nested.zip": _nested(),
    "nested.json": json.dumps({"data": {"rows": ROWS}, "n": 1}).encode(),
    "tweets.js": b"window.x = " + json.dumps([{"tweet": {"text": "to be"}}]).encode(),
    "talks.json": json.dumps(TALKS).encode(),
    "odd.tar": _tar(),
    "odd.tar.gz": gzip.compress(_tar(), mtime=0),
    "odd.txt": TEXT,
    "odd.jsonl": JSONL,
    "odd.csv": CSV,
    "odd.tsv": CSV.replace(b",", b"\t"),
    "odd.txt.gz": gzip.compress(TEXT),
    "odd.jsonl.gz": gzip.compress(JSONL),
    "odd.txt.bz2": bz2.compress(TEXT),
    "odd.txt.xz": lzma.compress(TEXT),
}
ENCODINGS = [None, None, None, "utf-8", "utf-16", "latin-1", "cp1252", "rot13", "base64", "x", ""]

COLUMNS = [None, None, None, None, "text", "n", "", "{text}n", "tweet.text", "rows.text"]
OPTIONS = [
    [],
    ["--document", "line"],
    ["--document", "paragraph", "--clean"],
    ["--document", "file", "--normalize", "nfkc"],
    ["--separator", "e", "--separator", "\\n"],
    ["--gutenberg", "keep"],
]


def test_a_malformed_corpus_is_refused_by_name(fuzz):
    def attempt(case):
        name, content, encoding, column, options = case
        path = fuzz.home / name
        path.write_bytes(content)

        def use():
            header, delimiter, quoting = options
            reading = Reading(encoding, column=column, header=header, delimiter=delimiter)
            reading.quoting, reading.max_bad_rows = quoting, 0.5
            source = corpora.find([str(path)], encoding, lambda sentence: None, how=reading)
            for document in source.documents(reading):
                for block in document:
                    assert block.encode() is not None

        fuzz.survives(use, name, "encoding", "delimiter")
        path.unlink()

    def cases(name):
        if name.endswith((".json", ".jsonl", ".ipynb")):
            content = fuzz.json_file(FILES[name])
        else:
            content = fuzz.bytes_file(FILES[name])
        return st.tuples(
            st.just(name), st.one_of(content, content, st.binary(max_size=300)),
            st.sampled_from(ENCODINGS), st.sampled_from(COLUMNS),
            st.sampled_from([("auto",) * 3] * 4 + [("no", "tab", "no"), ("yes", "none", "yes")]),
        )  # fmt: skip

    fuzz.run("corpora", st.sampled_from(sorted(FILES)).flatmap(cases), attempt, 400)


def test_preparing_a_malformed_corpus_leaves_nothing(fuzz):
    def attempt(case):
        name, content, options = case
        path = fuzz.home / name
        path.write_bytes(content)
        words = [name, "--dataset", "odd", "--overwrite", *options]
        code = fuzz.command("prepare", *words, writes=True)
        if code == 0:
            fuzz.restore()
        path.unlink(missing_ok=True)

    cases = st.sampled_from(sorted(FILES)).flatmap(
        lambda name: st.tuples(
            st.just(name), fuzz.bytes_file(FILES[name]), st.sampled_from(OPTIONS)
        )
    )
    fuzz.run("corpora, prepared", cases, attempt, 32)
