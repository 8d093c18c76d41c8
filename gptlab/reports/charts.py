"""Line charts as SVG: no script, and fonts and colours from the page's style.

A chart is drawn for a width in CSS pixels, so its text has the size of the page's text. CSS classes
name the lines ("train", "run2"); the page gives them colours for light and dark mode.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

MOST_POINTS = 400  # per line: more than a phone has pixels
LETTER = 6.6  # approximate width of a letter in a label, in pixels
LEVEL_GAP = 14  # pixels between the labels of two levels
MARK_WIDTH = 60  # pixels for the ring and the text of a mark
# a chart ends where WILD times the way from its lowest value to the USUAL quantile of all ends
USUAL, WILD = 0.9, 10
RING = 6  # radius of the ring around a mark, in pixels


@dataclass(frozen=True)
class Line:
    """A curve. kind: its CSS class. dots: mark each point and show its values in a tooltip.

    faint: the scale does not follow it upwards.
    """

    label: str
    points: Sequence[tuple[float, float]]
    kind: str
    dots: bool = False
    faint: bool = False


@dataclass(frozen=True)
class Chart:
    """The content of a chart.

    levels: {name: height} of horizontal lines, drawn where they lie in the range of the curves.
    right: (label, factor) of a second vertical axis. mark: (x, y, text) of one labelled point.
    floor, ceiling: the vertical axis starts at this value or below, ends at that one or above. cut:
    leave out values far above nearly all others, such as those of a loss that explodes, so that
    they do not flatten the rest.
    x_end: where the horizontal axis ends, else with the curves. upright: a vertical line.
    """

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str
    levels: dict[str, float] = field(default_factory=dict)
    right: tuple[str, float] | None = None  # (label, factor)
    mark: tuple[float, float, str] | None = None
    floor: float | None = None
    ceiling: float | None = None
    cut: bool = False
    x_end: float | None = None
    upright: tuple[float, str] | None = None  # (x, text)
    y_format: Callable[[float], str] = lambda value: short(value)


def short(number: float) -> str:
    """A number for an axis: 0, 0.05, 250, 1.5k, 2M, 1e-4."""
    if number == 0:
        return "0"
    size = abs(number)
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{number / unit:.3g}{letter}"
    if size < 1e-3:
        return f"{number:.0e}".replace("e-0", "e-")
    return f"{number:.3g}"


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers between low and high."""
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / count))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= count:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list:
    """At most `most` points: the first, the last, and means over equal shares between them."""
    points = [p for p in points if all(math.isfinite(value) for value in p)]
    if len(points) <= most:
        return points
    inner, kept = points[1:-1], [points[0]]
    shares = most - 2
    for i in range(shares):
        share = inner[i * len(inner) // shares : (i + 1) * len(inner) // shares]
        kept.append(tuple(sum(values) / len(share) for values in zip(*share, strict=True)))
    return [*kept, points[-1]]


def smoothed(points: Sequence[tuple[float, float]], share: float = 0.03) -> list:
    """A moving average over the given share of all points."""
    reach = round(share * len(points) / 2)
    result = []
    for i, (x, _) in enumerate(points):
        near = min(reach, i, len(points) - 1 - i)  # as many on both sides: no lag
        values = [y for _, y in points[i - near : i + near + 1]]
        result.append((x, sum(values) / len(values)))
    return result


def draw_svg(chart: Chart, width: int, height: int, kind: str = "") -> str:
    """The chart as an <svg> element of this size in pixels; "" if no line has two points."""
    lines = _drawn(chart)
    if not lines:
        return ""
    low, high = _range(chart, lines)
    right_x = chart.x_end or max(points[-1][0] for _, points in lines)
    y_ticks = ticks(low, high, max(2, height // 50))
    left = 14 + LETTER * max(len(chart.y_format(tick)) for tick in y_ticks)
    right = 46 if chart.right else 12
    top, bottom = 26 if chart.y_label else 8, 40
    x_scale = (width - left - right) / (right_x or 1)
    y_scale = (height - top - bottom) / (high - low)

    def x_of(x):
        return left + x * x_scale

    def y_of(y):
        return height - bottom - (y - low) * y_scale

    parts = []
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<path class="grid" d="M{left:.1f} {y:.1f}H{width - right}"/>')
        parts.append(_text(left - 6, y + 4, chart.y_format(tick), "end"))
    for tick in ticks(0, right_x, max(2, int((width - left - right) // 90))):
        anchor = "end" if x_of(tick) > width - right - 8 else "middle"
        parts.append(_text(x_of(tick), height - bottom + 17, short(tick), anchor))
    parts.append(_text((left + width - right) / 2, height - 6, chart.x_label, "middle", "axis"))
    parts.append(_text(2, 13, chart.y_label, "start", "axis"))
    if chart.right:
        label, factor = chart.right
        for tick in ticks(low * factor, high * factor, max(2, height // 50)):
            parts.append(
                _text(width - right + RING + 3, y_of(tick / factor) + 4, short(tick), "start")
            )
        parts.append(_text(width - 2, 13, label, "end", "axis"))
    parts.append(f'<path class="base" d="M{left:.1f} {height - bottom}H{width - right}"/>')
    for line, points in lines:
        for piece in _below(points, high):
            path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in piece)
            parts.append(f'<path class="line {line.kind}" d="M{path}"/>')
        if line.dots:
            shown = [(x, y) for x, y in points if y <= high]
            parts += [_dot(line, x, y, x_of(x), y_of(y), chart) for x, y in shown]
    names = width - right - 4
    if chart.mark and x_of(chart.mark[0]) > names - MARK_WIDTH:
        names -= MARK_WIDTH  # leave room for the text of the mark
    parts += _levels(chart, low, high, left, width - right, names, y_of)
    if chart.mark:
        parts += _mark(chart.mark, x_of, y_of, left, width - right)
    if chart.upright:
        x, words = x_of(chart.upright[0]), chart.upright[1]
        parts.append(f'<path class="level" d="M{x:.1f} {top}V{height - bottom}"/>')
        fits = x + LETTER * len(words) < width - right  # to the right of the line
        parts.append(
            _text(x + (4 if fits else -4), top + 10, words, ("end", "start")[fits], "name")
        )
    words = f"{chart.title}: {chart.y_label} over {chart.x_label}".replace(":  ", " ")
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'
    )


def left_out(chart: Chart) -> str:
    """What the chart does not show: values above it, and levels outside; "" if it shows all."""
    lines = _drawn(chart)
    if not lines:
        return ""
    low, high = _range(chart, lines)
    values = [y for line, _ in lines for _, y in line.points if y > high]
    outside = [
        f"{name} {level:.2f}"
        for name, level in sorted(chart.levels.items(), key=lambda pair: pair[1])
        if not low <= level <= high
    ]
    sentences = [f"Above the picture: values up to {short(max(values))}."] if values else []
    if outside:
        sentences.append(f"Outside the picture: {', '.join(outside)}.")
    return " ".join(sentences)


def _drawn(chart: Chart) -> list[tuple[Line, list]]:
    """The lines with their thinned points; [] if none has two points."""
    lines = [(line, thinned(line.points)) for line in chart.lines]
    lines = [(line, points) for line, points in lines if points]
    return lines if any(len(points) > 1 for _, points in lines) else []


def _range(chart: Chart, lines: list) -> tuple[float, float]:
    """The lowest and the highest value shown."""
    followed = [points for line, points in lines if not line.faint]
    if not any(len(points) > 1 for points in followed):
        followed = [points for _, points in lines]
    values = sorted(y for points in followed for _, y in points)
    low, high = min(y for _, points in lines for _, y in points), values[-1]
    high = high if chart.ceiling is None else max(high, chart.ceiling)
    usual = values[int(USUAL * (len(values) - 1))]
    if chart.cut and usual > low:
        high = min(high, low + WILD * (usual - low))
    if chart.floor is not None:
        return min(chart.floor, low), high * 1.06 if high > chart.floor else chart.floor + 1
    margin = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _below(points: list, high: float) -> list[list]:
    """The pieces of a curve below `high`, cut where it crosses that height."""
    pieces, before = [[]], None
    for x, y in points:
        if before is not None and (before[1] > high) != (y > high):
            (x0, y0), piece = before, pieces[-1]
            piece.append((x0 + (x - x0) * (high - y0) / (y - y0), high))
        if y <= high:
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
        before = (x, y)
    return [piece for piece in pieces if piece]


def _text(x, y, words: str, anchor: str, kind: str = "tick") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words)}</text>'


def _dot(line: Line, x, y, at_x, at_y, chart: Chart) -> str:
    words = escape(f"{line.label}: {y:.4g} at {chart.x_label} {short(x)}")
    return (
        f'<circle class="dot {line.kind}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="3">'
        f"<title>{words}</title></circle>"
    )


def _levels(chart: Chart, low, high, left, right, names, y_of) -> list[str]:
    """Dashed lines whose names end at x = `names`, moved apart where they would overlap."""
    shown = sorted((level, name) for name, level in chart.levels.items() if low <= level <= high)
    heights = [y_of(level) for level, _ in shown]
    parts, last = [], math.inf
    for (_, name), y in zip(shown, heights, strict=True):
        at = min(y - 4, last - LEVEL_GAP)
        if y == heights[0] and len(heights) > 1 and y - heights[1] < LEVEL_GAP:
            at = y + LEVEL_GAP - 2  # the lowest name goes below its line, where there is room
        last = at
        parts.append(f'<path class="level" d="M{left:.1f} {y:.1f}H{right}"/>')
        parts.append(_text(names, at, name, "end", "name"))
    return parts


def _mark(mark: tuple[float, float, str], x_of, y_of, left, right) -> list[str]:
    x, y, words = mark
    half = LETTER * len(words) / 2
    at = min(max(x_of(x), left + half + 4), right - half - RING)
    return [
        f'<circle class="ring" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="{RING}"/>',
        _text(at, y_of(y) + 22, words, "middle", "mark"),
    ]
