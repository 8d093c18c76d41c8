"""Which spans of a text stand verbatim in the training text of a run (no torch).

Common phrases stand in any text of a kind. So the same is measured for pieces of the validation
text that are as long: what a model copies shows against what they share by chance.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gptlab.data.documents import Place, places
from gptlab.data.mixture import open_mixture
from gptlab.data.token_files import Dataset
from gptlab.data.verbatim import PIECE_TOKENS, Match, Spelling, find_matches
from gptlab.errors import DataError, RunError
from gptlab.files import display, read_json
from gptlab.runs import Run

MIN_CHARS = 30  # of a span that counts: about five English words
FEWEST_CHARS = 8  # that can be asked for: the search looks for eight bytes
SHORTEST_BYTES = 15  # of spans that are found, where nothing shorter is asked for
MOST_BYTES = 1 << 20  # of the texts together
BEGINNING = 32  # characters of a span in a list
HELD_OUT_PIECES, HELD_OUT_BYTES = 32, 1 << 18  # at most

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Span:
    """Characters `begin` to `end` of a text, and the first place where they stand.

    place: of the first character that is not white space; None where the source is unknown.
    """

    begin: int
    end: int
    dataset: str
    place: Place | None = None

    def __len__(self) -> int:
        return self.end - self.begin

    @property
    def where(self) -> str:
        """Its place in words."""
        return str(self.place or f"{self.dataset} (source unknown)")


@dataclass(frozen=True)
class TracedText:
    """A text and the spans of it that stand in the training text, none inside another, in order."""

    text: str
    spans: tuple[Span, ...]

    @property
    def longest(self) -> int:
        """Characters of the longest span; 0 for none of SHORTEST_BYTES."""
        return max(map(len, self.spans), default=0)

    def share(self, min_chars: int) -> float:
        """The share of its characters in spans of at least so many."""
        covered = np.zeros(len(self.text), bool)
        for span in self.spans:
            if len(span) >= min_chars:
                covered[span.begin : span.end] = True
        return float(covered.mean()) if len(covered) else 0.0

    def segments(self, min_chars: int) -> list[tuple[str, Span | None]]:
        """The text in pieces, each with the longest span over it of at least so many characters."""
        owner: list[Span | None] = [None] * len(self.text)
        for span in sorted(self.spans, key=len):
            if len(span) >= min_chars:
                owner[span.begin : span.end] = [span] * len(span)
        cuts = [i for i in range(1, len(owner)) if owner[i] is not owner[i - 1]]
        return [
            (self.text[begin:end], owner[begin])
            for begin, end in zip([0, *cuts], [*cuts, len(owner)], strict=True)
            if end > begin
        ]


@dataclass(frozen=True)
class Traced:
    """The texts, and the pieces of the validation text, each about as long as a text, to compare.

    searched: bytes of the training text.
    """

    texts: tuple[TracedText, ...]
    held_out: tuple[TracedText, ...]
    searched: int

    @property
    def longest_by_chance(self) -> float | None:
        """The median of the longest spans of the pieces; None without validation text."""
        return statistics.median(t.longest for t in self.held_out) if self.held_out else None

    def share_by_chance(self, min_chars: int) -> float | None:
        """The mean share of the pieces in spans of at least so many characters."""
        shares = [t.share(min_chars) for t in self.held_out]
        return statistics.mean(shares) if shares else None


def training_data(run: Run, wanted: str = "a search for verbatim text") -> list[Dataset]:
    """The datasets that a run was trained on, as it met them.

    wanted: what needs their text. Raises TaskError where one is a task, RunError where the run
    records none or they have changed since, DataError where they are gone or hold no text,
    ConfigError where the record is damaged.
    """
    name = display(run.folder)
    try:
        recorded = read_json(run.provenance)
        word, fingerprint = recorded["settings"]["dataset"], recorded["data"]["fingerprint"]
    except FileNotFoundError:
        raise RunError(
            f"{name} does not record which text it was trained on (it has no provenance.json)",
            "trace a run that began here with train.py",
        ) from None
    except (LookupError, TypeError):
        word = fingerprint = None
    if not isinstance(word, str) or not isinstance(fingerprint, str):
        raise RunError(f"{display(run.provenance)} does not name a dataset.")
    data = open_mixture(word, fingerprint=fingerprint)
    data.refuse_tasks(wanted)
    if data.tokenizer is None:
        raise DataError(
            f"{data.name} holds ids without a tokenizer, so nobody can read them as text",
            "put the tokenizer.json beside its train.bin",
        )
    if data.fingerprint != fingerprint:
        raise RunError(
            f"{name} was trained on other data than {data.name} now holds, so its training text "
            "is gone",
            "prepare it again as before",
        )
    return list(data.parts)


def trace_texts(
    datasets: Sequence[Dataset],
    texts: Sequence[str],
    min_chars: int = MIN_CHARS,
    progress: Progress = lambda stage, advance, total: None,
    held_out: Sequence[str] | None = None,
) -> Traced:
    """Find the spans of the texts, and of pieces of the validation text, in the training text.

    Spans end at the end of a document and at a special token. Those of the texts have their places.
    progress: called with "searching", tokens read since the last call, and their total. held_out:
    the pieces [`held_out_pieces`, as long as the texts]. Raises DataError for texts that are empty
    or too long.
    """
    encoded = [text.encode("utf-8", "replace") for text in texts]
    size = sum(map(len, encoded))
    if not size:
        raise DataError("There is no text to trace.")
    if size > MOST_BYTES:
        raise DataError(
            f"The text has {size:,} bytes, more than the {MOST_BYTES:,} that are traced at once",
            "trace a part of it",
        )
    if held_out is None:
        held_out = held_out_pieces(datasets, -(-size // len(texts)))
    encoded += [piece.encode("utf-8", "replace") for piece in held_out]
    least = min(SHORTEST_BYTES, min_chars)
    matches = find_matches(datasets, encoded, least, progress)
    found = _places(datasets, [match for match in matches if match.text < len(texts)], encoded)
    traced = []
    for number, text in enumerate([*texts, *held_out]):
        own = [match for match in matches if match.text == number]
        names = [datasets[match.dataset].name for match in own]
        traced.append(TracedText(text, _spans(own, encoded[number], names, found)))
    searched = sum(_size(dataset) for dataset in datasets)
    return Traced(tuple(traced[: len(texts)]), tuple(traced[len(texts) :]), searched)


def held_out_pieces(datasets: Sequence[Dataset], size: int) -> list[str]:
    """Pieces of the validation text of `size` bytes each, evenly spread, without overlap."""
    found = []
    most = max(1, min(HELD_OUT_PIECES, HELD_OUT_BYTES // size) // len(datasets))
    for dataset in datasets:
        count = min(most, max(1, len(dataset.val) // size))  # a token has at least one byte
        spelling = Spelling(dataset)
        for number in range(count):
            ids = dataset.val[number * len(dataset.val) // count :][:size]
            # a cut character, and what stands for a special token, become U+FFFD
            piece = spelling.spell(ids)[:size].tobytes().decode("utf-8", "replace")
            found += [piece] if piece else []
    return found


def span_level(span: Span, min_chars: int) -> int:
    """How long a span is: 0 from min_chars on, 1 from twice, 2 from four times as many."""
    return (len(span) >= 2 * min_chars) + (len(span) >= 4 * min_chars)


def level_names(min_chars: int) -> tuple[str, str, str]:
    """The levels in words."""
    n = min_chars
    return f"{n:,} to {2 * n - 1:,}", f"{2 * n:,} to {4 * n - 1:,}", f"{4 * n:,} and more"


def beginning(text: TracedText, span: Span) -> str:
    """The first characters of a span on one line."""
    words = " ".join(text.text[span.begin : span.end].split())
    return words if len(words) <= BEGINNING else f"{words[:BEGINNING]} ..."


def percent(share: float) -> str:
    """A share in words, with a decimal where it is small."""
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"


def _spans(
    matches: Sequence[Match],
    encoded: bytes,
    names: Sequence[str],
    found: Mapping[Match, Place | None],
) -> tuple[Span, ...]:
    """The matches of one text as spans of whole characters. names: of their datasets."""
    starts = (np.frombuffer(encoded, np.uint8) & 0xC0) != 0x80  # of characters, in UTF-8
    before = np.concatenate([[0], np.cumsum(starts)])  # characters that begin before a byte
    spans, reached = [], 0
    for match, name in zip(matches, names, strict=True):
        is_cut = match.end < len(encoded) and not starts[match.end]
        begin, end = int(before[match.begin]), int(before[match.end]) - is_cut
        if end > reached and end > begin:
            reached = end
            spans.append(Span(begin, end, name, found.get(match)))
    return tuple(spans)


def _places(
    datasets: Sequence[Dataset], matches: Sequence[Match], encoded: Sequence[bytes]
) -> dict[Match, Place | None]:
    """The place of the first character of each match that is not white space."""
    found = {}
    for number, dataset in enumerate(datasets):
        own, at = [match for match in matches if match.dataset == number], []
        if not own:
            continue
        for match in own:
            words = encoded[match.text][match.begin : match.end]
            at.append(match.at + (len(words) - len(words.lstrip())) % len(words))
        found |= zip(own, places(dataset, _tokens_at(dataset, at)), strict=True)
    return found


def _tokens_at(dataset: Dataset, wanted: Sequence[int]) -> list[int]:
    """The position of the token that spells each byte."""
    lengths, tokens, first_byte = Spelling(dataset).lengths, {}, 0
    for first in range(0, len(dataset.train), PIECE_TOKENS):
        ends = first_byte + np.cumsum(
            lengths[dataset.train[first : first + PIECE_TOKENS]], dtype=np.int64
        )
        here = [byte for byte in wanted if first_byte <= byte < ends[-1]]
        found = first + np.searchsorted(ends, here, side="right")
        tokens |= zip(here, found.tolist(), strict=True)
        first_byte = int(ends[-1])
    return [tokens[byte] for byte in wanted]


def _size(dataset: Dataset) -> int:
    """Bytes of the training part."""
    return (dataset.meta or {}).get("train_bytes") or len(dataset.train)
