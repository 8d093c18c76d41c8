"""Members of zip and tar archives as documents, one after the other through a temporary file.

Nothing is written under a member's name. No more than one member lies unpacked at a time, and one
of an archive inside the archive.
"""

import functools
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from gptlab.data import forms, text_files
from gptlab.data.forms import Form
from gptlab.data.opening import (
    NotTextError,
    decompressed,
    file_suffix,
    naming_damage,
    with_way_out,
)
from gptlab.data.text_files import Reading
from gptlab.errors import DataError
from gptlab.files import printable

# What is in a zip that is no archive of texts: (name of a member, what it is then).
_FOREIGN_MEMBERS = (
    ("[Content_Types].xml", "an Office document"),
    ("META-INF/manifest.xml", "an OpenDocument file"),
    ("META-INF/MANIFEST.MF", "a Java archive"),
    ("AndroidManifest.xml", "an Android package"),
)
_DAMAGED = "a damaged archive"
_DEEPEST = 1  # archives inside archives are read, those inside them are not
_TABLES = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".tab", ".parquet"}
# A member that unpacks to more than this, at more than this ratio, is a bomb and no text.
_BOMB_BYTES, _BOMB_RATIO = 1 << 28, 200


@dataclass(frozen=True)
class _Member:
    """name: in the archive. packed: its bytes there. content: None where it cannot be read."""

    name: str
    packed: int
    content: IO[bytes] | None
    why_not: str = ""


def check_archive(path: Path, kind: str, name: str) -> None:
    """Raise NotTextError for a zip that is another kind of document, DataError for damage."""
    if kind != "zip":
        return
    with naming_damage(name, _DAMAGED), zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    for member, what in _FOREIGN_MEMBERS:
        if member in names:
            raise NotTextError(name, what)


def documents_of_members(
    path: Path, kind: str, reading: Reading, name: str, origin: str
) -> Iterator[Iterable[str]]:
    """Each document of each member of an archive; says which members are left out.

    name, origin: of the archive, as in `forms.documents_of_file`. Raises DataError for damage
    and for an archive without any text.
    """
    walk = _Walk(reading, path, kind, name)
    progress = reading.progress
    reading.progress = lambda _: None  # counts what is unpacked; the archive is what is measured
    try:
        yield from walk.documents(path, kind, name, origin, progress)
    finally:
        reading.progress = progress
    some = text_files.some(walk.left_out)
    if not walk.read:
        raise DataError(f"{name} holds no text: " + (f"only {some}." if some else "it is empty."))
    if walk.left_out:
        what = "members of archives left out that are not text"
        reading.tell(what, len(walk.left_out), f"Left out of {name}: {some}.")
    if walk.programs:
        some = text_files.some(walk.programs)
        reading.note(f"Read as plain text, because their JSON is not a list of texts: {some}.")


