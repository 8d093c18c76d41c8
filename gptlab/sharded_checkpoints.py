"""A checkpoint in shards: a folder of safetensors files, which processes write and read in parts.

    shard-00001-model-00001-of-00001.safetensors   the rows that the first process held
    state.json   all that is no tensor, the shape of each tensor, the SHA-256 of each file

torch's distributed checkpointing (DCP) writes the shards, without its pickled metadata. Each shard
says which rows it has, so any number of processes reads any part; one process needs no torchrun.
"""

import contextlib
import functools
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from safetensors import SafetensorError, safe_open

from gptlab.errors import CheckpointError
from gptlab.files import (
    FORMAT_VERSIONS,
    display,
    remove_folder,
    sha256_file,
    sync_folder,
    write_json,
)
from gptlab.typed_json import Count, read_form

if TYPE_CHECKING:
    import torch

STATE = "state.json"
_COPY = "copy the run's whole folder, or continue from the checkpoint before it"


class _TensorForm(TypedDict):
    dtype: Literal["float32", "bfloat16", "float16", "float64", "int64", "int32", "uint8", "bool"]
    shape: list[Count]


class _StateForm(TypedDict):
    format_version: int
    content: dict[str, Any]
    tensors: dict[str, _TensorForm]
    sha256: dict[str, str]


class _Piece(NamedTuple):
    """What a shard has of a tensor: the number of its first row in the whole, its shape."""

    tensor: str
    first: int
    shape: tuple[int, ...]
    file: Path

    @property
    def end(self) -> int:
        return self.first + (self.shape or (1,))[0]


