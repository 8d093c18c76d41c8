"""Print a comparison: its pairs and its intervals."""

from gptlab.cli.ui.console import make_console, make_table, print_table


def print_comparison(found) -> None:
    """Print the pairs and the intervals of a `verdict.Comparison`."""
    from rich.text import Text

    console = make_console()
    numbers = ("A", "B", "B - A")
    table = make_table("seed", *numbers, numbers=numbers)
    for pair in found.pairs:
        losses = pair.a["loss"] * pair.scale[0], pair.b["loss"] * pair.scale[1]
        row = (*(f"{loss:.4f}" for loss in losses), f"{losses[1] - losses[0]:+.4f}")
        table.add_row(str(pair.seed), *row)
    print_table(console, f"Loss of the validation split, {found.unit}", table)
    if not found.views:
        return
    columns = ("B - A", "95% interval")
    table = make_table("at equal", *columns, numbers=columns)
    for view, interval in found.views.items():
        words = f"{interval.low:+.4f} to {interval.high:+.4f}"
        table.add_row(view, f"{interval.mean:+.4f}", words)
    if found.text:
        table.add_row("tokens, the text alone", "", "{:+.4f} to {:+.4f}".format(*found.text))
    print_table(console, f"Over {found.interval.n} seeds; below 0, B is better", table)
    costs = ", ".join(f"{ratio:.2f} of A's {view}" for view, ratio in found.ratios.items())
    apart = any(abs(ratio - 1) > 0.005 for ratio in found.ratios.values())
    curve = " The longer run is read off its curve, before its learning rate has fallen."
    console.print(Text(f"A token of B takes {costs}.{curve if apart else ''}"))
    console.print(Text(_floor_line(found)))


def _floor_line(found) -> str:
    deviation, source = found.floor
    return f"Noise floor {deviation:.4f} ({source})."
