"""Prepare a dataset of the hub while it streams: straight into shards, and no text is kept.

Each row goes to the training or the validation part by a hash of its text, and its ids to the shard
that is being filled. So no more than a shard is in memory, and nothing but the token files on disk.
What needs the whole text (a vocabulary, copies) is not to be had. After each shard the journal
records where in the stream it ends: the next preparation goes on there.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gptlab.data import baselines, hub
from gptlab.data.corpora import Source
from gptlab.data.encode import cores
from gptlab.data.gathering import reading_remarks
from gptlab.data.intake import Changes, Intake
from gptlab.data.leaks import leak_remark, write_leaks
from gptlab.data.prepare_options import PrepareOptions, options_that_matter, shard_size
from gptlab.data.text_files import Reading
from gptlab.data.token_files import DTYPES, sampled_hashes, token_dtype
from gptlab.data.token_shards import SPLITS, find_token_files, map_files, shard_name
from gptlab.data.tokenizer import Tokenizer
from gptlab.data.unfinished import Unfinished
from gptlab.data.unknown import UnknownCharacters
from gptlab.data.vocabulary import ready_tokenizer
from gptlab.errors import ConfigError, DataError
from gptlab.files import FORMAT_VERSIONS, atomic_write, sha256_parts

BATCH_BYTES = 1 << 22  # of text that is encoded at once


def check_streaming(options: PrepareOptions, source: Source) -> Tokenizer:
    """The tokenizer of a preparation with --streaming. Raises ConfigError for what it cannot have,
    TokenizerError."""
    if not source.hub_name:
        raise ConfigError(
            f"--streaming is for datasets of the hub, and {source.label} is on this machine",
            "leave it out",
            sep="; ",
        )
    refused = {
        "dedup": options.dedup,
        "val": options.val,
        "split": options.split != "auto",
        "document": options.document,
        "separator": options.separator,
        "workers": options.workers,
    }
    for name in (name for name, is_given in refused.items() if is_given):
        raise ConfigError(
            f"--{name} does not go with --streaming, which sees each row once",
            f"leave out one of the two (without --streaming the text of {source.hub_name} is kept "
            "on disk while it is prepared)",
        )
    tokenizer = ready_tokenizer(options.tokenizer)
    if tokenizer is None:
        raise ConfigError(
            "--streaming needs a tokenizer that exists, as none is learned from a text that is "
            "read once",
            "say --tokenizer gpt2, or name one with --tokenizer PATH",
        )
    return tokenizer


@dataclass
class _Part:
    """The documents of one split since the last shard was complete."""

    arrays: list[np.ndarray] = field(default_factory=list)
    tokens: int = 0
    bytes: int = 0
    documents: int = 0


class Stream:
    """The rows of a dataset as token files in the folder of `unfinished`.

    Raises DataError, DownloadError or TokenizerError from `shards`; what is complete stays.
    """

    def __init__(
        self,
        source: Source,
        options: PrepareOptions,
        reading: Reading,
        tokenizer: Tokenizer,
        unfinished: Unfinished,
    ):
        self.source, self.options, self.reading = source, options, reading
        self.tokenizer, self.unfinished = tokenizer, unfinished
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.changes = Changes()
        self._parts = {split: _Part() for split in SPLITS}
        self._characters = 0

    @property
    def count(self) -> int:
        """How many shards of each split are complete."""
        records, number = self.unfinished.records, 0
        while all(shard_name(split, number) in records for split in SPLITS):
            number += 1
        return number

    @property
    def last(self) -> dict:
        """The record of the newest complete shard; {} without one."""
        return self.unfinished.records[shard_name("val", self.count - 1)] if self.count else {}

    def total(self, split: str, what: str) -> int:
        """The sum of `what` ("tokens", "bytes", "documents") over the complete shards."""
        names = [shard_name(split, number) for number in range(self.count)]
        return sum(self.unfinished.records[name][what] for name in names)

    def shards(self, progress: Callable[[int], None]) -> Iterator[int]:
        """Write the shards that are missing; the number of complete ones after each.

        progress: called with the bytes of text done since the last call.
        """
        if self.last.get("is_end"):
            return
        self._characters = self.last.get("characters", 0)
        self.reading.counts.update(self.last.get("counts", {}))
        rows = hub.Rows(self.source.hub_name, self.last.get("position"))
        size = shard_size(self.options.shard_tokens)
        with ThreadPoolExecutor(cores()) as pool:
            for batch in self._batches(rows, min(BATCH_BYTES, size)):
                self._encode(batch, pool)
                progress(sum(len(text.encode()) for text in batch))
                if self._parts["train"].tokens >= size:
                    self._commit(rows.position, is_end=False)
                    yield self.count
        if any(part.documents for part in self._parts.values()) or not self.count:
            self._commit(rows.position, is_end=True)
        else:  # the text ended with a shard
            name = shard_name("val", self.count - 1)
            self.unfinished.add({**self.unfinished.records[name], "is_end": True})
        yield self.count

    def _batches(self, rows: "hub.Rows", size: int) -> Iterator[list[str]]:
        """Texts of documents, of about `size` bytes together."""
        options, reading = self.options, self.reading
        intake = Intake(
            replace(self.source, rows=rows), reading, options.unit, options.cleaning, self.changes
        )
        unknown = UnknownCharacters(options.unknown)
        read = sum(self.total(split, "bytes") for split in SPLITS) if self.count else 0
        batch, held = [], 0
        for document in intake.documents():
            if reading.conversations:
                raise ConfigError(
                    "Conversations cannot be prepared with --streaming", "leave it out", sep="; "
                )
            text = "".join(unknown.known(document, self.tokenizer))
            if not text.strip():
                reading.counts["blank documents left out"] += 1
                continue
            batch.append(text)
            held += len(text.encode())
            if options.max_bytes and read + held >= options.max_bytes:
                break
            if held >= size:
                yield batch
                read, batch, held = read + held, [], 0
        if batch:
            yield batch

    def _encode(self, batch: Sequence[str], pool: ThreadPoolExecutor) -> None:
        eot = self.tokenizer.eot_id
        end = [] if eot is None else [np.array([eot], np.uint32)]
        for text, ids in zip(batch, pool.map(self.tokenizer.encode_to_array, batch), strict=True):
            part = self._parts["val" if self._validates(text) else "train"]
            both = np.concatenate([ids, *end]).astype(DTYPES[self.dtype])
            part.arrays.append(both)
            part.tokens += len(both)
            part.bytes += len(text.encode())
            part.documents += 1
            self._characters += len(text)

    def _validates(self, text: str) -> bool:
        key = self.options.seed.to_bytes(8, "little", signed=True)
        digest = hashlib.blake2b(text.encode(), key=key, digest_size=8).digest()
        return int.from_bytes(digest, "little") < self.options.val_fraction * 2**64

    def _commit(self, position: dict, is_end: bool) -> None:
        """Complete a shard of each split, and note where in the stream they end."""
        number, records = self.count, []
        for split, part in self._parts.items():
            name, digest = shard_name(split, number), hashlib.sha256()
            with atomic_write(self.unfinished.folder / name) as file:
                for array in part.arrays:
                    file.write(array.tobytes())
                    digest.update(array.tobytes())
            sizes = {"tokens": part.tokens, "bytes": part.bytes, "documents": part.documents}
            records.append({"name": name, "sha256": digest.hexdigest(), **sizes})
            self._parts[split] = _Part()
        records[-1] |= {
            "position": position,
            "characters": self._characters,
            "counts": dict(+self.reading.counts),
            "is_end": is_end,
        }
        self.unfinished.add(*records)

    def check_parts(self) -> None:
        """Raise DataError where one of the two parts is empty."""
        for split in SPLITS:
            if not self.total(split, "tokens"):
                raise DataError(
                    f"{self.source.label}, left nothing for the {split} part",
                    "name a larger dataset, or another --val_fraction",
                    sep="; ",
                )

    def publish(self, folder: Path, name: str, say: Callable[[str], None]) -> dict:
        """Write a dataset of the complete shards into `folder`; the content of its meta.json."""
        self.check_parts()
        count, records, meta, sha256, sampled = self.count, self.unfinished.records, {}, {}, {}
        meta["dtype"], meta["shards"] = self.dtype, {}
        for split in SPLITS:
            names = [shard_name(split, number) for number in range(count)]
            for each in names:
                self.unfinished.give(each, folder / each)
                sha256[each] = records[each]["sha256"]
            paths = [folder / each for each in names]
            sha256[f"{split}.bin"] = sha256_parts(paths)
            meta["shards"][split] = [records[each]["tokens"] for each in names]
            for what in ("tokens", "bytes", "documents"):
                meta[f"{split}_{what}"] = self.total(split, what)
            sampled |= sampled_hashes(paths, meta[f"{split}_tokens"] * DTYPES[self.dtype].itemsize)
        if sampled:
            meta["sampled_sha256"] = sampled
        self.tokenizer.save(folder / "tokenizer.json")
        leaks = write_leaks(folder, meta, lambda n, total: None)
        if self.last["is_end"]:
            for sentence in reading_remarks(self.reading, self.changes, self.options, self.source):
                say(sentence)
            if sentence := leak_remark(leaks):
                say(f"{sentence[0].upper()}{sentence[1:]}.")
        tokens = [map_files(find_token_files(folder, s), DTYPES[self.dtype]) for s in SPLITS]
        sizes = baselines.LZMA_TRAIN_BYTES, baselines.VAL_BYTES
        texts = tuple(map(self._bytes_of, tokens, sizes))
        bits = baselines.measure_baselines(
            *tokens, self.tokenizer.vocab_size, texts, meta["val_bytes"]
        )
        documents = sum(self.total(split, "documents") for split in SPLITS)
        return {
            "format_version": FORMAT_VERSIONS["dataset"],
            "name": name,
            "vocab_size": self.tokenizer.vocab_size,
            "documents": documents,
            "characters": self.last["characters"],
            **meta,
            "sha256": sha256,
            "tokenizer": {
                "kind": self.tokenizer.kind,
                "fingerprint": self.tokenizer.fingerprint,
            },
            "source": {
                "identity": self.source.identity,
                "label": self.source.label,
                "bytes": None,
                "fingerprint": self.source.fingerprint,
                "files": [],
            },
            "options": options_that_matter(self.options),
            "counts": dict(Counter(self.last["counts"])),
            "split": {
                "how": "document",
                "val_fraction": self.options.val_fraction,
                "seed": self.options.seed,
                "separators": documents if self.tokenizer.eot_id is not None else 0,
                **leaks,
            },
            "baselines": bits,
        }

    def _bytes_of(self, tokens, most: int) -> bytes:
        """At most so many bytes of the text of these ids, from their beginning."""
        pieces = [
            baselines.END if i == self.tokenizer.eot_id else self.tokenizer.token_bytes(i)
            for i in tokens[:most].tolist()
        ]
        return b"".join(pieces)[:most]
