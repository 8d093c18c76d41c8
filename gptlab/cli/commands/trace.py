"""`python gpt.py trace`: which spans of a text stand verbatim in the training text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gptlab.analysis.trace import (
    FEWEST_CHARS,
    MIN_CHARS,
    SHORTEST_BYTES,
    beginning,
    level_names,
    percent,
    span_level,
    trace_texts,
    training_data,
)
from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.console import make_console, make_table, write_page
from gptlab.cli.ui.progress import Bars
from gptlab.errors import ConfigError
from gptlab.files import display, in_bytes, shareable
from gptlab.options import ESCAPED
from gptlab.training.terminal import CONTROL

MOST_LISTED = 10  # spans
STYLES = ("yellow", "black on yellow", "bold white on red")
NO_SPAN = f"None has {SHORTEST_BYTES}."


@dataclass(frozen=True)
class TraceOptions:
    """Trace"""

    prompt: Annotated[
        str | None,
        "trace what the model writes after this text (\\n is a line end) [the start of a document]",
        ESCAPED,
    ] = None
    file: Annotated[str | None, "trace the text of this file instead"] = None
    max_tokens: Annotated[int, "tokens that the model writes"] = 400
    temperature: Annotated[float, "below 1 safer, above 1 wilder, 0 = always the likeliest"] = 0.8
    seed: Annotated[int | None, "the same seed gives the same text [new each time]"] = None
    device: Annotated[str, "cpu, cuda, cuda:1, mps, xpu, or auto"] = "auto"
    min_chars: Annotated[int, "characters of a span that counts, 8 or more"] = MIN_CHARS
    html: Annotated[str | None, "also write the text to this file, a page for a browser"] = None


def main(argv: list[str]) -> int:
    """Trace a text; the exit code."""
    overrides = COMMANDS["trace"].parse(argv)
    word = overrides.pop("run", None)
    options = TraceOptions(**overrides)
    if options.file is not None:
        for name in ("prompt", "max_tokens", "temperature", "seed", "device"):
            if name in overrides:
                raise ConfigError(
                    f"--file names a text that is written already, so --{name} has no effect",
                    "leave one of the two out",
                )
    if options.min_chars < FEWEST_CHARS:
        raise ConfigError(
            f"--min_chars is {options.min_chars}",
            f"it must be at least {FEWEST_CHARS}; shorter spans stand in any text",
        )
    path = Path(options.html).expanduser() if options.html else None
    if path and path.is_dir():
        raise ConfigError(f"{display(path)} is a folder", "name a file with --html")
    from gptlab.runs import Run, find_run, newest_run

    folder = find_run(word) if word else newest_run()
    datasets = training_data(Run(folder))
    text = _read(Path(options.file)) if options.file is not None else _written(folder, options)
    with Bars(unit="token") as bars:
        traced = trace_texts(datasets, [text], options.min_chars, bars.progress)
    name = shareable(options.file) if options.file else f"what {shareable(folder)} wrote"
    sentences = _sentences(traced, name, options.min_chars, datasets)
    _show(traced.texts[0], options.min_chars, sentences)
    if path:
        from gptlab.reports.trace_page import make_trace_page

        title = shareable(options.file or folder)
        write_page(path, make_trace_page(traced, options.min_chars, title, sentences))
    return 0


def _read(path: Path) -> str:
    """The text of a file, read as prepare.py reads it."""
    from gptlab.data.text_files import Reading, clean, text_blocks

    reading = Reading()
    return "".join(clean(text_blocks(path, reading), reading))


def _written(folder: Path, options: TraceOptions) -> str:
    """What the model of a run writes after the prompt, without the prompt."""
    from gptlab.cli.commands.sample import SampleOptions, load_generator
    from gptlab.inference.config import SamplingConfig

    config = SamplingConfig(
        max_tokens=options.max_tokens, temperature=options.temperature, seed=options.seed
    )
    generator, attention, _ = load_generator(
        SampleOptions(out_dir=str(folder), device=options.device), config.max_tokens
    )
    with attention, Bars(unit="token") as bars:
        return generator.generate(
            options.prompt or "",
            config,
            lambda count: bars.progress("writing", count, config.max_tokens),
        )[0].text


def _sentences(traced, name: str, min_chars: int, datasets) -> list[str]:
    """What stands verbatim in the training text, and what does by chance."""
    text = traced.texts[0]
    count = sum(len(span) >= min_chars for span in text.spans)
    spans = f"{count:,} {'span' if count == 1 else 'spans'}"
    names = " and ".join(dataset.name for dataset in datasets)
    longest = f"The longest has {text.longest:,} characters." if text.longest else ""
    found = (
        f"{percent(text.share(min_chars))} of {name} ({len(text.text):,} characters) stands "
        f"verbatim in the training text ({names}, {in_bytes(traced.searched)}): {spans} of "
        f"{min_chars} characters or more. {longest or NO_SPAN}"
    )
    if not traced.held_out:
        return [found, "There is no validation text that would show how much of it is chance."]
    count = len(traced.held_out)
    most = max(piece.longest for piece in traced.held_out)
    pieces = f"{count} pieces of validation text" if count > 1 else "a piece of validation text"
    return [
        found,
        f"By chance, {percent(traced.share_by_chance(min_chars))} of {pieces} as long as this "
        f"stands there too, and the longest span has {traced.longest_by_chance:,.0f} characters"
        + (f" in the median, {most:,} at most." if count > 1 else "."),
    ]


def _show(text, min_chars: int, sentences: list[str]) -> None:
    from rich.text import Text

    console = make_console()
    for sentence in sentences:
        console.print(Text(sentence), soft_wrap=True)
    if console.is_terminal and not console.no_color:
        scale = Text("Characters of a span: ")
        for words, style in zip(level_names(min_chars), STYLES, strict=True):
            scale.append(words, style).append("  ")
        console.print(scale)
    console.print()
    console.print(_coloured(text, min_chars), soft_wrap=True)
    spans = [span for span in text.spans if len(span) >= min_chars]
    if not spans:
        return
    table = make_table("characters", "stands in", "begins", numbers=("characters",))
    for span in sorted(spans, key=len, reverse=True)[:MOST_LISTED]:
        begins = CONTROL.sub("\ufffd", beginning(text, span))
        table.add_row(
            f"{len(span):,}", Text(span.where, overflow="fold"), Text(begins, no_wrap=True)
        )
    console.print()
    console.print(table)
    if len(spans) > MOST_LISTED:
        console.print(f"{len(spans) - MOST_LISTED:,} shorter spans are not listed.")


def _coloured(text, min_chars: int):
    """The text with its spans in colour; terminal control characters are replaced."""
    from rich.text import Text

    shown = Text()
    for piece, span in text.segments(min_chars):
        style = STYLES[span_level(span, min_chars)] if span else ""
        shown.append(CONTROL.sub("\ufffd", piece), style)
    shown.rstrip()
    return shown
