"""Find the spans of texts that stand verbatim in token files: one pass, no index.

Bytes are compared, not ids, because a tokenizer may split the same text differently. The tokens are
spelled in pieces. Of every `stride` bytes one gram of eight bytes is looked up among those of the
texts; so each span of `stride + 7` bytes or more has a hit inside. Hits a stride apart on one
diagonal (place in the token file minus place in the text) belong to one span, and at its ends fewer
than eight bytes are missing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gptlab.data.token_files import Dataset

GRAM = 8  # bytes, one uint64
PIECE_TOKENS = 1 << 20  # spelled at once
MOST_PAIRS = 1 << 21  # of a hit and a place in the texts, held at once
NO_TEXT = 0xFF  # spells a special token; no byte of UTF-8, so that no span crosses it
BETWEEN = b"\xfe"  # stands between the texts; no byte of UTF-8 either
_TABLE_BITS = 20
_STEPS = np.arange(GRAM)


class Spelling:
    """The bytes of a dataset's ids, a special id as NO_TEXT."""

    def __init__(self, dataset: Dataset):
        spelled = [
            dataset.tokenizer.token_bytes(i) or bytes([NO_TEXT]) for i in range(dataset.vocab_size)
        ]
        self.lengths = np.array([len(one) for one in spelled], np.int32)  # [V]
        self._begins = (np.cumsum(self.lengths) - self.lengths).astype(np.int32)
        self._bytes = np.frombuffer(b"".join(spelled), np.uint8)
        self._is_one_each = bool((self.lengths == 1).all())

    def spell(self, ids: np.ndarray) -> np.ndarray:
        """The bytes of ids, uint8."""
        if self._is_one_each:
            return self._bytes[ids]
        lengths = self.lengths[ids]
        ends = np.cumsum(lengths, dtype=np.int32)
        places = np.repeat(self._begins[ids] - (ends - lengths), lengths)
        places += np.arange(len(places), dtype=np.int32)
        return self._bytes[places]


@dataclass(frozen=True)
class Match:
    """Bytes begin to end of text number `text` stand from byte `at` on of what the training part of
    dataset number `dataset` spells."""

    text: int
    begin: int
    end: int
    dataset: int
    at: int


def find_matches(
    datasets: Sequence[Dataset],
    texts: Sequence[bytes],
    least: int,
    progress: Callable[[str, int, int], None] = lambda stage, advance, total: None,
) -> list[Match]:
    """The maximal matches of at least `least` bytes, at least 8, of the texts in the training
    parts, by text and beginning; each at its first place.

    A match is maximal if no other match of the text contains it. progress: called with "searching",
    tokens read since the last call, and their total.
    """
    joined = BETWEEN.join(texts)
    reached = np.zeros(len(joined), np.int64)  # the end of the longest match that begins here
    place = np.zeros((2, len(joined)), np.int64)  # its dataset and its first byte there
    total = sum(len(dataset.train) for dataset in datasets)
    for number, dataset in enumerate(datasets):
        search, spelling = _Search(joined, least), Spelling(dataset)
        for first in range(0, len(dataset.train), PIECE_TOKENS):
            ids = dataset.train[first : first + PIECE_TOKENS]
            _keep_longest(search.read(spelling.spell(ids)), reached, place, number)
            progress("searching", len(ids), total)
        _keep_longest(search.read(np.full(3 * GRAM, NO_TEXT, np.uint8)), reached, place, number)
    before = np.concatenate([[0], np.maximum.accumulate(reached)[:-1]])
    begins = np.flatnonzero(reached > before)
    starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    numbers = np.searchsorted(starts, begins, side="right") - 1
    return [
        Match(
            int(text),
            int(begin - starts[text]),
            int(reached[begin] - starts[text]),
            int(place[0, begin]),
            int(place[1, begin]),
        )
        for text, begin in zip(numbers, begins, strict=True)
    ]


def _keep_longest(spans, reached: np.ndarray, place: np.ndarray, number: int) -> None:
    """Take over the spans (begin, end, at), [n] each, that are longer than those known."""
    for begin, end, at in spans:
        order = np.lexsort((at, -end, begin))
        first = np.unique(begin[order], return_index=True)[1]
        best = order[first]
        best = best[end[best] > reached[begin[best]]]
        reached[begin[best]] = end[best]
        place[0, begin[best]], place[1, begin[best]] = number, at[best]


