"""Read files as text: encodings, byte-order marks, line ends.

`Reading.counts` counts whatever is changed or left out.
"""

import codecs
import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from gptlab.data.encodings import (
    declared_encoding,
    is_foreign_to_utf8,
    known_encoding,
    likely_encoding,
)
from gptlab.data.messages import ConversationCounts
from gptlab.data.opening import (
    FOREIGN,
    FOREIGN_SUFFIXES,
    NotTextError,
    decompressed,
    file_suffix,
    read_bytes,
)
from gptlab.data.turns import FoundConversation
from gptlab.errors import DataError
from gptlab.files import display

BLOCK_BYTES = 1 << 20
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is a prefix of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_TABLES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
}


_NOT_CONTROL = bytes(set(range(32, 256)) - {127} | set(b"\t\n\f\r\b\x1b"))


@dataclass
class Reading:
    """How to read the files of a corpus, and what happened while reading.

    encoding: Python's name; None means UTF-8, or UTF-16 or UTF-32 after a byte-order mark. column:
    the field of a table that holds the text, `data.text` for a field in a field, several of them as
    `title,body`, or a pattern such as `{title}\\n{body}`. counts: {description of a change or
    omission: how often}. progress: called with the bytes read since the last call. document: the
    place of the newest document, as in `documents.Origin`. conversations: documents so far that
    hold messages. header, delimiter, quoting: of CSV files, "auto" where the content decides.
    max_bad_rows: the share of a table's rows that may be skipped because they are damaged. exclude:
    patterns of names. note: called with each message for the user. reported: the counts of which a
    message has told. rows, bad_rows, first_bad: of the table that is being read. chats: what was
    read as conversations. fits: called with a conversation and its place, raises
    NoConversationError for one that the chat template does not take.
    """

    encoding: str | None = None
    keep_line_endings: bool = False
    column: str | None = None
    counts: Counter = field(default_factory=Counter)
    progress: Callable[[int], None] = lambda _: None
    document: tuple[str, int] = ("", 0)
    conversations: int = 0
    header: str = "auto"
    delimiter: str = "auto"
    quoting: str = "auto"
    tags: str = "auto"
    max_bad_rows: float = 0.01
    exclude: tuple[str, ...] = ()
    note: Callable[[str], None] = lambda _: None
    reported: set[str] = field(default_factory=set)
    rows: int = 0
    bad_rows: int = 0
    first_bad: DataError | None = None
    chats: ConversationCounts = field(default_factory=ConversationCounts)
    fits: Callable[[FoundConversation, str], None] = lambda conversation, place: None

    def excludes(self, name: str) -> bool:
        """Whether a path in a folder or an archive is to be left out; counts it then."""
        names = {name, *PurePosixPath(name).parts}
        is_out = any(fnmatch.fnmatchcase(n, pattern) for n in names for pattern in self.exclude)
        self.counts["files and folders left out by --exclude"] += is_out
        return is_out

    def tell(self, what: str, number: int, sentence: str) -> None:
        """Count what a message tells of, so that it is not told once more by its count."""
        self.counts[what] += number
        self.reported.add(what)
        self.note(sentence)

    def skip_row(self, error: DataError) -> None:
        """Count a row that cannot be read; raises its error where too many are like that."""
        self.bad_rows += 1
        self.first_bad = self.first_bad or error
        if self.bad_rows >= 100 and self.bad_rows > self.rows / 2:
            raise self._too_many_bad_rows()

    def end_of_table(self) -> None:
        """Say which rows were skipped. Raises DataError if they are more than `max_bad_rows`."""
        if self.bad_rows > self.max_bad_rows * self.rows:
            raise self._too_many_bad_rows()
        if self.first_bad is not None:
            others = f" and {self.bad_rows - 1:,} other rows" if self.bad_rows > 1 else ""
            sentence = f"Skipped, of {self.rows:,} rows: {self.first_bad.problem}{others}."
            self.tell("odd rows skipped", self.bad_rows, sentence)

    def _too_many_bad_rows(self) -> DataError:
        first = self.first_bad or DataError("The rows of the table cannot be read.")
        if self.bad_rows >= self.rows:
            return first
        share = min(100, int(100 * self.bad_rows / self.rows) + 1)
        others = f"and {self.bad_rows - 1:,} other rows" if self.bad_rows > 1 else "one row"
        skip = f"skip such rows with --max_bad_rows {share}%"
        most_are_read = self.bad_rows < self.rows / 2  # so what was reported of them is right
        fix = f"{skip}, or correct them" if most_are_read else f"{first.fix}, or {skip}"
        return DataError(f"{first.problem}, {others} of {self.rows:,}", fix, sep="; ")


