"""`python gpt.py import`: turn a model from elsewhere into a run."""

from dataclasses import dataclass
from typing import Annotated

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.command_line import command_line, program
from gptlab.cli.ui.progress import Bars
from gptlab.files import display, quoted
from gptlab.runs import Run


@dataclass(frozen=True)
class ImportOptions:
    """Import."""

    out_dir: Annotated[str | None, "the run directory to make [out/ and the model's name]"] = None
    meta: Annotated[
        str | None, "nanoGPT's meta.pkl, for a model of characters [the one next to it]"
    ] = None
    overwrite: Annotated[bool, "delete the run in out_dir first"] = False


def main(argv: list[str]) -> int:
    """Import; the exit code."""
    overrides = COMMANDS["import"].parse(argv)
    word = overrides.pop("model")
    options = ImportOptions(**overrides)
    from gptlab.interop.read.models import import_model

    with Bars() as bars:
        folder = import_model(
            word,
            options.out_dir,
            meta=options.meta,
            overwrite=options.overwrite,
            note=bars.note,
            progress=bars.progress,
        )
    where = {"out_dir": display(folder)}
    mode = "chat" if Run(folder).origin().get("is_chat") else "interactive"
    print(f"The model is in {display(folder)}. Next, for example:")
    print(f"  {command_line('sample.py', where)} --{mode}")
    print(f"  {program('prepare.py')} YOUR_TEXT.txt --tokenizer {quoted(display(folder))}")
    print("      the first step to teach it your text; its last line names the second")
    return 0
