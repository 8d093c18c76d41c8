"""Corpora: noise, tables with odd rows, damaged archives."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

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
        if "json" in name and not name.endswith("gz"):
            content = fuzz.json_file(FILES[name])
        else:
            content = fuzz.bytes_file(FILES[name])
        return st.tuples(
            st.just(name), st.one_of(content, content, st.binary(max_size=300)),
            st.sampled_from(ENCODINGS), st.sampled_from([None, None, "text", "n", "", "{text}n"]),
            st.sampled_from([("auto",) * 3] * 4 + [("no", "tab", "no"), ("yes", "none", "yes")]),
        )  # fmt: skip

    fuzz.run("corpora", st.sampled_from(sorted(FILES)).flatmap(cases), attempt, 250)


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
    fuzz.run("corpora, prepared", cases, attempt, 16)
