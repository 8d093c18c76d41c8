"""A prepared dataset on disk: `train.bin`, `val.bin`, `meta.json`, `tokenizer.json`.

The `.bin` files are headerless little-endian uint16 or uint32 ids, memory-mapped (the layout of
nanoGPT, whose files work as they are). Large ones are cut into shards (`token_shards.py`).
`meta.json` describes the rest.
"""

import functools
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from gptlab.data import versions
from gptlab.data.batches import Sequences, check_ids, check_length
from gptlab.data.leaks import FILE as LEAKS
from gptlab.data.leaks import TELLING
from gptlab.data.nanogpt_meta import read_characters
from gptlab.data.prepare_command import prepare_command
from gptlab.data.tasks import folder_name, is_task_word
from gptlab.data.token_shards import (
    TokenShards,
    find_token_files,
    has_tokens,
    map_file,
    map_files,
    shard_name,
)
from gptlab.data.tokenizer import Tokenizer, char_tokenizer_without_end
from gptlab.data.windows import Windows, check_loss_mask, evaluation_windows
from gptlab.errors import ConfigError, DataError
from gptlab.files import (
    data_home,
    display,
    quoted,
    sha256_file,
    sha256_parts,
    shareable,
    without_folders,
)
from gptlab.typed_json import Count, Number, read_form

logger = logging.getLogger(__name__)

DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
# Files up to this size are hashed at every opening; of larger ones only evenly spread blocks are.
VERIFY_BYTES = 1 << 30
SAMPLED_BLOCKS = 64
SAMPLED_BLOCK_BYTES = 1 << 20
SCAN_TOKENS = 1 << 22  # of a large file that are held in memory at once


class MetaFile(TypedDict):
    """A file that the text came from, at the time of preparation."""

    path: str
    bytes: Count
    mtime_ns: int
    sha256: str


class MetaSource(TypedDict, total=False):
    """Where the text came from; a stream has no size."""

    identity: str | None
    label: str | None
    fingerprint: str | None
    bytes: Count | None
    files: list[MetaFile] | None


class _Sizes(TypedDict):
    """The required fields of meta.json."""

    format_version: int
    dtype: str
    vocab_size: Count
    train_tokens: Count
    val_tokens: Count


class Meta(_Sizes, total=False):
    """The content of meta.json."""

    name: str
    fingerprint: str
    chat_template: str
    version: Count
    characters: Count
    documents: Count
    train_bytes: Count
    train_documents: Count
    train_counted_tokens: Count
    train_counted_bytes: Count
    val_bytes: Count
    val_documents: Count
    val_counted_tokens: Count
    val_counted_bytes: Count
    shards: dict[str, list[Count]]  # tokens of each, of a split that has some
    sha256: dict[str, str | None]  # train.bin: of all its tokens, in whatever files
    sampled_sha256: dict[str, str | None]
    tokenizer: dict[str, str | None]
    source: MetaSource
    options: dict
    counts: dict
    split: dict[str, str | Number | None]
    baselines: dict[str, Number | None]
    task: dict  # of a dataset whose problems are made while training


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset; `train` and `val` are memory-mapped 1-D arrays of ids."""

    name: str
    folder: Path
    meta: Meta | None
    train: np.ndarray | TokenShards
    val: np.ndarray | TokenShards
    tokenizer: Tokenizer | None
    vocab_size: int
    # bool, as long as train and val: which tokens count as targets; None: all of them
    train_loss_mask: np.ndarray | None = None
    val_loss_mask: np.ndarray | None = None

    @functools.cached_property
    def val_leaks(self) -> np.ndarray | None:
        """Ranges of `val` that repeat training text, int64 [n, 2]; None for few or none of them
        and for datasets in which nobody has looked."""
        split = (self.meta or {}).get("split") or {}
        if (split.get("leaked_share") or 0) <= TELLING or not (self.folder / LEAKS).is_file():
            return None
        try:
            return np.load(self.folder / LEAKS, allow_pickle=False).reshape(-1, 2)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{display(self.folder / LEAKS)} is damaged",
                prepare_again(self.name, self.meta),
                sep="; ",
            ) from error

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest: the same for the same tokens and tokenizer."""
        return dataset_fingerprint(self.folder, self.meta, self.tokenizer)

    # As a part of a mixture, with the same methods as `task_dataset.TaskDataset` -----------------

    @property
    def train_tokens(self) -> int:
        """Tokens of the training part."""
        return len(self.train)

    @property
    def val_tokens(self) -> int:
        """Tokens of the validation part."""
        return len(self.val)

    def check_length(self, block_size: int) -> None:
        """Raise DataError if a part is shorter than one window."""
        for split in ("train", "val"):
            check_length(len(getattr(self, split)), block_size, split, self.name)

    def sequences(self, block_size: int, seed: int) -> Sequences:
        """The sequences of a training, by their number."""
        return Sequences(
            self.train,
            self.train_loss_mask,
            vocab_size=self.vocab_size,
            block_size=block_size,
            seed=seed,
            path=display(self.folder / "train.bin"),
        )

    def epochs(self, sequences: int, block_size: int) -> float:
        """How often so many sequences read the training part."""
        return sequences * block_size / len(self.train)

    def validation(self, block_size: int, max_tokens: int | None = None) -> Windows:
        """The windows of an evaluation. DataError for an id outside the vocabulary, or a loss mask
        that leaves no target."""
        starts = evaluation_windows(len(self.val), block_size, max_tokens)
        for first in starts:
            window = self.val[first : first + block_size + 1]
            check_ids(window, self.vocab_size, self.folder / "val.bin", int(first))
        check_loss_mask(self.val_loss_mask, starts, block_size)
        return Windows(self.val, starts, block_size, self.val_loss_mask)

    def tests(self) -> dict[str, Windows]:
        """A text has no problems whose answer is right or wrong."""
        return {}