class _Walk:
    """Goes through the members of an archive, and of the archives in it.

    read: members so far. left_out: names with reasons. programs: JSON that is no list of texts.
    """

    def __init__(self, reading: Reading, path: Path, kind: str, name: str):
        self.read, self.left_out, self.programs = 0, [], []
        self._reading, self._ways, self._prefix = reading, set(), f"{name}/"
        self._archive = path, kind, name

    def documents(
        self,
        path: Path,
        kind: str,
        name: str,
        origin: str,
        progress: Callable[[int], None] = lambda _: None,
        depth: int = 0,
    ) -> Iterator[Iterable[str]]:
        """Each document of an archive; progress is called with the bytes done of it."""
        for member in _members(path, kind, name):
            if self._reading.excludes(member.name):
                continue
            shown = f"{name}/{member.name}"  # no member's name is used as a path
            with tempfile.TemporaryDirectory(
                prefix="gptlab-", ignore_cleanup_errors=True
            ) as inside:
                suffixes = "".join(PurePosixPath(member.name).suffixes[-2:])
                copy = Path(inside) / f"member{suffixes[-40:]}"
                where = shown, f"{origin}/{member.name}"
                form = self._form(member, copy, shown, depth)
                if form is None:
                    pass
                elif form.kind in ("zip", "tar"):
                    yield from self.documents(copy, form.kind, *where, depth=depth + 1)
                else:
                    self.read += 1
                    self._reading.counts["members of archives read"] += 1
                    found = forms.documents_of_file(copy, form, self._reading, *where)
                    yield from with_way_out(found, member.name)
            progress(member.packed)

    def _form(self, member: _Member, copy: Path, shown: str, depth: int) -> Form | None:
        """Write a member to `copy` and say what it is; None for one that is not read."""
        try:
            form = _unpacked(member, copy, shown, self._reading)
            if form is not None and form.kind in ("zip", "tar"):
                if depth == _DEEPEST:
                    raise NotTextError(shown, "an archive inside an archive in an archive")
                archives = "archives in archives read"
                check_archive(copy, form.kind, shown)
                self._reading.counts[archives] += 1
        except NotTextError as error:
            self.left_out.append(f"{shown.removeprefix(self._prefix)} ({error.what})")
            return None
        if form is not None and form.kind == "json" and self._has_texts:
            if self._reading.column is None and not forms.is_list_of_texts(copy, self._reading):
                self.programs.append(shown)
                form = Form("text")
        if form is not None and form.dialect is not None and str(form.dialect) not in self._ways:
            self._ways.add(str(form.dialect))
            self._reading.note(f"Read {shown} as {form.dialect}.")
        return form

    @functools.cached_property
    def _has_texts(self) -> bool:
        """Whether some members are no tables, by their names."""
        names = (Path(member.name) for member in _members(*self._archive))
        return any(file_suffix(name) not in _TABLES for name in names)


def _unpacked(member: _Member, copy: Path, shown: str, reading: Reading) -> Form | None:
    """Write the member to `copy` and say what it is; None for an empty one.

    Raises NotTextError for a member that cannot be read as text.
    """
    if member.content is None:
        raise NotTextError(shown, member.why_not)
    with (
        naming_damage(shown, _DAMAGED),
        member.content as source,
        open(copy, "wb") as target,
    ):
        shutil.copyfileobj(source, target, text_files.BLOCK_BYTES)
    return forms.find_form(copy, reading, shown) if copy.stat().st_size else None


def _members(path: Path, kind: str, name: str) -> Iterator[_Member]:
    """The members that may hold text, in the order of the archive."""
    with naming_damage(name, _DAMAGED):
        yield from _zip_members(path) if kind == "zip" else _tar_members(path, name)


def _zip_members(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir() or _is_hidden(info.filename):
                continue
            packed, why_not = info.compress_size, ""
            if info.flag_bits & 1:
                why_not = "encrypted with a password"
            elif info.file_size > _BOMB_BYTES and info.file_size > _BOMB_RATIO * max(1, packed):
                why_not = f"{info.file_size / 1e9:.1f} GB packed into {packed:,} bytes"
            elif info.external_attr >> 28 == 0xA:  # as Unix writes it
                why_not = "a link"
            content = None if why_not else archive.open(info)
            yield _Member(printable(info.filename), packed, content, why_not)


def _tar_members(path: Path, name: str) -> Iterator[_Member]:
    with open(path, "rb") as raw:
        before = 0
        with tarfile.open(fileobj=decompressed(raw, name), mode="r|", errorlevel=1) as archive:
            for info in archive:
                if info.isdir() or _is_hidden(info.name):
                    continue
                packed, before = raw.tell() - before, raw.tell()
                content = archive.extractfile(info) if info.isreg() else None
                why_not = (
                    "" if content else "a link" if info.issym() or info.islnk() else "a device"
                )
                yield _Member(printable(info.name), packed, content, why_not)


def _is_hidden(member: str) -> bool:
    parts = PurePosixPath(member).parts
    return "__MACOSX" in parts or any(part.startswith(".") and part != "." for part in parts)
