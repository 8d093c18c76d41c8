"""Tables and colour: rich at a terminal, plain lines of a fixed width in a pipe."""

import sys

PLAIN_WIDTH = 100


def make_console():
    """A rich Console on stdout; NO_COLOR is respected, a pipe gets neither colour nor its width."""
    from rich.console import Console

    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def make_table(*columns: str, numbers: tuple[str, ...] = ()):
    """An empty table; `numbers` names the columns that are set to the right."""
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


def print_table(console, title: str, table) -> None:
    """A table under its title, which may be wider than it."""
    from rich.text import Text

    console.print(Text(title, style="bold"))
    console.print(table)


def note(sentence: str) -> None:
    """A line for a person who waits, on stderr; nothing where no terminal is."""
    if sys.stderr.isatty():
        print(sentence, file=sys.stderr, flush=True)


def leading_words(argv: list[str]) -> tuple[list[str], list[str]]:
    """(words before the first option, the rest)."""
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    return argv[:count], argv[count:]
