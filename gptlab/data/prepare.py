"""Turn a corpus into a dataset: read, split, learn a vocabulary, encode, measure baselines, rename.

Everything is written into a hidden folder next to the dataset, which is renamed when complete. A
failure or Ctrl-C leaves an existing dataset untouched, and nothing behind but complete shards, with
which the next preparation goes on.
"""

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptlab.data import baselines, documents, token_files, versions
from gptlab.data.chat import ChatTemplate, write_conversations
from gptlab.data.corpora import Source, find
from gptlab.data.gathering import Gathered, gather, reading_remarks
from gptlab.data.intake import Changes, Intake
from gptlab.data.leaks import leak_remark, write_leaks
from gptlab.data.messages import FoundConversation
from gptlab.data.partition import Parts, divide
from gptlab.data.prepare_options import (
    PrepareOptions,
    check_options,
    options_that_matter,
    reading_of,
    shard_size,
)
from gptlab.data.replacing import Former, find_former
from gptlab.data.shard_writing import encode_shards, plan_shards
from gptlab.data.spelling import name_characters, unknown_in_text
from gptlab.data.splitting import check_no_split, how_to_validate, split_text
from gptlab.data.streaming import Stream, check_streaming
from gptlab.data.survey import remarks, survey, unknown_characters
from gptlab.data.text_files import Reading
from gptlab.data.text_store import Split, TextStore
from gptlab.data.token_files import (
    DTYPES,
    Dataset,
    dataset_fingerprint,
    open_dataset,
    token_dtype,
)
from gptlab.data.token_shards import SPLITS, find_token_files, map_files
from gptlab.data.tokenizer import CharTokenizer, Tokenizer
from gptlab.data.unfinished import Unfinished
from gptlab.data.unknown import WAYS, UnknownCharacters
from gptlab.data.vocabulary import chat_template_at, learn_tokenizer, ready_tokenizer
from gptlab.errors import ConfigError, TokenizerError
from gptlab.files import FORMAT_VERSIONS, data_home, display, write_json

# Part of every fingerprint: raise it when the same input would give different token files.
# 2: Project Gutenberg's headers and licences are cut. 3: options count where they differ from the
# default, so that a new option changes no fingerprint. 4: near copies of a document are on one
# side of the split.
PREPARATION_VERSION = 4
_PREVIEW_CHARACTERS = 2_000

# progress(stage, units done since the last call, total units or None)
Progress = Callable[[str, int, int | None], None]


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

    check_options(options)
    words = [os.fspath(sources)] if isinstance(sources, str | os.PathLike) else list(sources)

    def hashed(size: int) -> None:
        progress("hashing", size, None)

    reading = reading_of(options, say)
    source = find(words, options.encoding, say, hashed, reading)
    if options.streaming:
        check_streaming(options, source)
    name = options.dataset or source.name
    folder = data_home() / name
    say(f"Preparing {source.label} as {display(folder)}.")
    parts = divide(words, source, options.val, reading, say, hashed)
    if parts.val:
        check_no_split(options, parts.name)
    fingerprint = _fingerprint(source, parts, options)
    versions.complete_interrupted(folder)
    former = find_former(folder, source, options, fingerprint, say)
    if isinstance(former, Dataset):
        return Prepared(former, True, notes)
    own = former.tokenizer if former else None
    if options.streaming:
        _stream(folder, name, source, options, reading, fingerprint, former, progress, say)
        return Prepared(open_dataset(folder), False, notes)
    with (
        versions.temporary_folder(folder) as temporary,
        Unfinished(folder, fingerprint) as unfinished,
    ):
        meta = _build(
            temporary, name, source, parts, options, reading, own, unfinished, progress, say
        )
        _put_in_place(temporary, folder, meta, fingerprint, former)
        unfinished.remove()
    return Prepared(open_dataset(folder), False, notes)


def _put_in_place(
    temporary: Path, folder: Path, meta: dict, fingerprint: str, former: Former | None
) -> Former:
    """Write meta.json and let the dataset take its place; what a next version would replace."""
    tokenizer = Tokenizer.load(temporary / "tokenizer.json")
    by, replaced = dataset_fingerprint(temporary, meta, tokenizer), None
    meta |= {"fingerprint": fingerprint, "version": former.version if former else 1}
    if former and former.fingerprint != by:
        replaced = former.fingerprint
        meta["version"] += 1
    write_json(temporary / "meta.json", meta)
    versions.put_in_place(temporary, folder, replaced, by)
    return Former(meta["version"], by, None)


