"""The section of a report on what lens_interval recorded: heads, norms and ranks over the steps."""

import math
from collections.abc import Sequence
from html import escape

from gptlab.reports import page as page
from gptlab.reports.charts import Chart, Line, draw_svg, short
from gptlab.reports.run_view import Points, RunView
from gptlab.reports.sections import SMALL, colour, loss_lines
from gptlab.training.head_curves import Curves, head_curves, jobs_in_words, step_found

WIDE, NARROW = (952, 210), (334, 190)  # (width, height) of each of the two charts, in pixels
MOST_NAMED, MOST_DRAWN = 4, 40  # heads with a colour of their own; heads in a chart
SCORES = dict(floor=0.0, ceiling=1.0)  # the vertical axis of scores
MOST_LAYERS = 6  # curves of layers in a chart: as many as there are colours


def inside_section(view: RunView) -> str:
    """The loss above the scores of each head, norms and ranks; "" for a run without looks."""
    records = view.record.records
    looks = [(r["step"], r["inside"]) for r in records if "inside" in r]
    if not looks:
        return ""
    curves = head_curves(records, "induction")
    hint = (
        "Looks inside the model while it trained (lens_interval). A head's score is the share of "
        "its attention that goes where its job asks, on random tokens that come twice: an "
        "induction head looks at what followed the same token before, and so copies a pattern "
        "(Olsson et al. 2022). Heads are named layer.head, from 0."
    )
    return page.section(
        "Inside over time",
        f"<p>{escape(jobs_in_words(records))}</p>" if curves else "",
        _loss_and_induction(view, curves, looks[-1][0]) if len(looks) > 1 else "",
        f'<div class="small">{"".join(_small_charts(records, looks))}</div>',
        page.details("Each matrix", _matrices(looks)),
        hint=hint,
    )


def _loss_and_induction(view: RunView, curves: Curves, last: int) -> str:
    """Two charts over the same steps, the step at which a head is found in both."""
    if not curves:
        return ""
    best, curve = next(iter(curves.items()))
    since, end = step_found(curve), max(last, view.record.step)
    found = (since, f"head {best} found") if since else None
    # labels of one length, so that both charts begin at the same place
    same = dict(x_end=end, upright=found, y_format=lambda value: f"{short(value):>4}")
    lines, names = _head_lines(curves)
    losses = loss_lines(view)
    parts = [
        page.legend({line.label: line.kind for line in losses if line.label != "one batch"}),
        _both(Chart("Loss", losses, "step", "loss (nats per token)", cut=True, **same)),
        page.legend(names),
        _both(Chart("Induction", lines, "step", "induction score", **SCORES, **same)),
    ]
    return "".join(parts)


def _both(chart: Chart) -> str:
    return draw_svg(chart, *WIDE, kind="wide") + draw_svg(chart, *NARROW, kind="narrow")


def _head_lines(curves: Curves) -> tuple[list[Line], dict[str, str]]:
    """The curves of heads, and their legend: the best have a colour, the others share one."""
    named = [name for name, curve in curves.items() if step_found(curve)][:MOST_NAMED]
    named = named or list(curves)[:1]
    kinds = {name: colour(place) for place, name in enumerate(named)}
    drawn = list(curves)[:MOST_DRAWN]
    lines = [Line(name, curves[name], kinds.get(name, "train raw")) for name in reversed(drawn)]
    names = {f"head {name}": kind for name, kind in kinds.items()}
    others, shown = len(curves) - len(named), len(drawn) - len(named)
    if others:
        words = f"{shown} of {others} other heads" if shown < others else f"{others} other heads"
        names["the other head" if others == 1 else words] = "train"
    return lines, names


def _small_charts(records: Sequence[dict], looks: Sequence[tuple[int, dict]]) -> list[str]:
    parts = []
    for kind, title in (
        ("previous", "Attention to the token before"),
        ("duplicate", "Attention to the same token"),
    ):
        lines, names = _head_lines(head_curves(records, kind))
        parts.append(_small(title, lines, names, **SCORES))
    for title, curves in (
        ("Size of the residual stream (RMS)", _stream(looks)),
        ("Norm of a layer's weights", _by_layer(looks, "norms", _length)),
        ("Effective rank of its matrices (mean)", _by_layer(looks, "ranks", _mean)),
    ):
        lines = [Line(name, curve, colour(i)) for i, (name, curve) in enumerate(curves.items())]
        parts.append(_small(title, lines, {line.label: line.kind for line in lines}))
    return parts


def _small(title: str, lines: list[Line], names: dict[str, str], **axis: float) -> str:
    svg = draw_svg(Chart(title, lines, "step", "", **axis), *SMALL)
    return f"<div><h3>{title}</h3>{page.legend(names)}{svg}</div>" if svg else ""


def _spread(names: list) -> list:
    """At most MOST_LAYERS of them, the first and the last among them."""
    count = min(len(names), MOST_LAYERS)
    return [names[i * (len(names) - 1) // max(1, count - 1)] for i in range(count)]


def _stream(looks: Sequence[tuple[int, dict]]) -> dict[str, Points]:
    """{where: [(step, size)]} of the stream at the beginning and after some of the layers."""
    places = range(len(looks[-1][1].get("stream", [])))
    return {
        f"after layer {i - 1}" if i else "embedding": [
            (step, size)
            for step, look in looks
            for size in look.get("stream", [])[i : i + 1]
            if size is not None
        ]
        for i in _spread(list(places))
    }


def _by_layer(looks: Sequence[tuple[int, dict]], field: str, together) -> dict[str, Points]:
    """{"layer 0": [(step, of all its matrices together)]} of some of the layers."""
    names = looks[-1][1].get(field, {})
    layers = list(dict.fromkeys(n.split(".")[1] for n in names if n.startswith("blocks.")))
    curves: dict[str, Points] = {f"layer {layer}": [] for layer in _spread(layers)}
    for step, look in looks:
        for layer, curve in curves.items():
            block = f"blocks.{layer.removeprefix('layer ')}."
            values = [v for name, v in look.get(field, {}).items() if name.startswith(block)]
            if values and None not in values:
                curve.append((step, together(values)))
    return curves


def _length(norms: Sequence[float]) -> float:
    return math.hypot(*norms)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _matrices(looks: Sequence[tuple[int, dict]]) -> str:
    """A table of each matrix: its norm and rank at the first look and at the last."""
    (first, before), (last, after) = looks[0], looks[-1]
    rows = []
    for name in after.get("norms", {}):
        values = [look.get(f, {}).get(name) for f in ("norms", "ranks") for look in (before, after)]
        rows.append([name, *("" if value is None else f"{value:.4g}" for value in values)])
    at = [f"step {first:,}", f"step {last:,}"]
    head = ["matrix", *(f"{what}, {step}" for what in ("norm", "effective rank") for step in at)]
    return page.table(head, rows, "scroll", numbers=True)
