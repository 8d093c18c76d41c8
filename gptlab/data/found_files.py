"""The files that the words of a command line name."""

import contextlib
import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from gptlab.data import text_files
from gptlab.data.text_files import Reading
from gptlab.data.token_shards import has_tokens
from gptlab.errors import DataError
from gptlab.files import data_home, display, printable, quoted

# The corpora known by name, each with its description for --list.
KNOWN = {"shakespeare": "tiny Shakespeare, 1.1 MB (or 38 plays, 4.8 MB, from a package index)"}


class FoundFiles:
    """The files that words name: a file, all files below a folder, the matches of a glob, a pipe.

    pipes: {copy of what came through a pipe: its name}; the copies are removed with `copies`.
    """

    def __init__(self, note: Callable[[str], None], copies: contextlib.ExitStack, how: Reading):
        self.paths: list[Path] = []
        self.left_out: list[str] = []
        self.pipes: dict[Path, str] = {}
        self.folders = 0
        self.broken = 0
        self._note, self._copies, self._how = note, copies, how
        self._folders_seen: set[tuple[int, int]] = set()
        self._links_seen: set[tuple[int, int]] = set()

    def add(self, word: str) -> None:
        """Add what a word names; raises DataError where it names nothing."""
        path = Path(word).expanduser()
        if word == "-":
            if sys.stdin is not None and sys.stdin.isatty():
                self._note("Type or paste the text; Ctrl-D on a line of its own ends it.")
            self._add_pipe(getattr(sys.stdin, "buffer", None), "stdin")
        elif path.is_dir() and has_tokens(path):
            raise DataError(
                f"{printable(word)} holds token files, which are a dataset as they are",
                f"name it with --dataset {quoted(_dataset_word(path))} to train, evaluate or plan",
                sep="; ",
            )
        elif path.is_dir():
            self.folders += 1
            self._add_folder(path)
        elif path.is_file():
            self.paths.append(path)
        elif path.exists():
            with open(path, "rb") as file:
                self._add_pipe(file, "stdin" if word == "/dev/stdin" else "pipe")
        elif glob.has_magic(word):
            self.folders += 1
            found = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
            if not found:
                raise DataError(
                    f"No file matches {printable(word)}",
                    "check the pattern and the folder",
                    sep="; ",
                )
            self.paths += [p for p in found if not self._how.excludes(p.as_posix())]
        else:
            raise DataError(
                f"{printable(word)} does not exist",
                "name a text file, a folder, a pattern such as 'books/*.txt', a .jsonl, .csv or "
                ".parquet file, - for standard input, hf:OWNER/NAME, or one of the known corpora "
                f"({', '.join(KNOWN)})",
            )

    def _add_pipe(self, file: IO[bytes] | None, name: str) -> None:
        if file is None:
            raise DataError("- is standard input, which is closed", "name a file instead", sep="; ")
        folder = tempfile.mkdtemp(prefix="gptlab-")
        self._copies.callback(shutil.rmtree, folder, ignore_errors=True)
        path = Path(folder) / name
        with open(path, "wb") as copy:
            shutil.copyfileobj(file, copy, text_files.BLOCK_BYTES)
        self.paths.append(path)
        self.pipes[path] = name

    def _add_folder(self, top: Path) -> None:
        hidden, linked, twice = 0, [], 0
        for folder, folders, names in os.walk(top, onerror=_raise, followlinks=True):
            is_new = _identity(Path(folder)) not in self._folders_seen
            self._folders_seen.add(_identity(Path(folder)))
            followed = []
            for name in sorted(folders) if is_new else []:
                below = Path(folder) / name
                if self._how.excludes(below.relative_to(top).as_posix()):
                    continue
                if name.startswith("."):
                    hidden += 1
                elif not below.is_symlink():
                    followed.append(name)
                elif _identity(below) in self._folders_seen | self._links_seen:
                    twice += 1
                else:
                    self._links_seen.add(_identity(below))
                    linked.append(_shown_link(below))
                    followed.append(name)
            folders[:] = followed
            for name in names if is_new else []:
                path = Path(folder) / name
                if self._how.excludes(path.relative_to(top).as_posix()):
                    continue
                if name.startswith("."):
                    hidden += 1
                elif path.is_file():
                    self.paths.append(path)
                else:
                    self.broken += 1
                    what = "a broken link" if path.is_symlink() else "no regular file"
                    self.left_out.append(f"{_shown_link(path)} ({what})")
        if hidden:
            self._note(f"Left out what is hidden (names that begin with a dot): {hidden:,}.")
        if linked:
            self._note(f"Followed links to folders: {text_files.some(linked)}.")
        if twice:
            self._note(f"Left out links to folders that are read anyway: {twice:,}.")


def _identity(folder: Path) -> tuple[int, int]:
    """What two names of one folder have in common."""
    stat = folder.stat()
    return (stat.st_dev, stat.st_ino) if stat.st_ino else (0, hash(folder.resolve()))


def _shown_link(path: Path) -> str:
    """A link as `display` writes paths, without following it."""
    return str(Path(display(path.parent)) / printable(path.name))


def _raise(error: OSError) -> None:
    raise error


def _dataset_word(folder: Path) -> str:
    """How --dataset names a folder: by its name in data/, or by its path."""
    folder = folder.resolve()
    return folder.name if folder.parent == data_home().resolve() else display(folder)
