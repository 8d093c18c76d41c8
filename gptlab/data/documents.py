"""Find the document, and the line of it, that a token of the training text comes from.

A prepared dataset records in `documents.json` where its first documents come from. End-of-text ids
separate documents, and lines are counted in the tokens, so no position is stored. Without the
record, documents have numbers instead of names. Of conversations the record has the ends too.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from gptlab.data.opening import NotTextError
from gptlab.data.text_files import file_format
from gptlab.data.token_files import SCAN_TOKENS, Dataset, is_chat
from gptlab.errors import DataError
from gptlab.files import FORMAT_VERSIONS, display, write_json
from gptlab.typed_json import Count, read_form

FILE = "documents.json"
MOST_DOCUMENTS = 50_000  # that are recorded: about 3 MB


# (name of the file, or of the row of a table; line at which the text begins, 0 for a row)
Origin = tuple[str, Count]


class _Documents(TypedDict):
    """The required fields of documents.json."""

    format_version: int
    train: list[Origin]


class Origins(_Documents, total=False):
    """The content of documents.json: the origins of the training part's documents, in order.

    ends: of conversations, the tokens up to the end of each; templates end messages too with the
    end of text.
    """

    ends: list[Count]


@dataclass(frozen=True)
class Place:
    """A place in the source. line: from 1 on, None where there are no lines (a row of a table)."""

    name: str
    line: int | None

    def __str__(self) -> str:
        return self.name if self.line is None else f"{self.name}:{self.line}"


def write_origins(
    folder: Path, origins: Sequence[Origin], ends: Sequence[int] | None = None
) -> None:
    """Record where the documents of the training part come from, in their order there, and the
    ends of conversations."""
    content = {"format_version": FORMAT_VERSIONS["documents"], "train": origins[:MOST_DOCUMENTS]}
    if ends is not None:
        content["ends"] = ends[:MOST_DOCUMENTS]
    write_json(folder / FILE, content)


def _read(dataset: Dataset) -> Origins:
    """The record of a dataset; without one a single text file is known."""
    meta, path = dataset.meta or {}, dataset.folder / FILE
    if path.exists():
        return read_form(path, "documents", Origins, DataError, "delete it, it is not needed")
    files, known = (meta.get("source") or {}).get("files") or [], []
    if meta.get("documents") == 1 and len(files) == 1:
        with contextlib.suppress(NotTextError):
            if file_format(Path(files[0]["path"])) == "text":
                known = [(files[0]["path"], 1)]
    return {"format_version": FORMAT_VERSIONS["documents"], "train": known}


def places(dataset: Dataset, positions: Sequence[int]) -> list[Place | None]:
    """The source of the tokens at these positions of the training text; None if unknown.

    Reads the token file once, in pieces, up to the last position.
    """
    eot = dataset.tokenizer.eot_id if dataset.tokenizer else None
    is_one = (dataset.meta or {}).get("documents") == 1
    has_ends = eot is not None or is_one or is_chat(dataset.meta)
    if not dataset.meta or not dataset.tokenizer or not has_ends:
        return [None] * len(positions)
    record = _read(dataset)
    origins = list(map(tuple, record["train"]))
    if is_chat(dataset.meta):  # those prepared by earlier releases have no ends
        ends = np.array(record.get("ends", []), np.int64) - 1
    elif is_one:
        ends = np.empty(0, np.int64)
    else:
        ends = _positions_of(dataset.train, eot, max(positions))
    line_ends = np.array(
        [dataset.tokenizer.token_bytes(i).count(b"\n") for i in range(dataset.vocab_size)]
    )
    found, document, reached, lines = {}, -1, 0, 0
    for position in sorted(set(positions)):
        now = int(np.searchsorted(ends, position))  # an end-of-text id belongs to its document
        if now != document:
            document, lines = now, 0
            reached = int(ends[now - 1]) + 1 if now else 0
        lines += sum(
            int(line_ends[dataset.train[i : min(position, i + SCAN_TOKENS)]].sum())
            for i in range(reached, position, SCAN_TOKENS)
        )
        reached = position
        is_known = document < len(ends) or not is_chat(dataset.meta)
        found[position] = _place(origins, document, lines) if is_known else None
    return [found[position] for position in positions]


def _place(origins: list[Origin], document: int, lines: int) -> Place:
    if document >= len(origins):
        return Place(f"document {document + 1:,}", lines + 1)
    return place_of(origins[document], lines)


def place_of(origin: Origin, lines: int) -> Place:
    """The place so many lines after the beginning of a document."""
    name, line = origin
    return Place(display(name), line + lines) if line else Place(name, None)


def _positions_of(ids: np.ndarray, wanted: int, end: int) -> np.ndarray:
    """The positions of an id before `end`: int64, ascending."""
    found = [
        start + np.flatnonzero(ids[start : min(end, start + SCAN_TOKENS)] == wanted)
        for start in range(0, end, SCAN_TOKENS)
    ]
    return np.concatenate(found) if found else np.empty(0, np.int64)
