"""Draw the records of a run as a picture."""

from pathlib import Path

from gptlab.files import atomic_write

INK, MUTED, GRID = "#1b1f24", "#6e7781", "#e4e7eb"
TRAIN, VALIDATION, AVERAGED = "#9db4d0", "#d1495b", "#2a9d8f"
ISOFLOPS = ("#9db4d0", "#5b86b8", "#23507f", "#d1495b")  # more compute is darker; a check is red
WORST_SHOWN = (
    1.15  # times the first loss or the highest baseline: outliers do not flatten the curve
)


def load_library() -> None:
    """Import what draws, which takes longer than drawing."""
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401


def plot_loss(records: list[dict], path, *, title: str, levels: dict[str, float]) -> None:
    """Draw training and validation loss over steps into the PNG `path`, and below them, of a task,
    the share of right answers.

    records: as in metrics.jsonl. levels: horizontal lines, label -> loss in nats per token.
    """
    # the object-oriented interface opens no window, whatever MPLBACKEND is
    from matplotlib.figure import Figure

    has_answers = any(r.get("accuracy") is not None for r in records)
    figure = Figure(figsize=(9, 7.8 if has_answers else 5.2), dpi=120, facecolor="white")
    # a computed layout takes twice as long
    place = (0.075, 0.42, 0.905, 0.53) if has_answers else (0.075, 0.095, 0.905, 0.83)
    axes = figure.add_axes(place)
    training = [(r["step"], r["loss"]) for r in records if r.get("loss") is not None]
    evaluated = [r for r in records if r.get("val_loss") is not None]
    validation = [(r["step"], r["val_loss"]) for r in evaluated]
    averaged = [(r["step"], r["ema_val_loss"]) for r in evaluated if r.get("ema_val_loss")]
    if training:
        axes.plot(*zip(*training, strict=True), color=TRAIN, lw=1.2, label="training (one batch)")
    if validation:
        axes.plot(
            *zip(*validation, strict=True), color=VALIDATION, lw=2, marker="o", ms=4,
            label="validation",
        )  # fmt: skip
    if averaged:
        axes.plot(
            *zip(*averaged, strict=True), color=AVERAGED, lw=2, marker="o", ms=4,
            label="validation, averaged weights",
        )  # fmt: skip
    points = training + validation + averaged
    if points:
        lowest = min(loss for _, loss in points)
        highest = max(loss for _, loss in points)
        shown = [level for level in levels.values() if level < highest * WORST_SHOWN]
        bottom = min([lowest, *shown])
        top = min(highest, max([points[0][1], *shown]) * WORST_SHOWN)
        margin = 0.07 * (top - bottom) + 1e-3  # space for a number below the lowest point
        axes.set_ylim(bottom - margin, top + margin / 3)
        right = max(step for step, _ in points)
        axes.set_xlim(0, max(1, right))
        for label, level in levels.items():
            if level not in shown:
                continue
            axes.axhline(level, color=MUTED, lw=0.9, ls=(0, (4, 3)))
            above = level > min(shown)  # the lowest label goes below its line, into free space
            axes.annotate(
                label, (right, level), xytext=(-4, 3 if above else -3), textcoords="offset points",
                ha="right", va="bottom" if above else "top", fontsize=8.5, color=MUTED,
            )  # fmt: skip
        if validation:
            best_step, best = min(validation + averaged, key=lambda point: point[1])
            axes.annotate(
                f"{best:.3f}", (best_step, best), xytext=(4, -13), textcoords="offset points",
                ha="right", fontsize=9, color=INK, weight="bold",
            )  # fmt: skip
        axes.legend(loc="upper right", frameon=False, labelcolor=INK, fontsize=9.5)
    if has_answers:
        _plot_answers(records, figure.add_axes((0.075, 0.065, 0.905, 0.28)), axes.get_xlim())
    axes.set_xlabel("" if has_answers else "step", color=INK)
    axes.set_ylabel("loss (nats per token)", color=INK)
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    _save(figure, path)


def _plot_answers(records: list[dict], axes, steps: tuple[float, float]) -> None:
    """Draw the share of right answers into axes over the same steps."""
    kinds = {"train_accuracy": ("trained on", TRAIN), "accuracy": ("unseen", VALIDATION)}
    for field, (label, colour) in kinds.items():
        points = [(r["step"], 100 * r[field]) for r in records if r.get(field) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True), color=colour, lw=2, marker="o", ms=4,
                label=f"problems {label}",
            )  # fmt: skip
    axes.set_xlim(steps)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("right answers (%)", color=INK)
    axes.legend(loc="best", frameon=False, labelcolor=INK, fontsize=9.5)


def plot_isoflops(groups: list[dict], path, *, title: str) -> None:
    """Draw losses over sizes, a curve for each number of FLOPs, into the PNG `path`.

    groups: each with a `label`, its measured `points` and the law's `curve`, as (parameters, loss),
    and whether its points are `hollow`: trained to check the law, not to fit it.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(9, 5.2), dpi=120, facecolor="white")
    axes = figure.add_axes((0.075, 0.095, 0.905, 0.83))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k")
    axes.xaxis.set_minor_locator(NullLocator())
    for number, group in enumerate(groups):
        colour = ISOFLOPS[number % len(ISOFLOPS)]
        axes.plot(*zip(*group["curve"], strict=True), color=colour, lw=1.2)
        axes.plot(
            *zip(*group["points"], strict=True), color=colour, lw=0, marker="o", ms=6,
            mfc="white" if group.get("hollow") else colour, label=group["label"],
        )  # fmt: skip
        lowest = min(group["curve"], key=lambda point: point[1])
        axes.plot(*lowest, color=INK, marker="x", ms=6, lw=0)
    axes.legend(loc="upper right", frameon=False, labelcolor=INK, fontsize=9.5)
    axes.set_xlabel("parameters", color=INK)
    axes.set_ylabel("loss (nats per token)", color=INK)
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    _save(figure, path)


def _save(figure, path) -> None:
    """Give the axes their grid and frame, and write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for each in figure.axes:
        each.grid(color=GRID, lw=0.7)
        each.tick_params(colors=MUTED, labelsize=9)
        for side in ("top", "right"):
            each.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            each.spines[side].set_color(GRID)
    FigureCanvasAgg(figure)
    with atomic_write(Path(path)) as file:
        figure.savefig(file, format="png")
