"""Print a ladder: the loss of each point, and the law with its intervals."""

from gptlab.cli.ui.console import make_console, make_table, print_table
from gptlab.reports.charts import short


def print_ladder(result) -> None:
    """Print the points of a `ScalingResult`, level by level."""
    numbers = ("parameters", "tokens", "loss")
    table = make_table("FLOPs", "model", *numbers, "", numbers=numbers)
    for lines in result.levels():
        lowest = min(lines, key=lambda line: line["loss"])
        for line in lines:
            compute = in_powers(line["flops"]) if line is lines[0] else ""
            counts = short(line["parameters"]), short(line["tokens"]), f"{line['loss']:.4f}"
            mark = "lowest" if line is lowest else ""
            model = line["point"].partition(".")[0]
            table.add_row(compute, model, *counts, mark, style="bold" if mark else None)
        table.add_section()
    print_table(make_console(), "Loss of each point, nats per token", table)


def print_law(result) -> None:
    """Print the numbers of the law, for both ways to count parameters."""
    table = make_table("", "all parameters", "without embeddings")
    found = [fitted.intervals() for fitted in result.fits.values()]
    for name in found[0]:
        cells = []
        for numbers in (one[name] for one in found):
            value, low, high = (short(n) if name in "AB" else f"{n:.2f}" for n in numbers)
            cells.append(f"{value} ({low} to {high})")
        table.add_row("best N ~ C^" if name == "power" else name, *cells)
    print_table(make_console(), "L = E + A / N^a + B / D^b, with 95% intervals", table)


def in_powers(number: float) -> str:
    """A number of FLOPs: 1.5e12."""
    return f"{number:.1e}".replace("e+", "e").replace(".0e", "e")
