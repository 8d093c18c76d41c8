"""The places of files, and how to write them: a kill or a full disk leaves no half-written file."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from gptlab.errors import DataError, GPTLabError

AnyPath = str | os.PathLike[str]

# The number inside each kind of file; a reader refuses a newer one by name.
FORMAT_VERSIONS = {
    "checkpoint": 3, "comparison": 1, "dataset": 2, "documents": 1, "evaluations": 1, "imported": 1,
    "metrics": 1, "provenance": 1, "scaling": 1, "sharded checkpoint": 1, "sweep": 1,
    "tuned_lens": 1,
}  # fmt: skip


def home() -> Path:
    """The folder of `data/` and `out/`: $GPTLAB_HOME, else beside the scripts, else here."""
    if os.environ.get("GPTLAB_HOME"):
        return Path(os.environ["GPTLAB_HOME"]).expanduser()
    beside_scripts = Path(__file__).resolve().parent.parent
    return beside_scripts if (beside_scripts / "gpt.py").exists() else Path.cwd()


def data_home() -> Path:
    """The folder of prepared datasets."""
    return home() / "data"


def out_home() -> Path:
    """The folder of runs."""
    return home() / "out"


def nearest_existing(folder: AnyPath) -> Path:
    """The folder itself, or its nearest parent that exists."""
    folder = Path(folder).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def display(path: AnyPath) -> str:
    """The shortest way to write a path: relative to the working directory when it lies below."""
    path = Path(path)
    try:
        return printable(path.resolve().relative_to(Path.cwd().resolve())) or "."
    except ValueError:
        return printable(path)


def fresh_folder(folder: Path, is_taken: bool = False) -> Path:
    """`folder` if it does not exist yet, else the first free one of folder_2, folder_3, ... .

    is_taken: as if it existed. After folder_2 comes folder_3; a longer number may be a year.
    """
    stem, _, number = folder.name.rpartition("_")
    if not (stem and number.isdigit() and len(number) < 4):
        stem, number = folder.name, "1"
    count, fresh = int(number), folder
    while is_taken or fresh.exists():
        count, is_taken = count + 1, False
        fresh = folder.with_name(f"{stem}_{count}")
    return fresh


def shareable(path: AnyPath) -> str:
    """A path for a page that is shared: below the working directory or `home()`, else its name."""
    where = Path(path).expanduser().resolve()
    for folder in (Path.cwd(), home()):
        if where != folder.resolve() and where.is_relative_to(folder.resolve()):
            return printable(where.relative_to(folder.resolve()))
    return printable(where.name) or "."


_ABSOLUTE = re.compile(r"(?<![\w.~/\\-])(?:~[\w.-]*|[A-Za-z]:)?[/\\](?:[^\s/\\:;,'\"()]+[/\\])+")


def without_folders(text: str) -> str:
    """A text for a page that is shared: of each absolute path in it only the file's name."""
    if Path(text).is_absolute():
        return shareable(text)
    return _ABSOLUTE.sub("", text)


def printable(path: AnyPath) -> str:
    """A path for messages and records; bytes of a name that are not UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace") if os.name != "nt" else str(path)


def quoted(word: str) -> str:
    """A word of a command line, quoted where this system's shell needs it."""
    if os.name == "nt":
        import subprocess

        return subprocess.list2cmdline([word])
    return shlex.quote(word)


def has_scripts() -> bool:
    """Whether gptlab runs beside its scripts (train.py ...), and not from where pip put it."""
    return (Path(__file__).resolve().parent.parent / "gpt.py").exists()


_COMMAND = re.compile(r"(?<![\w./\\-])python ((?:gpt|train|prepare|sample)\.py)\b")
_SCRIPT = re.compile(r"(?<![\w./\\-])(?:python )?(gpt|train|prepare|sample)\.py\b")


def as_installed(text: str) -> str:
    """A message with the commands that exist here: `gptlab train` where there is no train.py."""
    if has_scripts():
        return text
    return _SCRIPT.sub(lambda m: "gptlab" if m[1] == "gpt" else f"gptlab {m[1]}", text)


def runnable(text: str) -> str:
    """A message whose commands work where the user stands: `python ../gptlab/train.py`.

    Scripts keep the folder with which this program was started. Pages and files are read
    elsewhere: for them `as_installed` is enough.
    """
    started = Path(sys.argv[0])
    if not has_scripts() or started.resolve().parent != Path(__file__).resolve().parent.parent:
        return as_installed(text)
    folder = os.path.dirname(sys.argv[0])
    return _COMMAND.sub(lambda m: f"python {quoted(os.path.join(folder, m[1]))}", text)