class StoredTensor:
    """A tensor in shards on a disk: only the rows that are asked for are read."""

    def __init__(self, name: str, form: _TensorForm, pieces: list[_Piece]):
        import torch

        # a process that held no row wrote an empty piece
        self.name, self.pieces = name, sorted(piece for piece in pieces if 0 not in piece.shape)
        self.dtype, self.shape = getattr(torch, form["dtype"]), torch.Size(form["shape"])

    def is_complete(self) -> bool:
        """Whether the shards have each of its rows once."""
        ends = [0, *(piece.end for piece in self.pieces)]
        rows = (self.shape or (1,))[0] if self.numel() else 0
        return (
            [piece.first for piece in self.pieces] == ends[:-1]
            and ends[-1] == rows
            and all(piece.shape[1:] == self.shape[1:] for piece in self.pieces)
        )

    def numel(self) -> int:
        """Number of its values."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> "torch.Tensor":
        """Some rows of it, on the CPU."""
        import torch

        first, end, _ = rows.indices(len(self))
        parts = [torch.empty(0, *self.shape[1:], dtype=self.dtype)]
        for piece in self.pieces:
            if piece.first < end and first < piece.end:
                with _opened(piece.file) as shard:
                    there, start = shard.get_slice(self.name), piece.first
                    parts.append(there[max(0, first - start) : min(end, piece.end) - start])
        return torch.cat(parts)

    def parts(self) -> "Iterator[torch.Tensor]":
        """What each shard has of it, one after the other."""
        for piece in self.pieces:
            with _opened(piece.file) as shard:
                yield shard.get_tensor(self.name)

    def whole(self, empty: Callable[..., "torch.Tensor"] | None = None) -> "torch.Tensor":
        """All of it, on the CPU, in what `empty(shape, dtype=dtype)` makes (torch.empty)."""
        import torch

        found = (empty or torch.empty)(self.shape, dtype=self.dtype)
        for piece, part in zip(self.pieces, self.parts(), strict=True):
            (found[piece.first : piece.end] if self.shape else found).copy_(part)
        return found


def has_shards(path: Path) -> bool:
    """Whether a path is a checkpoint in shards."""
    return (path / STATE).is_file()


def save_shards(content: dict[str, Any], folder: Path, parallel, previous: Path) -> None:
    """Make `content`, whose tensors processes share, the checkpoint in `folder`; all call it.

    What was there becomes `previous`. Nothing changes until all files are on the disk; then
    renames of the first process do it, and at every instant one of the two is whole. Raises
    CheckpointError or OSError, in all processes.
    """
    from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageWriter, save

    begun = folder.with_name(f".{folder.name}.tmp")
    tensors: dict[str, torch.Tensor] = {}
    plain = _without_tensors(content, "", tensors)

    def begin() -> None:
        if begun.exists():
            remove_folder(begun)
        begun.mkdir(parents=True)

    def written() -> dict[str, str]:
        writer = HuggingFaceStorageWriter(path=str(begun), save_distributed=True)
        try:
            save(tensors, storage_writer=writer, process_group=parallel.control)
        except CheckpointException as error:  # alike in all processes
            raise next(iter(error.failures.values()))[0] from None
        own = sorted(begun.glob(f"shard-{parallel.rank + 1:05d}-*"))
        for file in own:
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        return {file.name: sha256_file(file) for file in own}

    def commit() -> None:
        forms = {
            name: {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)}
            for name, t in tensors.items()
        }
        state = {"content": plain, "tensors": forms, "sha256": files}
        write_json(
            begun / STATE, {"format_version": FORMAT_VERSIONS["sharded checkpoint"], **state}
        )
        if folder.exists():  # where a kill came between the renames, `previous` is the newest
            if previous.exists():
                remove_folder(previous)
            os.replace(folder, previous)
        os.replace(begun, folder)
        sync_folder(folder.parent)

    parallel.from_first(begin)
    files = {name: sha256 for each in parallel.gather(written) for name, sha256 in each.items()}
    parallel.from_first(commit)


def _without_tensors(value: Any, path: str, tensors: dict) -> Any:
    """A content without its tensors, which are added to `tensors` by their path ("a/b/c")."""
    if not isinstance(value, dict):
        return value
    plain = {}
    for name, each in value.items():
        if hasattr(each, "untyped_storage"):
            tensors[f"{path}{name}"] = each.detach()
        else:
            plain[name] = _without_tensors(each, f"{path}{name}/", tensors)
    return plain


def open_shards(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint in shards, its tensors as StoredTensors. Raises CheckpointError
    for a file that is missing or damaged."""
    state = read_form(folder / STATE, "sharded checkpoint", _StateForm, CheckpointError, _COPY)
    pieces: dict[str, list[_Piece]] = {name: [] for name in state["tensors"]}
    for name, sha256 in state["sha256"].items():
        file = folder / Path(name).name
        if not file.is_file():
            raise CheckpointError(f"{display(file)} is missing", _COPY, sep="; ")
        try:
            if sha256_file(file) != sha256:
                raise ValueError("its SHA-256 does not fit")
            for piece in _pieces_in(file):
                pieces[piece.tensor].append(piece)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{display(file)} is damaged ({error})", _COPY, sep="; "
            ) from None
    content = state["content"]
    for path, form in state["tensors"].items():
        *groups, name = path.split("/")
        place = content
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = stored = StoredTensor(path, form, pieces[path])
        if not stored.is_complete():
            raise CheckpointError(f"{display(folder)} lacks rows of {path}", _COPY, sep="; ")
    return content


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A shard; CheckpointError where it cannot be read."""
    try:
        with safe_open(file, "pt") as shard:
            yield shard
    except (OSError, RuntimeError, SafetensorError) as error:
        what = "is damaged" if file.is_file() else "is missing"
        raise CheckpointError(f"{display(file)} {what} ({error})", _COPY, sep="; ") from None


def _pieces_in(file: Path) -> Iterator[_Piece]:
    """What a shard has of each of its tensors."""
    with _opened(file) as shard:
        offsets = json.loads(shard.metadata()["DCP_SHARDING_INFO"])
        for name in shard.keys():
            first = (offsets[name]["saved_offsets"] or [0])[0]
            yield _Piece(name, first, tuple(shard.get_slice(name).get_shape()), file)


def with_tensors(value: Any, file: IO[bytes] | None = None) -> Any:
    """A content with the tensors themselves in place of StoredTensors.

    file: an empty one, in which they lie and which is mapped into memory.
    """
    if isinstance(value, dict):
        return {name: with_tensors(each, file) for name, each in value.items()}
    if not isinstance(value, StoredTensor):
        return value
    return value.whole(file and functools.partial(_mapped, file))


def _mapped(file: IO[bytes], shape: "torch.Size", dtype: "torch.dtype") -> "torch.Tensor":
    """A tensor behind the end of a file."""
    import numpy as np
    import torch

    size, end = shape.numel() * dtype.itemsize, file.seek(0, os.SEEK_END)
    if not size:
        return torch.empty(shape, dtype=dtype)
    end = -(-end // 64) * 64  # aligned for every dtype
    values = np.memmap(file, np.uint8, "r+", offset=end, shape=(size,))
    return torch.from_numpy(values).view(dtype).view(shape)
