"""Command lines that the user can type here, for messages."""

from collections.abc import Mapping

from gptlab.files import display, fresh_folder, quoted, runnable
from gptlab.runs import Run


def program(script: str) -> str:
    """The command that starts one of the root scripts from the working directory."""
    return runnable(f"python {script}")


def command_line(script: str, options: Mapping[str, object]) -> str:
    """The whole command, on one line, for options by name."""
    words = [program(script)]
    for name, value in options.items():
        for one in value if isinstance(value, tuple) else (value,):
            words.append(f"--{name} {quoted(as_typed(one))}")
    return " ".join(words)


def as_typed(value: object) -> str:
    """A value as text after its option."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def command_to_try(run, finding) -> str:
    """The command that a finding of `analysis.diagnosis` about a run suggests."""
    if finding.continues and Run(run.folder).checkpoint.exists():
        where = {"out_dir": display(run.folder)}
        return command_line("train.py", where | finding.options) + " --resume"
    start = {"out_dir": display(fresh_folder(run.folder))}
    recipe = run.folder / "config.py"
    if recipe.exists():
        start = {"config": display(recipe)} | start
    return command_line("train.py", start | finding.options)
