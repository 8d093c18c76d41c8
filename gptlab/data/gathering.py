"""Read the documents of a source into the store, and say what was changed in them."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptlab.data import cleaning, documents
from gptlab.data.corpora import Source
from gptlab.data.duplicates import FILE as COPIES
from gptlab.data.duplicates import Copies, find_copies
from gptlab.data.intake import Changes, Intake
from gptlab.data.partition import Parts
from gptlab.data.prepare_options import PrepareOptions
from gptlab.data.text_files import Reading
from gptlab.data.text_store import TextStore
from gptlab.data.tokenizer import Tokenizer
from gptlab.data.unknown import UnknownCharacters
from gptlab.errors import ConfigError, DataError


@dataclass(frozen=True)
class Gathered:
    """What was read into the store. origins: {first byte: origin} of many documents. first_val:
    the number of the first document of a validation text of its own, None without one. keys:
    uint64 [documents], equal for those that stay on one side of the split."""

    origins: dict[int, documents.Origin]
    first_val: int | None
    is_chat: bool
    keys: np.ndarray


def gather(
    folder: Path,
    store: TextStore,
    parts: Parts,
    options: PrepareOptions,
    reading: Reading,
    tokenizer: Tokenizer | None,
    say: Callable[[str], None],
    progress: Callable[[int], None],
) -> Gathered:
    """Read the documents of both parts into the store; say and count what was changed in them.

    folder: of the dataset, where the copies are listed. tokenizer: the one that exists already,
    whose unknown characters may be dropped or replaced. progress: called with the bytes of text in
    which copies have been looked for.
    """
    changes, unknown = Changes(), UnknownCharacters(options.unknown)
    unknown.check(tokenizer)

    def read(source: Source, options: PrepareOptions) -> dict[int, documents.Origin]:
        def known(blocks: Iterable[str]) -> Iterable[str]:
            return blocks if reading.conversations else unknown.known(blocks, tokenizer)

        return _read_documents(store, source, reading, options, changes, known)

    origins, first_val = read(parts.train, options), None
    if parts.val:
        first_val = store.documents
        origins |= read(parts.val, dataclasses.replace(options, max_bytes=None))
        reading.counts["validation documents that are in the training text too"] += (
            store.repeated_after(first_val)
        )
    store.finish()
    copies = find_copies(store, options.val_fraction * store.bytes, progress)
    reading.counts["documents that repeat another"] += copies.exact
    reading.counts["documents that nearly repeat another"] += copies.near
    is_chat = reading.conversations > 0
    if is_chat:
        _check_conversations(store, reading, options)
    for sentence in reading_remarks(reading, changes, options, parts.train):
        say(sentence)
    gathered = Gathered(origins, first_val, is_chat, copies.keys(store.keys))
    for sentence in _copies_remarks(copies, parts.train, options):
        say(sentence)
    if copies.are_copies.any():
        _list_copies(folder / COPIES, store, copies, origins)
    if options.dedup:
        reading.counts["copies dropped"] += int(copies.are_copies.sum())
        gathered = _without_copies(store, copies, gathered)
    if options.unknown and not unknown.are_added:
        reading.counts["characters that the tokenizer lacks"] += unknown.found.total()
        say(unknown.remark())
    return gathered


def _read_documents(
    store: TextStore,
    source: Source,
    reading: Reading,
    options: PrepareOptions,
    changes: Changes,
    known: Callable[[Iterable[str]], Iterable[str]],
) -> dict[int, documents.Origin]:
    """Add the source's documents to the store; returns {first byte: origin} for many of them."""
    before = store.documents
    limit, origins, unit = options.max_bytes or math.inf, {}, options.unit
    intake = Intake(source, reading, unit, options.cleaning, changes)
    for document in intake.documents():
        start, document = store.bytes, known(document)
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


