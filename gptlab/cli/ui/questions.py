"""Ask questions at a terminal: Enter takes the default, `?` explains, `b` goes back, `q` quits.

After a wrong answer the question shows the error and asks again. Ctrl-C ends the program with 130,
Ctrl-D (the end of the input) with 0; neither shows a traceback.
"""

import contextlib
import io
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from gptlab.errors import ConfigError, GPTLabError
from gptlab.files import explain_error, runnable

EXPLAIN, BACK, QUIT = "?", ("b", "back"), ("q", "quit")


class Back(Exception):
    """The user wants to go back to the previous question."""


@dataclass(frozen=True)
class MenuItem:
    """One answer of several: `label` can be typed instead of its number.

    detail: a description. refusal: why it cannot be chosen, as a sentence, "" where it can.
    """

    value: object
    label: str
    detail: str = ""
    refusal: str = ""


def at_terminal() -> bool:
    """Whether a user can see a question and answer it."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def refuse_without_terminal(instead: str) -> None:
    """Raise ConfigError, with what to do instead, unless a user is at the terminal."""
    if not at_terminal():
        raise ConfigError("This command asks questions, which needs a terminal", instead)


def open_console():
    """A rich Console on stdout: plain in a pipe and with NO_COLOR, wrapped at the window's width.

    Called once before the first question: it also makes the input accept bytes that are not UTF-8.
    """
    from gptlab.cli.ui.console import make_console

    with contextlib.suppress(AttributeError, io.UnsupportedOperation):
        sys.stdin.reconfigure(errors="replace")
    return make_console()


def select(
    console,
    title: str,
    choices: Sequence[MenuItem],
    default: int = 0,
    explanation: str = "",
    is_first: bool = False,
) -> object:
    """Ask for one of the choices; its value. default: an index. Raises Back, unless is_first."""
    from rich.table import Table
    from rich.text import Text

    _show_title(console, title)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right", style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(style="dim", overflow="fold")
    for number, choice in enumerate(choices, start=1):
        style = "dim" if choice.refusal else "bold" if number == default + 1 else ""
        table.add_row(f" {number}", Text(choice.label, style), Text(choice.detail))
    console.print(table)

    def convert(word: str) -> MenuItem:
        choice = _find_choice(word, choices, default)
        if choice.refusal:
            raise ConfigError(choice.refusal)
        return choice

    shown = str(default + 1)
    return _answered(console, convert, shown, shown, explanation, is_first=is_first).value


def _find_choice(word: str, choices: Sequence[MenuItem], default: int) -> MenuItem:
    if re.fullmatch(r"\d+", word, re.ASCII) and 1 <= int(word) <= len(choices):
        return choices[int(word) - 1]
    close = [c for c in choices if c.label.lower().startswith(word.lower())]
    exact = [c for c in close if c.label.lower() == word.lower()]
    if len(exact or close) == 1:
        return (exact or close)[0]
    raise ConfigError(
        f"{word!r} is not one of the answers",
        f"type a number from 1 to {len(choices)}, or press Enter for {default + 1}",
    )


def ask(
    console,
    title: str,
    convert: Callable[[str], object],
    default: str | None = None,
    explanation: str = "",
    shown_default: str | None = None,
    verbatim: bool = False,
) -> object:
    """Ask for a line; the result of `convert`. After its GPTLabError or OSError it asks again.

    default: the line for a bare Enter; None when an answer is required. verbatim: spaces around the
    line belong to it. Raises Back.
    """
    _show_title(console, title)
    shown = default if shown_default is None else shown_default
    return _answered(console, convert, default, shown, explanation, verbatim)


def confirm(console, title: str, default: bool = False) -> bool:
    """Ask for yes or no. Raises Back."""

    def convert(word: str) -> bool:
        if word.lower() in ("y", "yes", "n", "no"):
            return word.lower().startswith("y")
        raise ConfigError(f"{word!r} is neither yes nor no", "type y or n")

    _show_title(console, title)
    explanation = "Type y and Enter for yes, n and Enter for no."
    return _answered(
        console, convert, "y" if default else "n", "y/N" if not default else "Y/n", explanation
    )


def walk(steps: Sequence[Callable[[], None]], can_leave: bool = False) -> None:
    """Run the steps in order; `b` in one goes back to the previous one.

    can_leave: `b` in the first step raises Back, because the steps belong to a larger question.
    """
    position = 0
    while position < len(steps):
        try:
            steps[position]()
            position += 1
        except Back:
            if position == 0 and can_leave:
                raise
            position = max(0, position - 1)


def attempt(console, work: Callable[[], object]) -> object | None:
    """The result of `work`; for a user's error, show it and return None."""
    try:
        return work()
    except (GPTLabError, OSError) as error:
        show_error(console, error)
        return None


def show_error(console, error: GPTLabError | OSError) -> None:
    """Show a user's error as a sentence."""
    console.print(str(explain_error(error)), style="yellow", markup=False)


