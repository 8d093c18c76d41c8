"""Show a training at a terminal: lines, and a progress bar below them, as wide as the window."""

import os
import re
import sys
from collections.abc import Iterable

from tqdm import tqdm

# characters that ring, clear or recolour a terminal; an untrained model writes them
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# a line that is copied, and stays one line: a command, alone or after its word
_COMMAND = re.compile(r"(  |Next: )(python|gptlab) ")
_NARROW = 80  # columns, below which the bar is half as long


def columns(stream=None) -> int | None:
    """The width of the window, or what COLUMNS says; None where the output goes to a file."""
    stream = stream or sys.stdout
    if os.environ.get("COLUMNS", "").isdigit():
        return int(os.environ["COLUMNS"]) or None
    try:
        return os.get_terminal_size(stream.fileno()).columns or _NARROW if stream.isatty() else None
    except (OSError, ValueError):  # no real file, or one that is closed
        return None


def wrapped(line: str, width: int | None) -> str:
    """A line broken at words; the rest stands under its beginning. A command stays in one line."""
    if width is None or len(line.encode()) <= width or _COMMAND.match(line):
        return line
    from rich.console import Console
    from rich.text import Text

    start = re.match(r" *(\| )?", line)[0]
    hang = start if start.endswith("| ") else start + "  "
    pieces = Text(line[len(start) :]).wrap(Console(), max(10, width - len(hang)))
    return start + f"\n{hang}".join(piece.plain.rstrip() for piece in pieces)


def fitting(parts: Iterable[str], width: int, between: str = ", ") -> str:
    """As many of these parts as fit, joined; none is cut."""
    line = ""
    for part in filter(None, parts):
        longer = line + between * bool(line) + part
        if len(longer) > width:
            break
        line = longer
    return line


def _bar_format(width: int) -> str:
    length = 12 if width >= _NARROW else 6
    return f"step {{n_fmt}}/{{total_fmt}} |{{bar:{length}}}| {{desc}}"


class Terminal:
    """Lines on stdout and, where stderr is a terminal, a bar of steps; nothing unless loud."""

    def __init__(self, loud: bool):
        self.loud = loud
        self.bar = None

    def say(self, text: str = "") -> None:
        """Print lines above the bar."""
        if self.loud:
            width = columns()
            text = "\n".join(wrapped(line, width) for line in text.split("\n"))
            with tqdm.external_write_mode(file=sys.stdout):
                try:
                    print(text, flush=True)
                except UnicodeEncodeError:  # a console must not end a run
                    known = sys.stdout.encoding
                    print(text.encode(known, "replace").decode(known), flush=True)

    def begin(self, step: int, total: int) -> None:
        """Show the bar: `step` of `total` steps are done."""
        if self.loud and sys.stderr.isatty():
            shape = _bar_format(columns(sys.stderr) or _NARROW)
            self.bar = tqdm(total=total, initial=step, smoothing=0.05, bar_format=shape)

    def show(self, parts: Iterable[str]) -> None:
        """Beside the bar: as many of these parts as fit the window."""
        bar, width = self.bar, columns(sys.stderr) or _NARROW
        bar.ncols, bar.bar_format = width, _bar_format(width)
        # the last column stays free
        most = dict(n_fmt=bar.total, total_fmt=bar.total, desc="", bar="")
        taken = len(bar.bar_format.format(**most)) + 1
        bar.set_description_str(fitting(parts, width - taken))

    def advance(self) -> None:
        """One more step is done."""
        if self.bar is not None:
            self.bar.update(1)

    def go_back(self, step: int) -> None:
        """The run stands at an earlier step again."""
        if self.bar is not None:
            self.bar.n = step
            self.bar.refresh()

    def move_end(self, total: int) -> None:
        """The run takes another number of steps in all."""
        if self.bar is not None:
            self.bar.total = total
            self.bar.refresh()

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
