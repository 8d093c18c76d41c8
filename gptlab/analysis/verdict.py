"""What paired runs say: intervals at equal tokens, time and FLOPs, and a verdict.

A difference is the loss of B minus that of A: below 0, B is better. `judge_once` decides by the
seeds; the interval from the text alone stands beside it.
"""

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from gptlab.analysis.paired_runs import Arm, PairedRuns
from gptlab.analysis.statistics import (
    FIRST_LOOK,
    LAST_LOOK,
    LEVEL,
    REPEATED_LEVEL,
    Interval,
    paired_interval,
    seeds_to_decide,
    text_interval,
)
from gptlab.training.units import TextUnits

IDENTICAL, A_BETTER, B_BETTER, EQUAL, UNDECIDED = "identical", "A", "B", "equal", "undecided"


@dataclass(frozen=True)
class Pair:
    """The results of one seed, as results.jsonl has them, with the losses of their windows.

    a_windows, b_windows: (nats, targets, block_size), or None. scale: from nats per token of each
    to the unit of the comparison.
    """

    seed: int
    a: dict
    b: dict
    a_windows: tuple | None = None
    b_windows: tuple | None = None
    scale: tuple[float, float] = (1.0, 1.0)

    @property
    def is_identical(self) -> bool:
        """Whether both losses of all windows are equal to the bit, and all curves."""
        if self.a["loss"] != self.b["loss"] or self.a["curve"] != self.b["curve"]:
            return False
        if self.a_windows is None or self.b_windows is None:
            return True
        return np.array_equal(self.a_windows[0], self.b_windows[0])

    def difference(self, tokens: tuple[float, float] | None = None) -> float | None:
        """B's loss minus A's, after so many tokens of each; None where a curve does not reach."""
        ends = tokens or (self.a["tokens"], self.b["tokens"])
        losses = [loss_at(run, n) for run, n in zip((self.a, self.b), ends, strict=True)]
        if None in losses:
            return None
        return losses[1] * self.scale[1] - losses[0] * self.scale[0]


def loss_at(run: dict, tokens: float) -> float | None:
    """The loss of a run after so many tokens, in nats per token of the whole validation split.

    Before the end it is read off the curve of evaluations, moved by what the whole split differs
    from their share of it at the end. None before the first evaluation.
    """
    if tokens >= run["tokens"]:
        return run["loss"]
    places, losses = zip(*run["curve"], strict=True) if run["curve"] else ((), ())
    if not places or tokens < places[0]:
        return None
    return float(np.interp(tokens, places, losses)) + run["loss"] - losses[-1]


@dataclass(frozen=True)
class Comparison:
    """A verdict and what it rests on.

    views: the interval at equal "tokens", "time" and "FLOPs". text: the interval from the text
    alone. ratios: what a token of B costs beside one of A, in time and FLOPs. floor: the deviation
    of A/A, and how it was found. more_seeds, more_tokens: about how many in all would decide.
    """

    state: str
    pairs: list[Pair]
    level: float
    smallest: float
    unit: str
    views: dict[str, Interval] = field(default_factory=dict)
    text: tuple[float, float] | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    floor: tuple[float, str] | None = None
    more_seeds: int | None = None
    more_tokens: int | None = None
    diverged: dict[str, list[int]] = field(default_factory=dict)

    @property
    def interval(self) -> Interval | None:
        """The interval at equal tokens, by which the verdict is given."""
        return self.views.get("tokens")


def pairs_of(runs: PairedRuns, seeds: list[int], other: Arm, in_bits: bool = False) -> list[Pair]:
    """The pairs of the first arm and another, of the seeds that both have."""
    results, first = runs.results(), runs.arms[0]
    scale = (1.0, 1.0)
    if in_bits:
        scale = tuple(TextUnits(arm.dataset.meta).bits_per_byte(1.0) for arm in (first, other))
    return [
        Pair(
            seed,
            results[first.name, seed],
            results[other.name, seed],
            runs.windows(first, seed),
            runs.windows(other, seed),
            scale,
        )
        for seed in seeds
        if (first.name, seed) in results and (other.name, seed) in results
    ]


