"""Read files as text: compression, encodings, byte-order marks, line ends, tables of documents.

`Reading.counts` counts whatever is changed or left out.
"""

import bz2
import codecs
import csv
import gzip
import itertools
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gptlab.data.messages import (
    ConversationCounts,
    FoundConversation,
    NoConversationError,
    conversation_columns,
    conversation_of,
)
from gptlab.errors import ConfigError, DataError
from gptlab.files import display

BLOCK_BYTES = 1 << 20
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_COMPRESSED_SUFFIXES = {".gz", ".bz2", ".xz"}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is a prefix of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_FOREIGN = (
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a zip archive or an Office document"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"{\\rtf", "an RTF document"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3", "an SQLite database"),
)
_FOREIGN_SUFFIXES = {
    ".pdf": "a PDF",
    ".doc": "a Word document",
    ".docx": "a Word document",
    ".odt": "an OpenDocument text",
    ".rtf": "an RTF document",
    ".epub": "an e-book",
    ".xls": "a spreadsheet",
    ".xlsx": "a spreadsheet",
    ".ods": "a spreadsheet",
    ".ppt": "a presentation",
    ".pptx": "a presentation",
}
_TABLES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


class NotTextError(DataError):
    """A file that holds no text. In a folder it is left out; named alone it is refused."""

    def __init__(self, path: Path, what: str, cure: str = "save it as plain text first"):
        self.what = what
        super().__init__(
            f"{display(path)} is {what}, but gptlab reads plain text, .gz, .jsonl, .csv and "
            ".parquet",
            cure,
            sep="; ",
        )


@dataclass
class Reading:
    """How to read the files of a corpus, and what happened while reading.

    encoding: Python's name; None means UTF-8, or UTF-16 or UTF-32 after a byte-order mark. column:
    the field of a table that holds the text. counts: {description of a change or omission: how
    often}. progress: called with the bytes read since the last call. document: the place of the
    newest document, as in `documents.Origin`. conversations: documents so far that hold messages.
    chats: what was read as conversations. fits: called with a conversation and its place, raises
    NoConversationError for one that the chat template does not take.
    """

    encoding: str | None = None
    keep_line_endings: bool = False
    column: str | None = None
    counts: Counter = field(default_factory=Counter)
    progress: Callable[[int], None] = lambda _: None
    document: tuple[str, int] = ("", 0)
    conversations: int = 0
    chats: ConversationCounts = field(default_factory=ConversationCounts)
    fits: Callable[[FoundConversation, str], None] = lambda conversation, place: None