def whole_number(name: str, lowest: int = 1, highest: int = 10**9) -> Callable[[str], int]:
    """A `convert` for `ask`: a whole number within these bounds."""

    def convert(word: str) -> int:
        plain = re.sub(r"[ ,_]", "", word)
        if not re.fullmatch(r"-?\d{1,18}", plain, re.ASCII):
            raise ConfigError(f"{word!r} is not a whole number", f"type one, such as {lowest}")
        if not lowest <= int(plain) <= highest:
            raise ConfigError(f"{name} must lie between {lowest:,} and {highest:,}, not {word}.")
        return int(plain)

    return convert


def number(name: str, lowest: float, highest: float) -> Callable[[str], float]:
    """A `convert` for `ask`: a number within these bounds."""

    def convert(word: str) -> float:
        try:
            value = float(word.replace(",", "."))
        except ValueError:
            raise ConfigError(
                f"{word!r} is not a number", f"type one, such as {lowest:g}"
            ) from None
        if math.isnan(value) or not lowest <= value <= highest:
            raise ConfigError(f"{name} must lie between {lowest:g} and {highest:g}, not {word}.")
        return value

    return convert


def _show_title(console, title: str) -> None:
    from rich.text import Text

    console.print()
    console.print(Text(title, "bold"))


def _answered(
    console,
    convert,
    default,
    shown,
    explanation: str,
    verbatim: bool = False,
    is_first: bool = False,
):
    """Read lines until one can be converted."""
    while True:
        line = _read_line(f"[{shown}] > " if shown else "> ")
        word = line if verbatim else line.strip()
        if word == EXPLAIN:
            text = " ".join((explanation or "Type an answer and press Enter.").split())
            console.print(runnable(text), markup=False)  # wrapped at this window's width
            enter = "Press Enter for the value in brackets; " if shown else ""
            console.print(f"{enter}b goes back, q quits.", style="dim", markup=False)
            continue
        if word.lower() in QUIT:
            print("Stopped.", flush=True)
            raise SystemExit(0)
        if word.lower() in BACK and is_first:
            console.print("This is the first question; q quits.", style="yellow")
            continue
        if word.lower() in BACK:
            raise Back
        if not word and default is None:
            console.print("Please type an answer; ? explains.", style="yellow")
            continue
        try:
            return convert(word or default)
        except (GPTLabError, OSError) as error:
            show_error(console, error)


def _read_line(prompt: str) -> str:
    """A line of the user's input; its end ends the program with 0."""
    try:
        return input(prompt)
    except EOFError:
        print("\nStopped.", flush=True)
        raise SystemExit(0) from None
    except KeyboardInterrupt:
        print(flush=True)  # the next message starts on a new line
        raise


# Paths --------------------------------------------------------------------------------------------


def typed_paths(line: str) -> list[str]:
    """The paths on a line that was typed, completed, or dropped on the window.

    Terminals write a dropped path in quotes, with backslashes before spaces, or as file://. `~` is
    the home folder. A path that does not exist is returned unchanged; the caller reports it.
    """
    line = line.strip()
    if line.startswith("file://"):
        return [unquote(word.removeprefix("file://")) for word in line.split()]
    if Path(line).expanduser().exists():
        return [str(Path(line).expanduser())]
    if os.name == "nt":  # where a backslash separates folders
        words = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', line)]
    else:
        try:
            words = shlex.split(line)
        except ValueError:  # a quote without its partner: not closed, or an apostrophe in a name
            bare = os.path.expanduser(line.strip("\"'"))
            words = [bare if Path(bare).exists() else line]
    words = [os.path.expanduser(word) for word in words if word]
    if len(words) > 1 and not all(Path(word).exists() for word in words):
        return [os.path.expanduser(line)]  # a name with spaces in it, most likely
    return words


@contextlib.contextmanager
def path_completion():
    """Within this block the Tab key completes file names, where the system supports that."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    former, delimiters = readline.get_completer(), readline.get_completer_delims()
    readline.set_completer(complete_path)
    readline.set_completer_delims("")  # a name may hold spaces
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
    try:
        yield
    finally:
        readline.set_completer(former)
        readline.set_completer_delims(delimiters)


def complete_path(typed: str, state: int) -> str | None:
    """The `state`-th path that begins with the typed text, a folder with its separator."""
    quote = typed[:1] if typed[:1] in ("'", '"') else ""
    start = typed.removeprefix(quote)
    folder, _, beginning = start.rpartition("/")
    looked_in = Path(os.path.expanduser(folder + "/" if "/" in start else "."))
    try:
        names = sorted(
            entry.name + ("/" if entry.is_dir() else "")
            for entry in os.scandir(looked_in)
            if entry.name.startswith(beginning) and (beginning or not entry.name.startswith("."))
        )
    except OSError:
        names = []
    prefix = folder + "/" if "/" in start else ""
    if state >= len(names):
        return None
    name = names[state]
    return quote + prefix + name + ("" if name.endswith("/") else quote)
