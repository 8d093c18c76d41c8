"""`python gpt.py evaluate`: measure how well a model predicts a text that it never saw."""

import contextlib
import json
import math
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.console import make_console, make_table, print_table
from gptlab.cli.ui.progress import Bars
from gptlab.errors import ConfigError
from gptlab.files import display


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluation."""

    data: Annotated[str | None, "a text file, folder or glob, read as prepare.py does"] = None
    dataset: Annotated[str | None, "instead of --data: the validation part of a dataset"] = None
    tasks: Annotated[
        str | None, "tasks of lm-eval or .yaml files, separated by commas (pip install lm-eval)"
    ] = None
    limit: Annotated[int | None, "with --tasks: at most this many examples of each [all]"] = None
    stride: Annotated[
        int | None,
        "tokens from one window to the next; below block_size every token has more context, but it "
        "takes longer [block_size]",
    ] = None
    block_size: Annotated[int | None, "tokens per window [the model's]"] = None
    max_tokens: Annotated[int | None, "stop after this many tokens [the whole text]"] = None
    device: Annotated[str, "cpu, cuda, cuda:1, mps, xpu, or auto"] = "auto"
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"], "precision of the matrix products"
    ] = "float32"
    json: Annotated[bool, "print one JSON object"] = False


def main(argv: list[str]) -> int:
    """Evaluate; the exit code."""
    overrides = COMMANDS["evaluate"].parse(argv)
    word = overrides.pop("model", None)
    options = EvaluateOptions(**overrides)
    if [options.data, options.dataset, options.tasks].count(None) != 2:
        raise ConfigError(
            "Use one of the three: --data FILE for a text, --dataset NAME for the validation part "
            "of a prepared one, or --tasks NAMES for tasks of lm-eval."
        )
    for name in ("max_tokens", "limit"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"{name} is {getattr(options, name)}", "it must be at least 1")
    from gptlab.analysis.evaluation import evaluate_dataset, evaluate_text, open_model
    from gptlab.runs import newest_run

    choice, autocast = _chosen(options)
    checkpoint, run = open_model(word or str(newest_run()), choice.device)
    if options.tasks is not None:
        return _run_tasks(checkpoint, run, options)
    evaluate = evaluate_text if options.dataset is None else evaluate_dataset
    with Bars(unit="window") as bars:
        result = evaluate(
            checkpoint,
            options.data if options.dataset is None else options.dataset,
            stride=options.stride,
            block_size=options.block_size,
            max_tokens=options.max_tokens,
            autocast=autocast,
            progress=bars.progress,
        )
    content = {**result.to_dict(), "device": choice.device, "dtype": choice.dtype}
    if run is not None:
        run.add_evaluation(content)
    if options.json:
        print(json.dumps(content, indent=2))
    else:
        show_evaluation(result)
        if run is not None:
            print(f"Added to {display(run.evaluations)}; gpt.py report shows it.", file=sys.stderr)
    return 0


def _run_tasks(checkpoint, run, options: EvaluateOptions) -> int:
    """Evaluate on tasks, print and keep the figures; the exit code."""
    from gptlab.analysis.lm_eval import evaluate_tasks

    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    if not names:
        raise ConfigError("--tasks is empty", "name tasks or .yaml files, separated by commas")
    with Bars(unit="example") as bars:
        found = evaluate_tasks(checkpoint, names, options.limit, bars.progress)
    content = {
        "model": display(checkpoint.path),
        "step": checkpoint.step,
        "data": ", ".join(names),
        "limit": options.limit,
        "tasks": found,
    }
    if run is not None:
        run.add_evaluation(content)
    if options.json:
        print(json.dumps(content, indent=2))
        return 0
    table = make_table("task", "metric", "value", numbers=("value",))
    for task, metrics in found.items():
        for metric, value in metrics.items():
            table.add_row(task, metric, f"{value:.4f}")
    print_table(make_console(), f"{content['model']} on tasks of lm-eval", table)
    return 0


def _chosen(options: EvaluateOptions):
    """The device and precision, and what makes the context of a forward pass."""
    import torch

    from gptlab.hardware import choose, detect

    choice = choose(detect(), options.device, options.dtype)
    if choice.dtype == "float32":
        return choice, contextlib.nullcontext
    kind, dtype = torch.device(choice.device).type, getattr(torch, choice.dtype)
    return choice, lambda: torch.autocast(kind, dtype=dtype)


def show_evaluation(result) -> None:
    """Print an evaluation: one line of figures and the loss by position."""
    from rich.text import Text

    from gptlab.data.spelling import name_characters

    console = make_console()
    console.print(Text(f"{result.model} on {result.data}", style="bold"))
    overlap = "side by side" if result.stride == result.block_size else f"every {result.stride:,}"
    bits, size = "", " of answers" if result.answers else " of unknown text"
    if result.bytes is not None:
        bits, size = f", {result.bits_per_byte:.4f} bits per byte", f", {result.bytes:,.0f} bytes"
    console.print(
        Text(
            f"loss {result.measured.loss:.4f} nats per token, perplexity {result.perplexity:,.4g}"
            f"{bits}\n{result.measured.tokens:,} tokens{size}, windows of "
            f"{result.block_size:,} tokens {overlap}\n"
        )
    )
    if result.clean is not None:
        console.print(
            Text(
                f"loss {result.clean.loss:.4f} in the {result.clean.tokens:,} tokens of windows "
                "without passages that stand in the training text too\n",
                style="yellow",
            )
        )
    if result.answers:
        _show_answers(console, result.answers)
    if result.unknown:
        console.print(
            Text(
                f"Not measured: {result.unknown.total():,} characters that the model lacks "
                f"({name_characters(result.unknown)}). The figures are those of the rest.\n",
                style="yellow",
            )
        )
    if result.answers:
        return  # the place of a token in a problem says little
    columns = ("tokens before", "tokens", "loss", "perplexity")
    table = make_table(*columns, numbers=columns[1:])
    for first, last, tokens, loss in result.measured.by_position():
        place = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        table.add_row(place, f"{tokens:,}", f"{loss:.4f}", f"{math.exp(min(loss, 700)):,.4g}")
    print_table(console, "Loss by position in the window", table)


def _show_answers(console, answers: dict) -> None:
    """Print how many answers of a task are right, by the length of the problem."""
    from rich.text import Text

    from gptlab.training.metrics import right_in_words

    console.print(Text(f"{right_in_words(answers, False)}\n", style="bold"))
    table = make_table(
        "length", "problems", "right", "share", numbers=("problems", "right", "share")
    )
    for length, (right, total) in answers["accuracy_by_length"].items():
        table.add_row(length, f"{total:,}", f"{right:,}", f"{right / total:.1%}")
    print_table(console, "Right answers by length", table)
