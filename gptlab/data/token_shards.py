"""The token files of a dataset: one `train.bin`, or shards of it, `train_000.bin` and so on.

Shards are read as if they were one file: a window may begin in one and end in the next. So what
a run sees does not depend on how its text is cut into files.
"""

import bisect
import itertools
import mmap
import re
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from gptlab.errors import DataError
from gptlab.files import display

SPLITS = ("train", "val")
# train_000.bin, and fineweb_train_000001.bin as others name them
_SHARD = re.compile(r"(.*_)?(train|val)_?(\d+)\.bin")
_HEADERS = (20240520, 20240801)  # of llm.c: the first of 256 numbers of 32 bits


def shard_name(split: str, number: int) -> str:
    """The name of a shard: train_000.bin for 0."""
    return f"{split}_{number:03}.bin"


def is_token_file(name: str) -> bool:
    """Whether a file of this name is a token file as gptlab writes them, whole or a shard."""
    return bool(re.fullmatch(r"(train|val)(_\d{3,})?\.bin", name))


def has_tokens(folder: Path) -> bool:
    """Whether a folder holds the token files of a dataset."""
    return bool(_names(folder, "train"))


def find_token_files(folder: Path, split: str) -> list[Path]:
    """The token files of "train" or "val" in a folder, in their order.

    Raises DataError where there is none, where one is missing between two others, where it is not
    clear which belong together, and for files that begin with a header.
    """
    names = _names(folder, split)
    if not names:
        raise DataError(
            f"{display(folder)} has no {split}.bin; a dataset is a train.bin and a val.bin, or "
            "shards such as train_000.bin, train_001.bin and val_000.bin."
        )
    if f"{split}.bin" in names[1:]:
        raise DataError(
            f"{display(folder)} holds both {split}.bin and shards of it such as {names[0]}",
            "move one of them elsewhere",
            sep="; ",
        )
    if len({_parts(name)[0] for name in names}) > 1:
        raise DataError(
            f"{display(folder)} holds shards of several texts ({names[0]}, {names[-1]})",
            "put each text into a folder of its own",
            sep="; ",
        )
    for name, following in itertools.pairwise(names):
        if _parts(following)[1] != _parts(name)[1] + 1:
            raise DataError(
                f"{display(folder)} has {following} after {name}, where the next number is missing",
                "copy the missing shard, or number them without gaps",
                sep="; ",
            )
    paths = [folder / name for name in names]
    for path in paths:
        _refuse_header(path)
    return paths


def _names(folder: Path, split: str) -> list[str]:
    """The names of the token files of a split, in the order of their numbers."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.glob(f"*{split}*.bin") if path.is_file()]
    shards = [name for name in names if (m := _SHARD.fullmatch(name)) and m[2] == split]
    if f"{split}.bin" in names:  # another text's shards may lie beside it
        shards = [name for name in shards if not _parts(name)[0]] + [f"{split}.bin"]
    return sorted(shards, key=lambda name: (name == f"{split}.bin", *_parts(name)[::-1]))


def _parts(name: str) -> tuple[str, int]:
    """(what stands before the split's name, the number) of a shard."""
    match = _SHARD.fullmatch(name)
    return (match[1] or "", int(match[3])) if match else ("", -1)


def _refuse_header(path: Path) -> None:
    with open(path, "rb") as file:
        first = file.read(4)
    if int.from_bytes(first, "little") in _HEADERS:
        raise DataError(
            f"{display(path)} begins with the header of llm.c, and gptlab reads files of ids only",
            f"write it without the first 1,024 bytes: tail -c +1025 {path.name} > train_000.bin",
            sep="; ",
        )


def map_file(path: Path, dtype: np.dtype) -> np.ndarray:
    """The ids of a file, memory-mapped."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")


def map_files(paths: Sequence[Path], dtype: np.dtype) -> "np.ndarray | TokenShards":
    """The ids of one or more files, memory-mapped, as one array."""
    mapped = [map_file(path, dtype) for path in paths]
    return mapped[0] if len(mapped) == 1 else TokenShards(mapped)


class TokenShards:
    """Ids in several arrays, read as one of their whole length: [n].

    Indexed as a 1-D array is: a number, a slice or an array of positions gives ids; a slice within
    one shard is a view of it, others are copies.
    """

    ndim = 1

    def __init__(self, files: Sequence[np.ndarray]):
        self.files = tuple(files)
        self._stops = np.cumsum([len(file) for file in self.files])  # of each shard
        self.dtype, self.itemsize = self.files[0].dtype, self.files[0].itemsize

    def __len__(self) -> int:
        return int(self._stops[-1])

    @property
    def shape(self) -> tuple[int]:
        """As of an array."""
        return (len(self),)

    @property
    def size(self) -> int:
        """As of an array."""
        return len(self)

    @overload
    def __getitem__(self, key: int) -> np.integer: ...
    @overload
    def __getitem__(self, key: slice | np.ndarray) -> np.ndarray: ...
    def __getitem__(self, key):
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                return np.asarray(self)[key]
            return self._range(start, max(start, stop))
        positions = np.asarray(key)
        if positions.dtype == bool:
            return np.asarray(self)[key]
        if positions.size and not -len(self) <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"a position outside the {len(self):,} ids")
        positions = np.where(positions < 0, positions + len(self), positions)
        ids = np.empty(positions.shape, self.dtype)
        which = np.searchsorted(self._stops, positions, side="right")
        for number in np.unique(which):
            here = which == number
            file = self.files[number]
            ids[here] = file[positions[here] - (int(self._stops[number]) - len(file))]
        return ids if ids.ndim else ids[()]

    def _range(self, start: int, stop: int) -> np.ndarray:
        first = bisect.bisect_right(self._stops, start)
        parts = []
        for number in range(first, len(self.files)):
            begin = int(self._stops[number]) - len(self.files[number])
            if begin >= stop:
                break
            parts.append(self.files[number][max(0, start - begin) : stop - begin])
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """All ids in memory."""
        ids = np.concatenate(self.files)
        return ids if dtype is None else ids.astype(dtype)


def give_pages_back(tokens: "np.ndarray | TokenShards") -> None:
    """Release the resident pages of mapped files; the system still caches them.

    Otherwise the memory of a run grows to the size of its token files and looks like a leak.
    """
    for file in getattr(tokens, "files", (tokens,)):
        if isinstance(file.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            file.base.madvise(mmap.MADV_DONTNEED)