def dataset_fingerprint(folder: Path, meta: Meta | None, tokenizer: Tokenizer | None) -> str:
    """`Dataset.fingerprint` of the dataset in a folder, which need not be opened."""
    digest = hashlib.sha256()
    masks = ["train.mask.bin", "val.mask.bin"] if _has_masks(meta) else []
    for name in ["train.bin", "val.bin", *masks]:
        recorded = ((meta or {}).get("sha256") or {}).get(name)
        digest.update((recorded or _sha256_of(folder, name)).encode())
    digest.update(tokenizer.fingerprint.encode() if tokenizer else b"")
    return digest.hexdigest()


def _sha256_of(folder: Path, name: str) -> str:
    """SHA-256 (hex) of what a file of this name holds, of its shards one after the other."""
    split = name.removesuffix(".bin")
    return sha256_parts([folder / name] if "." in split else find_token_files(folder, split))


def _has_masks(meta: Meta | None) -> bool:
    return (meta or {}).get("chat_template") is not None


def token_dtype(vocab_size: int) -> str:
    """The name of the smallest type of token file that holds the ids of this vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def list_datasets() -> list[tuple[str, Meta | None]]:
    """(name, meta or None) of every prepared dataset under the home, by name."""
    found = []
    if data_home().is_dir():
        for folder in sorted(data_home().iterdir()):
            if not folder.name.startswith(".") and is_dataset(folder):
                found.append((folder.name, find_meta(folder)))
    return found


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds a prepared dataset: token files, or a task."""
    return has_tokens(folder) or is_task(find_meta(folder))


def is_task(meta: Meta | None) -> bool:
    """Whether a dataset is a task, whose problems are made while training."""
    return (meta or {}).get("task") is not None


def read_meta(folder: Path) -> Meta:
    """The meta.json of a dataset. DataError for one that is damaged or of a newer version."""
    folder = Path(folder)
    return read_form(folder / "meta.json", "dataset", Meta, DataError, prepare_again(folder.name))


def find_meta(name_or_path) -> Meta | None:
    """The meta.json of a dataset, None where there is none that can be read."""
    try:
        return read_meta(dataset_folder(name_or_path))
    except (OSError, DataError):
        return None


