"""The text of files that are more than text: HTML, notebooks, subtitles; lines that are none."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from gptlab.data.text_files import Reading, text_blocks
from gptlab.errors import DataError
from gptlab.files import display

# Tags before and after which a text has an empty line, or a new line.
_PARAGRAPHS = frozenset(
    "p h1 h2 h3 h4 h5 h6 blockquote pre ul ol dl table hr article section header footer nav aside "
    "main figure title form lg".split()
)
_LINES = frozenset("div l v li tr dt dd option figcaption caption legend address".split())
_HIDDEN = frozenset("script style template svg noscript binary teiheader".split())
_HTML_SPACE = " \t\n\f\r"


class TextOfHtml(HTMLParser):
    """Collects in `pieces` the text of the HTML that it is fed."""

    def __init__(self, reading: Reading):
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._counts = reading.counts
        self._breaks, self._space, self._began = 0, False, False
        self._hidden, self._depth, self._preformatted = "", 0, 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if self._hidden:
            self._depth += tag == self._hidden
        elif tag in _HIDDEN:
            self._hidden, self._depth = tag, 1
            self._counts["scripts, styles and drawings in HTML left out"] += 1
        else:
            self._preformatted += tag == "pre"
            self._break(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self._break(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._hidden:
            self._depth -= tag == self._hidden
            self._hidden = self._hidden if self._depth else ""
        else:
            self._preformatted = max(0, self._preformatted - (tag == "pre"))
            if tag != "br":
                self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if self._preformatted:
            if text := data.lstrip("\n") if self._breaks else data:
                self._emit(text)
            return
        words = re.split(f"[{_HTML_SPACE}]+", data)
        self._space |= not words[0]
        if any(words):
            self._emit(" ".join(filter(None, words)))
            self._space = not words[-1]

    def _break(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            self._breaks = 2
        elif tag in _LINES:
            self._breaks = max(1, self._breaks)
        elif tag == "br":
            self._breaks = min(2, self._breaks + 1)
        elif tag in ("td", "th"):
            self._space = True

    def _emit(self, text: str) -> None:
        if self._began:
            self.pieces.append("\n" * self._breaks if self._breaks else " " * self._space)
        self.pieces.append(text)
        self._began, self._breaks, self._space = True, 0, False


def html_blocks(path: Path, reading: Reading, name: str = "") -> Iterator[str]:
    """The text of an HTML page, without tags, scripts and styles; entities are letters."""
    reading.counts["HTML pages read without their tags"] += 1
    yield from _without_tags(path, reading, name)


def xml_book_blocks(path: Path, reading: Reading, name: str = "") -> Iterator[str]:
    """The text of a FictionBook or of a book in TEI, without tags and pictures."""
    reading.counts["books in XML read without their tags"] += 1
    yield from _without_tags(path, reading, name)


def _without_tags(path: Path, reading: Reading, name: str) -> Iterator[str]:
    parser = TextOfHtml(reading)
    for block in text_blocks(path, reading, name):
        parser.feed(block)
        yield "".join(parser.pieces)
        parser.pieces.clear()
    parser.close()
    yield "".join(parser.pieces) + "\n"


def notebook_blocks(path: Path, reading: Reading, name: str = "") -> Iterator[str]:
    """The sources of a notebook's cells, an empty line between them; outputs are left out."""
    name = name or display(path)
    try:
        notebook = json.loads("".join(text_blocks(path, reading, name)))
        sheets = notebook.get("worksheets") or [notebook]  # nbformat 3 has them
        cells = [cell for sheet in sheets for cell in sheet["cells"]]
        for number, cell in enumerate(cells):
            source = cell.get("source", cell.get("input", ""))
            reading.counts["outputs of notebook cells left out"] += len(cell.get("outputs") or [])
            text = source if isinstance(source, str) else "".join(source)
            if text.strip():
                yield ("\n\n" if number else "") + text.strip("\n")
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError) as error:
        raise DataError(
            f"{name} is not a readable notebook ({type(error).__name__}: {error})",
            "open it in Jupyter and save it again",
            sep="; ",
        ) from None
    reading.counts["notebooks read as the sources of their cells"] += 1
    yield "\n"


