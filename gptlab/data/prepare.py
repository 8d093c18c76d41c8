"""Turn a corpus into a dataset: read, split, learn a vocabulary, encode, measure baselines, rename.

Everything is written into a hidden folder next to the dataset, which is renamed when complete. A
failure or Ctrl-C leaves nothing behind and an existing dataset untouched.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gptlab.data import baselines, documents, token_files
from gptlab.data.chat import ChatTemplate, write_conversations
from gptlab.data.corpora import Source, dataset_name, find
from gptlab.data.encode import write_tokens
from gptlab.data.text_files import Reading
from gptlab.data.text_store import Split, TextStore
from gptlab.data.token_files import DTYPES, Dataset, open_dataset, read_meta, token_dtype
from gptlab.data.tokenizer import Tokenizer, check_bpe_vocab_size
from gptlab.data.vocabulary import (
    DEFAULT_BPE_VOCAB,
    chat_template_at,
    learn_tokenizer,
    ready_tokenizer,
)
from gptlab.errors import ConfigError, DataError
from gptlab.files import FORMAT_VERSIONS, data_home, display, write_json

# Part of every fingerprint: raise it when the same input would give different token files.
PREPARATION_VERSION = 1
OUR_FILES = {
    *("train.bin", "val.bin", "train.mask.bin", "val.mask.bin", "meta.json", "tokenizer.json"),
    documents.FILE,
}

# progress(stage, units done since the last call, total units or None)
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class PrepareOptions:
    """Preparing"""

    dataset: Annotated[
        str | None, "name of the dataset (default: the name of the file or folder)"
    ] = None
    tokenizer: Annotated[
        str, "auto, char, bpe (trained here), gpt2, or the path of a run, model or tokenizer.json"
    ] = "auto"
    vocab_size: Annotated[
        int | None, f"largest vocabulary of a bpe tokenizer (default: {DEFAULT_BPE_VOCAB})"
    ] = None
    val_fraction: Annotated[float, "share of the text to keep for validation"] = 0.1
    split: Annotated[
        Literal["auto", "tail", "document"],
        "what to keep for validation: the tail of the text or whole documents; auto: documents if "
        "there are many",
    ] = "auto"
    seed: Annotated[int, "chooses the documents to keep for validation"] = 1337
    column: Annotated[str | None, "field of a table that holds the text (default: text)"] = None
    encoding: Annotated[str | None, "encoding of the text files (default: UTF-8)"] = None
    keep_line_endings: Annotated[bool, "do not turn CR LF and CR into line feeds"] = False
    max_bytes: Annotated[int | None, "stop after this many bytes of text"] = None
    overwrite: Annotated[bool, "replace a dataset of this name, whatever its source"] = False


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`. skipped: the dataset existed already. notes: the messages shown."""

    dataset: Dataset
    skipped: bool
    notes: list[str]