def _stream(
    folder: Path,
    name: str,
    source: Source,
    options: PrepareOptions,
    reading: Reading,
    fingerprint: str,
    former: Former | None,
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    """Prepare a dataset of the hub row by row. It takes its place with the first shard, and once
    more with all of them: a training goes on with the version that it began with."""
    tokenizer = check_streaming(options, source)
    with Unfinished(folder, fingerprint) as unfinished:
        unfinished.begin({"stream": fingerprint, "tokenizer": tokenizer.fingerprint})
        stream = Stream(source, options, reading, tokenizer, unfinished)
        if stream.count:
            say(
                f"Going on with an interrupted preparation: {stream.count} shards of training text "
                f"({stream.total('train', 'tokens'):,} tokens) are kept."
            )

        def publish(as_whole: bool) -> Former:
            with versions.temporary_folder(folder) as temporary:
                meta = stream.publish(temporary, name, say)
                own = fingerprint if as_whole else f"{fingerprint}, unfinished"
                return _put_in_place(temporary, folder, meta, own, former)

        is_there = former is not None
        for _ in stream.shards(lambda size: progress("reading and encoding", size, None)):
            if is_there or stream.last["is_end"] or not stream.total("val", "tokens"):
                continue
            former, is_there = publish(as_whole=False), True
            say(
                "The first shard stands: a training may begin now, and goes on with the shards "
                "that it began with."
            )
        publish(as_whole=True)
        unfinished.remove()


def first_documents(
    sources: Sequence[str],
    options: PrepareOptions,
    most: int,
    note: Callable[[str], None],
) -> tuple[list[tuple[str, str]], bool]:
    """([(place, beginning of its text) of each of the first documents], whether they are all).

    Reads them as `prepare` does, raises what it raises, and writes nothing.
    """
    check_options(options)
    reading = reading_of(options, note)
    source = find(list(sources), options.encoding, note, how=reading)
    reading.counts.update(source.counts)
    found: list[tuple[str, str]] = []
    is_all, changes = True, Changes()
    intake = Intake(source, reading, options.unit, options.cleaning, changes)
    unknown, tokenizer = UnknownCharacters(options.unknown), ready_tokenizer(options.tokenizer)
    for document in intake.documents():
        if len(found) == most:
            is_all = False
            break
        text = ""
        for block in unknown.known(document, tokenizer):
            if len(text) < _PREVIEW_CHARACTERS:
                text += block[:_PREVIEW_CHARACTERS]
        if text.strip():
            name, line = reading.document
            found.append((f"{name}:{line}" if line > 1 else name, text))
    if is_all:
        intake.check()
    for sentence in reading_remarks(reading, changes, options, source if is_all else None):
        note(sentence)
    return found, is_all


def _build(
    folder: Path,
    name: str,
    source: Source,
    parts: Parts,
    options: PrepareOptions,
    reading: Reading,
    own: Tokenizer | None,
    unfinished: Unfinished,
    progress: Progress,
    say: Callable[[str], None],
) -> dict:
    """Write the token files and the tokenizer into `folder`; return the content of meta.json.

    own: the tokenizer of the version before, which this one keeps.
    """
    sizes = [size for size in (parts.train.bytes, options.max_bytes) if size]
    total = min(sizes) + (parts.val.bytes or 0 if parts.val else 0) if sizes else None
    reading.counts.update(source.counts)
    reading.counts["files left out because of their names"] += parts.left_out
    reading.progress = lambda n: progress("reading", n, total)
    tokenizer, adds = _existing_tokenizer(options, own)
    if tokenizer:
        reading.fits = _FitsTemplate(options.tokenizer, tokenizer)
    with TextStore(folder / "text.tmp", options.seed) as store:
        gathered = gather(
            folder, store, parts, options, reading, tokenizer, say,
            lambda n: progress("looking for copies", n, store.bytes),
        )  # fmt: skip
        found = survey(store, lambda n: progress("surveying", n, store.bytes))
        if gathered.is_chat:  # their marks are those of the template
            found.marks.clear()
        for sentence in remarks(found, options.separator):
            say(sentence)
        # conversations are kept as JSON, whose brackets no tokenizer has to know
        if tokenizer and not gathered.is_chat:
            unknown = unknown_characters(found, tokenizer)
            if unknown and not adds:
                raise _unknown_refused(store, unknown, tokenizer, gathered)
            for sentence in _tokenizer_remark(tokenizer, unknown, tokenizer is own, adds):
                say(sentence)
            if unknown:
                tokenizer = tokenizer.extended(unknown)
        if gathered.first_val is not None:
            train, val = store.split_at(gathered.first_val)
            how, splits = "file", {"train": train, "val": val}
        else:
            how, splits = split_text(store, options, gathered.is_chat, gathered.keys)
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
        origins = gathered.origins
        template = None
        if gathered.is_chat:
            template = ChatTemplate(chat_template_at(options.tokenizer), tokenizer)
        if template:
            written, ends = _write_conversations(folder, store, splits, template, progress)
        else:
            ends, written = (
                None,
                _write_splits(
                    folder, store, splits, tokenizer, options, reading, unfinished, progress, say
                ),
            )
        known = [origins[start] for start in kept if start in origins]
        documents.write_origins(folder, known, ends)
        leaks = write_leaks(folder, written, lambda n, total: progress("comparing", n, total))
        if sentence := leak_remark(leaks):
            say(f"{sentence[0].upper()}{sentence[1:]}.")
        progress("baselines", 0, None)
        bits, compared = {}, {}  # none for conversations, whose loss covers only a part
        if not gathered.is_chat:
            tokens = [
                map_files(find_token_files(folder, split), DTYPES[written["dtype"]])
                for split in SPLITS
            ]
            bits, compared = _measured(store, train, val, how, tokens, tokenizer.vocab_size)
        if sentence := baselines.unlike(compared):
            what_to_do = how_to_validate(how, store.documents)
            say(f"{sentence[0].upper()}{sentence[1:]}; {what_to_do}.")
    return {
        # earlier releases read a dataset without shards
        "format_version": FORMAT_VERSIONS["dataset"] if "shards" in written else 1,
        "name": name,
        "vocab_size": tokenizer.vocab_size,
        "documents": store.documents,
        **({"chat_template": template.source} if template else {}),
        **written,
        "tokenizer": {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint},
        "source": _describe_source(source, parts),
        "options": options_that_matter(options),
        "counts": dict(+reading.counts),
        "split": {
            "how": how,
            "val_fraction": options.val_fraction,
            "seed": options.seed,
            "separators": int(train.closed.sum() + val.closed.sum()),
            **({"val": parts.name} if parts.val else {}),
            **compared,
            **leaks,
        },
        "baselines": bits,
    }


def _existing_tokenizer(
    options: PrepareOptions, own: Tokenizer | None
) -> tuple[Tokenizer | None, bool]:
    """(the tokenizer that is named, or that of the version before, or None where one is learned;
    whether it gets the characters that it lacks)."""
    named = ready_tokenizer(options.tokenizer)
    adds = UnknownCharacters(options.unknown).are_added
    if named is None:
        return own, adds or not options.unknown
    if adds and isinstance(own, CharTokenizer) and own.extends(named):
        return own, True
    return named, adds


def _unknown_refused(
    store: TextStore, unknown: Counter, tokenizer: CharTokenizer, gathered: Gathered
) -> TokenizerError:
    """The refusal of a text with characters that a named tokenizer lacks."""
    first, start, lines = store.first_of(unknown)
    unknown = Counter({first: unknown[first]}) | unknown
    origin = gathered.origins.get(start)
    place = documents.place_of(origin, lines) if origin else ""
    return unknown_in_text(unknown, tokenizer.alphabet, str(place), ways=WAYS)


def _tokenizer_remark(
    tokenizer: Tokenizer, unknown: Counter, is_own: bool, adds: bool
) -> Iterator[str]:
    """What becomes of a tokenizer that exists already."""
    if is_own:
        yield (
            f"Tokenizer: that of the text as it was ({tokenizer.kind}, {tokenizer.vocab_size:,} "
            "ids), so that its models can continue with the new text; --overwrite learns another."
        )
    if unknown:
        yield (
            f"New characters: {len(unknown):,}, with ids from {tokenizer.vocab_size:,} on: "
            f"{name_characters(unknown)}."
        )
    elif adds and not is_own:
        yield "--unknown add changed nothing: the tokenizer has all characters."


def _measured(
    store: TextStore, train: Split, val: Split, how: str, tokens: list, vocab_size: int
) -> tuple[dict, dict]:
    """(the baselines of a text, how its validation part compares with the rest).

    tokens: the ids of both parts, memory-mapped.
    """
    text = (
        store.sample(train, baselines.LZMA_TRAIN_BYTES, mark=baselines.END),
        store.sample(val, baselines.VAL_BYTES, mark=baselines.END),
    )
    bits = baselines.measure_baselines(*tokens, vocab_size, text, val.bytes)
    if how == "document":  # which are chosen by chance
        return bits, {}
    return bits, baselines.compare_parts(
        store.sample(train, baselines.COMPARED_BYTES), store.sample(val, baselines.VAL_BYTES)
    )


def _write_splits(
    folder: Path,
    store: TextStore,
    splits: dict[str, Split],
    tokenizer: Tokenizer,
    options: PrepareOptions,
    reading: Reading,
    unfinished: Unfinished,
    progress: Progress,
    say: Callable[[str], None],
) -> dict:
    """Write the token files of each split; return their sizes and hashes as in meta.json."""
    dtype = token_dtype(tokenizer.vocab_size)
    plan = plan_shards(store, splits, tokenizer, shard_size(options.shard_tokens), reading.counts)
    written = encode_shards(
        folder, store, plan, tokenizer, DTYPES[dtype], options.workers, unfinished,
        lambda size: progress("encoding", size, store.bytes), say,
    )  # fmt: skip
    found: dict = {"dtype": dtype, "characters": store.characters}
    shards, sha256, sampled = {}, {}, {}
    for name, files in written.items():
        split, tokens = splits[name], sum(files.tokens)
        found |= {
            f"{name}_tokens": tokens,
            f"{name}_bytes": split.bytes,
            f"{name}_documents": split.documents,
        }
        sha256 |= {f"{name}.bin": files.sha256, **files.hashes}
        if len(files.names) > 1:
            shards[name] = files.tokens
        sampled |= token_files.sampled_hashes(
            [folder / each for each in files.names], tokens * DTYPES[dtype].itemsize
        )
    return {
        **found,
        **({"shards": shards} if shards else {}),
        **({"sampled_sha256": sampled} if sampled else {}),
        "sha256": sha256,
    }


def _write_conversations(
    folder: Path,
    store: TextStore,
    splits: dict[str, Split],
    template: ChatTemplate,
    progress: Progress,
) -> tuple[dict, list[int]]:
    """Write the token file and the loss mask of each split; return their sizes and hashes as in
    meta.json, and where the conversations of the training part end."""
    dtype, characters = token_dtype(template.tokenizer.vocab_size), 0
    found, sha256, sampled, ends = {}, {}, {}, {}
    for name, split in splits.items():
        path = folder / f"{name}.bin"
        sizes, hashes, ends[name] = write_conversations(
            store, split, template, path, DTYPES[dtype],
            lambda size: progress("encoding", size, store.bytes),
        )  # fmt: skip
        characters += sizes.pop("characters")
        sha256 |= hashes
        sampled |= token_files.sampled_hashes([path], path.stat().st_size)
        sizes["documents"] = split.documents
        found |= {f"{name}_{what}": size for what, size in sizes.items()}
    if sampled:
        found["sampled_sha256"] = sampled
    return {"dtype": dtype, "characters": characters, **found, "sha256": sha256}, ends["train"]


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


def _fingerprint(source: Source, parts: Parts, options: PrepareOptions) -> str:
    """A hash of the text, of the options that matter, and of a named tokenizer's content."""
    content = [PREPARATION_VERSION, source.fingerprint, options_that_matter(options)]
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
