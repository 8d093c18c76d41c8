"""An export that is one file: there whole, or not at all, and never over something else."""

import contextlib
from pathlib import Path

from gptlab.errors import ConfigError
from gptlab.files import atomic_write, display


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
                    f"{display(path)} is no export of this format, so --overwrite does not "
                    "replace it: choose another --output."
                )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        yield file
