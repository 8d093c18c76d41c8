"""Read files as text: compression, encodings, byte-order marks, line ends, and rows as documents.

`Reading.counts` counts whatever is changed or left out.
"""

import bz2
import codecs
import contextlib
import errno
import fnmatch
import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from gptlab.data.messages import (
    ConversationCounts,
    FoundConversation,
    NoConversationError,
    conversation_of,
)
from gptlab.errors import ConfigError, DataError
from gptlab.files import display, quoted

BLOCK_BYTES = 1 << 20
_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_ZSTD = b"\x28\xb5\x2f\xfd"
_COMPRESSED_SUFFIXES = {".gz", ".bz2", ".xz", ".zst"}
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
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"{\\rtf", "an RTF document"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3", "an SQLite database"),
)
FOREIGN_SUFFIXES = {
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
    ".tab": "csv",
    ".parquet": "parquet",
}


_NOT_CONTROL = bytes(set(range(32, 256)) - {127} | set(b"\t\n\f\r\b\x1b"))


class NotTextError(DataError):
    """A file that holds no text. In a folder it is left out; named alone it is refused."""

    def __init__(self, path: Path | str, what: str, cure: str = "save it as plain text first"):
        self.what = what
        name = path if isinstance(path, str) else display(path)
        super().__init__(
            f"{name} is {what}, but gptlab reads plain text, HTML, notebooks, subtitles, EPUB, "
            "JSON, CSV and Parquet, also in .zip, .tar, .gz, .bz2, .xz and .zst",
            cure,
            sep="; ",
        )


@dataclass
class Reading:
    """How to read the files of a corpus, and what happened while reading.

    encoding: Python's name; None means UTF-8, or UTF-16 or UTF-32 after a byte-order mark. column:
    the field of a table that holds the text, several of them as `title,body`, or a pattern such as
    `{title}\\n{body}`. counts: {description of a change or omission: how often}. progress: called
    with the bytes read since the last call. document: the place of the newest document, as in
    `documents.Origin`. conversations: documents so far that hold messages. header, delimiter,
    quoting: of CSV files, "auto" where the content decides. max_bad_rows: the share of a table's
    rows that may be skipped because they are damaged. exclude: patterns of names. note: called
    with each message for the user. rows, bad_rows, first_bad: of the table that is being read.
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
    header: str = "auto"
    delimiter: str = "auto"
    quoting: str = "auto"
    max_bad_rows: float = 0.01
    exclude: tuple[str, ...] = ()
    note: Callable[[str], None] = lambda _: None
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
            self.counts["odd rows skipped"] += self.bad_rows
            others = f" and {self.bad_rows - 1:,} other rows" if self.bad_rows > 1 else ""
            self.note(f"Skipped, of {self.rows:,} rows: {self.first_bad.problem}{others}.")

    def _too_many_bad_rows(self) -> DataError:
        first = self.first_bad or DataError("The rows of the table cannot be read.")
        if self.bad_rows >= self.rows:
            return first
        share = min(100, int(100 * self.bad_rows / self.rows) + 1)
        others = f", and {self.bad_rows - 1:,} other rows" if self.bad_rows > 1 else ""
        return DataError(
            f"{first.problem}{others} of {self.rows:,}",
            f"{first.fix or 'mend that line'}, or skip such rows with --max_bad_rows {share}%",
            sep="; ",
        )


def file_suffix(path: Path) -> str:
    """The end of a file's name, in lower case, without those of compression: ".csv", or ""."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


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
        head = _read(decompressed(raw, name), name, size)
    encoding, mark = _sniff(name, head, encoding)
    decoder, is_whole = codecs.getincrementaldecoder(encoding)("replace"), len(head) < size
    try:
        return decoder.decode(head[len(mark) :]).replace("\0", ""), is_whole
    except UnicodeError:  # a codec that needs a byte-order mark
        return "", is_whole


def first_bytes(path: Path, size: int) -> bytes:
    """The first bytes of a file as they lie on the disk."""
    with open(path, "rb") as raw:
        return raw.read(size)


def archive_kind(path: Path, name: str = "") -> str | None:
    """ "zip" or "tar" (as it is or compressed) by a file's first bytes, or None."""
    name = name or display(path)
    with open(path, "rb") as raw:
        if raw.read(4) in (b"PK\x03\x04", b"PK\x05\x06"):
            return "zip"
        raw.seek(0)
        return "tar" if _read(decompressed(raw, name), name, 512)[257:262] == b"ustar" else None


# What the modules that unpack files raise for damage, beside an OSError.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    KeyError,
    ValueError,
)


