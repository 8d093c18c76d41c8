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
from gptlab.errors import ConfigError, GPTLabError
from gptlab.files import display, explain_error

# options that have an effect with one way to measure only
BELONGS = {
    "data": ("stride", "block_size", "max_tokens"),
    "dataset": ("stride", "block_size", "max_tokens"),
    "tasks": ("limit",), "samples": ("max_tokens", "temperature", "seed"),
}  # fmt: skip
SAMPLE_BYTES = 1000  # about the length of a sample
MOST_WRITTEN = 200_000  # tokens of all samples: more are neither written nor searched in a minute


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluation."""

    data: Annotated[str | None, "a text file, folder or glob, read as prepare.py does"] = None
    dataset: Annotated[str | None, "instead of --data: the validation part of a dataset"] = None
    tasks: Annotated[
        str | None, "tasks of lm-eval or .yaml files, separated by commas (pip install lm-eval)"
    ] = None
    limit: Annotated[int | None, "with --tasks: at most this many examples of each [all]"] = None
    samples: Annotated[
        int | None, "write so many texts, and measure them beside as much held-out text"
    ] = None
    temperature: Annotated[
        float, "with --samples: below 1 safer, above 1 wilder, 0 = always the likeliest"
    ] = 0.8
    seed: Annotated[int, "with --samples: the same seed gives the same texts"] = 1
    stride: Annotated[
        int | None,
        "tokens from one window to the next; below block_size every token has more context, but it "
        "takes longer [block_size]",
    ] = None
    block_size: Annotated[int | None, "tokens per window [the model's]"] = None
    max_tokens: Annotated[
        int | None,
        f"stop after this many tokens [the whole text; a sample has about {SAMPLE_BYTES:,} bytes]",
    ] = None
    device: Annotated[str, "cpu, cuda, cuda:1, mps, xpu, or auto"] = "auto"
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"], "precision of the matrix products"
    ] = "float32"
    ensemble: Annotated[
        bool, "with --data or --dataset: average the probabilities of two models or more"
    ] = False
    json: Annotated[bool, "print one JSON object"] = False


def main(argv: list[str]) -> int:
    """Evaluate; the exit code."""
    overrides = COMMANDS["evaluate"].parse(argv)
    words = overrides.pop("models", [])
    options = EvaluateOptions(**overrides)
    chosen = [name for name in BELONGS if getattr(options, name) is not None]
    if len(chosen) != 1:
        raise ConfigError(
            "Use one of the four: --data FILE for a text, --dataset NAME for the validation part "
            "of a prepared one, --samples NUMBER for what the model itself writes, or --tasks "
            "NAMES for tasks of lm-eval."
        )
    for name in sorted({name for names in BELONGS.values() for name in names} & set(overrides)):
        if name not in BELONGS[chosen[0]]:
            raise ConfigError(f"--{name} has no effect with --{chosen[0]}", "leave one of them out")
    _refuse_what_contradicts(words, chosen[0], options.ensemble)
    for name in ("max_tokens", "limit", "samples"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"{name} is {getattr(options, name)}", "it must be at least 1")
    from gptlab.analysis.evaluation import evaluate_dataset, evaluate_text, open_model
    from gptlab.inference.ensemble import ensemble_of
    from gptlab.runs import newest_run

    choice, autocast = _chosen(options)
    opened = [open_model(word, choice.device) for word in words or [str(newest_run())]]
    checkpoint, run = opened[0]
    if options.ensemble:  # it belongs to no run, so none records it
        checkpoint, run = ensemble_of([member for member, _ in opened]), None
    if options.tasks is not None:
        return _run_tasks(checkpoint, run, options)
    if options.samples is not None:
        return _measure_samples(checkpoint, run, choice, options)
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
        if options.ensemble:
            print("An ensemble belongs to no run: none records this.", file=sys.stderr)
    return 0


def _refuse_what_contradicts(words: list[str], way: str, ensemble: bool) -> None:
    """ConfigError for a number of models that does not suit the options."""
    if ensemble and way in ("samples", "tasks"):
        raise ConfigError(
            f"--{way} measures one model, not an ensemble",
            "leave out --ensemble, or let an ensemble write with sample.py --out_dir A,B",
        )
    if ensemble and len(words) < 2:
        raise ConfigError(
            "An ensemble has two models or more",
            "name them: python gpt.py evaluate A B --ensemble --data FILE",
        )
    if len(words) > 1 and not ensemble:
        raise ConfigError(
            f"{len(words)} models are named, and one is measured at a time",
            "add --ensemble to average them, or name one",
        )


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


def _measure_samples(checkpoint, run, choice, options: EvaluateOptions) -> int:
    """Let the model write, measure its texts, print and keep the figures; the exit code."""
    from gptlab.analysis.text_quality import quality_of_samples
    from gptlab.cli.commands.sample import make_generator
    from gptlab.inference.config import SamplingConfig
    from gptlab.training.units import TextUnits

    datasets, why = training_text(checkpoint, run)
    per_byte = TextUnits(datasets[0].meta).tokens_per_byte if datasets else None
    config = SamplingConfig(
        max_tokens=options.max_tokens or round(SAMPLE_BYTES * (per_byte or 0.25)),
        temperature=options.temperature,
        seed=options.seed,
        num_samples=options.samples,
    )
    total = config.max_tokens * config.num_samples
    if total > MOST_WRITTEN:
        raise ConfigError(
            f"That is {total:,} tokens to write, more than the {MOST_WRITTEN:,} that are measured "
            "at once",
            "ask for fewer or shorter samples",
        )
    generator, attention = make_generator(checkpoint, choice, choice.dtype, total)
    with Bars(unit="token") as bars:
        with attention:
            written = generator.generate(
                "", config, lambda count: bars.progress("writing", count, total)
            )
        texts = [one.text for one in written]
        quality = quality_of_samples(texts, config.max_tokens, datasets, why, bars.progress)
    content = {
        "model": display(checkpoint.path),
        "step": checkpoint.step,
        "data": f"{options.samples:,} samples of at most {config.max_tokens:,} tokens",
        "temperature": config.temperature,
        "seed": config.seed,
        "device": choice.device,
        "dtype": choice.dtype,
        **quality.to_dict(),
    }
    if run is not None:
        run.add_evaluation(content)
    if options.json:
        print(json.dumps({**content, "texts": texts}, indent=2, ensure_ascii=False))
        return 0
    show_quality(content, quality, config)
    if run is not None:
        print(f"Added to {display(run.evaluations)}; gpt.py report shows it.", file=sys.stderr)
    return 0


def training_text(checkpoint, run):
    """(the datasets that a model was trained on, ""), or ([], why nobody knows them).

    Raises TaskError for a run that was trained on a task.
    """
    from gptlab.analysis.trace import training_data
    from gptlab.data.mixture import TaskError

    name = display(checkpoint.path)
    if run is None:
        return [], f"{name} belongs to no run, so its training text is unknown"
    try:
        return training_data(run, "the quality of text"), ""
    except TaskError:
        raise
    except (GPTLabError, OSError) as error:
        return [], explain_error(error).problem


def show_quality(content: dict, quality, config) -> None:
    """Print what the measures say, then the measures, each with its meaning."""
    from rich.text import Text

    console = make_console()
    console.print(Text(f"{content['model']}, step {content['step']:,}", style="bold"))
    console.print(Text(quality.verdict))
    console.print()
    table = make_table("", "samples", "held out", "", numbers=("samples", "held out"))
    for figure in quality.figures:
        show = figure.measure.show
        cells = show(figure.samples) or "-", show(figure.held_out) or "-", figure.word
        table.add_row(figure.measure.name, *cells)
    console.print(table)
    drawn = f"{content['data']}, temperature {config.temperature:g}, seed {config.seed}."
    console.print(Text(" ".join(["Samples:", drawn, *quality.notes])))
    console.print()
    for figure in quality.figures:
        console.print(Text(f"{figure.measure.name}: {figure.measure.sentence}."))


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
    if result.members:
        _show_members(console, result)
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


def _show_members(console, result) -> None:
    """Print the loss of each member beside the ensemble's, and how the windows came about."""
    from rich.text import Text

    def cells(measured) -> tuple[str, str, str]:
        bits = result.in_bits_per_byte(measured)
        gain = measured.loss - result.measured.loss
        return f"{measured.loss:.4f}", "-" if bits is None else f"{bits:.4f}", f"{gain:+.4f}"

    columns = ("model", "loss", "bits per byte", "above the ensemble")
    table = make_table(*columns, numbers=columns[1:])
    for member, measured in result.members:
        table.add_row(member.name, *cells(measured))
    table.add_row("their average", *cells(result.measured)[:2], "")
    print_table(console, "Members", table)
    windows = {member.model.config.block_size for member, _ in result.members}
    if len(windows) > 1:
        console.print(
            Text(
                f"Each read windows of {result.block_size:,} tokens. The members have "
                f"{', '.join(f'{size:,}' for size in sorted(windows))}: the shortest decides.\n"
            )
        )


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
