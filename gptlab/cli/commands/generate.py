"""`python gpt.py generate` without options: three questions, then text."""

import time

from gptlab.cli.commands.info import age
from gptlab.cli.ui import questions
from gptlab.cli.ui.command_line import command_line, program
from gptlab.cli.ui.questions import MenuItem
from gptlab.errors import RunError
from gptlab.files import display, out_home
from gptlab.runs import Run, list_runs

RUN = """\
Each folder below out/ is a run: a trained model, which has learned the patterns of its text. The
newest one comes first."""

PROMPT = """\
Start a text; the model continues it: the beginning of a sentence, a name, a line of a poem. Press
Enter to let the model begin. It only knows the kind of text that it was trained on."""

LENGTH = """\
A token is a character or a piece of a word. 200 tokens are a few lines; more take longer."""


def main(argv: list[str]) -> int:
    """Ask, write the text, and show the command that does the same; the exit code."""
    questions.refuse_without_terminal(
        f"run {program('gpt.py')} generate --prompt TEXT (--prompt - reads standard input)"
    )
    runs = list_runs()
    if not runs:
        raise RunError(
            f"There is no trained model in {display(out_home())}",
            f"train one first with {program('gpt.py')} train",
        )
    console = questions.open_console()
    options: dict = {"out_dir": display(runs[0])}

    def run() -> None:
        choices = [MenuItem(display(folder), folder.name, _written(folder)) for folder in runs]
        options["out_dir"] = questions.select(
            console, "Which model?", choices, 0, RUN, is_first=True
        )

    def prompt() -> None:
        typed = questions.ask(
            console,
            "Which prompt?",
            str,
            "",
            PROMPT,
            "the model begins",
            verbatim=True,
        )
        options["prompt"] = typed.replace("\\", "\\\\")  # as the command line takes it

    def length() -> None:
        options["max_tokens"] = questions.ask(
            console,
            "How many tokens?",
            questions.whole_number("The number of tokens", 1, 1_000_000),
            "200",
            LENGTH,
        )

    if len(runs) == 1:
        console.print(f"Model: {options['out_dir']}, the only one.", style="dim", markup=False)
    questions.walk([run, prompt, length] if len(runs) > 1 else [prompt, length])
    from gptlab.cli.commands import sample

    console.print("\nThe same without questions:", style="bold")
    print(command_line("sample.py", options) + "\n", flush=True)
    return sample.main([f"--{name}={value}" for name, value in options.items()])


def _written(folder) -> str:
    run = Run(folder)
    path = next(path for path in (run.best, run.checkpoint) if path.exists())
    return f"written {age(time.time() - path.stat().st_mtime)} ago"
