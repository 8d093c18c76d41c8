"""Turn a corpus into a dataset: read, split, learn a vocabulary, encode, measure baselines, rename.

Everything is written into a hidden folder next to the dataset, which is renamed when complete. A
failure or Ctrl-C leaves nothing behind and an existing dataset untouched.
"""

import contextlib
import dataclasses
import functools
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

import numpy as np

from gptlab.data import baselines, cleaning, documents, token_files
from gptlab.data.chat import ChatTemplate, write_conversations
from gptlab.data.corpora import Source, dataset_name, find
from gptlab.data.encode import write_tokens
from gptlab.data.intake import Changes, Cleaning, Intake, Unit
from gptlab.data.messages import FoundConversation
from gptlab.data.partition import Parts, divide
from gptlab.data.survey import remarks, survey, unknown_characters
from gptlab.data.text_files import Reading
from gptlab.data.text_store import Split, TextStore
from gptlab.data.token_files import DTYPES, Dataset, open_dataset, read_meta, token_dtype
from gptlab.data.tokenizer import Tokenizer, check_bpe_vocab_size, unknown_in_text
from gptlab.data.vocabulary import (
    DEFAULT_BPE_VOCAB,
    chat_template_at,
    learn_tokenizer,
    ready_tokenizer,
)
from gptlab.errors import ConfigError, DataError
from gptlab.files import FORMAT_VERSIONS, data_home, display, write_json

# Part of every fingerprint: raise it when the same input would give different token files.
PREPARATION_VERSION = 2  # 2: Project Gutenberg's headers and licences are cut
OUR_FILES = {
    *("train.bin", "val.bin", "train.mask.bin", "val.mask.bin", "meta.json", "tokenizer.json"),
    documents.FILE,
}

_NEW_OPTIONS = {"header", "delimiter", "quoting", "max_bad_rows", "exclude"}
_PREVIEW_CHARACTERS = 2_000

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
    val: Annotated[
        str | None,
        "a file or folder to validate on (default: a file named valid beside one named train, else "
        "a share of the text); none: train on all files",
    ] = None
    val_fraction: Annotated[float, "share of the text to keep for validation"] = 0.1
    split: Annotated[
        Literal["auto", "tail", "document"],
        "what to keep for validation: the tail of the text or whole documents; auto: documents if "
        "there are many",
    ] = "auto"
    seed: Annotated[int, "chooses the documents to keep for validation"] = 1337
    column: Annotated[
        str | None,
        "field of a table that holds the text (default: text); several as title,body or in a "
        'pattern such as "{title}\\n{body}"',
    ] = None
    encoding: Annotated[str | None, "encoding of the text files (default: UTF-8)"] = None
    document: Annotated[
        Literal["file", "row", "line", "paragraph"] | None,
        "what a document is (default: a text file, or a row of a table)",
    ] = None
    separator: Annotated[
        tuple[str, ...],
        "text that stands between two documents, such as '<|endoftext|>'; may be given several "
        "times",
    ] = ()
    keep_line_endings: Annotated[bool, "do not turn CR LF and CR into line feeds"] = False
    normalize: Annotated[
        Literal["nfc", "nfkc"] | None, "normal form of Unicode for letters with several spellings"
    ] = None
    clean: Annotated[bool, "drop control characters and invisible ones"] = False
    gutenberg: Annotated[
        Literal["cut", "keep"], "what to do with Project Gutenberg's header and licence"
    ] = "cut"
    max_bytes: Annotated[int | None, "stop after this many bytes of text"] = None
    overwrite: Annotated[bool, "replace a dataset of this name, whatever its source"] = False
    header: Annotated[
        Literal["auto", "yes", "no"], "whether the first row of a CSV file holds names of fields"
    ] = "auto"
    delimiter: Annotated[
        str,
        "of a CSV file: comma, semicolon, tab, bar, another character, none (one column) or auto",
    ] = "auto"
    quoting: Annotated[
        Literal["auto", "yes", "no"],
        "whether quotation marks enclose fields of a CSV file; no: they are letters",
    ] = "auto"
    max_bad_rows: Annotated[
        str, "share of a table's rows to skip at most where they cannot be read"
    ] = "1%"
    exclude: Annotated[
        str | None, "leave out files and folders of these names, such as node_modules,*.min.js"
    ] = None

    @property
    def unit(self) -> Unit:
        """What a document is."""
        return Unit(self.document, self.separator)

    @property
    def cleaning(self) -> Cleaning:
        """What is changed in the text."""
        return Cleaning(self.normalize, self.clean, self.gutenberg == "cut")


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

    def hashed(size: int) -> None:
        progress("hashing", size, None)

    reading = _reading(options, say)
    source = find(words, options.encoding, say, hashed, reading)
    name = options.dataset or source.name
    folder = data_home() / name
    say(f"Preparing {source.label} as {display(folder)}.")
    parts = divide(words, source, options.val, reading, say, hashed)
    if parts.val:
        _check_no_split(options, parts.name)
    fingerprint = _fingerprint(source, parts, options)
    existing = _existing(folder, source, options, fingerprint, say)
    if existing is not None:
        return Prepared(existing, True, notes)
    with _temporary_folder(folder) as temporary:
        meta = _build(temporary, name, source, parts, options, reading, progress, say)
        meta["fingerprint"] = fingerprint
        write_json(temporary / "meta.json", meta)
        _put_in_place(temporary, folder)
    return Prepared(open_dataset(folder), False, notes)


