"""`python gpt.py blame`: show the text behind a step, with the loss of each token."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.console import make_console, write_page
from gptlab.cli.ui.progress import Bars
from gptlab.errors import ConfigError
from gptlab.files import display, shareable

HARDEST = 5  # tokens of a window that are listed with their loss
STYLES = ("", "yellow", "red", "black on yellow", "bold white on red")


@dataclass(frozen=True)
class BlameOptions:
    """Blame"""

    step: Annotated[int | None, "the step to explain, from 1 on"] = None
    top: Annotated[int, "how many of its sequences to show"] = 8
    html: Annotated[str | None, "also write them to this file, a page for a browser"] = None
    checkpoint: Annotated[
        Literal["best", "ckpt"] | None, "the model to measure [best.pt, else ckpt.pt]"
    ] = None
    device: Annotated[str, "cpu, cuda, cuda:1, mps, xpu, or auto"] = "auto"


def main(argv: list[str]) -> int:
    """Print the text behind a step; the exit code."""
    overrides = COMMANDS["blame"].parse(argv)
    word = overrides.pop("run", None)
    options = BlameOptions(**overrides)
    if options.top < 1:
        raise ConfigError(f"--top is {options.top}", "it must be at least 1")
    path = Path(options.html).expanduser() if options.html else None
    if path and path.is_dir():
        raise ConfigError(f"{display(path)} is a folder", "name a file with --html")
    from gptlab.runs import Run, find_run, newest_run

    folder = find_run(word) if word else newest_run()
    if options.step is None:
        steps = max((record["step"] for record in Run(folder).records()), default=0)
        raise ConfigError(
            "blame needs a step",
            f"choose one of the {steps:,} that {display(folder)} has taken, with --step N" if steps
            else "train first",
        )  # fmt: skip
    from gptlab.analysis.blame import blame

    with Bars(unit="sequence") as bars:
        found = blame(
            folder, options.step, options.top, options.checkpoint, options.device, bars.progress
        )
    sentences = blame_sentences(found, folder)
    _show(found, sentences)
    if path:
        from gptlab.reports.blame_page import make_page

        write_page(path, make_page(found, folder.resolve().name, sentences))
    return 0


def blame_sentences(found, folder) -> list[str]:
    """What the step read, what the run recorded, and which model the losses are from."""
    from gptlab.analysis.blame import STEP

    last = found.first + found.count - 1
    which = f"sequences {found.first:,} to {last:,}" if found.count > 1 else f"sequence {last:,}"
    return [
        f"Step {found.step:,} of the {found.steps:,} of {shareable(folder)} trained on {which} "
        f"({found.block_size:,} tokens each) of {found.data.name}; {STEP}.",
        _recorded(found),
        f"The losses here are those of {shareable(found.checkpoint.path)} (step "
        f"{found.checkpoint.step:,}), not of the model at that step: {found.loss:.3f} nats per "
        f"token over the whole batch; the uniform baseline is {found.uniform_loss:.3f}.",
    ]


def _recorded(found) -> str:
    record = found.record
    if record is None:
        return "The run recorded no losses."
    loss, norm = (
        "not a number" if record.get(name) is None else f"{record[name]:.4g}"
        for name in ("loss", "grad_norm")
    )
    numbers = f"loss {loss}, gradient norm {norm}"
    if record["step"] == found.step:
        return f"The run recorded at this step: {numbers}."
    return f"The run recorded nothing at this step; at step {record['step']:,}: {numbers}."


def _show(found, sentences: list[str]) -> None:
    from rich.text import Text

    from gptlab.analysis.blame import pieces

    console = make_console()
    for sentence in sentences:
        console.print(Text(sentence), soft_wrap=True)
    if console.is_terminal and not console.no_color:
        console.print(_scale())
    for rank, window in enumerate(found.windows, start=1):
        console.print()
        heading = f"{rank}. sequence {window.sequence:,}"
        heading += f" ({window.dataset})" if len(found.data.parts) > 1 else ""
        heading += f": {window.loss:.3f} nats per token"
        if window.places:
            heading += f", from {', '.join(map(str, window.places))}"
        else:
            heading += f", from token {window.start:,} of train.bin (source unknown)"
        console.print(Text(heading, "bold"), soft_wrap=True)
        shown = pieces(window, found.data.tokenizer)
        console.print(_coloured(shown, found.uniform_loss), soft_wrap=True)
        console.print(Text(f"hardest: {_hardest(shown)}", "dim"), soft_wrap=True)


def _scale():
    from rich.text import Text

    from gptlab.reports.blame_page import LEVELS

    text = Text("Loss as a share of the uniform baseline: ")
    for style, words in zip(STYLES, LEVELS, strict=True):
        text.append(words, style)
        text.append("  ")
    return text


def _coloured(shown, uniform_loss: float):
    """The text of a window; terminal control characters are replaced."""
    from rich.text import Text

    from gptlab.analysis.blame import level
    from gptlab.training.terminal import CONTROL

    text = Text()
    for piece in shown:
        if piece.is_end:
            text.append("<end of text>\n", "dim")
        else:
            style = STYLES[level(piece.loss, uniform_loss)]
            text.append(CONTROL.sub("\ufffd", piece.text), style)
    text.rstrip()
    return text


def _hardest(shown) -> str:
    from gptlab.cli.commands.dataset import shown_token

    known = sorted((p for p in shown if p.loss is not None), key=lambda p: -p.loss)[:HARDEST]
    return "  ".join(
        f"{shown_token(p.text.encode()) if p.text else '<end of text>'} {p.loss:.2f}" for p in known
    )
