"""The sections of a page that compares several runs."""

from html import escape

from gptlab.options import format_value
from gptlab.reports import page as page
from gptlab.reports.charts import Chart, Line, short, smoothed
from gptlab.reports.run_view import RunView
from gptlab.reports.sections import (
    bits_of,
    charts,
    colour,
    commands_section,
    course_section,
    footer,
    machine_section,
    names_of,
    readable,
)
from gptlab.training.config import OPTIONS
from gptlab.training.config_diff import differing
from gptlab.training.units import duration

LAST_SAMPLE_LINES = 14


def overlay(views: list[RunView]) -> str:
    """The sections of a comparison as HTML."""
    return "\n".join(
        part
        for part in (
            _header_of_many(views),
            _comparison_section(views),
            _overlay_section(views),
            course_section(views),
            _differences_section(views),
            _last_samples_section(views),
            machine_section(views),
            commands_section(views),
            footer(),
        )
        if part
    )


# Several runs -------------------------------------------------------------------------------------


def _in_bits(views: list[RunView]) -> bool:
    """Whether bits per byte are known for all runs."""
    return all(view.bits_per_nat for view in views)


def _header_of_many(views: list[RunView]) -> str:
    names = names_of(views)
    lede = f"{len(views)} runs compared."
    measured = [
        (bits_of(view, view.record.best[1]) if _in_bits(views) else view.record.best[1], name)
        for view, name in zip(views, names, strict=True)
        if view.record.best
    ]
    if measured:
        lowest, name = min(measured)
        unit = "bits per byte" if _in_bits(views) else "nats per token"
        lede += f" {name} reached the lowest validation loss, {lowest:.3f} {unit}."
    if not _in_bits(views):
        lede += " Losses per token are comparable only between runs with the same vocabulary."
    return (
        '<header>\n<p class="eyebrow">gptlab report</p>\n'
        f"<h1>{escape(' · '.join(names))}</h1>\n"
        f'<p class="lede">{escape(lede)}</p>\n</header>'
    )


def _comparison_section(views: list[RunView]) -> str:
    rows = []
    for view, name in zip(views, names_of(views), strict=True):
        best = view.record.best
        bits = bits_of(view, best[1]) if best else None
        rows.append(
            [
                name,
                f"{bits:.3f}" if bits else "",
                f"{best[1]:.4f}" if best else "",
                f"{best[0]:,}" if best else "",
                f"{view.record.step:,}",
                short(view.tokens[-1][1]),
                short(view.parameters) if view.parameters else "",
                duration(view.seconds[-1][1]),
                short(view.speed) if view.speed else "",
                view.record.state,
            ]
        )
    columns = ["run", "bits per byte", "validation loss", "at step", "steps", "tokens",
               "parameters", "time in steps", "tokens/s", "state"]  # fmt: skip
    return page.section("Side by side", page.table(columns, rows, "scroll", numbers=True))


def _overlay_section(views: list[RunView]) -> str:
    bits = _in_bits(views)
    names = names_of(views)
    parts = [page.legend({name: colour(i) for i, name in enumerate(names)})]
    levels = views[0].baselines if bits else views[0].levels
    same_text = all(view.baselines == views[0].baselines for view in views)
    unit, seconds = _time_unit(max(view.seconds[-1][1] for view in views))
    for over, what, label, scale in (
        ("tokens", "tokens", "tokens", 1),
        ("seconds", "time", f"{unit} of training steps", seconds),
    ):
        lines = []
        for index, (view, name) in enumerate(zip(views, names, strict=True)):
            factor = view.bits_per_nat if bits else 1.0
            training = [(x / scale, y * factor) for x, y in smoothed(view.curve("loss", over))]
            points = [(x / scale, y * factor) for x, y in view.evaluations(over)]
            lines.append(Line(f"{name}, training", training, f"{colour(index)} raw"))
            lines.append(Line(name, points, colour(index), dots=True))
        chart = Chart(
            f"Validation loss against {what}",
            lines,
            label,
            "bits per byte" if bits else "nats per token",
            levels=levels if same_text else {},
            cut=True,
        )
        parts.append(f"<h3>Against {what}</h3>{charts(chart)}")
    hint = "Strong: validation. Faint: training. Lower is better; further left is faster."
    return page.section("Loss", *parts, hint=hint)


def _time_unit(seconds: float) -> tuple[str, int]:
    """(unit, its seconds) for an axis that ends at this many seconds."""
    units = (("days", 86400), ("hours", 3600), ("minutes", 60))
    return next((unit for unit in units if seconds > 3 * unit[1]), ("seconds", 1))


def _differences_section(views: list[RunView]) -> str:
    settings = [(view.recipe.values, view.recipe.sources) for view in views]
    names = {d.name for other in settings[1:] for d in differing(settings[0], other)}
    rows = [
        [name, *(format_value(values[name]) if name in values else "" for values, _ in settings)]
        for name in ("model_preset", *(n for n in OPTIONS if n != "model_preset"))
        if name in names
    ]
    table = page.table(["option", *names_of(views)], rows, "scroll")
    return page.section("Different options", table or "<p>All options are the same.</p>")


def _last_samples_section(views: list[RunView]) -> str:
    items = []
    for index, (view, name) in enumerate(zip(views, names_of(views), strict=True)):
        if not view.samples:
            continue
        sample = view.samples[-1]
        text = "\n".join(readable(sample.text).strip("\n").split("\n")[:LAST_SAMPLE_LINES])
        items.append(
            f'<li><div><strong class="{colour(index)}">{escape(name)}</strong>'
            f"<span>step {sample.step:,}</span></div><pre>{escape(text)}</pre></li>"
        )
    content = f'<ol class="samples">{"".join(items)}</ol>' if items else ""
    return page.section("Last samples", content)
