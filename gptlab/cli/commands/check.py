"""`python gpt.py check`: check that an edit of the code is sound, line by line."""

import contextlib
import dataclasses
import json
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.console import leading_words, make_console, note
from gptlab.errors import ConfigError, RunError
from gptlab.files import display

STYLES = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red", "SKIP": "dim"}
INDENT = 6


@dataclass(frozen=True)
class CheckOptions:
    """Check."""

    device: Annotated[str, "auto, cpu, cuda, cuda:1, mps or xpu"] = "auto"
    compile: Annotated[bool, "also compare compiled blocks with eager ones (takes a minute)"] = (
        False
    )
    widths: Annotated[
        bool, "also compare activations after some steps at three widths (Yang et al. 2022)"
    ] = False
    against: Annotated[
        str | None, "also compare tokens per second and memory with this revision of git"
    ] = None
    json: Annotated[bool, "print it as JSON"] = False


def main(argv: list[str]) -> int:
    """Print each check as it is done; 1 when one failed."""
    words, rest = leading_words(argv)
    overrides = COMMANDS["check"].parse(rest)
    if len(words) > 1:
        raise ConfigError(f"check takes one run or recipe, not {len(words)}.")
    names = [field.name for field in dataclasses.fields(CheckOptions)]
    options = CheckOptions(**{n: overrides.pop(n) for n in names if n in overrides})
    note("Looking at this machine ...")
    from gptlab.analysis.check import run_checks

    with contextlib.ExitStack() as stack:
        tables = _tables(options, stack)
        subject = _subject(words, overrides, options)
        if subject.run is not None:
            from gptlab.analysis.check_files import RUN_CHECKS

            tables.append(RUN_CHECKS)
        lines = run_checks(subject, {n: c for table in tables for n, c in table.items()})
        return _print_json(subject, lines) if options.json else _print(subject, lines)


def _tables(options: CheckOptions, stack: contextlib.ExitStack) -> list:
    """The checks that are asked for. ConfigError for a revision that is not there."""
    from gptlab.analysis.check_files import FILE_CHECKS
    from gptlab.analysis.check_model import MODEL_CHECKS
    from gptlab.analysis.check_training import COMPILED_CHECKS, TRAINING_CHECKS, WIDTH_CHECKS
    from gptlab.analysis.check_weights import WEIGHT_CHECKS

    tables = [MODEL_CHECKS, WEIGHT_CHECKS, TRAINING_CHECKS, FILE_CHECKS]
    if options.compile:
        tables.append(COMPILED_CHECKS)
    if options.widths:
        tables.append(WIDTH_CHECKS)
    if options.against is not None:
        from gptlab.analysis.check_speed import beside_revision
        from gptlab.analysis.revisions import checkout

        folder = stack.enter_context(checkout(options.against))
        tables.append({f"beside {options.against}": beside_revision(options.against, folder)})
    return tables


def _subject(words: list[str], overrides: dict, options: CheckOptions):
    """What the words name: a run, a recipe, or the defaults with the options."""
    from gptlab.analysis.check import subject_of
    from gptlab.runs import Run, find_run, load_checkpoint
    from gptlab.training.config import MODEL_OPTIONS, layer
    from gptlab.training.named_config import open_config

    if not words:
        name = overrides.get("model_preset") or "the defaults"
        return subject_of(name, layer(None, overrides), options.device)
    run = None
    if not Path(words[0]).is_file():
        with contextlib.suppress(RunError):
            run = Run(find_run(words[0]))
    if run is None or run.recipe.is_file():
        named = open_config(words[0], overrides)
        decided = named.run.values if named.run else None
        folder = run.folder if run else None
        return subject_of(named.name, named.overrides, options.device, folder, decided)
    if changed := sorted(MODEL_OPTIONS & set(overrides)):  # an imported model has no recipe
        raise ConfigError(f"{changed[0]} belongs to the model of {display(run.folder)}")
    model = load_checkpoint(run.folder).model.config.to_dict()
    vocabulary = {"vocab_size": model.pop("vocab_size")}
    layered = layer({**model}, overrides, display(run.folder))
    return subject_of(display(run.folder), layered, options.device, run.folder, vocabulary)


def _verdict(names: dict[str, list[str]]) -> str:
    """The last sentence: what the names of the checks by status mean."""
    if failed := names["FAIL"]:
        what = "1 check fails" if len(failed) == 1 else f"{len(failed)} checks fail"
        return f"{what} ({', '.join(failed)}): find out why before you train with this code."
    count = {status: len(found) for status, found in names.items()}
    look = f", {count['WARN']} to look at ({', '.join(names['WARN'])})" if names["WARN"] else ""
    return f"Nothing is wrong: {count['PASS']} checks pass{look}, {count['SKIP']} do not apply."


def _print(subject, lines) -> int:
    from rich.text import Text

    from gptlab.analysis.check import shape_in_words

    console = make_console()
    width = console.width

    def show(sentence: str, style: str = "", indent: int = 0) -> None:
        wrapped = textwrap.fill(sentence, width, subsequent_indent=" " * indent)
        console.print(Text(wrapped, style))

    heading = f"Checking {subject.name} on {subject.device}: "
    small = subject.config.model != subject.original.model
    size = " (a small shape of its settings)" if small else ""
    show(heading + shape_in_words(subject.config.model) + size + ".")
    for sentence in subject.notes:
        show(f"Note: {sentence}.")
    names = {status: [] for status in STYLES}
    for line in lines:
        names[line.status].append(line.name)
        wrapped = textwrap.fill(
            f"{line.status}  {line.name}: {line.sentence}", width, subsequent_indent=" " * INDENT
        )
        text = Text(wrapped)
        text.stylize(STYLES[line.status], 0, len(line.status))
        text.stylize("bold", INDENT, INDENT + len(line.name))
        console.print(text)
        console.file.flush()
    console.print()
    show(_verdict(names), "bold red" if names["FAIL"] else "bold green")
    return 1 if names["FAIL"] else 0


def _print_json(subject, lines) -> int:
    found = [dataclasses.asdict(line) for line in lines]
    for line in found:  # JSON has no inf and nan; the sentence says it
        if line["number"] is not None and not math.isfinite(line["number"]):
            line["number"] = None
    counts = {status: sum(line["status"] == status for line in found) for status in STYLES}
    verdict = "FAIL" if counts["FAIL"] else "WARN" if counts["WARN"] else "PASS"
    described = {
        "name": subject.name,
        "verdict": verdict,
        "device": subject.device,
        "model": subject.config.model.to_dict(),
        "notes": list(subject.notes),
        "counts": counts,
        "checks": found,
    }
    print(json.dumps(described, indent=2))
    return 1 if counts["FAIL"] else 0
