"""Sources of text: a corpus by name, files, folders, globs, tables, and `hf:` streams."""

import contextlib
import dataclasses
import hashlib
import os
import re
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gptlab.data import archives, forms, hub, shakespeare, text_files
from gptlab.data.encodings import is_foreign_to_utf8
from gptlab.data.forms import Form
from gptlab.data.found_files import FoundFiles
from gptlab.data.opening import NotTextError, file_suffix, naming_way_out, with_way_out
from gptlab.data.rows import documents_of_rows
from gptlab.data.text_files import Reading
from gptlab.errors import ConfigError, DataError
from gptlab.files import display, printable, sha256_file


@dataclass(frozen=True)
class SourceFile:
    """One input file and the form that it was found to have; name: for messages."""

    path: Path
    form: Form
    bytes: int
    mtime_ns: int
    sha256: str
    name: str
    is_pipe: bool = False

    @property
    def origin(self) -> str:
        """What names it in records: its full path, or "stdin" and the like for a pipe."""
        return self.name if self.is_pipe else printable(self.path.resolve())


@dataclass(frozen=True)
class Source:
    """A corpus that was found.

    name: the default name of the dataset. identity: equal for two sources in the same place,
    whatever their content. label: for messages. files: in an order that depends only on their
    content. hub_name: set instead of files for an `hf:` source. rows: of it,
    None for all of them.
    """

    name: str
    identity: str
    label: str
    files: tuple[SourceFile, ...] = ()
    hub_name: str | None = None
    rows: hub.Rows | None = None
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
            rows = self.rows or hub.Rows(self.hub_name)
            for text in documents_of_rows(rows, reading):
                yield text_files.clean([text], reading)
                reading.progress(len(text))
        for file in self.files:
            args = reading, file.name, file.origin
            if file.form.kind in ("zip", "tar"):
                found = archives.documents_of_members(file.path, file.form.kind, *args)
            else:
                found = forms.documents_of_file(file.path, file.form, *args)
            is_one = len(self.files) == 1
            yield from found if is_one else with_way_out(found, file.path.as_posix())


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
    with contextlib.ExitStack() as copies:
        found = FoundFiles(note, copies, how)
        for word in words:
            found.add(word)
        source = _source(words, found, note, progress, how)
        weakref.finalize(source, copies.pop_all().close)  # the copies last as long as the source
    return source


def _source(
    words: list[str],
    found: FoundFiles,
    note: Callable[[str], None],
    progress: Callable[[int], None],
    how: Reading,
) -> Source:
    """The source that these files are, each looked into."""
    alone = len(words) == 1 and not found.folders
    files, left_out, seen = [], found.left_out, set()
    for path in found.paths:
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        pipe = found.pipes.get(path)
        name = pipe or display(path)
        try:
            form = forms.find_form(path, how, name)
            if form.kind in ("zip", "tar"):
                archives.check_archive(path, form.kind, name)
        except NotTextError as error:
            if alone:
                raise
            left_out.append(f"{name} ({error.what})")
            continue
        except DataError:
            if alone:
                raise
            with naming_way_out(path.as_posix()):
                raise
        files.append(_source_file(path, form, progress, name, pipe is not None))
    if not files:
        what = ", ".join(map(printable, words))
        raise DataError(
            f"{what} holds no text: "
            + (f"only {text_files.some(left_out)}." if left_out else "it is empty.")
        )
    if left_out:
        total = len(found.paths) + found.broken
        note(f"Left out {len(left_out)} of {total} files (not text): {text_files.some(left_out)}.")
    files = _read_as_they_are(files, how, note)
    files.sort(key=lambda file: (file.sha256, file.form.key))
    _check_options(files, how)
    _say_forms(files, note)
    if not alone:
        _say_names(files, note)
    counts = Counter({"files left out that are not text": len(left_out)})
    how.reported.add("files left out that are not text")
    identity = "\n".join(sorted(printable(Path(word).resolve()) for word in words))
    if found.pipes:  # what comes through a pipe is known by its content only
        identity = "\n".join(sorted(f"a pipe, {file.sha256[:16]}" for file in files))
    label = display(words[0]) if len(words) == 1 else f"{len(files)} files"
    if len(words) == 1 and found.pipes:
        label = files[0].name
    elif len(words) == 1 and len(files) > 1:
        label += f" ({len(files):,} files)"
    if len(files) == 1 and files[0].sha256 == shakespeare.TINY_SHA256:
        # the same text under another name: keep a copy, so that "shakespeare" needs no network
        shakespeare.remember(files[0].path)
        identity, label = "shakespeare", f"{label}, which is {shakespeare.TINY}"
    return Source(_derived_name(words), identity, label, tuple(files), counts=counts)


