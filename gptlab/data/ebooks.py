"""The text of e-books (EPUB) and of Word files (.docx)."""

import posixpath
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from gptlab.data.markup import TextOfHtml
from gptlab.data.opening import NotTextError, naming_damage
from gptlab.data.text_files import Reading
from gptlab.errors import DataError
from gptlab.files import display

_LARGEST_MEMBER = 1 << 28  # bytes; a chapter is a fraction of that
_CURE = "save it as plain text first"


def book_kind(path: Path) -> str | None:
    """ "epub" or "docx" by the content of a zip file, or None for another one."""
    try:
        with naming_damage("", ""), zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
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


def docx_blocks(path: Path, reading: Reading, name: str = "") -> Iterator[str]:
    """The paragraphs of a Word file, and of the cells of its tables, a line each.

    Raises NotTextError where the package that reads it is not installed.
    """
    name = name or display(path)
    try:
        import docx
    except ImportError:
        raise no_docx(name) from None
    try:
        document = docx.Document(str(path))
        for part in document.iter_inner_content():
            if hasattr(part, "rows"):
                for row in part.rows:
                    yield "\t".join(cell.text for cell in row.cells) + "\n"
            else:
                yield part.text + "\n"
    except Exception as error:  # the package and lxml raise errors of many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} is no readable Word file ({reason})", _CURE, sep="; ") from None
    reading.counts["Word files read as their paragraphs"] += 1


def no_docx(name: str) -> NotTextError:
    """The refusal of a Word file that no package can read."""
    return NotTextError(
        name, "a Word document", "install the package python-docx, or save it as plain text first"
    )


def check_docx(name: str) -> None:
    """Raise NotTextError if the package that reads Word files is not installed."""
    try:
        import docx  # noqa: F401
    except ImportError:
        raise no_docx(name) from None
