"""XML that holds texts: entries of feeds and exports as documents, and any other without its tags.

Read are RSS and Atom (RFC 4287), with what WordPress and Blogger export in them, and the notes that
Evernote exports.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from gptlab.data.markup import TextOfHtml
from gptlab.data.opening import decompressed, naming_damage
from gptlab.data.tables import Row
from gptlab.data.text_files import Reading, text_blocks
from gptlab.errors import DataError
from gptlab.files import display

_ENTRIES = ("item", "entry", "note")
# where an entry has its text, the fullest first; WordPress has excerpts by the same local name
_CONTENT = (
    "{http://purl.org/rss/1.0/modules/content/}encoded", "{*}content", "{*}description",
    "{*}summary",
)  # fmt: skip
_KINDS = ("post", "page", "comment")  # of entries; others are settings, menus and attachments


def feed_rows(path: Path, reading: Reading, name: str = "") -> Iterator[Row]:
    """(place, text) of each entry: its title, an empty line, and its text without tags."""
    name = name or display(path)
    read = 0
    cure = "correct it there, or read it as it is with --tags keep"
    with open(path, "rb") as raw, naming_damage(name, "no well-formed XML", cure):
        try:
            for _, entry in ElementTree.iterparse(decompressed(raw, name)):
                if entry.tag.rpartition("}")[2] not in _ENTRIES:
                    continue
                title = " ".join((entry.findtext("{*}title") or "").split())
                if _kind(entry) in _KINDS:
                    text = _text_of(entry, reading)
                    reading.counts["entries of a feed or an export read without tags"] += bool(text)
                    yield f"{name}, {title!r}", f"{title}\n\n{text}\n".lstrip() if text else None
                else:
                    reading.counts["entries that are settings, menus or attachments left out"] += 1
                entry.clear()
                reading.progress(raw.tell() - read)
                read = raw.tell()
        except ElementTree.ParseError as error:
            raise ValueError(str(error)) from None


def _kind(entry: ElementTree.Element) -> str:
    """What WordPress or Blogger says that an entry is; else "post"."""
    for category in entry.iterfind("{*}category"):
        if category.get("scheme", "").endswith("#kind"):
            return category.get("term", "").rpartition("#")[2]
    return entry.findtext("{*}post_type") or "post"


def _text_of(entry: ElementTree.Element, reading: Reading) -> str:
    for name in _CONTENT:
        found = entry.find(name)
        if found is None or not "".join(found.itertext()).strip():
            continue
        text = found.text or ""
        if len(found):  # XHTML inside
            text = ElementTree.tostring(found, "unicode")
            text = re.sub(r"(</?)\w+:", r"\1", text)  # the names of its namespace
        elif found.get("type") == "text":
            return text.strip()
        elif not re.search("<(?:p|br|div)[ />]", text):  # WordPress makes paragraphs of them
            text = text.replace("\r\n", "\n").replace("\n\n", "<p>").replace("\n", "<br>")
        parser = TextOfHtml(reading)
        parser.feed(text)
        parser.close()
        return "".join(parser.pieces).strip()
    return ""


def tagless_blocks(path: Path, reading: Reading, name: str = "") -> Iterator[str]:
    """The text between the tags of an XML file, a line for each element that holds no other text.

    Raises DataError where it is not well-formed.
    """
    name = name or display(path)
    parser, pieces = expat.ParserCreate(), []
    parser.buffer_text = True
    parser.CharacterDataHandler = pieces.append
    parser.StartElementHandler = parser.EndElementHandler = lambda *_: pieces.append(None)
    reading.counts["XML files read without their tags"] += 1
    try:
        for block in text_blocks(path, reading, name):
            parser.Parse(block)
            yield _lines(pieces)
        parser.Parse("", True)
    except expat.ExpatError as error:
        raise DataError(
            f"{name} is no well-formed XML ({error})", "leave out --tags drop", sep="; "
        ) from None
    yield "\n"


def _lines(pieces: list[str | None]) -> str:
    """Takes what stands between tags (None) as text; two tags side by side are a new line."""
    text, before = [], ""
    for piece in pieces:
        if piece is not None:
            text.append(piece)
        elif before is None or (before.isspace() and "\n" in before):
            text.append("\n")
        before = piece
    pieces.clear()
    return re.sub(r"[ \t]*\n\s*", "\n", "".join(text))