def file_format(path: Path) -> str:
    """ "text", "jsonl", "csv" or "parquet", by the file's name.

    Raises NotTextError for formats that are known but not read, such as PDF.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _COMPRESSED_SUFFIXES:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix in _FOREIGN_SUFFIXES:
        raise NotTextError(path, _FOREIGN_SUFFIXES[suffix])
    return _TABLES.get(suffix, "text")


def check_is_text(path: Path, encoding: str | None) -> None:
    """Raise NotTextError if the first bytes of a file show that it is neither text nor a table."""
    if file_format(path) != "parquet":
        with open(path, "rb") as raw:
            _sniff(path, _read(_decompressed(raw), path, 1 << 16), encoding)


def text_blocks(path: Path, reading: Reading) -> Iterator[str]:
    """The text of a file in blocks of about a megabyte, without a byte-order mark.

    Raises DataError with the position of the first byte that does not fit the encoding.
    """
    with open(path, "rb") as raw:
        file = _decompressed(raw)
        block = _read(file, path, BLOCK_BYTES)
        encoding, mark = _sniff(path, block, reading.encoding)
        if mark:
            reading.counts["byte-order marks removed"] += 1
        block, offset, read = block[len(mark) :], len(mark), 0
        decoder = codecs.getincrementaldecoder(encoding)()
        while True:
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_decodable(path, encoding, offset - pending, error) from None
            except UnicodeError as error:  # a codec that needs a byte-order mark
                raise DataError(
                    f"{display(path)} is not {encoding.upper()} ({error})",
                    "name its true encoding with --encoding",
                    sep="; ",
                ) from None
            if text:
                yield text
            if not block:
                return
            offset += len(block)
            reading.progress(raw.tell() - read)
            read = raw.tell()
            block = _read(file, path, BLOCK_BYTES)


def clean(blocks: Iterable[str], reading: Reading) -> Iterator[str]:
    """Blocks ready to store: valid Unicode, every line end as `\\n` unless line ends are kept.

    A `\\r\\n` that spans two blocks is one line end.
    """
    counts, held = reading.counts, ""
    for block in blocks:
        block = _without_surrogates(block, counts)
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


def jsonl_rows(path: Path, reading: Reading) -> Iterator[tuple[str, object]]:
    """(place, value) of each line of a JSON Lines file; blank lines are counted."""
    for number, line in enumerate(_lines(text_blocks(path, reading)), 1):
        if not line.strip():
            reading.counts["blank lines skipped"] += 1
            continue
        try:
            yield f"{display(path)} line {number:,}", json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"{display(path)} line {number:,} is not valid JSON ({reason})",
                "fix or remove that line",
                sep="; ",
            ) from None


def csv_rows(path: Path, reading: Reading) -> Iterator[tuple[str, dict]]:
    """(place, row as a dict) of each row of a CSV file with a header; empty rows are counted.

    The delimiter is the most frequent one of `, ; tab |` in the header. In a short row the missing
    fields are None.
    """
    csv.field_size_limit(2**31 - 1)
    lines = _lines(text_blocks(path, reading))
    header_line = next(lines, "")
    delimiter = max(",\t;|", key=header_line.count)
    reader = csv.reader(itertools.chain([header_line], lines), delimiter=delimiter, strict=True)
    header = None
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                reading.counts["empty rows skipped"] += 1
            elif header is None:
                header = [name.strip() for name in row]
            else:
                place = f"{display(path)} line {reader.line_num:,}"
                cells = row + [None] * (len(header) - len(row))
                yield place, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise DataError(
            f"{display(path)} line {reader.line_num:,} is not valid CSV ({error})",
            "fix that line",
            sep="; ",
        ) from None


def parquet_rows(path: Path, reading: Reading) -> Iterator[tuple[str, dict]]:
    """(place, row) of a Parquet file, read in batches; only the columns that are needed."""
    import pyarrow  # comes with datasets
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        fields = table.schema_arrow.names
        wanted = conversation_columns(fields, reading.column)
        if not wanted:
            wanted = [text_column(fields, reading.column, display(path))]
        elif reading.column is None and "text" in fields:
            wanted.append("text")
        bytes_per_row = path.stat().st_size / max(1, table.metadata.num_rows)
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"{display(path)} row {number:,}", row
            reading.progress(int(batch.num_rows * bytes_per_row))
    except pyarrow.ArrowException as error:
        raise DataError(f"{display(path)} is not a readable Parquet file ({error}).") from None


def documents_of_rows(rows: Iterable[tuple[str, object]], reading: Reading) -> Iterator[str]:
    """The text of each row; rows whose text is null or missing are skipped and counted.

    A row is a dict or the text itself. The text of a conversation is its messages as JSON; rows
    that are no conversation among conversations are skipped and counted in `reading.chats`. Raises
    DataError for a row that lacks the field of the text, or whose field does not hold text.
    """
    for place, row in rows:
        reading.document = (place, 0)
        if isinstance(row, dict):
            if not row:
                reading.counts["empty rows skipped"] += 1
                continue
            try:
                found = conversation_of(row, reading.column, place, reading.keep_line_endings)
                if found is not None:
                    reading.fits(found, place)
                elif reading.conversations and "text" not in row and reading.column is None:
                    raise NoConversationError(
                        f"{place} has no messages: its fields are "
                        f"{', '.join(map(str, list(row)[:20]))}"
                    )
            except NoConversationError as error:
                reading.chats.skip(error)
                continue
            if found is not None:
                reading.chats.add(found)
                reading.conversations += 1
                yield found.to_json()
                continue
            name = text_column(list(row), reading.column, place)
            row = row[name]
            place = f"{place}, field {name!r},"
        if row is None:
            reading.counts["rows without text skipped"] += 1
        elif isinstance(row, str):
            yield row
        else:
            raise DataError(
                f"{place} holds {type(row).__name__}, not text",
                "name a field of text with --column",
                sep="; ",
            )


def text_column(fields: list[str], column: str | None, place: str) -> str:
    """The field that holds the text: `column`, else "text", else the only field.

    Raises DataError if there is no such field.
    """
    wanted = column or ("text" if len(fields) != 1 else fields[0])
    if wanted in fields:
        return wanted
    raise DataError(
        f"{place} has no field {wanted!r}: its fields are {', '.join(map(str, fields[:20]))}",
        "name the one that holds the text with --column",
        sep="; ",
    )


def _without_surrogates(text: str, counts: Counter) -> str:
    """Replace lone surrogates by U+FFFD: JSON escapes may hold them, valid Unicode may not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        clean = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        counts["lone surrogates replaced by U+FFFD"] += clean.count("\ufffd") - text.count("\ufffd")
        return clean
    return text