def judge_once(
    pairs: list[Pair],
    *,
    auto: bool,
    smallest: float,
    unit: str = "nats per token",
    floor: list[Pair] | None = None,
) -> Comparison:
    """The verdict on these pairs.

    auto: it is one look of several (`REPEATED_LEVEL`), else the only one (`LEVEL`). smallest: a
    difference that matters. floor: pairs of A with A again.
    """
    level = REPEATED_LEVEL if auto else LEVEL
    lost = {
        name: [pair.seed for pair in pairs if "diverged" in getattr(pair, name.lower())]
        for name in ("A", "B")
    }
    pairs = [pair for pair in pairs if pair.seed not in {*lost["A"], *lost["B"]}]
    known = dict(pairs=pairs, level=level, smallest=smallest, unit=unit, diverged=lost)
    if len(pairs) < 2:
        return Comparison(UNDECIDED, **known)
    ratios = _ratios(pairs)
    if all(pair.is_identical for pair in pairs):
        return Comparison(IDENTICAL, ratios=ratios, **known)
    views = {}
    for view, ratio in {"tokens": 1.0, **ratios}.items():
        differences = [pair.difference(_equal_budget(pair, ratio)) for pair in pairs]
        if None not in differences:
            views[view] = paired_interval(differences, level)
    if "tokens" not in views:
        return Comparison(UNDECIDED, ratios=ratios, **known)
    found, text = views["tokens"], _text_interval(pairs)
    state = UNDECIDED
    if found.excludes_zero:
        state = B_BETTER if found.mean < 0 else A_BETTER
    elif found.farthest <= smallest:
        state = EQUAL
    more = {}
    if state == UNDECIDED:
        more = {"more_seeds": seeds_to_decide(found, smallest), "more_tokens": _tokens(pairs, text)}
    noise = _noise_floor(found, floor)
    return Comparison(state, views=views, text=text, ratios=ratios, floor=noise, **more, **known)


def judge_in_turn(pairs: list[Pair], **options) -> Comparison:
    """The verdict of `--seeds auto`: at the first look that decides, else at the last.

    It looks after each of FIRST_LOOK to LAST_LOOK pairs. Fewer are enough where they are equal.
    """
    for n in range(FIRST_LOOK, min(len(pairs), LAST_LOOK) + 1):
        found = judge_once(pairs[:n], auto=True, **options)
        if found.state != UNDECIDED:
            return found
    if len(pairs) >= FIRST_LOOK:
        return found
    found = judge_once(pairs, auto=True, **options)
    return found if found.state == IDENTICAL else dataclasses.replace(found, state=UNDECIDED)


def _ratios(pairs: list[Pair]) -> dict[str, float]:
    """What a token of B costs beside one of A: {"time": ..., "FLOPs": ...}."""
    found = {}
    # each pair ran one after the other, so that a slow hour slows both
    speeds = [
        pair.a["tokens_per_second"] / pair.b["tokens_per_second"]
        for pair in pairs
        if pair.a.get("tokens_per_second") and pair.b.get("tokens_per_second")
    ]
    if speeds:
        found["time"] = float(np.median(speeds))
    found["FLOPs"] = pairs[0].b["flops_per_token"] / pairs[0].a["flops_per_token"]
    return found


def _equal_budget(pair: Pair, ratio: float) -> tuple[float, float]:
    """(tokens of A, tokens of B) of the largest equal budget. ratio: cost of a token of B to A."""
    budget = min(pair.a["tokens"], pair.b["tokens"] * ratio)
    return budget, budget / ratio


def _text_interval(pairs: list[Pair]) -> tuple[float, float] | None:
    """The interval from the text alone, of the mean over the seeds; None without equal windows."""
    differences, targets = [], None
    for pair in pairs:
        if pair.a_windows is None or pair.b_windows is None or pair.scale[0] != pair.scale[1]:
            return None
        a, b = _same_windows(pair.a_windows, pair.b_windows)
        if a is None or not np.array_equal(a[1], b[1]):
            return None
        differences.append((b[0] - a[0]) * pair.scale[0])
        targets = a[1]
    kept = targets > 0
    return text_interval(np.mean(differences, axis=0)[kept], targets[kept])


