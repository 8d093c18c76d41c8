"""The form of a file, found by looking into it (its name is a hint), and its documents."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gptlab.data import (
    ebooks,
    mail,
    markup,
    opening,
    subtitles,
    tables,
    text_files,
    wikis,
    xml_files,
)
from gptlab.data.csv_tables import Dialect, csv_rows, find_dialect
from gptlab.data.opening import file_suffix
from gptlab.data.rows import documents_of_rows
from gptlab.data.tables import JsonText, Row
from gptlab.data.text_files import Reading, head_of_text
from gptlab.errors import DataError
from gptlab.files import display

_HEAD_BYTES = 1 << 18
_JSON_LINES = (".jsonl", ".ndjson")
_HTML = (".html", ".htm", ".xhtml")
_TAG = re.compile(r"<[a-z][a-z0-9]*(?:\s[^<>]*)?/?>", re.IGNORECASE)
_PRINTED = {b"%PDF-": "pdf", b"{\\rtf": "rtf"}
# What the first element of a file says of it.
_ROOTS = {
    **dict.fromkeys(("!doctype html", "html", "head", "body"), "html"),
    **dict.fromkeys(("fictionbook", "tei"), "xml"),
    **dict.fromkeys(("rss", "feed", "en-export"), "feed"),
    "mediawiki": "wiki",
}
_MARKUP = re.compile(
    rf"(?:<\?xml[^>]*>|<!--.*?-->|<!doctype (?!html)[^>]*>|\s)*<({'|'.join(_ROOTS)})\b",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True)
class Form:
    """What a file is read as.

    kind: "text", "html", "xml" (a book), "feed", "tagless" (other XML without its tags),
    "notebook", "subtitles", "epub", "docx", "odt", "pdf", "rtf", "json", "jsonl", "csv", "parquet",
    "mail", "wiki", "zip" or "tar". dialect: of a CSV file.
    """

    kind: str
    dialect: Dialect | None = None

    @property
    def is_table(self) -> bool:
        """Whether its documents are the rows of a table."""
        return self.kind in ("json", "jsonl", "csv", "parquet")

    @property
    def key(self) -> str:
        """Equal for forms that read the same bytes as the same documents."""
        if self.kind == "subtitles":
            return "subtitles 2"  # 2: the names of cues are left out
        dialect = self.dialect
        usual = not dialect or (dialect.quoting and dialect.has_header and not dialect.comments)
        return self.kind if usual else f"{self.kind} {dialect}"


def find_form(path: Path, reading: Reading, name: str = "") -> Form:
    """What a file is to be read as. Raises NotTextError if it holds no text."""
    name = name or display(path)
    kind = opening.archive_kind(path, name)
    start = opening.first_bytes(path, 5)
    book = ebooks.book_kind(path) if kind == "zip" else _PRINTED.get(start)
    if book:
        ebooks.check_readable(book, name)
        return Form(book)
    if kind and file_suffix(path) not in opening.FOREIGN_SUFFIXES:
        return Form(kind)
    if text_files.file_format(path) == "parquet" or start[:4] == b"PAR1":
        return Form("parquet")
    head, is_whole = head_of_text(path, reading.encoding, name, _HEAD_BYTES)
    suffix = file_suffix(path)
    if suffix in (".csv", ".tsv", ".tab") or reading.delimiter != "auto":
        return Form("csv", find_dialect(head, is_whole, suffix, reading))
    start = head[:4000].lstrip()
    if suffix == ".ipynb" and start.startswith("{"):
        return Form("notebook")
    if kind := _json_kind(head, is_whole, suffix):
        return Form(kind)
    if kind := _markup_kind(start, suffix):
        if reading.tags != "keep":
            return Form(kind)
        reading.counts["files of HTML or XML read with their tags"] += 1
        return Form("text")
    if reading.tags == "drop" and markup.looks_like_xml(start):
        return Form("tagless")
    if mail.looks_like_mail(head[:4000]):
        return Form("mail")
    if subtitles.looks_like_subtitles(head):
        return Form("subtitles")
    return Form("text")


def _markup_kind(start: str, suffix: str) -> str | None:
    """What the first element of a text says of it; None if no text is known to be in it."""
    if found := _MARKUP.match(start):
        return _ROOTS[found[1].lower()]
    # a part of a page, without <html>
    return "html" if suffix in _HTML and _TAG.search(start) else None


def _json_kind(head: str, is_whole: bool, suffix: str) -> str | None:
    """ "json", "jsonl", or None where a text does not begin as JSON does."""
    is_lines, start = suffix in _JSON_LINES, tables.without_assignment(head).lstrip()
    if not re.match(r'\{\s*["}]|\[\s*[\[{"\]]', start):
        is_list = suffix == ".json" and re.match(r"\[\s*(?:[-\d]|true|false|null)", start)
        return "jsonl" if is_lines else "json" if is_list else None
    text = JsonText(iter([start]), "")
    try:
        first = text.value()
    except DataError:
        if start.startswith("[") and (suffix == ".json" or _begins_list(start, is_whole)):
            return "json"  # longer than the head, or broken: reading it says where
        if is_lines:
            return "jsonl"
        is_cut = not is_whole and "\n" not in start
        is_object = re.match(r'\{\s*"[^"\n]*"\s*:', start)
        return "json" if is_object and (suffix == ".json" or is_cut or not is_whole) else None
    spelled, rest = start[: text.position], start[text.position :].lstrip(" \t\r")
    if isinstance(first, list):
        if rest.strip(" \t\r\n;"):
            return "jsonl" if is_lines else "json" if suffix == ".json" else None
        is_of_rows = all(isinstance(row, dict | str | list) for row in first)
        return "json" if suffix == ".json" or is_lines or (is_of_rows and first) else None
    if rest and not rest.startswith("\n"):
        return "jsonl" if is_lines else "json" if rest.startswith("{") else None
    if "\n" in spelled or not rest.strip():
        return "json" if not rest.strip() or rest.lstrip().startswith("{") or is_lines else None
    second = rest.lstrip().split("\n")[0]
    return "jsonl" if is_lines or second.startswith("{") else None


def _begins_list(start: str, is_whole: bool) -> bool:
    """Whether the first element of a list is valid JSON that another one or the end follows."""
    if is_whole and not re.match(r"\[\s*\{", start):
        return False
    text = JsonText(iter([start]), "")
    text.take("[")
    try:
        text.value()
    except DataError:
        return bool(re.match(r'\[\s*\{\s*"[^"\n]*"\s*:', start)) and len(start) > _HEAD_BYTES // 2
    return text.peek() in (",", "")


_ROWS: dict[str, Callable[[Path, Reading, str], Iterator[Row]]] = {
    "json": tables.json_rows,
    "jsonl": tables.jsonl_rows,
    "parquet": tables.parquet_rows,
    "mail": mail.mail_rows,
    "wiki": wikis.wiki_rows,
    "feed": xml_files.feed_rows,
}
_BLOCKS: dict[str, Callable[[Path, Reading, str], Iterator[str]]] = {
    "text": text_files.text_blocks,
    "html": markup.html_blocks,
    "xml": markup.xml_book_blocks,
    "tagless": xml_files.tagless_blocks,
    "notebook": markup.notebook_blocks,
    "subtitles": subtitles.subtitle_blocks,
    "epub": ebooks.epub_blocks,
    "docx": ebooks.docx_blocks,
    "odt": ebooks.odt_blocks,
    "pdf": ebooks.pdf_blocks,
    "rtf": ebooks.rtf_blocks,
}


def is_list_of_texts(path: Path, how: Reading) -> bool:
    """Whether a JSON file holds a list whose first row holds text where it is looked for."""
    if not head_of_text(path, how.encoding, size=1 << 12)[0].lstrip().startswith("["):
        return False
    reading = Reading(how.encoding, max_bad_rows=0)
    try:
        first = itertools.islice(tables.json_rows(path, reading), 1)
        return any(True for _ in documents_of_rows(first, reading))
    except DataError:
        return False


def documents_of_file(
    path: Path, form: Form, reading: Reading, name: str, origin: str
) -> Iterator[Iterable[str]]:
    """Each document of a file as blocks of clean text.

    name: of the file in messages. origin: its name in the record of where documents stood.
    """
    if form.kind in _BLOCKS:
        reading.document = (origin, 1)
        blocks = _BLOCKS[form.kind](path, reading, name)
        if form.kind == "text":
            blocks = markup.watched(markup.noticed_head(blocks, reading), reading, name)
        yield text_files.clean(blocks, reading)
        return
    if form.kind == "csv":
        rows = csv_rows(path, reading, name, form.dialect)
    else:
        rows = _ROWS[form.kind](path, reading, name)
    for text in documents_of_rows(rows, reading):
        yield text_files.clean([text], reading)