def is_chat(meta: Meta | None) -> bool:
    """Whether a dataset holds conversations."""
    return (meta or {}).get("chat_template") is not None


def text_label(meta: Meta) -> str:
    """What the text of a dataset is, for a page that is shared; "" where nothing tells."""
    source = meta.get("source") or {}
    label = str(source.get("label") or "")
    paths = [file["path"] for file in source.get("files") or ()]
    for path in [*str(source.get("identity") or "").split("\n"), *paths]:
        if Path(path).is_absolute():
            label = label.replace(path, shareable(path))
    return without_folders(label)


def dataset_folder(name_or_path) -> Path:
    """The folder of a dataset: a name under `data/`, a task's own, else a path."""
    word = str(name_or_path)
    if is_task_word(word):
        return data_home() / folder_name(word)
    named = data_home() / word
    if Path(word).name == word and (named.is_dir() or not Path(word).is_dir()):
        return named
    return Path(word)


def open_dataset(
    name_or_path, vocab_size: int | None = None, fingerprint: str | None = None
) -> Dataset:
    """Open a prepared dataset by its name under `data/` or by its folder.

    vocab_size: required, and trusted, for a folder of token files without meta.json. fingerprint:
    of the version that a run began with, which is opened where it is still there; else the newest.
    Raises DataError for a dataset that is missing, damaged, changed since it was prepared, or that
    holds an id outside its vocabulary, and for a task, which `mixture.open_part` opens.
    """
    folder = dataset_folder(name_or_path)
    name = folder.resolve().name
    versions.complete_interrupted(folder)
    if not has_tokens(folder):
        if is_task(find_meta(folder)):
            raise DataError(
                f"{name} is a task, whose problems are made while training, so it has no text",
                "name a dataset that was prepared from a text",
            )
        raise _missing(str(name_or_path), folder)
    if fingerprint and (older := versions.version_folder(folder, fingerprint)).is_dir():
        return _open(name, older, vocab_size)
    if not (folder / "meta.json").exists():
        return _open_without_meta(name, folder, vocab_size)
    dataset = _open(name, folder, vocab_size)
    if changed := _changed_source(dataset.meta):
        command = prepare_command(dataset.meta)
        logger.warning(
            "%s has changed since %s was prepared from it; %s makes a version of the new text.",
            display(changed),
            name,
            f"`{command}`" if command else "preparing it again",
        )
    return dataset