def _lines(blocks: Iterable[str]) -> Iterator[str]:
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


def _decompressed(raw):
    """A binary file, decompressed if its first bytes show that it is compressed."""
    start = raw.read(8)
    raw.seek(0)
    for magic, opener in _COMPRESSED.items():
        if start.startswith(magic):
            return opener(raw, "rb")
    return raw


def _read(file, path: Path, size: int) -> bytes:
    try:
        return file.read(size)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if getattr(error, "errno", None) is not None:  # bz2 and gzip raise an OSError without it
            raise
        raise DataError(
            f"{display(path)} is a damaged compressed file ({error})", "fetch it again", sep="; "
        ) from None


def _sniff(path: Path, head: bytes, encoding: str | None) -> tuple[str, bytes]:
    """(encoding, byte-order mark) of a text that begins with `head`; NotTextError if not text."""
    if encoding is not None:
        name = _known_encoding(encoding)
        marks = [mark for mark, of in _MARKS if _known_encoding(of) == name]
        return name, next((mark for mark in marks if head.startswith(mark)), b"")
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, mark
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise NotTextError(path, what)
    if head[257:262] == b"ustar":
        raise NotTextError(path, "a tar archive", "unpack it and name the folder")
    if b"\0" in head[: 1 << 16]:
        sample = head[: 1 << 12]
        for name, first in (("utf-16-le", 1), ("utf-16-be", 0)):
            if sample[first::2].count(0) > len(sample) // 5 and not sample[1 - first :: 2].count(0):
                raise DataError(
                    f"{display(path)} is not UTF-8; it looks like {name.upper()} without a "
                    "byte-order mark",
                    f"prepare it with --encoding {name}",
                )
        raise NotTextError(path, "a binary file")
    return "utf-8", b""


def _known_encoding(name: str) -> str:
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except LookupError:
        raise ConfigError(
            f"--encoding {name} is not a text encoding that Python knows",
            "try utf-8, cp1252, latin-1, utf-16, cp1251, gb18030, big5, shift_jis or euc_kr",
            sep="; ",
        ) from None


def _not_decodable(path: Path, name: str, base: int, error: UnicodeDecodeError) -> DataError:
    byte = f"byte {base + error.start:,} (0x{error.object[error.start]:02X})"
    found = f"{display(path)} is not {name.upper()} at {byte}"
    if name != "utf-8":
        return DataError(f"{found}", "name its true encoding with --encoding", sep="; ")
    sample = error.object[max(0, error.start - 2000) : error.start + 2000]
    likely = _likely_encoding(sample)
    return DataError(
        f"{found}; it is probably {likely}",
        f"prepare it with --encoding {likely}, or save it as UTF-8",
    )


# Candidates for text that is not UTF-8: (name, stricter codec to try, first and last letter of its
# script, smallest share of letters in that range). Han comes last: most East Asian codecs decode
# random bytes to Han.
_SCRIPTS = (
    ("cp1251", "cp1251", "\u0430", "\u044f", 0.7),  # lower-case Cyrillic
    ("koi8_r", "koi8_r", "\u0430", "\u044f", 0.7),
    ("shift_jis", "shift_jis", "\u3040", "\u30ff", 0.3),  # kana
    ("euc_jp", "euc_jp", "\u3040", "\u30ff", 0.3),
    ("euc_kr", "euc_kr", "\uac00", "\ud7a3", 0.8),  # Hangul
    ("gb18030", "gb2312", "\u4e00", "\u9fff", 0.7),  # Han
    ("big5", "big5", "\u4e00", "\u9fff", 0.7),
)


def _likely_encoding(sample: bytes) -> str:
    """The encoding in which a sample's bytes above 127 look like text; cp1252 if none fits."""
    if sum(byte > 127 for byte in sample) < 0.25 * len(sample):
        return "cp1252"  # single accented letters between ASCII ones
    for name, codec, first, last, least in _SCRIPTS:
        letters = [c for c in sample.decode(codec, errors="replace") if c > "\x7f"]
        share = sum(first <= c <= last for c in letters) / max(1, len(letters))
        if share >= least:
            return name
    return "cp1252"
