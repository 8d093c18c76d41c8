"""Show the menu and run commands: an error becomes one sentence and an exit code."""

import gc
import importlib
import os
import sys

from gptlab.cli import started  # noqa: F401 - the clock of a time budget starts here
from gptlab.cli.declarations import COMMANDS
from gptlab.errors import ConfigError, GPTLabError
from gptlab.files import as_installed, explain_error

MENU = """\
python gpt.py train [--help]   asks a few questions, trains, and shows a text

{commands}
"""
GROUPS = ("start", "plan", "inspect", "improve", "share", "more")


def main(argv: list[str] | None = None) -> int:
    """`python gpt.py COMMAND ...`; without a command, or with --help, the menu."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(as_installed(MENU.format(commands="\n".join(_menu_rows()))), end="")
        return 0
    if argv[0] == "--version":
        argv[0] = "version"
    return run_command(argv[0], argv[1:], may_ask=True)


def _menu_rows() -> list[str]:
    """A line for each command of the menu, in groups."""
    rows = []
    for group in GROUPS:
        label = group
        for command in COMMANDS.values():
            if command.group == group:
                rows.append(f"{label:8} {command.name:9} {command.sentence}")
                label = ""
    return rows


def run_command(name: str, argv: list[str], may_ask: bool = False) -> int:
    """Run one command. A user's error prints one sentence on stderr and returns 2.

    name: of the command, or of the script that runs it. may_ask: a command without arguments may
    ask questions.
    """
    # Threads that wait for each other spin before they sleep. On a busy machine libgomp's long
    # spinning made training 3 to 7 times slower; on an idle one, a short spin costs 8% for the
    # smallest models. The variable must be set before torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    # Of a lost connection torch prints the stack in C++; what it means is a sentence of our own.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # Importing torch makes half a million objects that live to the end. With Python's own
    # thresholds, searching them for cycles takes 0.1 to 0.2 s of a start.
    gc.set_threshold(5_000, 20, 20)
    from gptlab.cli.stderr import complain, configure_output  # logging takes 0.01 s

    configure_output()
    scripts = {c.script.removesuffix(".py"): c for c in COMMANDS.values() if c.script}
    known = COMMANDS | scripts
    try:
        if name not in known:
            from gptlab.options import nearest

            close = nearest(name, known)
            names = ", ".join(name for name, command in COMMANDS.items() if command.group)
            fix = f"did you mean {close}?" if close else f"choose from {names}"
            raise ConfigError(f"There is no command {name!r}", fix)
        command = known[name]
        asks = may_ask and name == command.name and command.asking and not argv
        code = importlib.import_module(command.asking if asks else command.module).main(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of the pipe has stopped
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (GPTLabError, OSError) as error:
        explained = explain_error(error)
        complain(str(explained))
        return explained.exit_code
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] == "gptlab":
            raise
        complain(f"The package {error.name} is missing: pip install -r requirements.txt.")
        return 2
    except KeyboardInterrupt:
        complain("Interrupted.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
