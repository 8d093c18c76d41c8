"""The project's code as it was at a git revision, in a folder of its own."""

import contextlib
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import gptlab
from gptlab.errors import ConfigError, RunError
from gptlab.files import display


def repository() -> Path:
    """The clone that this code runs from."""
    return Path(gptlab.__file__).resolve().parent.parent


def commit_of(revision: str, clone: Path | None = None) -> str:
    """The full hash of a revision. Raises ConfigError for one that does not exist."""
    clone = clone or repository()
    if revision.startswith("-") or not revision.strip():
        raise ConfigError(f"{revision!r} is not a git revision", "name a commit, a branch or a tag")
    # --is-inside-work-tree would find a repository that a copy of the code merely lies in
    top = _git(clone, "rev-parse", "--show-toplevel")
    if top.returncode or Path(top.stdout.decode().strip()).resolve() != clone.resolve():
        raise RunError(
            f"{display(clone)} is not a git clone, so it has no revisions",
            "clone the repository to compare with one",
        )
    found = _git(clone, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if found.returncode:
        raise ConfigError(
            f"There is no git revision {revision!r} in {display(clone)}",
            "name a commit, a branch or a tag (git log --oneline lists commits)",
        )
    return found.stdout.decode().strip()


@contextlib.contextmanager
def checkout(revision: str, clone: Path | None = None) -> Iterator[Path]:
    """The folder of a clean checkout of a revision; it goes when the block ends.

    The clone itself stays as it is: no branch, index or worktree of it changes. Raises ConfigError
    for a revision that does not exist.
    """
    clone = clone or repository()
    commit = commit_of(revision, clone)
    with tempfile.TemporaryDirectory(prefix="gptlab-revision-") as folder:
        packed, place = Path(folder) / "code.tar", Path(folder) / "code"
        made = _git(clone, "archive", "--format=tar", f"--output={packed}", commit)
        if made.returncode:
            raise RunError(f"git cannot read {revision}: {made.stderr.decode().strip()}")
        with tarfile.open(packed) as archive:
            archive.extractall(place, filter="data")
        packed.unlink()
        yield place


def environment() -> dict[str, str]:
    """The environment for a program of a checkout: its own code, the data and runs of this one."""
    from gptlab.files import home

    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"GPTLAB_HOME": str(home().resolve())}


def _git(clone: Path, *words: str) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(["git", "-C", str(clone), *words], capture_output=True)
    except FileNotFoundError:
        raise RunError("git is not installed", "install it to compare with a revision") from None
