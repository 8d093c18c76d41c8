"""Where an export goes: a folder or a file that is there whole, or not at all."""

import contextlib
import os
import shutil
from pathlib import Path

from gptlab.errors import ConfigError
from gptlab.files import atomic_write, display, remove_folder, sync_folder


def check_free(folder, overwrite: bool, mark: str) -> None:
    """ConfigError for a name that is taken. mark: a file by which an earlier export is known."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{display(folder)} is a file: name a folder with --output.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ConfigError(
            f"{display(folder)} is not empty: choose another --output, or replace it with "
            "--overwrite."
        )
    if not (folder / mark).is_file():
        raise ConfigError(
            f"{display(folder)} is not an exported model (it has no {mark}), so --overwrite does "
            "not delete it: choose another --output."
        )


@contextlib.contextmanager
def new_folder(folder, overwrite: bool, mark: str):
    """Yield a folder beside `folder` that takes its name when the block ends without an error.

    Raises ConfigError before anything is written where the name is taken.
    """
    folder = Path(os.path.abspath(folder))
    check_free(folder, overwrite, mark)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            remove_folder(folder)
        os.replace(temporary, folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def new_file(path, overwrite: bool, mark: bytes):
    """Yield a binary file that takes the name `path` when the block ends without an error.

    mark: bytes by which the beginning of an earlier export is known. Raises ConfigError before
    anything is written where the name is taken.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{display(path)} is a folder: name a file with --output.")
    if path.exists():
        if not overwrite:
            raise ConfigError(
                f"{display(path)} is there already: choose another --output, or replace it with "
                "--overwrite."
            )
        with open(path, "rb") as former:
            if mark not in former.read(1000):
                raise ConfigError(
                    f"{display(path)} is not an export of this format, so --overwrite does not "
                    "replace it: choose another --output."
                )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        yield file