def file_format(path: Path) -> str:
    """ "text", "jsonl", "csv" or "parquet", by the file's name alone; see `forms.find_form`.

    Raises NotTextError for formats that are known but not read, such as PDF.
    """
    suffix = file_suffix(path)
    if suffix in FOREIGN_SUFFIXES:
        raise NotTextError(path, FOREIGN_SUFFIXES[suffix])
    return _TABLES.get(suffix, "text")


def check_is_text(path: Path, encoding: str | None, name: str = "") -> None:
    """Raise NotTextError if the first bytes of a file show that it is neither text nor a table."""
    if file_format(path) != "parquet":
        head_of_text(path, encoding, name)


def head_of_text(
    path: Path, encoding: str | None, name: str = "", size: int = 1 << 16
) -> tuple[str, bool]:
    """(the first `size` bytes of a file as text, whether they are all), to see what form it has.

    Raises NotTextError if they are no text. Bytes that do not fit the encoding are replaced.
    """
    name = name or display(path)
    with open(path, "rb") as raw:
        head = read_bytes(decompressed(raw, name), name, size)
    encoding, mark = _sniff(name, head, encoding)
    decoder, is_whole = codecs.getincrementaldecoder(encoding)("replace"), len(head) < size
    try:
        return decoder.decode(head[len(mark) :]).replace("\0", ""), is_whole
    except UnicodeError:  # a codec that needs a byte-order mark
        return "", is_whole


def utf8_kind(path: Path, name: str = "") -> str:
    """ "ascii", "utf-8" (valid, with characters beyond ASCII) or "other", by the whole file."""
    name = name or display(path)
    decoder, kind = codecs.getincrementaldecoder("utf-8")(), "ascii"
    with open(path, "rb") as raw:
        file = decompressed(raw, name)
        try:
            while block := read_bytes(file, name, BLOCK_BYTES):
                if not block.isascii():
                    kind = "utf-8"
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "other"
    return kind


def text_blocks(path: Path, reading: Reading, name: str = "") -> Iterator[str]:
    """The text of a file in blocks of about a megabyte, without a byte-order mark and without NUL.

    name: of the file in messages. A file that is valid UTF-8 with characters beyond ASCII is read
    as such, whatever `reading.encoding`. Raises DataError with the position of the first byte that
    does not fit the encoding.
    """
    name = name or display(path)
    with open(path, "rb") as raw:
        file = decompressed(raw, name)
        block = read_bytes(file, name, BLOCK_BYTES)
        wanted = reading.encoding or declared_encoding(block)
        if wanted is not None and is_foreign_to_utf8(wanted) and utf8_kind(path, name) == "utf-8":
            reading.counts[f"files read as the UTF-8 that they are, not as {wanted}"] += 1
            wanted = None
        elif wanted != reading.encoding:
            reading.counts[f"files read in the encoding that they declare, {wanted}"] += 1
        encoding, mark = _sniff(name, block, wanted)
        if mark:
            reading.counts["byte-order marks removed"] += 1
        block, offset, read = block[len(mark) :], len(mark), 0
        decoder = codecs.getincrementaldecoder(encoding)()
        while True:
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_decodable(name, encoding, offset - pending, error) from None
            except UnicodeError as error:  # a codec that needs a byte-order mark
                raise DataError(
                    f"{name} is not {encoding.upper()} ({error})",
                    "name its true encoding with --encoding",
                    sep="; ",
                ) from None
            if text := _without_nul(text, reading.counts):
                yield text
            if not block:
                return
            offset += len(block)
            reading.progress(raw.tell() - read)
            read = raw.tell()
            block = read_bytes(file, name, BLOCK_BYTES)