def first_documents(
    sources: Sequence[str],
    options: PrepareOptions,
    most: int,
    note: Callable[[str], None],
) -> tuple[list[tuple[str, str]], bool]:
    """([(place, beginning of its text) of each of the first documents], whether they are all).

    Reads them as `prepare` does, raises what it raises, and writes nothing.
    """
    _check(options)
    reading = _reading(options, note)
    source = find(list(sources), options.encoding, note, how=reading)
    found: list[tuple[str, str]] = []
    intake = Intake(source, reading, options.unit, options.cleaning, Changes())
    for document in intake.documents():
        if len(found) == most:
            return found, False
        text = ""
        for block in document:
            if len(text) < _PREVIEW_CHARACTERS:
                text += block[:_PREVIEW_CHARACTERS]
        if text.strip():
            name, line = reading.document
            found.append((f"{name}:{line}" if line > 1 else name, text))
    return found, True


def _reading(options: PrepareOptions, say: Callable[[str], None]) -> Reading:
    """How the files are to be read."""
    return Reading(
        options.encoding,
        options.keep_line_endings,
        options.column,
        header=options.header,
        delimiter=options.delimiter,
        quoting=options.quoting,
        max_bad_rows=_share(options.max_bad_rows),
        exclude=tuple(filter(None, map(str.strip, (options.exclude or "").split(",")))),
        note=say,
    )


def _share(word: str) -> float:
    """A share such as "1%" or "0.01" as a number from 0 to 1. Raises ConfigError."""
    try:
        share = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise ConfigError(
            f"max_bad_rows cannot be {word!r}", "it is a share such as 1% or 0.01, or 0 for none"
        )
    return share


