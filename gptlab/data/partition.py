"""Which files train and which validate: a file of the user's own, or what the usual names say."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptlab.data.corpora import Source, SourceFile, find
from gptlab.data.text_files import Reading
from gptlab.errors import ConfigError, DataError
from gptlab.files import display

NONE = "none"  # --val none: a folder's own names mean nothing
_ROLES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# wiki.train.tokens, train-00000-of-00002.parquet, names_dev.txt.gz
_NAME = re.compile(
    rf"(?:.*[._-])?({'|'.join(_ROLES)})(?:[._-]\d+(?:-of-\d+)?)?(?:\.[a-z]\w*)*", re.IGNORECASE
)
_BESIDE = re.compile(r"readme|licen[cs]e|notice|citation|changelog|dataset_?(card|info)", re.I)


@dataclass(frozen=True)
class Parts:
    """train: what trains. val: what validates, None if a part of `train` does. left_out: files of
    the source that are in neither. name: of what validates, for messages."""

    train: Source
    val: Source | None = None
    left_out: int = 0
    name: str = ""


def divide(
    words: Sequence[str],
    source: Source,
    val: str | None,
    reading: Reading,
    note: Callable[[str], None],
    progress: Callable[[int], None] = lambda _: None,
) -> Parts:
    """The parts of the source that `words` name. val: a file or folder that validates, "none", or
    None: then files that are named train, valid and test are taken as such.

    reading: how files are read. note: called with each message for the user. Raises DataError for
    a validation text that does not exist, or that leaves nothing to train on.
    """
    roles = _roles(words, source, note if val is None else lambda _: None)
    if val == NONE:
        if not roles:
            raise ConfigError(
                "--val none has no effect here: no file is named as validation text",
                "leave it out",
                sep="; ",
            )
        return Parts(source)
    own, name = None, ""
    if val is not None:
        own = find([val], reading.encoding, note, progress, reading)
        name = val if own.hub_name else display(val)
    chosen = {file.path.resolve() for file in own.files} if own else set()
    others = [file for file in source.files if file.path.resolve() not in chosen]
    left_out = [file for file in others if roles.get(file.path) in ("test", "")]
    train = [file for file in others if roles.get(file.path) not in ("test", "")]
    if source.files and not train:
        raise DataError(
            f"{name} is all the text that there is, so nothing is left to train on",
            "name another file with --val",
            sep="; ",
        )
    if own is None and (named := [file for file in train if roles.get(file.path) == "val"]):
        own, name = _of(source, named), _named(named)
        train = [file for file in train if roles.get(file.path) != "val"]
    if roles:
        note(_remark(roles, train, name, left_out))
        reading.reported.add("files left out because of their names")
    return Parts(_of(source, train) if source.files else source, own, len(left_out), name)


def _of(source: Source, files: Sequence[SourceFile]) -> Source:
    return dataclasses.replace(source, files=tuple(files))


def _roles(words: Sequence[str], source: Source, note: Callable[[str], None]) -> dict[Path, str]:
    """{file: "train", "val", "test" or ""} of files that are all named so, but for a README and
    the like; {} for any other source. note: called where only some of the files are named so."""
    folder = Path(words[0]).expanduser() if len(words) == 1 else None
    found, others = {}, []
    for file in source.files:
        below = folder is not None and file.path.is_relative_to(folder)
        parts = file.path.relative_to(folder).parts if below else ()
        match = _NAME.fullmatch(file.path.name)
        role = _ROLES.get(parts[0].lower()) if len(parts) > 1 else None
        role = role or (_ROLES[match[1].lower()] if match else "")
        if not role and not _BESIDE.match(file.path.name):
            others.append(file)
        found[file.path] = role
    kinds = set(found.values())
    if "train" not in kinds or not kinds & {"val", "test"}:
        return {}
    if others:
        named = [file for file in source.files if found[file.path] in ("val", "test")]
        note(
            f"All files are taken, {_named(named)} too, because others have no such names "
            f"({_named(others)}); --val FILE validates on a file of its own."
        )
        return {}
    return found


def _remark(roles: dict, train: list[SourceFile], name: str, left_out: list[SourceFile]) -> str:
    """What the files of a folder are taken for."""
    parts = [f"{_named(train)} for training"]
    if name:
        parts.append(f"{name} for validation")
    for role, what in (("test", " (test text)"), ("", "")):
        files = [file for file in left_out if roles[file.path] == role]
        if files:
            parts.append(f"{_named(files)} left out{what}")
    return f"By their names: {', '.join(parts)}; --val none trains on all of them."


def _named(files: Sequence[SourceFile]) -> str:
    """The files' names, or how many they are."""
    names = sorted(display(file.path) for file in files)
    return ", ".join(names) if len(names) <= 2 else f"{len(names):,} files such as {names[0]}"