def in_bytes(size: float) -> str:
    """A number of bytes in words: 900 B, 1.1 MB, 12 GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 9.95 else f"{size:.1f} {unit}"


def sync_folder(folder: AnyPath) -> None:
    """Make a rename inside `folder` survive a power cut, where the file system supports that."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # some network file systems refuse to sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: AnyPath, mode: str = "wb") -> Iterator[IO[Any]]:
    """Yield a file that takes the name `path` only when the block ends without an error.

    Temporary name in the same folder, fsync, rename, fsync of the folder. After an error the
    temporary file is removed and a former `path` is untouched; an OSError names `path`. Text is
    UTF-8 with `\\n`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    try:
        with open(temporary, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def lock_file(file: IO[str], shared: bool = False) -> None:
    """Lock an open file until it is closed, without waiting; OSError where another process has it.

    shared: among those that ask for no more; Windows has no such lock.
    """
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)  # the first byte is locked, wherever a file for appending begins
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def link_or_copy(source: AnyPath, target: AnyPath) -> None:
    """Give a file another name, or copy it on a file system without hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def replace_by_copy_of(source: Path, target: Path, move: bool = True) -> None:
    """Let `target` be what `source` is now, without a moment in which either is missing.

    move: where there are no hard links, `source` may go (its successor comes at once).
    """
    if target.exists() and os.path.samefile(source, target):
        return  # a kill between two saves: a rename over itself would leave the temporary name
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        if move:
            os.replace(source, target)
            return
        shutil.copyfile(source, temporary)
    try:
        os.replace(temporary, target)
    except OSError:
        temporary.unlink()
        raise


def remove_folder(folder: AnyPath) -> None:
    """Delete a folder with everything in it, or a link to a folder.

    It is renamed first, so an interruption leaves no half-deleted folder under that name.
    """
    folder = Path(folder)
    if folder.is_symlink():
        folder.unlink()
        return
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    os.replace(folder, aside)
    shutil.rmtree(aside)


def write_json(path: AnyPath, value: object) -> None:
    """Write `value` as indented UTF-8 JSON, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: AnyPath) -> dict[str, Any]:
    """Read a JSON object; DataError names the file where it is not one."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{display(path)} is not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise DataError(f"{display(path)} holds {type(value).__name__}, not a JSON object.")
    return value


def check_format_version(found: object, kind: str, path: AnyPath, error: type[GPTLabError]) -> None:
    """Raise `error` unless `found` is a version of `kind` that this release reads."""
    newest = FORMAT_VERSIONS[kind]
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise error(f"{display(path)} is not a {kind} of gptlab (it has no format_version).")
    if found > newest:
        raise error(
            f"{display(path)} is a {kind} of format version {found} and this gptlab reads up to "
            f"{newest}; update gptlab to use it."
        )


def sha256_file(path: AnyPath, progress: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file as hex; `progress(bytes)` is called after each 4 MiB."""
    return sha256_parts([path], progress)


def sha256_parts(paths: Iterable[AnyPath], progress: Callable[[int], object] | None = None) -> str:
    """SHA-256 (hex) of files one after the other. progress: as of `sha256_file`."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
                if progress:
                    progress(len(block))
    return digest.hexdigest()


def explain_error(error: GPTLabError | OSError) -> GPTLabError:
    """A file system error as a GPTLabError with problem and fix; a GPTLabError is unchanged."""
    if isinstance(error, GPTLabError):
        return error
    has_name = isinstance(error.filename, (str, bytes, os.PathLike)) and error.filename
    name = display(os.fsdecode(error.filename)) if has_name else "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f" while writing {name}" if has_name else ""
        return GPTLabError(
            f"The disk is full{where}",
            "free some space or choose another place with --out_dir or GPTLAB_HOME; complete files "
            "are untouched",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return GPTLabError(
            f"No permission for {name}",
            "change its permissions, or choose another place with --out_dir or GPTLAB_HOME",
        )
    if isinstance(error, FileNotFoundError):
        return GPTLabError(f"{name} does not exist", "check the spelling of the path")
    if isinstance(error, IsADirectoryError):
        return GPTLabError(f"{name} is a folder, but a file is needed there.")
    if isinstance(error, NotADirectoryError):
        return GPTLabError(f"{name} lies below something that is a file, not a folder.")
    reason = error.strerror or str(error) or type(error).__name__
    return GPTLabError(f"{name}: {reason}" if has_name else reason)