def _same_windows(a: tuple, b: tuple) -> tuple:
    """Both sides as (nats, targets) of windows of the longer block_size; None if none fit."""
    longer = max(a[2], b[2])
    return tuple(
        None if longer % size else tuple(_added_up(values, longer // size) for values in (n, t))
        for n, t, size in (a, b)
    )


def _added_up(values: np.ndarray, count: int) -> np.ndarray:
    return np.add.reduceat(values, np.arange(0, len(values), count))


def _tokens(pairs: list[Pair], text: tuple[float, float] | None) -> int | None:
    """The validation tokens after which the text's interval would leave 0; None if it has."""
    if text is None or text[0] > 0 or text[1] < 0:
        return None
    half, middle = (text[1] - text[0]) / 2, abs(text[0] + text[1]) / 2
    tokens = int(pairs[0].a_windows[1].sum())
    return round(tokens * (half / middle) ** 2) if middle else None


def _noise_floor(found: Interval, again: list[Pair] | None) -> tuple[float, str]:
    """(deviation over seeds of the paired A/A difference, how it was found)."""
    differences = [
        pair.difference() for pair in again or () if not {"diverged"} & {*pair.a, *pair.b}
    ]
    if len(differences) >= 2:
        return paired_interval(differences).deviation, f"A against A, {len(differences)} pairs"
    return found.deviation, "what is left of the pairs' differences without their mean"


# In words -----------------------------------------------------------------------------------------


def verdict_line(found: Comparison) -> str:
    """The verdict in a line."""
    if found.state == IDENTICAL:
        return f"identical: all {len(found.pairs)} pairs are equal to the bit"
    if found.state == EQUAL:
        return f"no difference larger than {found.interval.farthest:.4f} {found.unit}"
    if found.state in (A_BETTER, B_BETTER):
        return f"{found.state} is better, by {abs(found.interval.mean):.4f} {found.unit}"
    if found.interval is None:
        return "undecided: fewer than two pairs of finished runs"
    seeds = found.more_seeds
    many = "far more" if seeds is None else f"about {seeds - found.interval.n} more"
    line = f"undecided: {many} seed{'s' * (many != 'about 1 more')}"
    if found.more_tokens:
        line += f" (or about {found.more_tokens:,} tokens of validation text)"
    return f"{line} would decide"


def plain_sentence(found: Comparison, a: str, b: str) -> str:
    """The verdict for somebody who does not count: what to do, and why."""
    if found.state == IDENTICAL:
        return "B does exactly what A does: nothing has changed."
    if found.state == B_BETTER:
        return f"Take B ({b}): it predicts new text better than A{_price(found)}."
    if found.state == A_BETTER:
        return f"Keep A ({a}): B predicts new text worse{_price(found)}."
    if found.state == EQUAL:
        return f"Take whichever you like: B predicts new text as well as A{_price(found)}."
    return "Nobody can tell yet: A and B differ less than two trainings of the same thing do."


def _price(found: Comparison) -> str:
    """How long B takes, where that is worth a word."""
    time = found.ratios.get("time", 1.0)
    if 0.95 <= time <= 1.05:
        return ""
    is_fast, is_better = time < 1, found.state in (B_BETTER, EQUAL)
    return f", {'and' if is_fast == is_better else 'though'} it takes {time:.2f} of the time"


def as_json(found: Comparison, a: str, b: str) -> dict:
    """Everything about a comparison in plain types."""

    def plain(interval: Interval) -> dict:
        return {
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "seeds": interval.n,
            "deviation": interval.deviation,
        }

    return {
        "a": a,
        "b": b,
        "verdict": found.state,
        "in_words": verdict_line(found),
        "plainly": plain_sentence(found, a, b),
        "unit": found.unit,
        "confidence": 0.95,
        "level_of_each_look": found.level,
        "smallest": found.smallest,
        "difference": {view: plain(interval) for view, interval in found.views.items()},
        "text_interval": found.text,
        "cost_of_a_token_of_b": found.ratios,
        "noise_floor": found.floor and {"deviation": found.floor[0], "from": found.floor[1]},
        "seeds_to_decide": found.more_seeds,
        "validation_tokens_to_decide": found.more_tokens,
        "diverged": found.diverged,
        "pairs": [
            {"seed": p.seed, "a": p.a["loss"], "b": p.b["loss"], "difference": p.difference()}
            for p in found.pairs
        ],
    }