class _Search:
    """A search for the spans of one text in bytes that are read piece by piece."""

    def __init__(self, text: bytes, least: int):
        self._least = least
        self._stride = min(GRAM, least - GRAM + 1)
        pad = BETWEEN * GRAM  # so that the bytes around a gram exist
        self._text = np.frombuffer(pad + text + pad, np.uint8)
        grams = _grams(self._text[GRAM:], 0, len(text), 1)
        self._order = np.argsort(grams, kind="stable")
        self._grams = grams[self._order]
        self._is_known = np.zeros(1 << _TABLE_BITS, bool)
        self._is_known[_hashes(grams)] = True
        self._bytes = np.full(GRAM, NO_TEXT, np.uint8)  # not searched yet, and those before them
        self._first = -GRAM  # the place of the first of them
        self._next = 0  # the place of the next gram to look up
        # spans that may go on: diagonal, place of the last hit, begin, end
        self._open = np.zeros((4, 0), np.int64)

    def read(self, more: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Spans (begin and end in the text, place of the beginning) that these bytes show."""
        self._bytes = np.concatenate([self._bytes, more])
        # eight bytes behind each gram are needed too
        end = self._first + len(self._bytes) - 2 * GRAM + 1
        count = max(0, -(-(end - self._next) // self._stride))
        if not count:
            return
        grams = _grams(self._bytes, self._next - self._first, count, self._stride)
        hits = np.flatnonzero(self._is_known[_hashes(grams)])
        low = np.searchsorted(self._grams, grams[hits])
        counts = np.searchsorted(self._grams, grams[hits], side="right") - low
        hits, low, counts = hits[counts > 0], low[counts > 0], counts[counts > 0]
        places = self._next + self._stride * hits
        self._next += self._stride * count
        slices = np.cumsum(counts) // MOST_PAIRS
        for number in np.unique(slices):
            begin, stop = np.searchsorted(slices, [number, number + 1])
            upto = places[stop] if stop < len(places) else self._next
            part = slice(begin, stop)
            yield self._join(places[part], low[part], counts[part], upto)
        self._bytes = self._bytes[self._next - GRAM - self._first :]
        self._first = self._next - GRAM

    def _join(self, hits, low, counts, upto: int):
        """Spans of the hits, and of those that were open; upto: the place of the next hit."""
        at = np.repeat(hits, counts)
        within = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
        text = self._order[np.repeat(low, counts) + within]
        here = at - self._first
        before = _equal(
            self._bytes[(here - 1)[:, None] - _STEPS],
            self._text[(text + GRAM - 1)[:, None] - _STEPS],
        )
        after = _equal(
            self._bytes[(here + GRAM)[:, None] + _STEPS],
            self._text[(text + 2 * GRAM)[:, None] + _STEPS],
        )
        new = np.stack([at - text, at, text - before, text + GRAM + after])
        spans = np.concatenate([self._open, new], axis=1)
        spans = spans[:, np.lexsort((spans[1], spans[0]))]
        diagonal, last, begin, end = spans
        goes_on = (diagonal[1:] == diagonal[:-1]) & (last[1:] == last[:-1] + self._stride)
        heads = np.concatenate([[True], ~goes_on])[: len(last)]
        tails = np.concatenate([~goes_on, [True]])[-len(last) :]
        diagonal, last, begin, end = diagonal[tails], last[tails], begin[heads], end[tails]
        is_open = last + self._stride >= upto
        self._open = np.stack([a[is_open] for a in (diagonal, last, begin, end)])
        is_long = end - begin >= self._least
        return begin[is_long], end[is_long], (begin + diagonal)[is_long]


def _grams(data: np.ndarray, offset: int, count: int, stride: int) -> np.ndarray:
    """`count` grams of eight bytes, the first at `offset`, a stride apart: uint64 [count]."""
    data = np.ascontiguousarray(data)
    return np.ndarray((count,), "<u8", data, offset, (stride,)).copy()


def _hashes(grams: np.ndarray) -> np.ndarray:
    """Multiplicative hashing (Knuth 1973) to the bits of the table."""
    return (grams * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _TABLE_BITS)


def _equal(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How many bytes of each row are equal before the first that differs: [n, 8] -> int64 [n]."""
    return np.logical_and.accumulate(left == right, axis=1).sum(axis=1)
