"""Write the token files of a text: in shards, encoded in processes, going on after a kill.

A shard is a range of the text, so which ids it holds does not depend on how many processes encode
the shards, nor on when.
"""

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptlab.data.encode import cores, write_tokens
from gptlab.data.text_store import Split, TextStore, read_ranges
from gptlab.data.token_shards import shard_name
from gptlab.data.tokenizer import Tokenizer
from gptlab.data.unfinished import Unfinished
from gptlab.errors import DataError
from gptlab.files import sha256_parts

SAMPLE_BYTES = 1 << 20  # of text that tell how many bytes a token has
# Of a megabyte, 3 ms hold Python's lock and 77 ms (GPT-2's tokenizer) do not: so many threads still
# run side by side. Beyond, a text of this size is worth the start of processes.
MOST_THREADS = 16
WORTH_PROCESSES = 256_000_000


@dataclass(frozen=True)
class Shard:
    """One token file to write. pieces: of the text, as byte ranges."""

    name: str
    pieces: Split


@dataclass(frozen=True)
class Written:
    """Token files of a split, in order: their names, tokens and SHA-256. sha256: of all tokens."""

    names: list[str]
    tokens: list[int]
    hashes: dict[str, str]
    sha256: str


def plan_shards(
    store: TextStore,
    splits: Mapping[str, Split],
    tokenizer: Tokenizer,
    shard_tokens: int,
    counts: Counter,
) -> dict[str, list[Shard]]:
    """The token files of each split: one, or shards of about `shard_tokens` tokens each.

    counts: receives how often a piece had to be cut inside a word.
    """
    plan = {}
    for split, part in splits.items():
        pieces = store.ranges(part, tokenizer.can_be_cut, counts)
        count = 1
        if part.bytes > shard_tokens:
            text = store.sample(part, SAMPLE_BYTES).decode("utf-8", errors="ignore")
            per_byte = len(tokenizer.encode_to_array(text)) / len(text.encode())
            count = max(1, round(part.bytes * per_byte / shard_tokens))
        parts = _cut(pieces, count)
        names = [shard_name(split, number) for number in range(len(parts))]
        plan[split] = [
            Shard(name, part)
            for name, part in zip(names if len(parts) > 1 else [f"{split}.bin"], parts, strict=True)
        ]
    return plan


def _cut(pieces: Split, count: int) -> list[Split]:
    """At most `count` groups of pieces of about equal size, none of them empty."""
    stops = np.cumsum(pieces.stops - pieces.starts)
    places = np.searchsorted(stops, int(stops[-1]) * np.arange(1, count) / count) + 1
    bounds = np.unique([0, *places.tolist(), len(stops)])
    return [
        Split(pieces.starts[a:b], pieces.stops[a:b], pieces.closed[a:b])
        for a, b in itertools.pairwise(bounds.tolist())
    ]


def encode_shards(
    folder: Path,
    store: TextStore,
    plan: Mapping[str, list[Shard]],
    tokenizer: Tokenizer,
    dtype: np.dtype,
    workers: int | None,
    unfinished: Unfinished,
    progress: Callable[[int], None],
    say: Callable[[str], None],
) -> dict[str, Written]:
    """Write the planned files into `folder`; those of an interrupted preparation are taken over.

    workers: processes; 1: this one, with a thread for each core; None: more where that saves time.
    progress: called with the bytes of text done since the last call.
    """
    shards = [shard for each in plan.values() for shard in each]
    if len(shards) == len(plan):  # one file each: nothing to take over
        made = {}
        if workers and workers > 1:
            say(f"--workers {workers} changes nothing: the text is one shard (--shard_tokens).")
        for shard in shards:
            pieces = read_ranges(store.path, shard.pieces)
            made[shard.name] = write_tokens(pieces, tokenizer, folder / shard.name, dtype, progress)
    else:
        unfinished.begin(
            {
                "text": _digest(store, shards),
                "tokenizer": tokenizer.fingerprint,
                "dtype": dtype.str,
                "shards": len(shards),
            }
        )
        if kept := unfinished.records:
            tokens = sum(record["tokens"] for record in kept.values())
            say(
                f"Going on with an interrupted preparation: {len(kept)} of {len(shards)} shards "
                f"({tokens:,} tokens) are kept."
            )
        for shard in shards:
            if shard.name in kept:
                progress(shard.pieces.bytes)
        missing = [shard for shard in shards if shard.name not in kept]
        if workers is None:
            is_worth = cores() > MOST_THREADS and store.bytes >= WORTH_PROCESSES
            workers = cores() if is_worth else 1
        workers = min(workers, len(missing))
        encode = _in_processes if workers > 1 else _one_by_one
        for name, tokens, sha256 in encode(
            store.path, missing, tokenizer, dtype, unfinished.folder, workers, progress
        ):
            unfinished.add({"name": name, "tokens": tokens, "sha256": sha256})
        made = {}
        for name, record in unfinished.records.items():
            unfinished.give(name, folder / name)
            made[name] = record["tokens"], record["sha256"]
    return {split: _of_split(folder, each, made) for split, each in plan.items()}