_LONG_LINE = 1_000  # characters
_LONG_LINES = re.compile(rf"[^\n]{{{_LONG_LINE},}}")
_BASE64 = re.compile(r"[A-Za-z0-9+/=_-]{400,}")
_BASE64_LINES = re.compile(r"(?:^[A-Za-z0-9+/]{60,76}\n){15,}", re.MULTILINE)
_MOST_NAMED = 3  # lines of one file


_XML = re.compile(r"\s*(?:<\?xml\b|<[A-Za-z][\w.:-]*\s[^<>]*\bxmlns[:=])")
_XML_READ = "XML files read as they are, with their tags (--tags drop reads the text between them)"
_FRONT_MATTER = re.compile(r"---\r?\n(?:[\w\s-]+:.*\n|[\s#-].*\n|\r?\n)+?(?:---|\.\.\.)\r?\n")


def looks_like_xml(text: str) -> bool:
    """Whether a text begins as XML does: with its declaration, or an element of a namespace."""
    return bool(_XML.match(text))


def noticed_head(blocks: Iterator[str], reading: Reading) -> Iterator[str]:
    """The same blocks; a text that begins as XML, front matter (YAML) or a table is counted."""
    first = next(blocks, "")
    if looks_like_xml(first):
        reading.counts[_XML_READ] += reading.tags == "auto"
    elif _FRONT_MATTER.match(first):
        reading.counts["files read with the front matter (YAML) above their text"] += 1
    elif _is_of_columns(first):
        what = "files of columns between tabs read as plain text (--delimiter tab reads their rows)"
        reading.counts[what] += 1
    yield first
    yield from blocks


def _is_of_columns(text: str) -> bool:
    """Whether each of the first lines holds the same number of tabs; # begins a comment."""
    lines = [line for line in text[:20_000].split("\n")[:50] if line and line[0] != "#"]
    tabs = {line.count("\t") for line in lines[:-1]}  # the last one may be cut
    return len(lines) > 10 and len(tabs) == 1 and 0 not in tabs


def watched(blocks: Iterator[str], reading: Reading, name: str) -> Iterator[str]:
    """The blocks of a text; its lines that look like base64 or minified code are named."""
    line, found = 1, []
    for block in blocks:
        counted = 0
        matches = [*_LONG_LINES.finditer(block), *_BASE64_LINES.finditer(block)]
        for match in sorted(matches, key=lambda match: match.start()):
            if what := _machine_made(match[0]):
                line += block.count("\n", counted, match.start())
                counted = match.start()
                found.append(f"line {line:,} ({what})")
                reading.counts[f"lines that look like {what}"] += 1
                reading.reported.add(f"lines that look like {what}")
        line += block.count("\n", counted)
        yield block
    if found:
        more = f" and {len(found) - _MOST_NAMED:,} more" if len(found) > _MOST_NAMED else ""
        named = ", ".join(found[:_MOST_NAMED])
        reading.note(
            f"{name} holds what is hardly text, in {named}{more}; --exclude leaves such a file out "
            "of a folder."
        )


def _machine_made(line: str) -> str:
    """What a long line looks like, if no person wrote it: "base64", "minified code" or ""."""
    start = line[:20_000].replace("\n", "")
    longest = max(map(len, _BASE64.findall(start)), default=0)
    if longest > len(start) / 2 and len(set(start)) > 30:
        return "base64"
    marks = sum(map(start.count, "{}();=,:[]<>"))
    spaces = start.count(" ")
    is_ascii = sum(map(str.isascii, start)) > 0.9 * len(start)
    return "minified code" if is_ascii and spaces < len(start) / 12 and marks > spaces else ""
