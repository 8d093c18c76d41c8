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


def pdf(*pages: str) -> bytes:
    """A PDF with these texts, written by hand (ISO 32000-1, 7.5)."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        font,
    ]
    for i, text in enumerate(pages):
        show = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode() if text else b""
        resources = f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * i} 0 R"
        box = "/MediaBox [0 0 600 800]"
        objects.append(f"<< /Type /Page /Parent 2 0 R {box} {resources} >>".encode())
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(show), show))
    content, places = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    end = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (size, len(content))
    return content + b"xref\n0 %d\n0000000000 65535 f \n" % size + table + end


def test_a_pdf_is_the_text_of_its_pages_and_a_page_without_is_counted(tmp_path):
    pytest.importorskip("pypdf")
    (tmp_path / "x.pdf").write_bytes(pdf("first page", "", "last page"))
    texts, counts = read(tmp_path / "x.pdf")
    assert texts == ["first page\nlast page\n"]
    assert counts["pages of PDFs without text, such as scanned ones"] == 1
    for damaged in (pdf("first")[:40], b"%PDF-1.4\n" + bytes(99)):
        (tmp_path / "x.pdf").write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.pdf is no readable PDF"):
            read(tmp_path / "x.pdf")


def test_an_rtf_document_is_its_text(tmp_path):
    pytest.importorskip("striprtf")
    rtf = r"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0 Times;}}\b Caf\'e9\b0  is \u8217?s.\par next}"
    (tmp_path / "notes.doc").write_text(rtf, encoding="ascii")
    assert read(tmp_path / "notes.doc")[0] == ["Café is \u2019s.\nnext\n"]


@pytest.mark.parametrize(
    ("module", "name", "content", "package"),
    [("pypdf", "x.pdf", b"%PDF-1.4", "pypdf"), ("striprtf", "x.rtf", b"{\\rtf1 a}", "striprtf")],
)
def test_without_its_package_a_document_names_it(
    tmp_path, monkeypatch, module, name, content, package
):
    (tmp_path / name).write_bytes(content)
    for each in [each for each in sys.modules if each.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, each)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(NotTextError, match=f"install the package {package}, or save it as plain"):
        read(tmp_path / name)


OPEN = "urn:oasis:names:tc:opendocument:xmlns:text:1.0"
OPEN_TEXT = (
    f'<office:document-content xmlns:office="urn:o" xmlns:text="{OPEN}"><office:body><office:text>'
    "<text:tracked-changes><text:p>deleted</text:p></text:tracked-changes>"
    "<text:h>Title</text:h><text:p>A <text:span>para</text:span>graph<text:s text:c='3'/>with"
    "<text:tab/>tab<text:line-break/>and<office:annotation><text:p>remark</text:p>"
    "</office:annotation> line</text:p><text:list><text:list-item><text:p>item</text:p>"
    "</text:list-item></text:list></office:text></office:body></office:document-content>"
)


def test_an_opendocument_text_is_its_paragraphs(tmp_path):
    path = tmp_path / "letter.odt"
    for content in (OPEN_TEXT, OPEN_TEXT[:-30]):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("mimetype", "application/vnd.oasis.opendocument.text")
            archive.writestr("content.xml", content)
            archive.writestr("META-INF/manifest.xml", "<x/>")
        if content == OPEN_TEXT:
            texts, counts = read(path)
            assert texts == ["Title\nA paragraph   with\ttab\nand line\nremark\nitem\n"]
            assert counts["OpenDocument texts read as their paragraphs"] == 1
    with pytest.raises(DataError, match=r"letter\.odt is no readable OpenDocument text"):
        read(path)
