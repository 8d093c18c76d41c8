"""The text of what is made to be read or printed: EPUB, Word, OpenDocument, PDF and RTF files."""

import contextlib
import importlib
import logging
import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote
from xml.etree import ElementTree

from gptlab.data import opening
from gptlab.data.markup import TextOfHtml
from gptlab.data.opening import NotTextError, naming_damage
from gptlab.data.text_files import Reading
from gptlab.errors import DataError
from gptlab.files import display

_LARGEST_MEMBER = 1 << 28  # bytes; a chapter is a fraction of that
_ODT = b"application/vnd.oasis.opendocument.text"
_CURE = "save it as plain text first"


def book_kind(path: Path) -> str | None:
    """ "epub", "odt" or "docx" by the content of a zip file, or None for another one."""
    try:
        with naming_damage("", ""), zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            is_open = {"mimetype", "content.xml"} <= names
            if is_open and _member(archive, "mimetype").startswith(_ODT):
                return "odt"
    except DataError:
        return None
    if "META-INF/container.xml" in names:
        return "epub"
    return "docx" if "word/document.xml" in names else None


def epub_blocks(path: Path, reading: Reading, name: str = "") -> Iterator[str]:
    """The text of the chapters of an e-book, in their order, an empty line between them."""
    name = name or display(path)
    with naming_damage(name, "no readable e-book", _CURE), zipfile.ZipFile(path) as archive:
        names, began = set(archive.namelist()), False
        for chapter in _chapters(archive):
            if chapter not in names:
                reading.counts["chapters of e-books that are missing"] += 1
                continue
            parser = TextOfHtml(reading)
            parser.feed(_member(archive, chapter).decode("utf-8-sig", "replace"))
            parser.close()
            text = "".join(parser.pieces).replace("\0", "").strip("\n")
            if text:
                yield ("\n\n" if began else "") + text
                began = True
        yield "\n" * began
    reading.counts["e-books read as the text of their chapters"] += 1


def _chapters(archive: zipfile.ZipFile) -> list[str]:
    """The members with the text of an e-book, in the order of reading (EPUB 3.3, section 5)."""
    try:
        container = ElementTree.fromstring(_member(archive, "META-INF/container.xml"))
        rootfile = container.find(".//{*}rootfile")
        package = "" if rootfile is None else rootfile.get("full-path", "")
        content = ElementTree.fromstring(_member(archive, package))
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from None
    items = {item.get("id"): item.get("href", "") for item in content.iterfind(".//{*}item")}
    folder = posixpath.dirname(package)
    found = [items[ref.get("idref")] for ref in content.iterfind(".//{*}itemref")]
    return [posixpath.normpath(posixpath.join(folder, unquote(href))) for href in found]


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > _LARGEST_MEMBER:
        raise ValueError(f"{name} is larger than {_LARGEST_MEMBER >> 20} MB")
    return archive.read(name)


def odt_blocks(path: Path, reading: Reading, name: str = "") -> Iterator[str]:
    """Headings and paragraphs of an OpenDocument text, a line each, without what was deleted."""
    name = name or display(path)
    with naming_damage(name, "no readable OpenDocument text", _CURE):
        with zipfile.ZipFile(path) as archive:
            try:
                content = ElementTree.fromstring(_member(archive, "content.xml"))
            except ElementTree.ParseError as error:
                raise ValueError(str(error)) from None
        for part in content.iterfind(".//{*}tracked-changes"):
            part.clear()
        for paragraph in content.iter():
            if paragraph.tag.rpartition("}")[2] in ("p", "h"):
                yield "".join(_pieces(paragraph)) + "\n"
    reading.counts["OpenDocument texts read as their paragraphs"] += 1


def _pieces(element: ElementTree.Element) -> Iterator[str]:
    """The text of a paragraph of an OpenDocument text (OASIS OpenDocument 1.3, part 3, 6.1)."""
    yield element.text or ""
    for child in element:
        match child.tag.rpartition("}")[2]:
            case "s":
                number = child.get(child.tag.replace("}s", "}c"), "1")
                yield " " * min(int(number), 1000)
            case "tab":
                yield "\t"
            case "line-break":
                yield "\n"
            case "annotation" | "p" | "h":  # a remark at the margin; what is read by itself
                pass
            case _:
                yield from _pieces(child)
        yield child.tail or ""


def docx_blocks(path: Path, reading: Reading, name: str = "") -> Iterator[str]:
    """The paragraphs of a Word file, and of the cells of its tables, a line each.

    Raises NotTextError where the package that reads it is not installed.
    """
    name = name or display(path)
    docx = _package("docx", name)
    with _naming_any(name, "no readable Word file"):
        document = docx.Document(str(path))
        for part in document.iter_inner_content():
            if hasattr(part, "rows"):
                for row in part.rows:
                    yield "\t".join(cell.text for cell in row.cells) + "\n"
            else:
                yield part.text + "\n"
    reading.counts["Word files read as their paragraphs"] += 1


def pdf_blocks(path: Path, reading: Reading, name: str = "") -> Iterator[str]:
    """The text of the pages of a PDF, line by line as they are printed."""
    name = name or display(path)
    pypdf = _package("pdf", name)
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of each odd object
    with _naming_any(name, "no readable PDF"):
        for page in pypdf.PdfReader(str(path)).pages:
            if text := page.extract_text().strip("\n"):
                yield text + "\n"
            else:
                reading.counts["pages of PDFs without text, such as scanned ones"] += 1
    reading.counts["PDFs read as the text of their pages"] += 1


def rtf_blocks(path: Path, reading: Reading, name: str = "") -> Iterator[str]:
    """The text of an RTF document without its formatting."""
    name = name or display(path)
    striprtf = _package("rtf", name)
    with _naming_any(name, "no readable RTF document"), open(path, "rb") as file:
        content = opening.read_bytes(opening.decompressed(file, name), name, _LARGEST_MEMBER + 1)
        if len(content) > _LARGEST_MEMBER:
            raise ValueError(f"it is larger than {_LARGEST_MEMBER >> 20} MB")
        yield striprtf.rtf_to_text(content.decode("latin-1"), errors="replace") + "\n"
    reading.counts["RTF documents read without their formatting"] += 1


# {kind: (module, its package, what such a file is)}
_PACKAGES = {
    "docx": ("docx", "python-docx", "a Word document"),
    "pdf": ("pypdf", "pypdf", "a PDF"),
    "rtf": ("striprtf.striprtf", "striprtf", "an RTF document"),
}


def _package(kind: str, name: str) -> ModuleType:
    """The module that reads such files; raises NotTextError where it is not installed."""
    module, package, what = _PACKAGES[kind]
    try:
        return importlib.import_module(module)
    except ImportError:
        cure = f"install the package {package}, or save it as plain text first"
        raise NotTextError(name, what, cure) from None


def check_readable(kind: str, name: str) -> None:
    """Raise NotTextError if files of this kind need a package that is not installed."""
    if kind in _PACKAGES:
        _package(kind, name)


@contextlib.contextmanager
def _naming_any(name: str, what: str) -> Iterator[None]:
    """Turn whatever a package raises for a damaged file into a DataError."""
    try:
        yield
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} is {what} ({reason})", _CURE, sep="; ") from None