def clean(blocks: Iterable[str], reading: Reading) -> Iterator[str]:
    """Blocks ready to store: valid Unicode, every line end as `\\n` unless line ends are kept.

    A `\\r\\n` that spans two blocks is one line end.
    """
    counts, held = reading.counts, ""
    for block in blocks:
        block = _without_nul(_without_surrogates(block, counts), counts)
        if reading.keep_line_endings:
            yield block
            continue
        block = held + block
        held = "\r" if block.endswith("\r") else ""
        block = block[: len(block) - len(held)]
        if "\r" in block:
            counts["Windows line ends (CR LF) normalised"] += block.count("\r\n")
            block = block.replace("\r\n", "\n")
            counts["old Mac line ends (CR) normalised"] += block.count("\r")
            block = block.replace("\r", "\n")
        yield block
    if held:
        counts["old Mac line ends (CR) normalised"] += 1
        yield "\n"


def some(names: list[str]) -> str:
    """The first three of several names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _without_nul(text: str, counts: Counter) -> str:
    if "\0" in text:
        counts["NUL characters removed"] += text.count("\0")
        text = text.replace("\0", "")
    return text


def _without_surrogates(text: str, counts: Counter) -> str:
    """Replace lone surrogates by U+FFFD: JSON escapes may hold them, valid Unicode may not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        clean = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        counts["lone surrogates replaced by U+FFFD"] += clean.count("\ufffd") - text.count("\ufffd")
        return clean
    return text


def lines(blocks: Iterable[str]) -> Iterator[str]:
    """Lines with their `\\n`. (str.splitlines would also cut at U+2028, which JSON allows.)"""
    held = []
    for block in blocks:
        first, *others = block.split("\n")
        held.append(first)
        for line in others:
            yield "".join(held) + "\n"
            held = [line]
    if any(held):
        yield "".join(held)


def _sniff(name: str, head: bytes, encoding: str | None) -> tuple[str, bytes]:
    """(encoding, byte-order mark) of a text that begins with `head`; NotTextError if not text."""
    if encoding is not None:
        known = known_encoding(encoding)
        marks = [mark for mark, of in _MARKS if known_encoding(of) == known]
        return known, next((mark for mark in marks if head.startswith(mark)), b"")
    for mark, of in _MARKS:
        if head.startswith(mark):
            return of, mark
    for magic, what in FOREIGN:
        if head.startswith(magic):
            raise NotTextError(name, what)
    if head[257:262] == b"ustar":
        raise NotTextError(name, "a tar archive", "unpack it and name the folder")
    head = head[: 1 << 16]
    if head.isascii() and (b"\x1b$B" in head or b"\x1b$@" in head):  # shifts to Japanese and back
        raise DataError(
            f"{name} is not UTF-8; it looks like ISO-2022-JP",
            "prepare it with --encoding iso2022_jp",
        )
    if b"\0" in head:
        sample = head[: 1 << 12]
        for wide, first in (("utf-16-le", 1), ("utf-16-be", 0)):
            if sample[first::2].count(0) > len(sample) // 5 and not sample[1 - first :: 2].count(0):
                raise DataError(
                    f"{name} is not UTF-8; it looks like {wide.upper()} without a byte-order mark",
                    f"prepare it with --encoding {wide}",
                )
        if len(head.translate(None, _NOT_CONTROL)) > max(1, len(head) // 100):
            raise NotTextError(name, "a binary file")
    return "utf-8", b""


def _not_decodable(name: str, encoding: str, base: int, error: UnicodeDecodeError) -> DataError:
    byte = f"byte {base + error.start:,} (0x{error.object[error.start]:02X})"
    found = f"{name} is not {encoding.upper()} at {byte}"
    if encoding != "utf-8":
        return DataError(f"{found}", "name its true encoding with --encoding", sep="; ")
    sample = error.object[max(0, error.start - 2000) : error.start + 2000]
    likely = likely_encoding(sample)
    return DataError(
        f"{found}; it is probably {likely}",
        f"prepare it with --encoding {likely}, or save it as UTF-8",
    )
