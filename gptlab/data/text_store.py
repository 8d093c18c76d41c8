"""The normalised text of a corpus in one temporary UTF-8 file, read back in bounded memory.

Every corpus (files, compressed files, rows of a table, a stream) is first written to such a file.
Splitting, training a tokenizer, encoding and measuring baselines then read it piece by piece. While
a dataset is prepared, this needs disk space of the size of the text.
"""

import bisect
import codecs
import hashlib
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

# Pieces end between a letter or digit and white space or, for scripts without spaces, punctuation.
# No common split rule (GPT-2's, Llama 3's, Qwen's) has a token across such a place, so the ids of
# the pieces are the ids of the whole text. The characters are written out instead of \s and \W
# because Python and the tokenizers use different versions of Unicode.
_CUT = re.compile(
    "[^\\W_](?=[ \\t\\n\\r\\u3000]|[!-&(-/:-@\\[-`{-~\\u2010-\\u2018\\u201a-\\u2027"
    "\\u3001-\\u3003\\u3008-\\u3011\\uff01-\\uff06\\uff08-\\uff0f\\uff1a-\\uff20])"
)
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Split:
    """A part of the stored text: byte ranges in order.

    starts, stops: int64 [n], offsets in the file. closed: bool [n], True if the range reaches the
    end of a document and the end-of-text id follows it.
    """

    starts: np.ndarray
    stops: np.ndarray
    closed: np.ndarray

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the text."""
        return int((self.stops - self.starts).sum())

    @property
    def documents(self) -> int:
        """Number of documents in it, whole or in part."""
        return len(self.starts)


class TextStore:
    """Documents one after the other in a file; the `with` block removes it at the end.

    path: of the file, UTF-8.
    """

    def __init__(self, path: Path, seed: int):
        self.path = path
        self._seed = seed.to_bytes(8, "little", signed=True)
        self._begin()

    def _begin(self) -> None:
        self._file = open(self.path, "wb")
        self._sizes = array("q")  # bytes of each document
        self._keys = array("Q")  # hash of (seed, content) of each document
        self._marks = [(0, 0)]  # (characters, bytes) at the start of each block
        self.characters = 0
        self.bytes = 0

    @property
    def documents(self) -> int:
        """How many documents are stored."""
        return len(self._sizes)

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each document: int64 [documents]."""
        return np.frombuffer(self._sizes, np.int64)

    @property
    def keys(self) -> np.ndarray:
        """A hash of (seed, content) of each document: uint64 [documents]."""
        return np.frombuffer(self._keys, np.uint64)

    def add(self, blocks: Iterable[str]) -> bool:
        """Store a document, given in blocks. A blank one is not stored and gives False."""
        start, marks = (self.characters, self.bytes), len(self._marks)
        digest = hashlib.blake2b(key=self._seed, digest_size=8)
        blank = True
        for block in blocks:
            blank = blank and not block.strip()
            content = block.encode()
            digest.update(content)
            self._file.write(content)
            self.characters += len(block)
            self.bytes += len(content)
            if self.bytes - self._marks[-1][1] >= PIECE_BYTES:
                self._marks.append((self.characters, self.bytes))
        if blank:
            self._file.seek(start[1])
            self.characters, self.bytes = start
            del self._marks[marks:]
            return False
        self._sizes.append(self.bytes - start[1])
        self._keys.append(int.from_bytes(digest.digest(), "little"))
        return True

    def finish(self) -> None:
        """Call once after the last `add`."""
        self._file.close()

    def drop(self, is_dropped: np.ndarray) -> dict[int, int]:
        """Write the text again without some documents, bool [documents], after `finish`; returns
        {first byte of a document that stays: where it was}."""
        former, sizes = self.path.with_suffix(".all"), self.sizes
        starts = np.cumsum(sizes) - sizes
        os.replace(self.path, former)
        self._begin()
        moved = {}
        with open(former, "rb") as file:
            for number in np.flatnonzero(~is_dropped).tolist():
                file.seek(int(starts[number]))
                moved[self.bytes] = int(starts[number])
                self.add(_decoded(file, int(sizes[number])))
        self.finish()
        former.unlink()
        return moved

    def __enter__(self) -> "TextStore":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self.path.unlink()

    def alphabet(self) -> str:
        """All distinct characters, sorted."""
        seen = np.zeros(0x110000, bool)
        for text in self.texts():
            seen[np.frombuffer(text.encode("utf-32-le"), np.uint32)] = True
        return "".join(map(chr, np.flatnonzero(seen)))

    def texts(self) -> Iterator[str]:
        """The whole text in pieces, whatever the documents."""
        whole = Split(np.array([0]), np.array([self.bytes]), np.array([False]))
        for text, _ in self.pieces(whole, PIECE_BYTES):
            yield text

    def blocks(self, size: int, more: int) -> Iterator[tuple[int, bytes]]:
        """(offset, the bytes from there on) of pieces of the whole text, each of `size` bytes and
        the `more` that follow it."""
        with open(self.path, "rb") as file:
            for offset in range(0, self.bytes, size):
                file.seek(offset)
                yield offset, file.read(size + more)

    def first_of(self, characters: Iterable[str]) -> tuple[str, int, int]:
        """The first of these characters that occurs, with the first byte of its document and the
        number of line ends between them."""
        pattern = re.compile(f"[{re.escape(''.join(characters))}]")
        starts = np.cumsum(np.frombuffer(self._sizes, np.int64))[:-1].tolist()
        offset = start = lines = 0
        for text in self.texts():
            match = pattern.search(text)
            before = (text[: match.start()] if match else text).encode()
            passed = bisect.bisect_right(starts, offset + len(before))
            if passed and starts[passed - 1] > start:
                start = starts[passed - 1]
                lines = -before.count(b"\n", 0, max(0, start - offset))
            lines += before.count(b"\n")
            offset += len(before)
            if match:
                return match[0], start, lines
        raise ValueError("none of these characters occurs")

    def split(
        self, how: str, val_fraction: float, keys: np.ndarray | None = None
    ) -> tuple[Split, Split]:
        """The training and the validation part. keys: uint64 [documents], instead of `keys`.

        how: "tail" takes the last `val_fraction` of the characters for validation. "document" takes
        whole documents, in the order of a hash of (seed, content), until `val_fraction` of the
        bytes is reached. The names and the order of files therefore change nothing, and documents
        of equal keys are never on both sides.
        """
        stops = np.cumsum(np.frombuffer(self._sizes, np.int64))
        starts = stops - np.frombuffer(self._sizes, np.int64)
        closed = np.full(len(starts), len(starts) > 1)
        if how == "tail":
            cut = self._offset_of_character(int(self.characters * (1 - val_fraction)))
            in_train, in_val = starts < cut, stops > cut
            train_ends = closed[in_train] & (stops[in_train] <= cut)
            return (
                Split(starts[in_train], np.minimum(stops[in_train], cut), train_ends),
                Split(np.maximum(starts[in_val], cut), stops[in_val], closed[in_val]),
            )
        keys = self.keys if keys is None else keys
        order = np.argsort(keys, kind="stable")
        before = np.cumsum((stops - starts)[order]) - (stops - starts)[order]
        chosen = keys[order][before < val_fraction * self.bytes]
        in_val = np.isin(keys, chosen)
        return (
            Split(starts[~in_val], stops[~in_val], closed[~in_val]),
            Split(starts[in_val], stops[in_val], closed[in_val]),
        )

    def split_at(self, document: int) -> tuple[Split, Split]:
        """The documents before one, for training, and those from it on, for validation."""
        stops = np.cumsum(np.frombuffer(self._sizes, np.int64))
        starts = stops - np.frombuffer(self._sizes, np.int64)
        are_many = max(document, len(starts) - document) > 1
        closed = np.full(len(starts), are_many)
        return (
            Split(starts[:document], stops[:document], closed[:document]),
            Split(starts[document:], stops[document:], closed[document:]),
        )

    def repeated_after(self, document: int) -> int:
        """How many documents from one on equal a document before it."""
        return int(np.isin(self.keys[document:], self.keys[:document]).sum())

    def _offset_of_character(self, number: int) -> int:
        """The byte offset of character `number` of the whole text."""
        characters, offset = next(m for m in reversed(self._marks) if m[0] <= number)
        with open(self.path, "rb") as file:
            file.seek(offset)
            text = file.read(4 * (number - characters) + 4).decode("utf-8", errors="ignore")
        return offset + len(text[: number - characters].encode())

    def pieces(
        self,
        split: Split,
        size: int = PIECE_BYTES,
        can_be_cut: bool = True,
        counts: Counter | None = None,
    ) -> Iterator[tuple[str, bool]]:
        """(text, whether its document ends here) of a split, each of about `size` bytes.

        Documents are cut only where no token can span the cut. If there is no such place within
        four times the size, the cut is forced and added to `counts`. can_be_cut: False leaves
        documents whole.
        """
        for _, _, text, closed in self._pieces(split, size, can_be_cut, counts, reads_all=True):
            yield text, closed

    def ranges(self, split: Split, can_be_cut: bool = True, counts: Counter | None = None) -> Split:
        """The same pieces as byte ranges. Only documents that are cut are read."""
        bounds, closed = array("q"), array("b")
        for start, stop, _, is_end in self._pieces(split, PIECE_BYTES, can_be_cut, counts, False):
            bounds.extend((start, stop))
            closed.append(is_end)
        both = np.frombuffer(bounds, np.int64).reshape(-1, 2)
        return Split(both[:, 0].copy(), both[:, 1].copy(), np.frombuffer(closed, bool).copy())

    def _pieces(
        self, split: Split, size: int, can_be_cut: bool, counts: Counter | None, reads_all: bool
    ) -> Iterator[tuple[int, int, str, bool]]:
        """(first byte, end, text, whether its document ends here) of each piece; without reads_all
        no text of a document that is one piece."""
        counts = Counter() if counts is None else counts
        with open(self.path, "rb") as file:
            ranges = zip(
                split.starts.tolist(), split.stops.tolist(), split.closed.tolist(), strict=True
            )
            for start, stop, closed in ranges:
                is_cut = can_be_cut and stop - start > size
                if not (reads_all or is_cut):
                    yield start, stop, "", closed
                    continue
                file.seek(start)
                decoder = codecs.getincrementaldecoder("utf-8")()
                held, searched, begin = "", 0, start  # begin: of `held`
                while can_be_cut and stop - start > size:
                    held += decoder.decode(file.read(size))
                    start += size
                    cut = safe_cut(held, searched)
                    if cut == 0 and len(held) >= 4 * size:
                        counts["pieces cut inside a word"] += 1
                        cut = len(held)
                    if cut:
                        end = begin + len(held[:cut].encode())
                        yield begin, end, held[:cut], False
                        held, begin = held[cut:], end
                    searched = max(0, len(held) - 1)
                yield begin, stop, held + decoder.decode(file.read(stop - start), True), closed

    def sample(self, split: Split, max_bytes: int, parts: int = 16, mark: bytes = b"") -> bytes:
        """At most `max_bytes` of a split's bytes: all of them, or `parts` evenly spread ranges.

        mark: added, beyond `max_bytes`, where the end-of-text id follows.
        """
        ends = np.cumsum(split.stops - split.starts)
        total = int(ends[-1]) if len(ends) else 0
        parts = parts if total > max_bytes else 1
        size = min(total, max_bytes) // parts
        chunks = []
        with open(self.path, "rb") as file:
            for part in range(parts):
                position = (total - size) * part // max(1, parts - 1)
                wanted = size
                i = int(np.searchsorted(ends, position, side="right"))
                while wanted > 0:
                    left = int(ends[i]) - position
                    file.seek(int(split.stops[i]) - left)
                    chunks.append(file.read(min(left, wanted)))
                    position += len(chunks[-1])
                    wanted -= len(chunks[-1])
                    if mark and position == ends[i] and split.closed[i]:
                        chunks.append(mark)
                    i += 1
        return b"".join(chunks)


def read_ranges(path: Path, ranges: Split) -> Iterator[tuple[str, bool]]:
    """(text, whether its document ends here) of byte ranges of the file of a store."""
    bounds = zip(ranges.starts.tolist(), ranges.stops.tolist(), ranges.closed.tolist(), strict=True)
    with open(path, "rb") as file:
        for start, stop, closed in bounds:
            file.seek(start)
            yield file.read(stop - start).decode(), closed


def _decoded(file: BinaryIO, size: int) -> Iterator[str]:
    """The next `size` bytes of a file of UTF-8, in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    while size:
        content = file.read(min(size, PIECE_BYTES))
        size -= len(content)
        yield decoder.decode(content, final=not size)


def safe_cut(text: str, start: int = 0) -> int:
    """The last place after `start` where a text can be cut without changing its ids, or 0."""
    for window in (1 << 10, 1 << 15, len(text)):
        last = 0
        for match in _CUT.finditer(text, max(start, len(text) - window)):
            last = match.end()
        if last:
            return last
    return 0
