"""The page of a comparison: paired curves, the interval per step, the verdict in words."""

from html import escape

from gptlab.analysis.paired_runs import PairedRuns
from gptlab.analysis.statistics import paired_interval
from gptlab.analysis.verdict import Comparison, loss_at, plain_sentence, verdict_line
from gptlab.files import as_installed, quoted, shareable
from gptlab.options import format_value
from gptlab.reports import page as page
from gptlab.reports.charts import Chart, Line
from gptlab.reports.run_view import shared
from gptlab.reports.sections import charts, colour, footer
from gptlab.training.config_diff import differing


def make_paired_page(
    found: Comparison, runs: PairedRuns, warnings: list[str], following: str
) -> str:
    """The page as HTML. warnings: sentences beside the verdict; following: the next command."""
    a, b = runs.arms[:2]
    title = f"{a.label} beside {b.label}"
    sections = [
        _header(found, a.label, b.label, warnings),
        _curves(found),
        _differences(found),
        _intervals(found),
        _pairs(found),
        _options(a, b),
        page.section(
            "Commands",
            page.command("Next:", as_installed(shared(following))),
            *(
                page.command(
                    f"A report on {arm.name} with seed {pair.seed}:",
                    as_installed(
                        f"python gpt.py report {quoted(shareable(runs.run_folder(arm, pair.seed)))}"
                    ),
                )
                for pair in found.pairs[:1]
                for arm in (a, b)
            ),
        ),
        footer(),
    ]
    return page.page(f"{title} (gptlab compare)", "\n".join(filter(None, sections)))


def _header(found: Comparison, a: str, b: str, warnings: list[str]) -> str:
    figures = {}
    if found.interval:
        interval = found.interval
        figures[f"difference, B - A, {found.unit}"] = f"{interval.mean:+.4f}"
        figures["95% interval over seeds"] = f"{interval.low:+.4f} to {interval.high:+.4f}"
    if found.text:
        figures["95% interval, the text alone"] = "{:+.4f} to {:+.4f}".format(*found.text)
    if found.floor:
        figures[f"noise floor, {found.unit}"] = f"{found.floor[0]:.4f}"
    noticed = "".join(f'<p class="noticed">{escape(line)}</p>' for line in warnings)
    line = verdict_line(found)
    return (
        f'<header>\n<p class="eyebrow">gptlab compare</p>\n<h1>{escape(line[0].upper() + line[1:])}'
        f'</h1>\n<p class="lede">{escape(plain_sentence(found, a, b))}</p>\n{noticed}'
        f'<p class="hint">A: {escape(a)}<br>B: {escape(b)}</p>\n{page.tiles(figures)}\n</header>'
    )


def _curves(found: Comparison) -> str:
    """The validation curves of all pairs: one colour for A, one for B."""
    lines = []
    for index, side in enumerate("ab"):
        for pair in found.pairs:
            points = [(x, y * pair.scale[index]) for x, y in getattr(pair, side)["curve"]]
            name = f"{side.upper()}, seed {pair.seed}"
            lines.append(Line(name, points, colour(index), dots=True))
    chart = Chart("Validation loss", lines, "tokens", found.unit, cut=True)
    names = page.legend({"A": colour(0), "B": colour(1)})
    hint = "A line for each seed. Both lines of a seed read the same text in the same order."
    return page.section("Curves", names, charts(chart), hint=hint) if lines else ""


def _differences(found: Comparison) -> str:
    """The mean difference and its interval at each evaluation."""
    places = sorted({x for pair in found.pairs for x, _ in pair.a["curve"]})
    rows = []
    for tokens in places:
        ends = [min(tokens, pair.a["tokens"], pair.b["tokens"]) for pair in found.pairs]
        values = [
            None if None in (loss_at(pair.a, end), loss_at(pair.b, end))
            else pair.difference((end, end))
            for pair, end in zip(found.pairs, ends, strict=True)
        ]  # fmt: skip
        if len(values) >= 2 and None not in values:
            rows.append((tokens, paired_interval(values, found.level)))
    if not rows:
        return ""
    lines = [
        Line("lower end", [(x, i.low) for x, i in rows], f"{colour(5)} raw"),
        Line("upper end", [(x, i.high) for x, i in rows], f"{colour(5)} raw"),
        Line("no difference", [(0, 0.0), (rows[-1][0], 0.0)], "level"),  # always in sight
        Line("mean difference", [(x, i.mean) for x, i in rows], colour(1), dots=True),
    ]
    chart = Chart("Difference, B - A", lines, "tokens", found.unit, levels={"no difference": 0.0})
    names = page.legend({"mean": colour(1), "ends of the 95% interval": colour(5)})
    hint = "Below 0, B is better. The interval is over seeds, at each evaluation by itself."
    return page.section("Difference while training", names, charts(chart), hint=hint)


def _intervals(found: Comparison) -> str:
    rows = [
        [view, f"{i.mean:+.4f}", f"{i.low:+.4f} to {i.high:+.4f}"]
        for view, i in found.views.items()
    ]
    costs = ", ".join(f"{ratio:.2f} of A's {view}" for view, ratio in found.ratios.items())
    hint = (
        f"A token of B takes {costs}. Where the budgets differ in tokens, the longer run is read "
        "off its curve, before its learning rate has fallen."
    )
    table = page.table(["at equal", "B - A", "95% interval"], rows, "scroll", numbers=True)
    return page.section("At equal cost", table, hint=hint)


def _pairs(found: Comparison) -> str:
    rows = []
    for pair in found.pairs:
        a, b = pair.a["loss"] * pair.scale[0], pair.b["loss"] * pair.scale[1]
        rows.append([str(pair.seed), f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}"])
    table = page.table(["seed", "A", "B", "B - A"], rows, "scroll", numbers=True)
    return page.section("Pairs", table, hint=f"Loss of the whole validation split, {found.unit}.")


def _options(a, b) -> str:
    rows = [
        [d.name, *map(format_value, d.values)]
        for d in differing((a.config.flat(), {}), (b.config.flat(), {}))
    ]
    table = page.table(["option", "A", "B"], rows, "scroll")
    return page.section("Different options", table or "<p>All options are the same.</p>")
