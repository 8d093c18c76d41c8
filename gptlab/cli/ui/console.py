"""Print tables and colour: rich at a terminal, plain lines of a fixed width in a pipe."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from gptlab.files import atomic_write, display, in_bytes

PLAIN_WIDTH = 80


def make_console():
    """A rich Console on stdout that respects NO_COLOR; in a pipe plain, COLUMNS or 80 wide."""
    from rich.console import Console

    console = Console(highlight=False, emoji=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = PLAIN_WIDTH
    return console


def make_table(*columns: str, numbers: tuple[str, ...] = ()):
    """An empty table; `numbers` names the columns that are aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD if any(columns) else box.SIMPLE,
        show_header=any(columns),
        pad_edge=False,
    )
    for name in columns:
        table.add_column(
            name,
            justify="right" if name in numbers else "left",
            no_wrap=name in numbers,
            header_style="bold",
        )
    return table


def memory_table(memory: Mapping[str, int], total: int):
    """What takes how many bytes; less than 0 is what something saves."""
    table = make_table("", "")
    table.columns[1].justify = "right"
    for name, held in memory.items():
        if held:
            table.add_row(name, in_bytes(held) if held > 0 else f"-{in_bytes(-held)}")
    table.add_row("total", in_bytes(total), style="bold")
    return table


def facts_table(title: str):
    """An empty table of names and values in a box, under its title."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def print_table(console, title: str, table) -> None:
    """Print a title, which may be wider than the table, and the table. "": without a title."""
    from rich.text import Text

    if title:
        console.print(Text(title, style="bold"))
    console.print(table)


def write_page(path: Path, html: str) -> None:
    """Write a page for a browser and print its path."""
    with atomic_write(path, "w") as file:
        file.write(html)
    print(f"Wrote {display(path)} ({len(html.encode()) / 1000:.0f} kB): open it in a browser.")


def note(sentence: str) -> None:
    """Print a line for a waiting user on stderr, at a terminal only."""
    if sys.stderr.isatty():
        print(sentence, file=sys.stderr, flush=True)


def leading_words(argv: list[str]) -> tuple[list[str], list[str]]:
    """(words before the first option, the rest)."""
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    return argv[:count], argv[count:]