def _read_as_they_are(
    files: list[SourceFile], how: Reading, note: Callable[[str], None]
) -> list[SourceFile]:
    """The files; JSON that is no list of texts (of programs) becomes text among other files."""
    if how.column is not None or len(files) == 1:
        return files
    changed, names = [], []
    for file in files:
        if file.form.kind == "json" and not forms.is_list_of_texts(file.path, how):
            names.append(file.name)
            file = dataclasses.replace(file, form=Form("text"))
        changed.append(file)
    if len(names) == len(files):  # reading them says which fields they have
        return files
    if names:
        some = text_files.some(names)
        note(
            f"Read as plain text, because their JSON is not a list of texts: {some}; "
            "--exclude leaves files out by name."
        )
    return changed


def _check_options(files: Sequence[SourceFile], how: Reading) -> None:
    """Raise ConfigError for an option on how to read files that has no effect on any of these."""
    _check_encoding(files, how.encoding)
    kinds = {file.form.kind for file in files}
    if how.exclude and not how.counts["files and folders left out by --exclude"]:
        if not kinds & {"zip", "tar"}:
            raise ConfigError("exclude has no effect: no file has such a name", "leave it out")
    if kinds & {"zip", "tar"}:  # their members show it only when they are read
        return
    one = files[0].name + (" and others" if len(files) > 1 else "")
    found = "plain text" if kinds == {"text"} else " and ".join(sorted(kinds))
    if how.column is not None and not any(file.form.is_table for file in files):
        raise ConfigError(f"column has no effect: {one} is read as {found}", "leave it out")
    has_effect = {"auto": True, "drop": "tagless" in kinds}
    has_effect["keep"] = how.counts["files of HTML or XML read with their tags"]
    if not has_effect[how.tags]:
        problem = f"tags {how.tags} has no effect: {one} is read as {found}"
        raise ConfigError(problem, "leave it out")
    given = [n for n in ("header", "delimiter", "quoting") if getattr(how, n) != "auto"]
    if given and "csv" not in kinds:
        raise ConfigError(
            f"{given[0]} is for CSV and TSV files: {one} is read as {found}", "leave it out"
        )


def _check_encoding(files: Sequence[SourceFile], encoding: str | None) -> None:
    """Raise ConfigError for an encoding that would only damage what is valid UTF-8."""
    if encoding is None or not is_foreign_to_utf8(encoding):
        return
    kinds = {}
    for file in files:
        if file.form.kind not in ("parquet", "zip", "tar"):
            kinds.setdefault(text_files.utf8_kind(file.path, file.name), file.name)
    if "utf-8" in kinds and "other" not in kinds:
        raise ConfigError(
            f"encoding {encoding} would damage {kinds['utf-8']}, which is valid UTF-8",
            "leave --encoding out",
        )


def _say_forms(files: Sequence[SourceFile], note: Callable[[str], None]) -> None:
    """Say how the content of CSV files was understood, each way once."""
    ways: dict[str, list[SourceFile]] = {}
    for file in files:
        if file.form.dialect is not None:
            ways.setdefault(str(file.form.dialect), []).append(file)
    for way, found in ways.items():
        one = found[0].name
        many = f" and others ({len(found):,} files)" if len(found) > 1 else ""
        note(f"Read {one}{many} as {way}. --delimiter, --header and --quoting change that.")


def _say_names(files: Sequence[SourceFile], note: Callable[[str], None]) -> None:
    """Say which kinds of files are read as plain text, where their names are of several kinds."""
    kinds = Counter(
        file_suffix(file.path) or "without a suffix" for file in files if file.form.kind == "text"
    )
    if len(kinds) > 1:
        named = [f"{number:,} {kind}" for kind, number in kinds.most_common(8)]
        more = f" and {len(kinds) - 8:,} other kinds" if len(kinds) > 8 else ""
        note(f"Read as plain text: {', '.join(named)}{more}; --exclude leaves files out by name.")


def _source_file(
    path: Path,
    form: Form,
    progress: Callable[[int], None],
    name: str = "",
    is_pipe: bool = False,
) -> SourceFile:
    stat, digest = path.stat(), sha256_file(path, progress)
    name = name or display(path)
    return SourceFile(path, form, stat.st_size, stat.st_mtime_ns, digest, name, is_pipe)


def _derived_name(words: Sequence[str]) -> str:
    """A dataset's default name: the file's stem or the folder's name."""
    if len(words) == 1:
        path = Path(words[0]).expanduser()
        if path.is_file():
            return dataset_name(path.resolve().name.split(".")[0])
        if path.is_dir():
            return dataset_name(path.resolve().name)
        if words[0] in ("-", "/dev/stdin"):
            return "stdin"
        if path.exists():
            return "pipe"
    plain = [re.split(r"[*?\[]", word)[0] for word in words]
    folder = os.path.commonpath([os.path.abspath(word or ".") for word in plain])
    return dataset_name(Path(folder if os.path.isdir(folder) else os.path.dirname(folder)).name)


def dataset_name(word: str) -> str:
    """A word turned into a folder name: letters, digits, `-`, `_` and `.`, not hidden."""
    return re.sub(r"[^\w.-]+", "_", word).strip("._") or "text"
