"""Sources of text: a corpus by name, files, folders, globs, tables, and `hf:` streams."""

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptlab.data import forms, hub, shakespeare, text_files
from gptlab.data.forms import Form
from gptlab.data.text_files import NotTextError, Reading
from gptlab.errors import ConfigError, DataError
from gptlab.files import display, printable, sha256_file

# The corpora known by name, each with its description for --list.
KNOWN = {"shakespeare": "tiny Shakespeare, 1.1 MB (or 38 plays, 4.8 MB, from a package index)"}


@dataclass(frozen=True)
class SourceFile:
    """One input file and the form that it was found to have."""

    path: Path
    form: Form
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
            digest.update(f"{file.form.key}:{file.sha256}\n".encode())
        return digest.hexdigest()

    def documents(self, reading: Reading) -> Iterator[Iterable[str]]:
        """Each document as blocks of clean text."""
        if self.hub_name:
            for text in text_files.documents_of_rows(hub.rows(self.hub_name), reading):
                yield text_files.clean([text], reading)
                reading.progress(len(text))
        for file in self.files:
            name, origin = display(file.path), printable(file.path.resolve())
            yield from forms.documents(file.path, file.form, reading, name, origin)


def find(
    words: Sequence[str],
    encoding: str | None,
    note: Callable[[str], None],
    progress: Callable[[int], None] = lambda _: None,
    how: Reading | None = None,
) -> Source:
    """The source that these words of a command line name; progress is called with bytes hashed.

    note: called with each message for the user. how: how the files are to be read; its options
    decide what forms they are found to have. Raises DataError for a source that does not exist or
    holds no text, ConfigError for an option that has no effect on it, DownloadError for one that
    cannot be downloaded.
    """
    how = how or Reading(encoding)
    words = list(words) or ["shakespeare"]
    if words == ["shakespeare"] and not Path("shakespeare").exists():
        path = shakespeare.shakespeare_file(note)
        label = shakespeare.name_source(path)
        return Source(
            "shakespeare", "shakespeare", label, (_source_file(path, Form("text"), progress),)
        )
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
            form = forms.find_form(path, how)
        except NotTextError as error:
            if alone:
                raise
            left_out.append(f"{display(path)} ({error.what})")
            continue
        files.append(_source_file(path, form, progress))
    if not files:
        what = ", ".join(map(printable, words))
        raise DataError(
            f"{what} holds no text: " + (f"only {_some(left_out)}." if left_out else "it is empty.")
        )
    if left_out:
        note(f"Left out {len(left_out)} of {len(paths)} files (not text): {_some(left_out)}.")
    files.sort(key=lambda file: (file.sha256, file.form.key))
    _check_options(files, how)
    _say_forms(files, note)
    counts = Counter({"files left out that are not text": len(left_out)})
    identity = "\n".join(sorted(printable(Path(word).resolve()) for word in words))
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
                f"{printable(word)} does not exist",
                "name a text file, a folder, a pattern such as 'books/*.txt', a .jsonl, .csv or "
                f".parquet file, hf:OWNER/NAME, or one of the known corpora ({', '.join(KNOWN)})",
            )
    return [path for path in paths if path.is_file()]


def _check_options(files: Sequence[SourceFile], how: Reading) -> None:
    """Raise ConfigError for an option on how to read files that has no effect on any of these."""
    kinds = {file.form.kind for file in files}
    if kinds & {"zip", "tar"}:  # their members show it only when they are read
        return
    one = display(files[0].path) + (f" and {len(files) - 1:,} others" if len(files) > 1 else "")
    found = "plain text" if kinds == {"text"} else " and ".join(sorted(kinds))
    if how.column is not None and not any(file.form.is_table for file in files):
        raise ConfigError(f"column has no effect: {one} is read as {found}", "leave it out")
    given = [n for n in ("header", "delimiter", "quoting") if getattr(how, n) != "auto"]
    if given and "csv" not in kinds:
        raise ConfigError(
            f"{given[0]} is for CSV and TSV files: {one} is read as {found}", "leave it out"
        )


def _say_forms(files: Sequence[SourceFile], note: Callable[[str], None]) -> None:
    """Say how the content of CSV files was understood, each way once."""
    ways: dict[str, list[SourceFile]] = {}
    for file in files:
        if file.form.dialect is not None:
            ways.setdefault(str(file.form.dialect), []).append(file)
    for way, found in ways.items():
        one = display(found[0].path)
        many = f" and {len(found) - 1:,} others" if len(found) > 1 else ""
        note(f"Read {one}{many} as {way} (else: --delimiter, --header, --quoting).")


def _source_file(path: Path, form: Form, progress: Callable[[int], None]) -> SourceFile:
    stat = path.stat()
    return SourceFile(path, form, stat.st_size, stat.st_mtime_ns, sha256_file(path, progress))


def _derived_name(words: Sequence[str]) -> str:
    """A dataset's default name: the file's stem or the folder's name."""
    if len(words) == 1 and (not glob.has_magic(words[0]) or os.path.exists(words[0])):
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
