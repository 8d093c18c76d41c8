"""The command table, and how an error becomes one sentence and an exit code."""

import importlib
import logging
import os
import sys

from gptlab.cli import started  # noqa: F401 - the clock of a time budget starts here
from gptlab.errors import GPTLabError
from gptlab.files import explain_error

COMMANDS = {
    "train": ("gptlab.cli.commands.train", "train a model"),
    "generate": ("gptlab.cli.commands.sample", "write text with a trained model"),
    "info": ("gptlab.cli.commands.info", "show the environment, the datasets and the runs"),
    "dataset": ("gptlab.cli.commands.dataset", "list, prepare, add, view and delete texts"),
    "doctor": (
        "gptlab.cli.commands.doctor",
        "check that a run will work, or what a run's curve shows",
    ),
    "hardware": (
        "gptlab.cli.commands.hardware",
        "show what this machine has and what is recommended",
    ),
    "config": ("gptlab.cli.commands.config", "make a recipe, show every value, compare two"),
    "plan": ("gptlab.cli.commands.plan", "what a training takes: memory, time and money"),
    "report": ("gptlab.cli.commands.report", "write a run, or several, as one page for a browser"),
    "blame": (
        "gptlab.cli.commands.blame",
        "show the text behind a step, with the loss of each token",
    ),
    "replay": (
        "gptlab.cli.commands.replay",
        "take the first steps of a run again, and compare bit by bit",
    ),
    "import": ("gptlab.cli.commands.import_model", "make a run of a model from elsewhere"),
    "evaluate": ("gptlab.cli.commands.evaluate", "measure a model on a text that it never saw"),
    "export": ("gptlab.cli.commands.export", "write a run in the files of other programs"),
    "version": ("gptlab.cli.commands.version", "show the releases of gptlab, Python and torch"),
}
SCRIPTS = {
    "prepare": "gptlab.cli.commands.prepare",
    "sample": "gptlab.cli.commands.sample",
}  # never ask anything
# what `gpt.py COMMAND` runs without any option: questions, if a person is at the terminal
ASKING = {"train": "gptlab.cli.wizard", "generate": "gptlab.cli.commands.generate"}

MENU = """\
python gpt.py train

gptlab trains GPT models from your own text. The command above asks six questions,
trains, and shows what the model writes; Enter takes every default.

commands:
{commands}

Each has its own help: python gpt.py train --help
"""


def main(argv: list[str] | None = None) -> int:
    """`python gpt.py COMMAND ...`; without a command, or with --help, the menu."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        rows = "\n".join(f"  {name:10} {summary}" for name, (_, summary) in COMMANDS.items())
        print(MENU.format(commands=rows), end="")
        return 0
    if argv[0] == "--version":
        argv[0] = "version"
    asks = len(argv) == 1 and argv[0] in ASKING
    return run_command(argv[0], argv[1:], ASKING[argv[0]] if asks else None)


def run_command(name: str, argv: list[str], module: str | None = None) -> int:
    """Run one command. Errors that a user can cause end as one sentence on stderr and 2.

    module: what runs it instead of the module in the table.
    """
    # Threads that wait for each other spin before they sleep. On a machine that does other things
    # as well, libgomp's long spinning made training 3 to 7 times slower; on an idle one a short
    # one costs 8% for the smallest models. It counts when torch is imported, so before that.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    configure_output()
    known = {**SCRIPTS, **{command: row[0] for command, row in COMMANDS.items()}}
    try:
        if name not in known:
            from gptlab.errors import ConfigError
            from gptlab.options import nearest

            close = nearest(name, known)
            fix = f"did you mean {close}?" if close else f"choose from {', '.join(COMMANDS)}"
            raise ConfigError(f"There is no command {name!r}", fix)
        code = importlib.import_module(module or known[name]).main(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of a pipe has seen enough
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


def complain(sentence: str) -> None:
    """Print an error to stderr; of several processes of one training, only the first does."""
    if os.environ.get("RANK", "0") == "0":
        sentence = sentence.replace("\n", " ")  # of a name that was said
        print(f"gptlab: {sentence}", file=sys.stderr, flush=True)


class _Sentences(logging.Handler):
    """Warnings of the package as lines on stderr, above a progress bar where there is one."""

    def emit(self, record):
        if os.environ.get("RANK", "0") != "0":
            return
        line = f"gptlab: {record.getMessage()}"
        tqdm = sys.modules.get("tqdm")
        if tqdm is not None:
            tqdm.tqdm.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr)


def configure_output() -> None:
    """UTF-8 whatever the locale says, and warnings of this package as plain sentences."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    logger = logging.getLogger("gptlab")
    if not any(isinstance(handler, _Sentences) for handler in logger.handlers):
        logger.addHandler(_Sentences())
        logger.propagate = False


if __name__ == "__main__":
    sys.exit(main())
