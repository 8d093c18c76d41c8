"""The folder of a dataset: how a new version takes its place, and where older ones stay.

A run goes on with the tokens that it began with. A version that is replaced therefore stays below
`versions/`, under the beginning of its fingerprint, until nothing needs it. Its files are hard
links: they are never moved, so a kill at any moment loses none.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from gptlab.data.token_shards import has_tokens
from gptlab.files import link_or_copy, out_home, remove_folder

FOLDER = "versions"
RUNS = "runs.txt"  # the runs outside out/ that began with the dataset, a path a line
_NAME_LENGTH = 16  # hex digits of the fingerprint


def version_folder(folder: Path, fingerprint: str) -> Path:
    """Where the version of a dataset that has this fingerprint stays once it is replaced."""
    return folder / FOLDER / fingerprint[:_NAME_LENGTH]


def older_versions(folder: Path) -> list[Path]:
    """The folders of the versions that a dataset's newest one has replaced."""
    return sorted(path for path in (folder / FOLDER).glob("*") if has_tokens(path))


def forget_versions(folder: Path, needed: Collection[str]) -> list[Path]:
    """Delete the older versions but for those with these fingerprints; returns what was deleted."""
    kept = {version_folder(folder, fingerprint) for fingerprint in needed}
    gone = [path for path in older_versions(folder) if path not in kept]
    for path in gone:
        remove_folder(path)
    if gone:
        with contextlib.suppress(OSError):  # it is not empty
            (folder / FOLDER).rmdir()
    return gone


def note_run(folder: Path, run: Path) -> None:
    """Remember a run that begins with the dataset, or with a version of it, in `folder`."""
    if folder.parent.name == FOLDER:
        folder = folder.parent.parent
    path = run.resolve()
    if path.parent == out_home().resolve() or path in noted_runs(folder):
        return  # the former are found there
    with contextlib.suppress(OSError, UnicodeEncodeError):  # data/ may be read-only
        with open(folder / RUNS, "a", encoding="utf-8") as file:
            file.write(f"{path}\n")


def noted_runs(folder: Path) -> list[Path]:
    """The runs outside out/ that began with a dataset and are still there."""
    try:
        lines = (folder / RUNS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [path for path in map(Path, lines) if path.is_dir()]


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`, removed at the end unless it has been renamed."""
    path = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _remove_abandoned(path.parent)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove temporary folders of killed preparations: those untouched for an hour."""
    for folder in parent.glob(".*.tmp"):
        newest = max((f.stat().st_mtime for f in [folder, *folder.glob("*")]), default=0)
        if folder.is_dir() and time.time() - newest > 3600:
            shutil.rmtree(folder, ignore_errors=True)


def put_in_place(temporary: Path, folder: Path, replaced: str | None, by: str) -> None:
    """Rename the finished folder; an existing one moves aside first, and back on failure.

    replaced: the fingerprint of the version in `folder`, which stays beside the older ones; None:
    it goes. by: the fingerprint of the new one.
    """
    if not folder.exists():
        os.replace(temporary, folder)
        return
    former = {path.name: path for path in older_versions(folder)}
    if replaced is not None:
        former[version_folder(folder, replaced).name] = folder
    former.pop(version_folder(folder, by).name, None)  # the text is again what it was
    for name, path in former.items():
        _link_files(path, temporary / FOLDER / name)
    if noted := noted_runs(folder):
        (temporary / RUNS).write_text("".join(f"{path}\n" for path in noted), encoding="utf-8")
    aside = _aside(folder)
    os.replace(folder, aside)
    try:
        os.replace(temporary, folder)
    except BaseException:
        os.replace(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def complete_interrupted(folder: Path) -> None:
    """Bring back a dataset whose replacement was killed between its two renames."""
    aside = _aside(folder)
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.exists():
        os.replace(aside, folder)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.former")


def _link_files(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file() and path.name != RUNS:
            link_or_copy(path, target / path.name)
