"""The sections that reports on one run and on several share."""

import datetime
import re
from html import escape

import gptlab
from gptlab.files import shareable, without_folders
from gptlab.options import format_value
from gptlab.reports import page as page
from gptlab.reports.charts import Chart, Line, draw_svg, left_out, smoothed
from gptlab.reports.glossary import words_in
from gptlab.reports.run_view import RunView, commands
from gptlab.training.terminal import CONTROL

WIDE, NARROW, SMALL = (952, 380), (334, 270), (310, 180)  # (width, height) of charts in pixels


def charts(chart: Chart) -> str:
    """A chart in the sizes for a desktop and for a phone, and what it leaves out; "" without one.

    The style shows one of the two.
    """
    drawn = draw_svg(chart, *WIDE, kind="wide") + draw_svg(chart, *NARROW, kind="narrow")
    rest = left_out(chart)
    return drawn + (f'<p class="hint">{escape(rest)}</p>' if rest else "")


def loss_lines(view: RunView) -> list[Line]:
    """The curves of a run's training and validation loss that have points."""
    training = view.curve("loss")
    lines = [
        Line("one batch", training, "train raw", faint=True),
        Line("training", smoothed(training), "train"),
        Line("validation", view.curve("val_loss"), "val", dots=True),
        Line("averaged weights", view.curve("ema_val_loss"), "ema", dots=True),
    ]
    return [line for line in lines if line.points]


def bits_of(view: RunView, loss: float | None) -> float | None:
    return loss * view.bits_per_nat if loss is not None and view.bits_per_nat else None


def readable(text: str) -> str:
    """Text with the control characters that HTML forbids replaced by U+FFFD."""
    return CONTROL.sub("\ufffd", text)


def colour(index: int) -> str:
    return f"run{index % len(page.RUN_COLOURS_LIGHT)}"


def names_of(views: list[RunView]) -> list[str]:
    """The names of the runs, or their folders where a name occurs twice."""
    names = [view.name for view in views]
    return [
        name if names.count(name) == 1 else shareable(view.record.folder)
        for name, view in zip(names, views, strict=True)
    ]


def course_section(views: list[RunView]) -> str:
    """Small charts of learning rate, speed and gradient norm."""
    parts = []
    for title, field, floor in (
        ("Learning rate", "learning_rate", 0.0),
        ("Tokens per second", "tokens_per_second", 0.0),
        ("Gradient norm", "grad_norm", 0.0),
    ):
        lines = []
        for index, view in enumerate(views):
            kind = colour(index) if len(views) > 1 else "accent"
            points = view.curve(field)
            if field == "tokens_per_second":
                points = points[1:] or points  # the first step warms up
            lines.append(Line(view.name, points, kind))
        chart = Chart(title, lines, "step", "", floor=floor)
        if svg := draw_svg(chart, *SMALL):
            parts.append(f"<div><h3>{title}</h3>{svg}</div>")
    if not parts:
        return ""
    names = page.legend({name: colour(i) for i, name in enumerate(names_of(views))})
    hint = "Gradient norm before clipping; a spike marks an unusual batch."
    return page.section(
        "Course of the run",
        names if len(views) > 1 else "",
        f'<div class="small">{"".join(parts)}</div>',
        hint=hint,
    )


def machine_section(views: list[RunView]) -> str:
    """The machine, device and precision of the runs, and why they were chosen."""
    if len(views) > 1:
        rows = []
        for view, name in zip(views, names_of(views), strict=True):
            settings = [view.recipe.values.get(option) for option in ("device", "dtype")]
            rows.append([name, "; ".join(filter(None, [view.recipe.machine, *settings]))])
        return page.section("Hardware", page.table(["", ""], rows, "data"))
    view = views[0]
    values, reasons = view.recipe.values, view.recipe.sources
    shares = sorted(share for _, share in view.curve("mfu"))
    rows = {
        "machine": view.recipe.machine,
        "device": values.get("device"),
        "precision": values.get("dtype"),
        "why": without_folders(reasons.get("device") or ""),
        "compiled": format_value(values["compile_model"]) if "compile_model" in values else "",
        "share of peak speed (MFU)": f"{shares[len(shares) // 2]:.0%}" if shares else "",
    }
    return page.section(
        "Hardware", page.table(["", ""], [[k, str(v)] for k, v in rows.items() if v], "data")
    )


def commands_section(views: list[RunView]) -> str:
    parts = []
    for view, name in zip(views, names_of(views), strict=True):
        if len(views) > 1:
            parts.append(f"<h3>{escape(name)}</h3>")
        parts += [page.command(f"{purpose}:", line) for purpose, line in commands(view)]
    return page.section("Commands", *parts)


def words_section(body: str) -> str:
    """What the words of a page mean, folded; body: the page so far, as HTML."""
    text = re.sub(r"<pre.*?</pre>|<svg.*?</svg>|<[^>]+>", " ", body, flags=re.DOTALL)
    rows = "".join(
        f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>"
        for word, meaning in words_in(text).items()
    )
    # a browser unfolds it when the link leads to an element inside
    return page.section("Words", page.details("What the words mean", f'<dl id="words">{rows}</dl>'))


def footer() -> str:
    today = datetime.date.today().isoformat()
    return f"<footer>Made with gptlab {gptlab.__version__} on {today}.</footer>"