def prepare(
    sources: str | os.PathLike | Sequence[str],
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Prepared:
    """Prepare a corpus as `data/NAME`; do nothing if the same input is already prepared.

    sources: the name of a corpus, a file, folder, glob or `hf:` name, or several files. note:
    called with each message for the user. Raises DataError, TokenizerError, DownloadError or
    ConfigError, and then leaves no dataset behind.
    """
    options = options or PrepareOptions()
    progress = progress or (lambda stage, advance, total: None)
    notes: list[str] = []

    def say(sentence: str) -> None:
        notes.append(sentence)
        if note:
            note(sentence)

    _check(options)
    words = [os.fspath(sources)] if isinstance(sources, str | os.PathLike) else list(sources)
    source = find(words, options.encoding, say, lambda n: progress("hashing", n, None))
    name = options.dataset or source.name
    folder = data_home() / name
    say(f"Preparing {source.label} as {display(folder)}.")
    fingerprint = _fingerprint(source, options)
    existing = _existing(folder, source, options, fingerprint, say)
    if existing is not None:
        return Prepared(existing, True, notes)
    with _temporary_folder(folder) as temporary:
        meta = _build(temporary, name, source, options, progress, say)
        meta["fingerprint"] = fingerprint
        write_json(temporary / "meta.json", meta)
        _put_in_place(temporary, folder)
    return Prepared(open_dataset(folder), False, notes)


def _build(
    folder: Path,
    name: str,
    source: Source,
    options: PrepareOptions,
    progress: Progress,
    say: Callable[[str], None],
) -> dict:
    """Write the token files and the tokenizer into `folder`; return the content of meta.json."""
    sizes = [size for size in (source.bytes, options.max_bytes) if size]
    total = min(sizes, default=None)
    reading = Reading(
        options.encoding,
        options.keep_line_endings,
        options.column,
        Counter(source.counts),
        lambda n: progress("reading", n, total),
    )
    tokenizer = ready_tokenizer(options.tokenizer)
    with TextStore(folder / "text.tmp", options.seed) as store:
        origins = _read(store, source, reading, options.max_bytes)
        is_chat = reading.conversations > 0
        if is_chat:
            _check_conversations(store, reading, options)
        for what, number in reading.counts.items():
            if number:
                say(f"{what[0].upper()}{what[1:]}: {number:,}.")
        how, splits = _split(store, options, is_chat)
        train, val = splits["train"], splits["val"]
        tokenizer = tokenizer or learn_tokenizer(
            store, train, options.tokenizer, options.vocab_size, progress, say
        )
        tokenizer.save(folder / "tokenizer.json")
        kept = train.starts[: documents.MOST_DOCUMENTS].tolist()
        documents.write_origins(folder, [origins[start] for start in kept if start in origins])
        template = None
        if is_chat:
            template = ChatTemplate(chat_template_at(options.tokenizer), tokenizer)
        written = _write_splits(folder, store, splits, tokenizer, template, reading, progress)
        progress("baselines", 0, None)
        bits = {}  # none for conversations, whose loss covers only a part of the text
        if not is_chat:
            bits = baselines.measure_baselines(
                store.sample(train, baselines.TRAIN_BYTES), store.sample(val, baselines.VAL_BYTES)
            )
    return {
        "format_version": FORMAT_VERSIONS["dataset"],
        "name": name,
        "vocab_size": tokenizer.vocab_size,
        "documents": store.documents,
        **({"chat_template": template.source} if template else {}),
        **written,
        "tokenizer": {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint},
        "source": _describe_source(source),
        "options": _options_that_matter(options),
        "counts": dict(+reading.counts),
        "split": {
            "how": how,
            "val_fraction": options.val_fraction,
            "seed": options.seed,
            "separators": int(train.closed.sum() + val.closed.sum()),
        },
        "baselines": bits,
    }


def _write_splits(
    folder: Path,
    store: TextStore,
    splits: dict[str, Split],
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    reading: Reading,
    progress: Progress,
) -> dict:
    """Write the token file of each split; return their sizes and hashes as in meta.json."""
    dtype, characters = token_dtype(tokenizer.vocab_size), 0
    found, sha256, sampled = {}, {}, {}

    def advance(size: int) -> None:
        progress("encoding", size, store.bytes)

    for name, split in splits.items():
        path = folder / f"{name}.bin"
        if template:
            sizes, hashes = write_conversations(
                store, split, template, path, DTYPES[dtype], advance
            )
            characters += sizes.pop("characters")
        else:
            tokens, digest = write_tokens(
                store, split, tokenizer, path, DTYPES[dtype], reading.counts, advance
            )
            sizes, hashes = {"tokens": tokens, "bytes": split.bytes}, {path.name: digest}
        sha256 |= hashes
        if path.stat().st_size > token_files.VERIFY_BYTES:  # too large to hash at each start
            sampled[path.name] = token_files.sampled_sha256(path)
        sizes["documents"] = split.documents
        found |= {f"{name}_{what}": size for what, size in sizes.items()}
    if sampled:
        found["sampled_sha256"] = sampled
    characters = characters if template else store.characters
    return {"dtype": dtype, "characters": characters, **found, "sha256": sha256}


def _check_conversations(store: TextStore, reading: Reading, options: PrepareOptions) -> None:
    """Raise DataError or ConfigError if these conversations cannot be prepared."""
    if reading.conversations < store.documents:
        raise DataError(
            "Some rows are conversations (they have messages) and some are plain text",
            "prepare them as two datasets",
        )
    if options.tokenizer in ("auto", "char", "bpe"):
        raise ConfigError(
            "Conversations need the tokenizer and the chat template of the model to be trained",
            "name it with --tokenizer (a run, a folder of a model, or gpt2)",
        )
    if options.split == "tail":
        raise ConfigError("A conversation cannot be cut in two", "leave out --split tail")


def _check(options: PrepareOptions) -> None:
    if not 0 < options.val_fraction < 1:
        raise ConfigError(
            f"val_fraction cannot be {options.val_fraction:g}",
            "it is a share between 0 and 1, such as 0.1",
        )
    if options.dataset is not None and dataset_name(options.dataset) != options.dataset:
        raise ConfigError(
            f"dataset cannot be {options.dataset!r}",
            "a name has only letters, digits, - _ and .; for example "
            f"{dataset_name(options.dataset)}",
        )
    if options.vocab_size is not None:
        if options.tokenizer not in ("auto", "bpe"):
            raise ConfigError(
                f"--vocab_size belongs to --tokenizer bpe; the size of a {options.tokenizer} "
                "tokenizer is fixed, so leave it out."
            )
        check_bpe_vocab_size(options.vocab_size)
    if options.max_bytes is not None and options.max_bytes < 1:
        raise ConfigError(f"max_bytes cannot be {options.max_bytes}", "give a number of bytes")
    if not 0 <= options.seed < 2**63:
        raise ConfigError(f"seed cannot be {options.seed}", "it is a whole number, 0 or more")


def _read(
    store: TextStore, source: Source, reading: Reading, max_bytes: int | None
) -> dict[int, documents.Origin]:
    """Fill the store with the source's documents; returns {first byte: origin} for many of them."""
    limit, origins = max_bytes or math.inf, {}
    for document in source.documents(reading):
        start = store.bytes
        if max_bytes and not reading.conversations:  # conversations are never cut
            document = _limited(document, limit - start)
        if not store.add(document):
            reading.counts["blank documents left out"] += 1
        elif len(origins) < 2 * documents.MOST_DOCUMENTS:  # some go to the validation part
            origins[start] = reading.document
        if store.bytes >= limit:
            break
    store.finish()
    if store.documents == 0:
        raise DataError(
            f"{source.label} holds no text (nothing, or only white space)",
            "name a file that holds text",
            sep="; ",
        )
    reading.counts["documents that repeat another"] += store.repeated_documents
    return origins


def _limited(blocks: Iterator[str], max_bytes: int) -> Iterator[str]:
    """Blocks up to `max_bytes` of UTF-8, cut after a whole character."""
    for block in blocks:
        content = block.encode()
        if len(content) >= max_bytes:
            yield content[:max_bytes].decode(errors="ignore")
            return
        yield block
        max_bytes -= len(content)


def _split(
    store: TextStore, options: PrepareOptions, is_chat: bool
) -> tuple[str, dict[str, Split]]:
    """("tail" or "document", the "train" and the "val" part).

    auto splits by documents if that comes close to the requested fraction, which it does not for a
    few documents, or documents of very unequal sizes.
    """
    how = "document" if is_chat else options.split
    if how == "auto":
        how = "tail"
        if store.documents > 1:
            _, val = store.split("document", options.val_fraction)
            share = val.bytes / store.bytes / options.val_fraction
            how = "document" if 0.8 <= share <= 1.25 else "tail"
    train, val = store.split(how, options.val_fraction)
    if not train.bytes or not val.bytes:
        raise DataError(
            f"{store.characters:,} characters in {store.documents:,} documents cannot be split "
            f"into training and validation text with val_fraction {options.val_fraction:g} by "
            f"{how}",
            "add more text",
            sep="; ",
        )
    return how, {"train": train, "val": val}


def _options_that_matter(options: PrepareOptions) -> dict:
    """The options that the token files depend on."""
    values = dataclasses.asdict(options)
    del values["dataset"], values["overwrite"]
    return values


def _fingerprint(source: Source, options: PrepareOptions) -> str:
    """A hash of the text, of the options that matter, and of a named tokenizer's content."""
    parts = [PREPARATION_VERSION, source.fingerprint, _options_that_matter(options)]
    if options.tokenizer != "gpt2":
        named = ready_tokenizer(options.tokenizer)
        parts.append(named.fingerprint if named else None)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _describe_source(source: Source) -> dict:
    files = [
        {
            "path": str(file.path.resolve()),
            "bytes": file.bytes,
            "mtime_ns": file.mtime_ns,
            "sha256": file.sha256,
        }
        for file in source.files[:1000]
    ]
    return {
        "identity": source.identity,
        "label": source.label,
        "bytes": source.bytes,
        "fingerprint": source.fingerprint,
        "files": files,
    }


def _existing(
    folder: Path,
    source: Source,
    options: PrepareOptions,
    fingerprint: str,
    say: Callable[[str], None],
) -> Dataset | None:
    """The existing dataset, if preparing again would give the same one; else None.

    Raises DataError if the folder holds something that must not be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    strange = sorted(set(os.listdir(folder)) - OUR_FILES) if folder.is_dir() else [folder.name]
    if strange:
        raise DataError(
            f"{display(folder)} holds files that gptlab did not write ({', '.join(strange[:3])})",
            "choose another name with --dataset",
            sep="; ",
        )
    if options.overwrite:
        return None
    try:
        meta = read_meta(folder)
    except (OSError, DataError):
        raise DataError(
            f"{display(folder)} holds token files without a readable meta.json",
            "choose another name with --dataset, or replace them with --overwrite",
            sep="; ",
        ) from None
    if meta.get("fingerprint") == fingerprint:
        try:
            return open_dataset(folder)
        except DataError as error:
            say(f"{error.problem}: preparing it again.")
            return None
    before = meta.get("source") or {}
    if before.get("identity") != source.identity:
        raise DataError(
            f"{folder.name} is already prepared from a different source ({before.get('identity')})",
            "choose another name with --dataset, or replace it with --overwrite",
            sep="; ",
        )
    if before.get("fingerprint") != source.fingerprint:
        say(f"{source.label} has changed since it was prepared: preparing it again.")
    old, new = meta.get("options") or {}, _options_that_matter(options)
    changed = [f"{key} {old.get(key)} -> {new[key]}" for key in new if old.get(key) != new[key]]
    if changed:
        say(f"Options have changed ({', '.join(changed)}): preparing it again.")
    return None


@contextlib.contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder`, removed at the end unless it has been renamed."""
    path = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _remove_abandoned(path.parent)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove temporary folders of killed preparations: those untouched for an hour."""
    for folder in parent.glob(".*.tmp"):
        newest = max((f.stat().st_mtime for f in [folder, *folder.glob("*")]), default=0)
        if folder.is_dir() and time.time() - newest > 3600:
            shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename the finished folder; an existing one moves aside first, and back on failure."""
    if not folder.exists():
        os.replace(temporary, folder)
        return
    former = folder.with_name(f".{folder.name}.{os.getpid()}.former.tmp")
    os.replace(folder, former)
    try:
        os.replace(temporary, folder)
    except BaseException:
        os.replace(former, folder)
        raise
    shutil.rmtree(former, ignore_errors=True)