def _build(
    folder: Path,
    name: str,
    source: Source,
    parts: Parts,
    options: PrepareOptions,
    reading: Reading,
    progress: Progress,
    say: Callable[[str], None],
) -> dict:
    """Write the token files and the tokenizer into `folder`; return the content of meta.json."""
    sizes = [size for size in (parts.train.bytes, options.max_bytes) if size]
    total = min(sizes) + (parts.val.bytes or 0 if parts.val else 0) if sizes else None
    reading.counts.update(source.counts)
    reading.counts["files left out because of their names"] += parts.left_out
    reading.progress = lambda n: progress("reading", n, total)
    tokenizer = ready_tokenizer(options.tokenizer)
    if tokenizer:
        reading.fits = _FitsTemplate(options.tokenizer, tokenizer)
    with TextStore(folder / "text.tmp", options.seed) as store:
        changed = Changes()
        origins = _read(store, parts.train, reading, options, changed)
        first_val = store.documents
        if parts.val:
            whole = dataclasses.replace(options, max_bytes=None)
            origins |= _read(store, parts.val, reading, whole, changed)
            reading.counts["validation documents that are in the training text too"] += (
                store.repeated_after(first_val)
            )
        store.finish()
        reading.counts["documents that repeat another"] += store.repeated_documents
        is_chat = reading.conversations > 0
        if is_chat:
            _check_conversations(store, reading, options)
            say(str(reading.chats))
        for what, number in reading.counts.items():
            if number:
                say(f"{what[0].upper()}{what[1:]}: {number:,}.")
        for sentence in _changes(changed, source, options, reading.counts):
            say(sentence)
        found = survey(store, lambda n: progress("surveying", n, store.bytes))
        if is_chat:  # their marks are those of the template
            found.marks.clear()
        for sentence in remarks(found, options.separator):
            say(sentence)
        # conversations are kept as JSON, whose brackets no tokenizer has to know
        if tokenizer and not is_chat and (unknown := unknown_characters(found, tokenizer)):
            first, start, lines = store.first_of(unknown)
            unknown = Counter({first: unknown[first]}) | unknown
            place = documents.place_of(origins[start], lines) if start in origins else ""
            raise unknown_in_text(unknown, tokenizer, str(place))
        if parts.val:
            train, val = store.split_at(first_val)
            how, splits = "file", {"train": train, "val": val}
        else:
            how, splits = _split(store, options, is_chat)
        train, val = splits["train"], splits["val"]
        tokenizer = tokenizer or learn_tokenizer(
            store, train, options.tokenizer, options.vocab_size, progress, say
        )
        if tokenizer.eot_id is None and options.unit.is_inside:
            raise ConfigError(
                "This tokenizer has no end of text, so documents could not be told apart",
                f"leave out --{'document' if options.document else 'separator'}, or name another "
                "--tokenizer",
            )
        tokenizer.save(folder / "tokenizer.json")
        kept = train.starts[: documents.MOST_DOCUMENTS].tolist()
        documents.write_origins(folder, [origins[start] for start in kept if start in origins])
        template = None
        if is_chat:
            template = ChatTemplate(chat_template_at(options.tokenizer), tokenizer)
        written = _write_splits(folder, store, splits, tokenizer, template, reading, progress)
        progress("baselines", 0, None)
        compared, bits = {}, {}  # none for conversations, whose loss covers only a part
        if not is_chat:
            bits = baselines.measure_baselines(
                *(np.memmap(folder / f"{split}.bin", written["dtype"], "r") for split in splits),
                tokenizer.vocab_size,
                (
                    store.sample(train, baselines.LZMA_TRAIN_BYTES, mark=baselines.END),
                    store.sample(val, baselines.VAL_BYTES, mark=baselines.END),
                ),
                val.bytes,
            )
            if how != "document":  # which are chosen by chance
                compared = baselines.compare_parts(
                    store.sample(train, baselines.COMPARED_BYTES),
                    store.sample(val, baselines.VAL_BYTES),
                )
            if sentence := baselines.unlike(compared):
                say(f"{sentence[0].upper()}{sentence[1:]}; {_spread(how, store.documents)}.")
    return {
        "format_version": FORMAT_VERSIONS["dataset"],
        "name": name,
        "vocab_size": tokenizer.vocab_size,
        "documents": store.documents,
        **({"chat_template": template.source} if template else {}),
        **written,
        "tokenizer": {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint},
        "source": _describe_source(source, parts),
        "options": _options_that_matter(options),
        "counts": dict(+reading.counts),
        "split": {
            "how": how,
            "val_fraction": options.val_fraction,
            "seed": options.seed,
            "separators": int(train.closed.sum() + val.closed.sum()),
            **({"val": parts.name} if parts.val else {}),
            **compared,
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


class _FitsTemplate:
    """Tries whether conversations fit the chat template of the tokenizer's model."""

    def __init__(self, word: str, tokenizer: Tokenizer):
        self._word, self._tokenizer = word, tokenizer

    @functools.cached_property
    def _template(self) -> ChatTemplate:  # when the first conversation is met: most texts have none
        return ChatTemplate(chat_template_at(self._word), self._tokenizer)

    def __call__(self, found: FoundConversation, place: str) -> None:
        """Raise NoConversationError for a conversation that does not fit."""
        self._template.check(found.messages, place, found.tools)


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
            "name it with --tokenizer (a run, a folder of a model, or gpt2), or read their fields "
            'as plain text with --column FIELD or --column "{FIELD}\\n{FIELD}"',
        )
    if options.split == "tail":
        raise ConfigError("A conversation cannot be cut in two", "leave out --split tail")


def _check(options: PrepareOptions) -> None:
    options.unit.check()
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


def _spread(how: str, documents: int) -> str:
    """What to do about a validation text that is unlike the training text."""
    if how == "file":
        return "leave --val out, or name a text of the same kind, if that is not meant"
    if documents > 1:
        return "cut off its end if it does not belong there, or say --split document"
    return (
        "cut off its end if it does not belong there, or say --document paragraph, so that "
        "paragraphs from all over the text validate"
    )


def _check_no_split(options: PrepareOptions, val: str) -> None:
    """Raise ConfigError for an option of the split where the validation text is a file."""
    for name in ("val_fraction", "split", "seed"):
        if getattr(options, name) != getattr(PrepareOptions, name):
            raise ConfigError(
                f"--{name} has no effect: {val} is the validation text",
                "leave it out" + ("" if options.val else ", or say --val none"),
                sep="; ",
            )


def _read(
    store: TextStore,
    source: Source,
    reading: Reading,
    options: PrepareOptions,
    changes: Changes,
) -> dict[int, documents.Origin]:
    """Add the source's documents to the store; returns {first byte: origin} for many of them."""
    before = store.documents
    limit, origins, unit = options.max_bytes or math.inf, {}, options.unit
    intake = Intake(source, reading, unit, options.cleaning, changes)
    for document in intake.documents():
        start = store.bytes
        if options.max_bytes and not reading.conversations:  # conversations are never cut
            document = _limited(document, limit - start)
        if not store.add(document):
            # what stands between paragraphs, or an end and a start, is no document
            if unit.document != "paragraph" and len(unit.separators) < 2:
                noun = "lines" if unit.document == "line" else "documents"
                reading.counts[f"blank {noun} left out"] += 1
        elif len(origins) < 2 * documents.MOST_DOCUMENTS:  # some go to the validation part
            origins[start] = reading.document
        if store.bytes > limit - 4:  # the next character may not fit
            break
    if not before:  # a validation text may be one document without any separator
        intake.check()
    if store.documents == before:
        raise DataError(
            f"{source.label} holds no text (nothing, or only white space)",
            "name a file that holds text",
            sep="; ",
        )
    return origins


def _changes(
    changes: Changes, source: Source, options: PrepareOptions, counts: Counter
) -> Iterator[str]:
    """A line for each kind of change, which is counted. Raises ConfigError for an option that has
    changed nothing; a stream that has been read is not thrown away for that."""
    asked = {
        "--normalize": (options.normalize, changes.respelled, "the text is spelled so already"),
        "--clean": (options.clean, changes.dropped, "no character of the text is invisible"),
        "--gutenberg keep": (
            options.gutenberg == "keep",
            changes.gutenberg,
            "the text has no header or licence of Project Gutenberg",
        ),
    }
    for option, (is_asked, found, why) in asked.items():
        if is_asked and not found:
            if not source.hub_name:
                raise ConfigError(f"{option} has no effect: {why}", "leave it out", sep="; ")
            yield f"{option} had no effect: {why}."
    if changes.respelled:
        number = sum(changes.respelled.values())
        counts["letters spelled otherwise (normalised)"] += number
        yield f"Letters spelled as {options.normalize.upper()} spells them: {number:,}."
    if changes.dropped:
        counts["invisible characters dropped"] += sum(changes.dropped.values())
        yield f"Invisible characters dropped: {cleaning.name_all(changes.dropped)}."
    if changes.gutenberg and options.gutenberg == "cut":
        headers, licences = changes.gutenberg["headers"], changes.gutenberg["licences"]
        counts["Project Gutenberg's headers cut"] += headers
        counts["Project Gutenberg's licences cut"] += licences
        named = [
            f"{number:,} {noun}{'' if number == 1 else 's'}"
            for number, noun in ((headers, "header"), (licences, "licence"))
            if number
        ]
        yield (
            f"Project Gutenberg: {' and '.join(named)} cut ({changes.gutenberg['characters']:,} "
            "characters); --gutenberg keep leaves them in."
        )


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
    for field in dataclasses.fields(options):  # what older releases did not have
        if field.name in _NEW_OPTIONS and values[field.name] == field.default:
            del values[field.name]
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def _fingerprint(source: Source, parts: Parts, options: PrepareOptions) -> str:
    """A hash of the text, of the options that matter, and of a named tokenizer's content."""
    content = [PREPARATION_VERSION, source.fingerprint, _options_that_matter(options)]
    content += [part.fingerprint for part in (parts.train, parts.val) if part and part != source]
    if options.tokenizer != "gpt2":
        named = ready_tokenizer(options.tokenizer)
        content.append(named.fingerprint if named else None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _describe_source(source: Source, parts: Parts) -> dict:
    val = parts.val.files if parts.val else ()
    files = [
        {
            "path": file.origin,
            "bytes": file.bytes,
            "mtime_ns": file.mtime_ns,
            "sha256": file.sha256,
        }
        for file in dict.fromkeys([*source.files, *val][:1000])
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
    changed = [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in {**old, **new}
        if (old.get(key) or None) != (new.get(key) or None)
    ]
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
