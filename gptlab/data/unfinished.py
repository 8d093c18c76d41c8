"""What an interrupted preparation has finished: its shards, which the next one takes over.

They lie in a hidden folder beside the dataset, `.NAME.FINGERPRINT.partial`, where the fingerprint
is that of the text and the options. `journal.jsonl` lists those that are complete, with hashes.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from gptlab.errors import DataError
from gptlab.files import atomic_write, link_or_copy, lock_file, sha256_file

JOURNAL = "journal.jsonl"
_LOCK = "lock"
_ENDING = ".partial"


class Unfinished:
    """The shards of one preparation, of which each is complete or not there.

    In a `with` block: what is complete stays after an error, and `remove` deletes it.
    """

    def __init__(self, dataset: Path, fingerprint: str):
        self._dataset = dataset
        self.folder = dataset.with_name(f".{dataset.name}.{fingerprint[:16]}{_ENDING}")
        self._lock: IO[str] | None = None
        self.records: dict[str, dict] = {}  # by the name of the file

    def begin(self, rests_on: Mapping[str, Any]) -> None:
        """Open the folder, and find what is complete in it.

        rests_on: JSON that says what the shards follow from: those of an earlier preparation are
        taken over if theirs was equal. Raises DataError where another process prepares the same.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = open(self.folder / _LOCK, "a", encoding="utf-8")
        try:
            lock_file(lock)
        except OSError as error:
            lock.close()
            raise DataError(
                f"Another process is preparing {self._dataset.name}", "wait for its end", sep="; "
            ) from error
        self._lock = lock
        lines = _lines(self.folder / JOURNAL)
        if lines[:1] == [dict(rests_on)]:
            for record in lines[1:]:
                if _is_whole(self.folder, record):
                    self.records[record["name"]] = record
        self._clear()
        kept = [rests_on, *self.records.values()]
        with atomic_write(self.folder / JOURNAL, "w") as file:
            file.write("".join(f"{json.dumps(each)}\n" for each in kept))

    def _clear(self) -> None:
        """Delete what no record names: half-written files, shards of another text."""
        for path in self.folder.iterdir():
            if path.name not in {*self.records, _LOCK}:
                path.unlink()

    def add(self, *records: Mapping[str, Any]) -> None:
        """Note complete files: name, tokens, sha256 and what else the next preparation needs."""
        with open(self.folder / JOURNAL, "a", encoding="utf-8") as file:
            for record in records:
                self.records[record["name"]] = dict(record)
                file.write(f"{json.dumps(record)}\n")
            file.flush()
            os.fsync(file.fileno())

    def give(self, name: str, target: Path) -> None:
        """Let `target` be the file of this name, without a copy where the system allows that."""
        link_or_copy(self.folder / name, target)

    def remove(self) -> None:
        """Delete the shards of this preparation and of older ones of the dataset."""
        self._close()
        for folder in self._dataset.parent.glob(f".{self._dataset.name}.*{_ENDING}"):
            shutil.rmtree(folder, ignore_errors=True)

    def __enter__(self) -> "Unfinished":
        return self

    def __exit__(self, *_) -> None:
        if self._lock:  # else it is another process's
            self._close()
            if not self.records:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None


def _lines(path: Path) -> list[dict]:
    """The lines of a journal; a kill may have cut the last one."""
    found: list[dict] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                break
    return found


def _is_whole(folder: Path, record: dict) -> bool:
    path = folder / str(record.get("name"))
    return path.is_file() and sha256_file(path) == record.get("sha256")
