"""The sections of a page that compares several runs."""

from html import escape

from gptlab.files import without_folders
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
    words_section,
)
from gptlab.training.config import OPTIONS
from gptlab.training.config_diff import differing
from gptlab.training.units import duration

LAST_SAMPLE_LINES = 14
COUNTS = {2: "Two", 3: "Three", 4: "Four", 5: "Five", 6: "Six"}
LOWEST = "\u2605"  # a star beside the run with the lowest loss


def overlay(views: list[RunView]) -> str:
    """The sections of a comparison as HTML."""
    body = "\n".join(
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
        )
        if part
    )
    return body + words_section(body) + footer()


# Several runs -------------------------------------------------------------------------------------


def _in_bits(views: list[RunView]) -> bool:
    """Whether bits per byte are known for all runs."""
    return all(view.bits_per_nat for view in views)


def _winners(views: list[RunView]) -> dict[int, float]:
    """{place of the run: its loss} of the lowest loss on each text that several runs share."""
    texts: dict[tuple, list] = {}
    for place, view in enumerate(views):
        if view.record.best:
            loss = view.record.best[1]
            shown = bits_of(view, loss) if _in_bits(views) else loss
            texts.setdefault(view.text, []).append((shown, place))
    return {min(found)[1]: min(found)[0] for found in texts.values() if len(found) > 1}


def _header_of_many(views: list[RunView]) -> str:
    names = names_of(views)
    unit = "bits per byte" if _in_bits(views) else "nats per token"
    datasets = [view.record.settings.get("dataset", "an unknown text") for view in views]
    several = len({view.text for view in views}) > 1
    number = COUNTS.get(len(views), str(len(views)))
    sentences = [f"{number} runs compared."]
    if several:
        sentences.append(
            f"They were measured on different texts ({', '.join(dict.fromkeys(datasets))}), and a "
            "text can be harder than another: only runs on the same text are ranked."
        )
    for place, lowest in _winners(views).items():
        on = f" on {datasets[place]}" if several else ""
        sentences.append(
            f"{names[place]} reached the lowest validation loss{on}, {lowest:.3f} {unit}."
        )
    if not _in_bits(views):
        sentences.append(
            "Losses per token are comparable only between runs with the same vocabulary."
        )
    return (
        '<header>\n<p class="eyebrow">gptlab report</p>\n'
        f"<h1>{escape(' · '.join(names))}</h1>\n"
        f'<p class="lede">{escape(" ".join(sentences))} {page.words_link()}.</p>\n</header>'
    )


def _comparison_section(views: list[RunView]) -> str:
    rows, winners = [], _winners(views)
    for place, (view, name) in enumerate(zip(views, names_of(views), strict=True)):
        best = view.record.best
        bits = bits_of(view, best[1]) if best else None
        rows.append(
            [
                f"{LOWEST} {name}" if place in winners else name,
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
    table = page.table(columns, rows, "scroll", numbers=True, marked=winners)
    hint = f"{LOWEST} marks the lowest validation loss." if winners else ""
    return page.section("Side by side", table, hint=hint)


def _overlay_section(views: list[RunView]) -> str:
    bits = _in_bits(views)
    names = names_of(views)
    winners = _winners(views)
    marked = [f"{LOWEST} {name}" if i in winners else name for i, name in enumerate(names)]
    parts = [page.legend({name: colour(i) for i, name in enumerate(marked)})]
    levels = views[0].baselines if bits else views[0].levels
    same_text = len({view.text for view in views}) == 1
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
            lines.append(Line(f"{name}, training", training, f"{colour(index)} raw", faint=True))
            lines.append(Line(name, points, colour(index), dots=True))
        chart = Chart(
            f"Validation loss against {what}",
            lines,
            label,
            "bits per byte" if bits else "nats per token",
            levels=levels if same_text else {},
        )
        if drawn := charts(chart):
            parts.append(f"<h3>Against {what}</h3>{drawn}")
    if len(parts) == 1:
        parts = ["<p>Too few records for a curve.</p>"]
    hint = "Strong: validation. Faint: training. Lower is better; further left is faster."
    return page.section("Loss", *parts, hint=hint)


def _time_unit(seconds: float) -> tuple[str, int]:
    """(unit, its seconds) for an axis that ends at this many seconds."""
    units = (("days", 86400), ("hours", 3600), ("minutes", 60))
    return next((unit for unit in units if seconds > 3 * unit[1]), ("seconds", 1))


def _differences_section(views: list[RunView]) -> str:
    def shown(values: dict, name: str) -> str:
        return without_folders(format_value(values[name])) if name in values else ""

    settings = [(view.recipe.values, view.recipe.sources) for view in views]
    names = {d.name for other in settings[1:] for d in differing(settings[0], other)}
    rows = [
        [name, *(shown(values, name) for values, _ in settings)]
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