def _of_split(folder: Path, shards: list[Shard], made: Mapping[str, tuple[int, str]]) -> Written:
    names = [shard.name for shard in shards]
    hashes = {name: made[name][1] for name in names}
    whole = hashes[names[0]]
    if len(names) > 1:
        whole = sha256_parts(folder / name for name in names)
    return Written(names, [made[name][0] for name in names], hashes, whole)


def _digest(store: TextStore, shards: list[Shard]) -> str:
    """A hash of the text and of how it is cut."""
    digest = hashlib.sha256(store.keys.tobytes())
    digest.update(store.sizes.tobytes())
    for shard in shards:
        digest.update(shard.name.encode())
        for array in (shard.pieces.starts, shard.pieces.stops, shard.pieces.closed):
            digest.update(array.tobytes())
    return digest.hexdigest()


# Shards one after the other, each on all cores, or several at once, each in a process -------------


def _one_by_one(
    text: Path, shards: list[Shard], tokenizer: Tokenizer, dtype: np.dtype, folder: Path,
    workers: int, progress: Callable[[int], None],
) -> Iterator[tuple[str, int, str]]:  # fmt: skip
    """(name, tokens, SHA-256) of each shard, written into `folder`."""
    for shard in shards:
        pieces = read_ranges(text, shard.pieces)
        yield shard.name, *write_tokens(pieces, tokenizer, folder / shard.name, dtype, progress)


def _in_processes(
    text: Path, shards: list[Shard], tokenizer: Tokenizer, dtype: np.dtype, folder: Path,
    workers: int, progress: Callable[[int], None],
) -> Iterator[tuple[str, int, str]]:  # fmt: skip
    """As `_one_by_one`, in the order in which they are done."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(
        workers, context, _begin_worker, (str(text), tokenizer.to_json(), dtype.str, stop)
    )
    try:
        sizes = {
            pool.submit(_encode_shard, shard.pieces, folder / shard.name): shard for shard in shards
        }
        for done in as_completed(sizes):
            tokens, sha256 = done.result()
            yield sizes[done].name, tokens, sha256
            progress(sizes[done].pieces.bytes)
    except BrokenProcessPool as error:
        raise DataError(
            "A process of the preparation was killed, perhaps because the memory was full",
            "prepare it again, with fewer --workers: it goes on with the shards that are complete",
        ) from error
    finally:
        stop.set()  # after Ctrl-C, workers would go on with their shards
        pool.shutdown(cancel_futures=True)


_worker: dict = {}  # of a process that encodes shards: what all its shards share


def _begin_worker(text: str, tokenizer: str, dtype: str, stop) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which says stop
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)  # the parent was killed

    threading.Thread(target=follow, daemon=True).start()
    _worker.update(
        text=Path(text), tokenizer=Tokenizer.from_json(tokenizer), dtype=np.dtype(dtype), stop=stop
    )


class _StoppedError(Exception):
    """The parent asked for an end."""


def _encode_shard(pieces: Split, path: Path) -> tuple[int, str]:
    def go_on(_: int) -> None:
        if _worker["stop"].is_set():
            raise _StoppedError

    texts = read_ranges(_worker["text"], pieces)
    with contextlib.closing(texts):
        return write_tokens(texts, _worker["tokenizer"], path, _worker["dtype"], go_on, threads=1)
