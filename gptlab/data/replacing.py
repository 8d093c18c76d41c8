"""What a preparation finds in its place: the same dataset, or an older version of it."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gptlab.data import documents, duplicates, leaks, versions
from gptlab.data.chat import PLAIN
from gptlab.data.corpora import Source
from gptlab.data.prepare_options import PrepareOptions, options_that_differ
from gptlab.data.task_dataset import PROBLEMS
from gptlab.data.token_files import (
    Dataset,
    Meta,
    dataset_fingerprint,
    find_meta,
    is_task,
    open_dataset,
    read_meta,
)
from gptlab.data.token_shards import is_token_file
from gptlab.data.tokenizer import Tokenizer
from gptlab.data.vocabulary import chat_template_at
from gptlab.errors import DataError
from gptlab.files import display

OUR_FILES = {
    *("train.mask.bin", "val.mask.bin", "meta.json", "tokenizer.json"),
    *(documents.FILE, duplicates.FILE, leaks.FILE, versions.FOLDER, versions.RUNS, PROBLEMS),
}


def foreign_files(folder: Path) -> list[str]:
    """What is in the folder of a dataset and was not written by gptlab."""
    there = set(os.listdir(folder)) - OUR_FILES
    return sorted(name for name in there if not is_token_file(name))


@dataclass(frozen=True)
class Former:
    """A dataset of which a new version is made. fingerprint: of its tokens and tokenizer.

    tokenizer: the one that the new version keeps, None where it learns one.
    """

    version: int
    fingerprint: str
    tokenizer: Tokenizer | None


def find_former(
    folder: Path,
    source: Source,
    options: PrepareOptions,
    fingerprint: str,
    say: Callable[[str], None],
) -> Dataset | Former | None:
    """The dataset in the folder, if preparing again would give the same one; else what a new
    version of it takes over, None where there is none.

    fingerprint: of the input. Raises DataError if the folder holds something that must not be
    replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    strange = foreign_files(folder) if folder.is_dir() else [folder.name]
    if strange:
        raise DataError(
            f"{display(folder)} holds files that gptlab did not write ({', '.join(strange[:3])})",
            "choose another name with --dataset",
            sep="; ",
        )
    if is_task(find_meta(folder)):
        raise DataError(
            f"{display(folder)} holds a task", "choose another name with --dataset", sep="; "
        )
    if options.overwrite:
        with contextlib.suppress(OSError, DataError):
            return _former(folder, read_meta(folder), keeps_tokenizer=False)
        return None
    try:
        meta = read_meta(folder)
    except (OSError, DataError):
        raise DataError(
            f"{display(folder)} holds token files without a readable meta.json",
            "choose another name with --dataset, or replace them with --overwrite",
            sep="; ",
        ) from None
    template = meta.get("chat_template")
    if template is not None and (chat_template_at(options.tokenizer) or PLAIN) != template:
        say("The chat template has changed: preparing it again.")
    elif meta.get("fingerprint") == fingerprint:
        try:
            return open_dataset(folder)
        except DataError as error:
            say(f"{error.problem}: preparing it again.")
    before = meta.get("source") or {}
    if before.get("identity") != source.identity:
        raise DataError(
            f"{folder.name} is already prepared from a different source ({before.get('identity')})",
            "choose another name with --dataset, or replace it with --overwrite",
            sep="; ",
        )
    if before.get("fingerprint") != source.fingerprint:
        say(f"{source.label} has changed since it was prepared: preparing it again.")
    changed = options_that_differ(meta.get("options") or {}, options)
    if changed:
        say(f"Options have changed ({', '.join(changed)}): preparing it again.")
    keeps_tokenizer = all(change.startswith(("unknown ", "shard_tokens ")) for change in changed)
    try:
        return _former(folder, meta, keeps_tokenizer)
    except (OSError, DataError):  # its tokenizer is damaged
        return None


def _former(folder: Path, meta: Meta, keeps_tokenizer: bool) -> Former:
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.load(path) if path.exists() else None
    fingerprint = dataset_fingerprint(folder, meta, tokenizer)
    return Former(meta.get("version", 1), fingerprint, tokenizer if keeps_tokenizer else None)
