"""E-books and Word files."""

import sys
import zipfile

import pytest

from gptlab.data.corpora import find
from gptlab.data.opening import NotTextError
from gptlab.data.text_files import Reading
from gptlab.errors import DataError

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
    '<rootfile full-path="OEBPS/content.opf"/></rootfiles></container>'
)
PACKAGE = (
    '<package xmlns="http://www.idpf.org/2007/opf"><manifest>'
    '<item id="a" href="text/one%20.xhtml"/><item id="b" href="two.xhtml"/>'
    '<item id="css" href="style.css"/><item id="lost" href="lost.xhtml"/></manifest>'
    '<spine><itemref idref="b"/><itemref idref="a"/><itemref idref="lost"/></spine></package>'
)
BOOK = {
    "mimetype": "application/epub+zip",
    "META-INF/container.xml": CONTAINER,
    "OEBPS/content.opf": PACKAGE,
    "OEBPS/text/one .xhtml": "<html><body><h1>Second</h1><p>It&#8217;s &amp; ends.</p></body>",
    "OEBPS/two.xhtml": "<html><head><style>p{}</style></head><body><p>First <i>one</i></p></body>",
    "OEBPS/style.css": "p { color: red }",
}


def read(path):
    reading = Reading()
    source = find([str(path)], None, lambda sentence: None, how=reading)
    return ["".join(document) for document in source.documents(reading)], +reading.counts


def write_book(path, **changed):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (BOOK | changed).items():
            if content is not None:
                archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["x.epub", "x.zip", "x"])
def test_an_ebook_is_its_chapters_in_the_order_of_reading(tmp_path, name):
    texts, counts = read(write_book(tmp_path / name))
    assert texts == ["First one\n\nSecond\n\nIt\u2019s & ends.\n"]
    assert counts["chapters of e-books that are missing"] == 1
    assert counts["e-books read as the text of their chapters"] == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"META-INF/container.xml": "<container/>"},
        {"META-INF/container.xml": "no XML"},
        {"OEBPS/content.opf": None},
        {"OEBPS/content.opf": PACKAGE.replace('id="a"', 'id="z"')},
    ],
)
def test_a_damaged_ebook_is_refused_by_name(tmp_path, changed):
    with pytest.raises(DataError, match=r"x\.epub is no readable e-book"):
        read(write_book(tmp_path / "x.epub", **changed))


def test_a_word_file_is_its_paragraphs(tmp_path):
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("A title")
    document.add_paragraph("First paragraph, ").add_run("bold").bold = True
    table = document.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "left", "right"
    document.add_paragraph("The end")
    for name in ("x.docx", "x"):
        document.save(str(tmp_path / name))
        texts, counts = read(tmp_path / name)
        assert texts == ["A title\nFirst paragraph, bold\nleft\tright\nThe end\n"]
        assert counts["Word files read as their paragraphs"] == 1


def test_without_the_package_a_word_file_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "docx", None)
    path = tmp_path / "x.docx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "<a/>")
    with pytest.raises(NotTextError, match="install the package python-docx, or save it as plain"):
        read(path)