@contextlib.contextmanager
def naming_damage(name: str, what: str, cure: str = "fetch it again") -> Iterator[None]:
    """Turn the errors of a damaged file into a DataError: `name` is `what`."""
    try:
        yield
    except (*_DAMAGE, OSError) as error:
        # gzip and bz2 raise an OSError without a number, zipfile seeks to places that are none
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} is {what} ({reason})", cure, sep="; ") from None


def utf8_kind(path: Path, name: str = "") -> str:
    """ "ascii", "utf-8" (valid, with characters beyond ASCII) or "other", by the whole file."""
    name = name or display(path)
    decoder, kind = codecs.getincrementaldecoder("utf-8")(), "ascii"
    with open(path, "rb") as raw:
        file = decompressed(raw, name)
        try:
            while block := _read(file, name, BLOCK_BYTES):
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
    name, wanted = name or display(path), reading.encoding
    if wanted is not None and is_foreign_to_utf8(wanted) and utf8_kind(path, name) == "utf-8":
        reading.counts[f"files read as the UTF-8 that they are, not as {wanted}"] += 1
        wanted = None
    with open(path, "rb") as raw:
        file = decompressed(raw, name)
        block = _read(file, name, BLOCK_BYTES)
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
            block = _read(file, name, BLOCK_BYTES)


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


def documents_of_rows(rows: Iterable[tuple[str, object]], reading: Reading) -> Iterator[str]:
    """The text of each row; rows whose text is null or missing are skipped and counted.

    A row is a dict, the text itself, or the DataError of a row that cannot be read. The text of a
    conversation is its messages as JSON. Rows that lack the field of the text, or whose field does
    not hold text, are odd; raises DataError if there are more of those than may be skipped.
    """
    reading.rows, reading.bad_rows, reading.first_bad = 0, 0, None
    for place, row in rows:
        reading.document = (place, 0)
        reading.rows += 1
        try:
            if isinstance(row, DataError):
                raise row
            text = _text_of_row(place, row, reading)
        except DataError as error:
            reading.skip_row(error)
            continue
        if text is not None:
            yield text
    reading.end_of_table()


def _text_of_row(place: str, row: object, reading: Reading) -> str | None:
    """The text of one row, or None for a row without; raises DataError for an odd row."""
    if isinstance(row, dict):
        if not row:
            reading.counts["empty rows skipped"] += 1
            return None
        if (found := _conversation_of_row(place, row, reading)) is not None:
            if not found.messages:
                reading.counts["conversations without text skipped"] += 1
                return None
            reading.chats.add(found)
            reading.conversations += 1
            return _without_escaped_nul(found.to_json(), reading.counts)
        names = text_columns(list(row), reading.column, place)
        if len(names) > 1 or is_pattern(reading.column, list(row)):
            return _joined(row, names, reading, place)
        (name,) = names
        row = row[name]
        place = f"{place}, field {name!r},"
    if isinstance(row, list):
        row = _text_of_pieces(row)
    if row is None:
        reading.counts["rows without text skipped"] += 1
        return None
    if isinstance(row, str):
        return row
    raise DataError(
        f"{place} holds {type(row).__name__}, not text",
        "name a field of text with --column",
        sep="; ",
    )


def _conversation_of_row(place: str, row: dict, reading: Reading) -> FoundConversation | None:
    """The conversation that a row holds, None if it holds none; raises for one that is unfit."""
    found = conversation_of(row, reading.column, place, reading.keep_line_endings)
    if found is not None and found.messages:
        reading.fits(found, place)
    elif found is None and reading.conversations and reading.column is None and "text" not in row:
        fields = ", ".join(map(str, list(row)[:20]))
        raise NoConversationError(f"{place} has no messages: its fields are {fields}")
    return found


def _text_of_pieces(value: list) -> object:
    """The text of a list of pieces, strings and {"text": ...} for what is formatted, as Telegram
    exports it; any other list as it is."""
    pieces = [piece.get("text") if isinstance(piece, dict) else piece for piece in value]
    is_formatted = any(isinstance(piece, dict) for piece in value)
    if is_formatted and all(isinstance(piece, str) for piece in pieces):
        return "".join(pieces)
    return value


def text_columns(fields: list[str], column: str | None, place: str) -> list[str]:
    """The fields that hold the text: those of `column`, else "text", else the only field.

    column: as in `Reading`. Raises DataError if there are no such fields.
    """
    wanted = [column] if column else ["text" if len(fields) != 1 else fields[0]]
    if column and column not in fields:
        if is_pattern(column, fields):
            wanted = list(dict.fromkeys(_PATTERN_FIELD.findall(column)))
        elif "," in column:
            wanted = [name.strip() for name in column.split(",") if name.strip()] or wanted
    for name in wanted:
        if name not in fields:
            raise DataError(
                f"{place} has no field {name!r}: its fields are {', '.join(map(str, fields[:20]))}",
                "name the one that holds the text with --column, or several as --column a,b",
                sep="; ",
            )
    return wanted


