"""Corpora: noise, tables with odd rows, damaged archives."""

import bz2
import gzip
import lzma

from hypothesis import strategies as st

from gptlab.data import corpora
from gptlab.data.text_files import Reading

JSONL = b'{"text": "to be"}\n{"text": null}\n\n{"text": "or not", "n": 1}\n'
CSV = b'text,n\n"to be",1\n"or\nnot",2\n,\n'
TEXT = "to be \u00e9 or not \U0001f600\r\nthat is\n".encode() * 30
FILES = {
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
        name, content, encoding, column = case
        path = fuzz.home / name
        path.write_bytes(content)

        def use():
            source = corpora.find([str(path)], encoding, lambda sentence: None)
            for document in source.documents(Reading(encoding, column=column)):
                for block in document:
                    assert block.encode() is not None

        fuzz.survives(use, name, "encoding")
        path.unlink()

    def cases(name):
        if "jsonl" in name and not name.endswith("gz"):
            content = fuzz.json_file(FILES[name])
        else:
            content = fuzz.bytes_file(FILES[name])
        return st.tuples(
            st.just(name), st.one_of(content, content, st.binary(max_size=300)),
            st.sampled_from(ENCODINGS), st.sampled_from([None, None, "text", "n", ""]),
        )  # fmt: skip

    fuzz.run("corpora", st.sampled_from(sorted(FILES)).flatmap(cases), attempt, 150)


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
