"""What a file is by its first bytes, and its bytes as they were before compression."""

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from gptlab.errors import DataError
from gptlab.files import display, quoted

_COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_ZSTD = b"\x28\xb5\x2f\xfd"
_COMPRESSED_SUFFIXES = {".gz", ".bz2", ".xz", ".zst"}
FOREIGN = (
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


class NotTextError(DataError):
    """A file that holds no text. In a folder it is left out; named alone it is refused."""

    def __init__(self, path: Path | str, what: str, cure: str = "save it as plain text first"):
        self.what = what
        name = path if isinstance(path, str) else display(path)
        super().__init__(
            f"{name} is {what}, but gptlab reads plain text, HTML, notebooks, subtitles, mail, "
            "EPUB, Word, OpenDocument, PDF, RTF, JSON, CSV and Parquet, also in .zip, .tar, .gz, "
            ".bz2, .xz and .zst",
            cure,
            sep="; ",
        )


def file_suffix(path: Path) -> str:
    """The end of a file's name, in lower case, without those of compression: ".csv", or ""."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _COMPRESSED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


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
            self._packed = self._packed or self._raw.read(512)
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


def read_bytes(file, name: str, size: int) -> bytes:
    """The next bytes of a decompressed file; raises DataError for damage, by its name."""
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
        return (
            "tar" if read_bytes(decompressed(raw, name), name, 512)[257:262] == b"ustar" else None
        )


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
    TypeError,
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


def with_way_out(documents: Iterator[Iterable[str]], path: str) -> Iterator[Iterable[str]]:
    """The documents of one file among several; their errors say how to leave that file out."""

    def blocks(document: Iterable[str]) -> Iterator[str]:
        with naming_way_out(path):
            yield from document

    with naming_way_out(path):
        for document in documents:
            yield blocks(document)


@contextlib.contextmanager
def naming_way_out(path: str) -> Iterator[None]:
    """Errors about one file among several say how to leave that file out."""
    try:
        yield
    except DataError as error:
        name = PurePosixPath(path).name
        if not error.fix or "--exclude" in error.fix or set(name) & set("[]*?,"):
            raise
        way = f"{error.fix}, or leave the file out with --exclude {quoted(name)}"
        raise DataError(error.problem, way, sep="; ") from None