def _copies_remarks(copies: Copies, source: Source, options: PrepareOptions) -> Iterator[str]:
    """What becomes of the copies. Raises ConfigError for --dedup where there is none."""
    number = int(copies.are_copies.sum())
    if options.dedup and not number:
        why = "no document is a copy of another"
        if not source.hub_name:
            raise ConfigError(
                f"--dedup has no effect: {why}",
                "leave it out; within a document nothing is dropped (--document paragraph makes "
                "one of each paragraph)",
                sep="; ",
            )
        yield f"Copies dropped: none, because {why}."
    elif options.dedup:
        yield f"Copies dropped: {number:,} documents, which {COPIES} lists."
    elif number:
        copies_are = "1 copy" if number == 1 else f"{number:,} copies"
        yield f"{COPIES} lists the {copies_are} (exact or near); --dedup drops what it lists."
    if copies.kept_apart:
        yield (
            f"Documents that share half of their text with others: {copies.kept_apart:,}, too many "
            "for one side of the split, so they are not taken for copies."
        )


def _list_copies(
    path: Path, store: TextStore, copies: Copies, origins: dict[int, documents.Origin]
) -> None:
    """Write a line for each copy: its place, a tab, and the place of the document it repeats."""
    starts = (np.cumsum(store.sizes) - store.sizes).tolist()

    def place(number: int) -> str:
        origin = origins.get(starts[number])
        return str(documents.place_of(origin, 0)) if origin else f"document {number + 1:,}"

    with open(path, "w", encoding="utf-8") as file:
        for number in np.flatnonzero(copies.are_copies).tolist():
            file.write(f"{place(number)}\t{place(int(copies.first[number]))}\n")


def _without_copies(store: TextStore, copies: Copies, gathered: Gathered) -> Gathered:
    """Drop the copies from the store."""
    is_kept, first_val = ~copies.are_copies, gathered.first_val
    moved = store.drop(~is_kept)
    if first_val is not None:
        first_val = int(is_kept[:first_val].sum())
        if first_val == store.documents:
            raise DataError(
                "The whole validation text stands in the training text too",
                "name another with --val, or leave out --dedup",
            )
    origins = {new: gathered.origins[old] for new, old in moved.items() if old in gathered.origins}
    return Gathered(origins, first_val, gathered.is_chat, gathered.keys[is_kept])


def reading_remarks(
    reading: Reading, changes: Changes, options: PrepareOptions, source: Source | None
) -> Iterator[str]:
    """A line for each rule by which something was read, with its count, and each kind of change.

    source: None where only a part of it was read, so that an option may still have an effect.
    Raises ConfigError for an option that has changed nothing.
    """
    if reading.conversations:
        yield str(reading.chats)
    so_far = "" if source else " so far"
    for what, number in reading.counts.items():
        if number and what not in reading.reported:
            yield f"{what[0].upper()}{what[1:]}: {number:,}{so_far}."
    if source:
        yield from _without_effect(changes, source, options)
    yield from _changes_remarks(changes, options, reading.counts)


def _without_effect(changes: Changes, source: Source, options: PrepareOptions) -> Iterator[str]:
    """Raises ConfigError for an option that has changed nothing; a stream that has been read is
    not thrown away for that."""
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


def _changes_remarks(changes: Changes, options: PrepareOptions, counts: Counter) -> Iterator[str]:
    """A line for each kind of change, which is counted."""
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
    if options.unknown:
        raise ConfigError(
            "--unknown is for plain text, and these are conversations", "leave it out", sep="; "
        )
    if options.shard_tokens != PrepareOptions.shard_tokens or options.workers is not None:
        raise ConfigError(
            "Conversations are written into one file by one process",
            "leave out --shard_tokens and --workers",
        )
    if options.split == "tail":
        raise ConfigError("A conversation cannot be cut in two", "leave out --split tail")


def _limited(blocks: Iterator[str], max_bytes: int) -> Iterator[str]:
    """Blocks up to `max_bytes` of UTF-8, cut after a whole character."""
    for block in blocks:
        content = block.encode()
        if len(content) >= max_bytes:
            yield content[:max_bytes].decode(errors="ignore")
            return
        yield block
        max_bytes -= len(content)