def _open(name: str, folder: Path, vocab_size: int | None) -> Dataset:
    """The dataset whose meta.json is in this folder."""
    meta = read_meta(folder)
    known = meta["vocab_size"]
    if vocab_size is not None and vocab_size < known:
        raise DataError(
            f"{display(folder)} was prepared with a vocabulary of {known:,} ids, too many for a "
            f"model with vocab_size {vocab_size:,}",
            "leave vocab_size out",
            sep="; ",
        )
    if meta["dtype"] not in DTYPES:
        raise DataError(
            f"{display(folder / 'meta.json')} names the unknown dtype {meta['dtype']!r}; "
            f"gptlab reads {' and '.join(DTYPES)}."
        )
    splits = [_open_split(folder, split, meta) for split in ("train", "val")]
    tokenizer = None
    if (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
        recorded = (meta.get("tokenizer") or {}).get("fingerprint")
        if recorded not in (None, tokenizer.fingerprint):
            raise DataError(
                f"{display(folder / 'tokenizer.json')} is not the tokenizer that its token files "
                "were made with",
                prepare_again(name, meta),
                sep="; ",
            )
    masks = [None, None]
    if _has_masks(meta):
        masks = [_open_mask(folder, split, meta) for split in ("train", "val")]
    return Dataset(name, folder, meta, *splits, tokenizer, known, *masks)


def split_files(folder: Path, split: str, meta: Meta) -> list[tuple[Path, int]]:
    """(path, tokens) of each token file of a split, as meta.json has them."""
    shards = (meta.get("shards") or {}).get(split)
    if not shards:
        return [(folder / f"{split}.bin", meta[f"{split}_tokens"])]
    return [(folder / shard_name(split, number), n) for number, n in enumerate(shards)]


def _open_split(folder: Path, split: str, meta: Meta) -> np.ndarray | TokenShards:
    files = split_files(folder, split, meta)
    again = prepare_again(folder.name, meta)
    if sum(tokens for _, tokens in files) != meta[f"{split}_tokens"]:
        raise DataError(
            f"The shards of {split}.bin in {display(folder / 'meta.json')} do not add up", again
        )
    dtype = DTYPES[meta["dtype"]]
    is_small = meta[f"{split}_tokens"] * dtype.itemsize <= VERIFY_BYTES
    for path, tokens in files:
        if not path.is_file():
            raise DataError(f"{display(path)} is missing", again, sep="; ")
        size = path.stat().st_size
        if size != tokens * dtype.itemsize:
            raise DataError(
                f"{display(path)} has {size:,} bytes where its meta.json says "
                f"{tokens * dtype.itemsize:,}",
                again,
                sep="; ",
            )
        recorded = (meta.get("sha256") or {}).get(path.name)
        if is_small:
            if recorded is None:
                _scan(path, dtype, meta["vocab_size"])
            now = recorded and sha256_file(path)
        else:
            recorded = (meta.get("sampled_sha256") or {}).get(path.name)
            now = recorded and sampled_sha256(path, len(files))
        if now != recorded:
            raise DataError(f"{display(path)} has changed since it was prepared", again, sep="; ")
    return map_files([path for path, _ in files], dtype)


def _open_mask(folder: Path, split: str, meta: Meta) -> np.ndarray:
    """The loss mask of a split: bool, from a byte per token, 0 or 1."""
    path = folder / f"{split}.mask.bin"
    if not path.is_file():
        raise DataError(f"{display(path)} is missing", prepare_again(folder.name, meta), sep="; ")
    size, recorded = path.stat().st_size, (meta.get("sha256") or {}).get(path.name)
    is_same = size > VERIFY_BYTES or recorded is None or sha256_file(path) == recorded
    if size != meta[f"{split}_tokens"] or not is_same:
        raise DataError(
            f"{display(path)} does not fit {split}.bin", prepare_again(folder.name, meta), sep="; "
        )
    return map_file(path, np.dtype(np.uint8)).view(bool)


def sampled_hashes(paths: Sequence[Path], size: int) -> dict[str, str]:
    """`sampled_sha256` of the files of a split, which have so many bytes together, by name; {}
    where whole files are hashed."""
    if size <= VERIFY_BYTES:
        return {}
    return {path.name: sampled_sha256(path, len(paths)) for path in paths}


def sampled_sha256(path: Path, files: int = 1) -> str:
    """SHA-256 (hex) of 64 blocks of 1 MiB, from the first to the last of a file of any size; of
    fewer where it is one of several files."""
    digest = hashlib.sha256()
    blocks = max(2, SAMPLED_BLOCKS // files)
    last = max(0, path.stat().st_size - SAMPLED_BLOCK_BYTES)
    with open(path, "rb") as file:
        for block in range(blocks):
            file.seek(last * block // (blocks - 1))
            digest.update(file.read(SAMPLED_BLOCK_BYTES))
    return digest.hexdigest()


def _changed_source(meta: Meta) -> Path | None:
    """The first source file whose content has changed since."""
    for file in (meta.get("source") or {}).get("files") or []:
        path = Path(file["path"])
        try:
            now = path.stat()
            if now.st_size != file["bytes"]:
                return path
            if now.st_mtime_ns != file["mtime_ns"] and now.st_size <= VERIFY_BYTES:
                if sha256_file(path) != file["sha256"]:
                    return path
        except OSError:
            continue  # gone or unreadable: the prepared files do not need it
    return None


def _open_without_meta(name: str, folder: Path, vocab_size: int | None) -> Dataset:
    """A folder of token files made elsewhere: nanoGPT's meta.pkl or the caller tells the ids."""
    tokenizer = tokenizer_beside(folder, vocab_size)
    if tokenizer is not None:
        if vocab_size is not None and vocab_size < tokenizer.vocab_size:
            raise DataError(
                f"{display(folder)} has a vocabulary of {tokenizer.vocab_size:,} ids, which a "
                f"model with vocab_size {vocab_size:,} has no room for",
                "leave vocab_size out",
                sep="; ",
            )
        vocab_size = tokenizer.vocab_size
    if vocab_size is None:
        raise DataError(
            f"{display(folder)} holds token files without a meta.json, so their vocabulary is "
            "unknown",
            "put nanoGPT's meta.pkl or a tokenizer.json beside them, or train a model that writes "
            "no text with train.py --vocab_size N (65 for nanoGPT's Shakespeare characters, 50257 "
            "for GPT-2)",
            sep="; ",
        )
    dtype_name = token_dtype(vocab_size)
    logger.warning(
        "%s has no meta.json: its files are read as little-endian %s ids of a vocabulary of %s%s",
        display(folder),
        dtype_name,
        f"{vocab_size:,}",
        f" ({tokenizer.kind}, from the file beside them)."
        if tokenizer
        else "; no text can be sampled from a model of them, unless nanoGPT's meta.pkl or a "
        "tokenizer.json is put beside them before the training.",
    )
    dtype, splits = DTYPES[dtype_name], []
    for split in ("train", "val"):
        paths = find_token_files(folder, split)
        for path in paths:
            if path.stat().st_size % dtype.itemsize:
                raise DataError(
                    f"{display(path)} has {path.stat().st_size:,} bytes, which is not a whole "
                    f"number of {dtype_name} ids."
                )
            _scan(path, dtype, vocab_size)
        splits.append(map_files(paths, dtype))
    return Dataset(name, folder, None, *splits, tokenizer, vocab_size)


def tokenizer_beside(folder: Path, vocab_size: int | None) -> Tokenizer | None:
    """The tokenizer of a tokenizer.json or of nanoGPT's meta.pkl beside token files."""
    if (folder / "tokenizer.json").is_file():
        return Tokenizer.load(folder / "tokenizer.json")
    if not (folder / "meta.pkl").is_file():
        return None
    try:
        return char_tokenizer_without_end(read_characters(folder / "meta.pkl"))
    except ConfigError as error:
        if vocab_size is not None:  # a vocabulary of something else than characters
            return None
        raise DataError(
            error.problem,
            "train a model that writes no text with train.py --vocab_size N",
            sep="; ",
        ) from None


def _scan(path: Path, dtype: np.dtype, vocab_size: int) -> None:
    """`check_ids` over a whole file, in memory of a few megabytes."""
    with open(path, "rb") as file:
        offset = 0
        while (ids := np.fromfile(file, dtype, SCAN_TOKENS)).size:
            check_ids(ids, vocab_size, path, offset)
            offset += ids.size


def prepare_again(name: str, meta: Meta | None = None) -> str:
    """The fix for a dataset whose files are damaged or missing."""
    if command := prepare_command({**meta, "name": name}) if meta else "":
        return f"prepare it again: {command}"
    return (
        "prepare it again from its text: python prepare.py YOUR_TEXT.txt --dataset "
        f"{quoted(name)} --overwrite"
    )


def _missing(word: str, folder: Path) -> DataError:
    names = [name for name, _ in list_datasets()]
    if Path(word).is_file():
        return DataError(
            f"{display(word)} is a text, and training needs a prepared dataset",
            f"prepare it first: `python prepare.py {quoted(word)}`",
        )
    if "," in word:
        return DataError(
            f"{word!r} is not a prepared dataset; only training and the plan take a mix of several",
            "name one of them",
        )
    if word == "shakespeare":
        command = "python prepare.py shakespeare"
    elif Path(word).name == word:
        command = f"python prepare.py YOUR_TEXT.txt --dataset {quoted(word)}"
    else:
        command = "python prepare.py YOUR_TEXT.txt"
    there = f"prepared here: {', '.join(names)}" if names else "nothing is prepared yet"
    return DataError(
        f"No prepared dataset {word!r} ({display(folder)} has no train.bin; {there})",
        f"`{command}` prepares one",
        sep="; ",
    )
