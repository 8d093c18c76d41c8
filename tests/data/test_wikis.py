"""Dumps of wikis: articles with their titles, in bounded memory."""

import bz2
import tracemalloc
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.corpora import find
from gptlab.data.text_files import Reading
from gptlab.errors import DataError

HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="en">\n'


def page(title: str, text: str, ns: int = 0, more: str = "") -> str:
    revision = f'<revision><id>1</id><text xml:space="preserve">{escape(text)}</text></revision>'
    return f"<page><title>{escape(title)}</title><ns>{ns}</ns>{more}{revision}</page>\n"


def read(path):
    reading = Reading()
    source = find([str(path)], None, lambda _: None, how=reading)
    return ["".join(document) for document in source.documents(reading)], +reading.counts


@pytest.mark.parametrize("compress", [bytes, bz2.compress])
def test_articles_are_documents_and_the_rest_is_counted(tmp_path, compress):
    pages = page("A", "'''A''' & [[B]]") + page("Talk:A", "chat", ns=1) + page("Empty", "")
    pages += page("C", "x", more='<redirect title="A"/>') + page("B & D", "last < é")
    (tmp_path / "dump.xml").write_bytes(compress((HEAD + pages + "</mediawiki>").encode()))
    texts, counts = read(tmp_path / "dump.xml")
    assert texts == ["A\n\n'''A''' & [[B]]\n", "B & D\n\nlast < é\n"]
    assert counts == {
        "articles of a wiki read with their markup": 2,
        "pages of a wiki left out that are not articles": 1,
        "redirects of a wiki left out": 1,
        "rows without text skipped": 1,
    }


def test_a_cut_dump_is_refused_by_name(tmp_path):
    (tmp_path / "dump.xml").write_text(HEAD + page("A", "a") + "<page><title>", encoding="utf-8")
    with pytest.raises(DataError, match=r"dump\.xml is no readable dump of a wiki"):
        read(tmp_path / "dump.xml")


@given(st.lists(st.text(alphabet="ab<&é'[{ \n", min_size=1, max_size=30), max_size=6))
@settings(deadline=None, max_examples=50)
def test_every_page_is_read_or_counted(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("wiki") / "x.xml"
    pages = "".join(page(f"T{i}", text, ns=i % 3) for i, text in enumerate(texts))
    path.write_text(f"{HEAD}{pages}</mediawiki>", encoding="utf-8", newline="\n")
    found, counts = read(path)
    assert found == [f"T{i}\n\n{text}\n" for i, text in enumerate(texts) if i % 3 == 0]
    assert len(found) + counts["pages of a wiki left out that are not articles"] == len(texts)


def test_a_long_dump_needs_little_memory(tmp_path):
    with open(tmp_path / "dump.xml", "w", encoding="utf-8") as file:
        file.write(HEAD)
        for i in range(2_000):  # 20 MB
            file.write(page(f"T{i}", "word " * 2_000))
        file.write("</mediawiki>")
    reading = Reading()
    source = find([str(tmp_path / "dump.xml")], None, lambda _: None, how=reading)
    tracemalloc.start()
    try:
        assert sum(1 for document in source.documents(reading) for _ in document) == 2_000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
