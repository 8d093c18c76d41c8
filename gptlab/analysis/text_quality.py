"""What a model writes, beside as much held-out text, in numbers that need no reader (no torch)."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gptlab.analysis.statistics import t_quantile
from gptlab.analysis.trace import MIN_CHARS, TracedText, percent, trace_texts
from gptlab.data.token_files import Dataset
from gptlab.data.verbatim import PIECE_TOKENS, Spelling
from gptlab.data.words import has_no_spaces, spellings_of, whole_words, word_runs, words_of

LEVEL = 0.01  # of each judgement: about six of them are made at once
LONGEST_WORD = 64  # tokens of a word that a cut of the training text may not divide
# a mark that ends a sentence before white space, or in a script without spaces; else an empty line
_SENTENCE_END = re.compile(
    r"(?:[.!?…]+[\"'”’»)\]]*(?=\s|$)|[。！？｡．।॥؟۔։።၊။]+|\n[^\S\n]*\n)\s*"  # noqa: RUF001
)


def held_out_texts(datasets: Sequence[Dataset], count: int, tokens: int) -> list[str]:
    """At most `count` texts of at most `tokens` tokens from the validation parts, evenly spread and
    without overlap: beginnings of documents, as samples are, where there are enough of them."""
    found = []
    for dataset in datasets:
        val, wanted = np.asarray(dataset.val), max(1, count // len(datasets))
        ends = np.flatnonzero(val == dataset.tokenizer.eot_id)
        starts = np.concatenate([[0], ends + 1])
        starts = starts[starts < len(val)]
        are_beginnings = len(starts) >= wanted
        if not are_beginnings:
            wanted = min(wanted, len(val) // tokens)
            starts = np.arange(wanted) * len(val) // max(1, wanted)
        for place in np.arange(wanted) * len(starts) // max(1, wanted):
            start = int(starts[place])
            ids = val[start : start + tokens]
            is_end = ids == dataset.tokenizer.eot_id
            ids = ids[: int(is_end.argmax())] if is_end.any() else ids
            text = dataset.tokenizer.decode(ids.tolist())
            if not is_end.any():
                text = whole_words(text, cut_begin=not are_beginnings)
            found += [text] if text else []
    return found[:count]


def known_spellings(
    datasets: Sequence[Dataset],
    wanted: set[str],
    progress: Callable[[str, int, int], None] = lambda stage, advance, total: None,
) -> set[str]:
    """Those of the wanted words, or pairs of characters, that stand in the training text.

    progress: called with "reading", tokens read since the last call, and their total.
    """
    known: set[str] = set()
    total = sum(len(dataset.train) for dataset in datasets)
    for dataset in datasets:
        spelling = Spelling(dataset)
        for first in range(0, len(dataset.train), PIECE_TOKENS):
            last = first + PIECE_TOKENS + LONGEST_WORD
            # a word at a cut is whole in the piece before it
            ids = dataset.train[first:last]
            runs = word_runs(spelling.spell(ids).tobytes().decode("utf-8", "replace"))
            if first and runs and not has_no_spaces(runs[0]):
                del runs[0]
            if last < len(dataset.train) and runs and not has_no_spaces(runs[-1]):
                del runs[-1]
            known |= wanted.intersection(spellings_of(set(runs)))
            progress("reading", min(PIECE_TOKENS, len(dataset.train) - first), total)
    return known


def quality_of_samples(
    texts: Sequence[str],
    tokens: int,
    datasets: Sequence[Dataset],
    why: str = "",
    progress: Callable[[str, int, int], None] = lambda stage, advance, total: None,
) -> "TextQuality":
    """Measure what a model wrote beside as much validation text of its datasets.

    tokens: of a text at most. why: there are no datasets. progress: called with a stage, tokens
    since the last call, and their total.
    """
    texts = [whole_words(text) for text in texts]
    pieces = held_out_texts(datasets, len(texts), tokens) if datasets else []
    if not any(words_of(text) for text in texts):
        why, datasets = "it wrote no word", []
    elif datasets and not pieces:
        why = f"the validation text is shorter than a sample of {tokens:,} tokens"
    if not datasets:
        return measure_quality([TracedText(text, ()) for text in texts], [], [], why)
    traced = trace_texts(datasets, texts, progress=progress, held_out=pieces)
    return measure_quality(traced.texts, traced.held_out, datasets, why, progress)


# The measures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Counted:
    """One text, counted. known: of its spellings; None where there is no training text."""

    words: list[str]
    sentences: int
    spellings: int
    known: int | None
    characters: int
    verbatim: float | None


def _distinct(n: int, texts: Sequence[_Counted], most: int) -> float | None:
    """The share of different runs of n words among all of the first `most` words."""
    runs, left = [], most
    for text in texts:
        words = text.words[:left]
        left -= len(words)
        runs += zip(*(words[i:] for i in range(n)), strict=False)
    return len(set(runs)) / len(runs) if runs else None


def _repeated(texts: Sequence[_Counted]) -> float | None:
    """The share of runs of four words that stood earlier in the same text."""
    total = again = 0
    for text in texts:
        runs = list(zip(*(text.words[i:] for i in range(4)), strict=False))
        total, again = total + len(runs), again + len(runs) - len(set(runs))
    return again / total if total else None


def _ratio(pairs: Iterable[tuple[float | None, float]]) -> float | None:
    """The sum of the first numbers over that of the second; None where nothing was counted."""
    pairs = list(pairs)
    total = sum(whole for _, whole in pairs)
    if not total or any(part is None for part, _ in pairs):
        return None
    return sum(part for part, _ in pairs) / total


@dataclass(frozen=True)
class TextMeasure:
    """A measure. sentence: what it is. more, less: what a model does whose number is higher, lower
    than that of held-out text. value: of texts, of the first `most` words where that matters.
    is_across_texts: it counts what differs between the texts too.
    """

    name: str
    sentence: str
    more: str
    less: str
    value: Callable[[Sequence[_Counted], int], float | None]
    is_share: bool = True
    is_across_texts: bool = False
    needs_training_text: bool = False

    def show(self, value: float | None) -> str:
        """A number as a reader wants it; "" for none."""
        if value is None:
            return ""
        return percent(value) if self.is_share else f"{value:.1f}"


MEASURES = (
    TextMeasure(
        "known words",
        "words that stand in the training text; the others are new or made up",
        "keeps more to the words of its training text",
        "writes more words that its training text lacks",
        lambda texts, _: _ratio((text.known, text.spellings) for text in texts),
        needs_training_text=True,
    ),
    TextMeasure(
        "repetition",
        "runs of four words that stood in the same text before (Welleck et al. 2020): whether it "
        "turns in circles",
        "repeats itself more",
        "repeats itself less",
        lambda texts, _: _repeated(texts),
    ),
    TextMeasure(
        "different words",
        "how many of the words are different ones (distinct-1, Li et al. 2016)",
        "uses more different words",
        "uses fewer different words",
        lambda texts, most: _distinct(1, texts, most),
        is_across_texts=True,
    ),
    TextMeasure(
        "different pairs",
        "the same of pairs of neighbouring words (distinct-2): whether it varies its phrases",
        "varies its phrases more",
        "varies its phrases less",
        lambda texts, most: _distinct(2, texts, most),
        is_across_texts=True,
    ),
    TextMeasure(
        "words a sentence",
        "how long sentences are; one ends at . ! ? or the like, or at an empty line",
        "writes longer sentences",
        "writes shorter sentences",
        lambda texts, _: _ratio((len(text.words), text.sentences) for text in texts),
        is_share=False,
    ),
    TextMeasure(
        "verbatim",
        f"characters in passages of {MIN_CHARS} or more that stand in the training text",
        "copies more of its training text",
        "copies less of its training text",
        lambda texts, _: _ratio((text.verbatim, text.characters) for text in texts),
        needs_training_text=True,
    ),
)


@dataclass(frozen=True)
class TextFigure:
    """A measure of the samples and of held-out text; None where it cannot be taken.

    side: 1 or -1 where the samples' is higher or lower by more than so few texts leave to chance,
    0 where not, None where nothing can be said.
    """

    measure: TextMeasure
    samples: float | None
    held_out: float | None
    side: int | None

    @property
    def word(self) -> str:
        """The judgement in a word; "" for none."""
        return "" if self.side is None else ("alike", "higher", "lower")[self.side]


@dataclass(frozen=True)
class TextQuality:
    """The measures of `texts` samples, of those `drawn`, and of as many held-out texts.

    most: words of each that are counted where the amount matters. why: the reason that nothing is
    compared with held-out text, or "".
    """

    figures: tuple[TextFigure, ...]
    drawn: int
    texts: int
    most: int
    why: str = ""

    @property
    def verdict(self) -> str:
        """What the measures say, in a sentence."""
        if self.why:
            return f"There is nothing to judge these numbers by: {self.why}."
        judged = [f for f in self.figures if f.side is not None]
        if not judged:
            return "One sample is too little to tell a habit from chance: draw more."
        found = [f.measure.more if f.side > 0 else f.measure.less for f in judged if f.side]
        if not found:
            return (
                f"By none of these {len(judged)} measures does it differ from held-out text by "
                "more than chance."
            )
        told = found[0] if len(found) == 1 else f"{', '.join(found[:-1])} and {found[-1]}"
        rest = "; the other measures are alike" if len(found) < len(judged) else ""
        return f"Compared with as much held-out text, it {told}{rest}."

    @property
    def notes(self) -> list[str]:
        """How the numbers come about, in sentences."""
        word = "A word is a run of letters and digits; in scripts without spaces, a character."
        if self.why:
            lacking = [
                f.measure.name
                for f in self.figures
                if f.measure.needs_training_text and f.samples is None
            ]
            left_out = f"; {' and '.join(lacking)} need the training text" if lacking else ""
            return [f"No held-out text stands beside them{left_out}.", word]
        held_out = f"Held out: {self.texts:,} parts of the validation text, as long as the samples"
        if self.texts < self.drawn:
            held_out += f"; there is no room for more, so {self.texts:,} samples count"
        return [
            f"{held_out}. Different words and pairs: of the first {self.most:,} words of each.",
            "Higher, lower: by more than so few texts leave to chance (99%). " + word,
        ]

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {
            "verdict": self.verdict,
            "notes": self.notes,
            "samples": self.drawn,
            "compared_texts": self.texts,
            "compared_words": self.most,
            "measures": [
                {
                    "name": f.measure.name,
                    "samples": f.samples,
                    "held_out": f.held_out,
                    "differs": f.word or None,
                }
                for f in self.figures
            ],
        }


def measure_quality(
    samples: Sequence[TracedText],
    held_out: Sequence[TracedText],
    datasets: Sequence[Dataset],
    why: str = "",
    progress: Callable[[str, int, int], None] = lambda stage, advance, total: None,
) -> TextQuality:
    """Measure samples beside held-out texts, as many of each.

    Both with their spans in the training text of `datasets`; without datasets what needs it is left
    out. why: there is no held-out text. progress: of `known_spellings`.
    """
    texts = min(len(samples), len(held_out)) or len(samples)
    wanted = {s for text in [*samples, *held_out] for s in spellings_of(word_runs(text.text))}
    known = known_spellings(datasets, wanted, progress) if datasets else None
    ours = [_count(text, known) for text in samples[:texts]]
    theirs = [_count(text, known) for text in held_out[:texts]]
    sizes = [sum(len(text.words) for text in side) for side in (ours, theirs) if side]
    most = min(sizes)
    figures = []
    for measure in MEASURES:
        value = measure.value(ours, most)
        peer = measure.value(theirs, most) if theirs else None
        side = None if value is None or peer is None else _side(measure, ours, theirs, value - peer)
        figures.append(TextFigure(measure, value, peer, side))
    return TextQuality(tuple(figures), len(samples), texts, most, why)


def _count(text: TracedText, known: set[str] | None) -> _Counted:
    spellings = spellings_of(word_runs(text.text))
    return _Counted(
        words_of(text.text),
        len(_SENTENCE_END.findall(text.text.strip())),
        len(spellings),
        None if known is None else sum(one in known for one in spellings),
        len(text.text),
        None if known is None else text.share(MIN_CHARS) * len(text.text),
    )


def _side(measure: TextMeasure, ours: list[_Counted], theirs: list[_Counted], difference: float):
    """Whether a difference is beyond chance: against Student's t, with jackknife errors over texts
    (Efron & Stein 1981)."""
    if len(ours) < 2:
        return None
    variances = [_jackknife_variance(measure, side) for side in (ours, theirs)]
    if None in variances:
        return None
    bound = t_quantile(1 - LEVEL / 2, len(ours) - 1) * math.sqrt(sum(variances))
    return int(math.copysign(1, difference)) if abs(difference) > bound else 0


def _jackknife_variance(measure: TextMeasure, texts: list[_Counted]) -> float | None:
    everything = sum(len(text.words) for text in texts)
    values = [measure.value(texts[:i] + texts[i + 1 :], everything) for i in range(len(texts))]
    if None in values:
        return None
    return float(np.var(values) * (len(values) - 1))
