"""Documents that stand twice, exactly or nearly, so that copies stay on one side of the split.

Two documents are near copies if they share 0.4 of the sequences of 16 bytes that either of them
holds (their resemblance, Broder 1997), which is more than half of their text. It is estimated from
the minima of 32 hash functions over a sample of the sequences; equal pairs of minima show which
documents are worth comparing (Indyk and Motwani 1998). A copy with 5% of its words changed has a
resemblance of about 0.7, and 0.5 with 10%.

One pass over the text. Memory: 128 bytes for a document of LEAST_BYTES or more, 16 for any other,
and a piece of the text.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gptlab.data.leaks import window_hashes
from gptlab.data.text_store import TextStore

FILE = "copies.txt"
LEAST_BYTES = 200  # of a near copy; shorter documents are copies only if they are equal
RESEMBLANCE = 0.4
_SEQUENCE = 16  # bytes: about three words
_SAMPLED = 8  # one sequence of so many
_MINIMA = 32
_PIECE = 1 << 16
_COMPARED = 1 << 14  # pairs at once


@dataclass(frozen=True)
class Copies:
    """Which documents are copies. first: int64 [documents], the number of the first document of
    which each is a copy, or its own. kept_apart: how many near copies are too many to be on one
    side, because together they are larger than the validation part."""

    first: np.ndarray
    exact: int
    near: int
    kept_apart: int

    @property
    def are_copies(self) -> np.ndarray:
        """Whether each document is a copy of an earlier one: bool [documents]."""
        return self.first != np.arange(len(self.first))

    def keys(self, keys: np.ndarray) -> np.ndarray:
        """The keys of the documents, of near copies the largest, so that the split keeps them
        together and puts many copies rather into training: uint64 [documents]."""
        largest = keys.copy()
        np.maximum.at(largest, self.first, keys)
        return largest[self.first]


def find_copies(
    store: TextStore, most_bytes: float, progress: Callable[[int], None] = lambda n: None
) -> Copies:
    """The exact and the near copies among the stored documents.

    most_bytes: near copies of more bytes together are kept apart: what so many documents share is
    the form of their kind, and one side of the split cannot hold them.
    """
    keys, sizes = store.keys, store.sizes
    _, first, place = np.unique(keys, return_index=True, return_inverse=True)
    equal = first[place]  # the first document of the same content
    exact = int((equal != np.arange(len(keys))).sum())
    asked = np.flatnonzero((sizes >= LEAST_BYTES) & (equal == np.arange(len(keys))))
    if len(asked) < 2:
        return Copies(equal, exact, 0, 0)
    roots = np.arange(len(keys))
    roots[asked] = asked[_grouped(_minima(store, asked, progress))]
    joined = roots[equal]
    is_near = joined != equal
    near = int((roots != np.arange(len(keys))).sum())
    if not near:
        return Copies(equal, exact, 0, 0)
    total = np.zeros(len(keys), np.int64)
    np.add.at(total, joined, sizes)
    is_large = total[joined] > most_bytes
    apart = is_near & is_large & (equal == np.arange(len(keys)))
    joined = np.where(is_large, equal, joined)
    return Copies(joined, exact, near - int(apart.sum()), int(apart.sum()))


def _minima(store: TextStore, asked: np.ndarray, progress: Callable[[int], None]) -> np.ndarray:
    """The least hash of the sampled sequences under each function: uint32 [asked, 32]."""
    stops = np.cumsum(store.sizes)
    starts, stops = (stops - store.sizes)[asked], stops[asked]
    minima = np.full((len(asked), _MINIMA), 0xFFFFFFFF, np.uint32)
    random = np.random.default_rng(0).integers(0, 1 << 32, (2, _MINIMA), np.uint64)
    factors, offsets = (random | np.uint64(1)).astype(np.uint32)
    for offset, hashes in _hashes(store):
        at = np.flatnonzero((hashes & np.uint64(_SAMPLED - 1)) == 0)
        document = np.searchsorted(starts, at + offset, side="right") - 1
        is_inside = (document >= 0) & (at + offset + _SEQUENCE <= stops[document])
        document, values = document[is_inside], hashes[at[is_inside]]
        progress(len(hashes))
        if not len(document):
            continue
        values = (values >> np.uint64(32)).astype(np.uint32)
        first = np.flatnonzero(np.r_[True, document[1:] != document[:-1]])
        rows = document[first]
        for i in range(_MINIMA):
            # the high half of a product is mixed, the low one is not
            mixed = values * factors[i] + offsets[i]
            mixed ^= mixed >> np.uint32(15)
            mixed *= np.uint32(0x2C1B3C6D)
            least = np.minimum.reduceat(mixed, first)
            minima[rows, i] = np.minimum(minima[rows, i], least)
    return minima


def _hashes(store: TextStore) -> Iterator[tuple[int, np.ndarray]]:
    """(offset of the first byte, hashes of all sequences that begin in a piece) of the text."""
    for offset, content in store.blocks(_PIECE, _SEQUENCE - 1):
        if len(content) >= _SEQUENCE:
            yield offset, window_hashes(np.frombuffer(content, np.uint8), _SEQUENCE)


def _grouped(minima: np.ndarray) -> np.ndarray:
    """The first row of the group of each row: int64 [n]. Rows with half of their minima in common
    are in one group, and so are those that a third row connects."""
    parents = list(range(len(minima)))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    empty = np.uint64(0xFFFFFFFFFFFFFFFF)
    for band in minima.view(np.uint64).T:  # two minima each
        order = np.argsort(band, kind="stable")
        values = band[order]
        is_same = (values[1:] == values[:-1]) & (values[1:] != empty)
        here = np.flatnonzero(is_same) + 1
        heads = np.maximum.accumulate(np.where(np.r_[False, is_same], 0, np.arange(len(values))))
        for before in (heads[here], here - 1):  # the first with these minima, and the one before
            for start in range(0, len(here), _COMPARED):
                left = order[before[start : start + _COMPARED]]
                right = order[here[start : start + _COMPARED]]
                alike = (minima[left] == minima[right]).mean(1) >= RESEMBLANCE
                for a, b in zip(left[alike].tolist(), right[alike].tolist(), strict=True):
                    a, b = root(a), root(b)
                    parents[max(a, b)] = min(a, b)
    return np.array([root(row) for row in range(len(parents))], np.int64)
