"""Sources of text: a corpus by name, files, folders, globs, tables, and `hf:` streams."""

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptlab.data import hub, shakespeare, text_files
from gptlab.data.text_files import NotTextError, Reading
from gptlab.errors import DataError
from gptlab.files import display, sha256_file

_ROWS = {
    "jsonl": text_files.jsonl_rows,
    "csv": text_files.csv_rows,
    "parquet": text_files.parquet_rows,
}

# The corpora known by name, each with its description for --list.
KNOWN = {"shakespeare": "tiny Shakespeare, 1.1 MB (or 38 plays, 4.8 MB, from a package index)"}


@dataclass(frozen=True)
class SourceFile:
    """One input file; format: as returned by `text_files.file_format`."""

    path: Path
    format: str
    bytes: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """A corpus that was found.

    name: the default name of the dataset. identity: equal for two sources in the same place,
    whatever their content. label: for messages. files: in an order that depends only on their
    content. hub_name: set instead of files for an `hf:` source.
    """

    name: str
    identity: str
    label: str
    files: tuple[SourceFile, ...] = ()
    hub_name: str | None = None
    counts: Counter = field(default_factory=Counter)

    @property
    def bytes(self) -> int | None:
        """Size of the input files; None for a stream."""
        return None if self.hub_name else sum(file.bytes for file in self.files)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the content of the input; for a stream, over its name."""
        digest = hashlib.sha256((self.hub_name or "").encode())
        for file in self.files:
            digest.update(f"{file.format}:{file.sha256}\n".encode())
        return digest.hexdigest()

    def documents(self, reading: Reading) -> Iterator[Iterable[str]]:
        """Each document as blocks of clean text."""
        if self.hub_name:
            for text in text_files.documents_of_rows(hub.rows(self.hub_name), reading):
                yield text_files.clean([text], reading)
                reading.progress(len(text))
        for file in self.files:
            if file.format == "text":
                reading.document = (str(file.path.resolve()), 1)
                yield text_files.clean(text_files.text_blocks(file.path, reading), reading)
                continue
            rows = _ROWS[file.format](file.path, reading)
            for text in text_files.documents_of_rows(rows, reading):
                yield text_files.clean([text], reading)


def find(
    words: Sequence[str],
    encoding: str | None,
    note: Callable[[str], None],
    progress: Callable[[int], None] = lambda _: None,
) -> Source:
    """The source that these words of a command line name; progress is called with bytes hashed.

    note: called with each message for the user. Raises DataError for a source that does not exist
    or holds no text, DownloadError for one that cannot be downloaded.
    """
    words = list(words) or ["shakespeare"]
    if words == ["shakespeare"] and not Path("shakespeare").exists():
        path = shakespeare.shakespeare_file(note)
        label = shakespeare.name_source(path)
        return Source("shakespeare", "shakespeare", label, (_source_file(path, "text", progress),))
    if len(words) == 1 and words[0].startswith("hf:"):
        name = hub.HubName.parse(words[0])
        return Source(name.short, words[0], f"{words[0]}, streamed", hub_name=words[0])
    if any(word.startswith("hf:") for word in words):
        raise DataError(
            "An hf: name cannot be combined with other sources", "prepare it by itself", sep="; "
        )
    paths, alone = _paths(words), len(words) == 1 and Path(words[0]).is_file()
    files, left_out, seen = [], [], set()
    for path in paths:
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        try:
            kind = text_files.file_format(path)
            text_files.check_is_text(path, encoding)
        except NotTextError as error:
            if alone:
                raise
            left_out.append(f"{display(path)} ({error.what})")
            continue
        files.append(_source_file(path, kind, progress))
    if not files:
        what = ", ".join(words)
        raise DataError(
            f"{what} holds no text: " + (f"only {_some(left_out)}." if left_out else "it is empty.")
        )
    if left_out:
        note(f"Left out {len(left_out)} of {len(paths)} files (not text): {_some(left_out)}.")
    files.sort(key=lambda file: (file.sha256, file.format))
    counts = Counter({"files left out that are not text": len(left_out)})
    identity = "\n".join(sorted(str(Path(word).resolve()) for word in words))
    label = display(words[0]) if len(words) == 1 else f"{len(files)} files"
    if len(words) == 1 and len(files) > 1:
        label += f" ({len(files):,} files)"
    if len(files) == 1 and files[0].sha256 == shakespeare.TINY_SHA256:
        # the same text under another name: keep a copy, so that "shakespeare" needs no network
        shakespeare.remember(files[0].path)
        identity, label = "shakespeare", f"{label}, which is {shakespeare.TINY}"
    return Source(_derived_name(words), identity, label, tuple(files), counts=counts)


def _paths(words: Sequence[str]) -> list[Path]:
    """The files that the words name: a file, all files below a folder, or the matches of a glob."""
    paths = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                paths += [Path(folder) / name for name in names if not name.startswith(".")]
        elif path.exists():
            paths.append(path)
        elif glob.has_magic(word):
            found = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
            if not found:
                raise DataError(
                    f"No file matches {word}", "check the pattern and the folder", sep="; "
                )
            paths += found
        else:
            raise DataError(
                f"{word} does not exist",
                "name a text file, a folder, a pattern such as 'books/*.txt', a .jsonl, .csv or "
                f".parquet file, hf:OWNER/NAME, or one of the known corpora ({', '.join(KNOWN)})",
            )
    return [path for path in paths if path.is_file()]


def _source_file(path: Path, kind: str, progress: Callable[[int], None]) -> SourceFile:
    stat = path.stat()
    return SourceFile(path, kind, stat.st_size, stat.st_mtime_ns, sha256_file(path, progress))


def _derived_name(words: Sequence[str]) -> str:
    """A dataset's default name: the file's stem or the folder's name."""
    if len(words) == 1 and not glob.has_magic(words[0]):
        path = Path(words[0]).expanduser().resolve()
        return dataset_name(path.name.split(".")[0] if path.is_file() else path.name)
    plain = [re.split(r"[*?\[]", word)[0] for word in words]
    folder = os.path.commonpath([os.path.abspath(word or ".") for word in plain])
    return dataset_name(Path(folder if os.path.isdir(folder) else os.path.dirname(folder)).name)


def dataset_name(word: str) -> str:
    """A word turned into a folder name: letters, digits, `-`, `_` and `.`, not hidden."""
    return re.sub(r"[^\w.-]+", "_", word).strip("._") or "text"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