_PATTERN_FIELD = re.compile(r"\{([^{}]+)\}")
# after an even number of backslashes: those before it escape each other
_ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}


def is_pattern(column: str | None, fields: list[str]) -> bool:
    """Whether `--column` is a pattern of fields in braces, not the name of a field."""
    return bool(column and column not in fields and _PATTERN_FIELD.search(column))


def _joined(row: dict, names: list[str], reading: Reading, place: str) -> str | None:
    """Several fields of a row as one text; None if none of them holds any."""
    values = {}
    for name in names:
        value = row[name]
        if isinstance(value, (int, float)):
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"{place}, field {name!r}, holds {type(value).__name__}, not text",
                "name fields of text with --column",
                sep="; ",
            )
        values[name] = value or ""
    missing = sum(not value for value in values.values())
    if missing == len(values):
        reading.counts["rows without text skipped"] += 1
        return None
    if is_pattern(reading.column, list(row)):
        if missing:
            reading.counts["fields of the pattern that are empty in a row"] += missing
        pattern = re.sub(r"\\[nt\\]", lambda match: _ESCAPES[match[0]], reading.column or "")
        return _PATTERN_FIELD.sub(lambda match: values[match[1]], pattern)
    return "\n".join(filter(None, values.values()))


def some(names: list[str]) -> str:
    """The first three of several names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _without_nul(text: str, counts: Counter) -> str:
    if "\0" in text:
        counts["NUL characters removed"] += text.count("\0")
        text = text.replace("\0", "")
    return text


def _without_escaped_nul(content: str, counts: Counter) -> str:
    """JSON without NUL in its texts, which it holds as an escape."""
    content, removed = _ESCAPED_NUL.subn(r"\1", content)
    if removed:
        counts["NUL characters removed"] += removed
    return content


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


def decompressed(raw, name: str):
    """A binary file, decompressed if its first bytes show that it is compressed."""
    start = raw.read(8)
    raw.seek(0)
    for magic, opener in _COMPRESSED.items():
        if start.startswith(magic):
            return opener(raw, "rb")
    return _zstd(raw, name) if start.startswith(_ZSTD) else raw


def _zstd(raw, name: str):
    """The content of a zstd file; raises NotTextError where no package can read it."""
    try:
        import zstandard
    except ImportError:
        raise NotTextError(
            name,
            "compressed with zstd",
            f"install the package zstandard, or unpack it with `zstd -d {quoted(name)}`",
        ) from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    return io.BufferedReader(_ZstdFrames(raw, decompressor), 1 << 16)


class _ZstdFrames(io.RawIOBase):
    """The content of all frames of a zstd file; EOFError where the last one is cut.

    (The package's own stream reader ends in silence there.)
    """

    def __init__(self, raw, decompressor):
        self._raw, self._decompressor = raw, decompressor
        self._frame, self._packed, self._ready = None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            # small pieces: 4 bytes of zstd can hold 128 kB
            self._packed = self._packed or self._raw.read(2048)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends before the end-of-stream marker")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._ready = self._frame.decompress(self._packed)
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def _read(file, name: str, size: int) -> bytes:
    try:
        return file.read(size)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if getattr(error, "errno", None) is not None:  # bz2 and gzip raise an OSError without it
            raise
        reason = str(error)
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # of a package that may not be there
            raise
        reason = str(error)
    raise DataError(f"{name} is a damaged compressed file ({reason})", "fetch it again", sep="; ")


def _sniff(name: str, head: bytes, encoding: str | None) -> tuple[str, bytes]:
    """(encoding, byte-order mark) of a text that begins with `head`; NotTextError if not text."""
    if encoding is not None:
        known = _known_encoding(encoding)
        marks = [mark for mark, of in _MARKS if _known_encoding(of) == known]
        return known, next((mark for mark in marks if head.startswith(mark)), b"")
    for mark, of in _MARKS:
        if head.startswith(mark):
            return of, mark
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise NotTextError(name, what)
    if head[257:262] == b"ustar":
        raise NotTextError(name, "a tar archive", "unpack it and name the folder")
    head = head[: 1 << 16]
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


def is_foreign_to_utf8(encoding: str) -> bool:
    """Whether text in this encoding, beyond ASCII, is hardly ever valid UTF-8."""
    return not _known_encoding(encoding).startswith(("utf", "ascii"))


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


def _not_decodable(name: str, encoding: str, base: int, error: UnicodeDecodeError) -> DataError:
    byte = f"byte {base + error.start:,} (0x{error.object[error.start]:02X})"
    found = f"{name} is not {encoding.upper()} at {byte}"
    if encoding != "utf-8":
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
