"""`prepare.py`: turn a text into a dataset under data/."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gptlab.analysis.dataset_runs import DatasetRun, forget_unneeded_versions, runs_on
from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.progress import Bars
from gptlab.data.found_files import KNOWN
from gptlab.data.prepare import Prepared, PrepareOptions, first_documents, prepare
from gptlab.data.task_files import PreparedTask, as_written, prepare_task
from gptlab.data.tasks import is_task_word, list_tasks
from gptlab.data.token_files import Dataset, Meta, find_meta, is_chat, is_task, list_datasets
from gptlab.data.versions import older_versions, version_folder
from gptlab.data.vocabulary import KINDS, model_at
from gptlab.errors import ConfigError
from gptlab.files import data_home, display, fresh_folder, out_home, quoted, read_json, runnable
from gptlab.options import option_words
from gptlab.runs import Run
from gptlab.training.units import TextUnits

FINE_TUNING = "finetune_shakespeare"  # the recipe that a model from elsewhere is trained with
_SHOWN_LINES, _SHOWN_CHARACTERS = 12, 800  # of each document


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    overrides = COMMANDS["prepare"].parse(argv)
    if overrides.pop("list", False):
        print(listing())
        return 0
    sources = overrides.pop("sources", None) or ["shakespeare"]
    if overrides.pop("show", False):
        print(preview(sources, PrepareOptions(**overrides)))
        return 0
    return prepare_words(sources, overrides)


def prepare_words(sources: Sequence[str], options: dict) -> int:
    """Prepare texts, or a task, and print a summary; the exit code."""
    if not any(map(is_task_word, sources)):
        prepare_sources(sources, PrepareOptions(**options))
    elif len(sources) > 1:
        raise ConfigError("A task is prepared alone", f"name {sources[0]} first, then the others")
    else:
        print(describe_task(prepare_task(sources[0], PrepareOptions(**options))))
    return 0


def prepare_sources(
    sources: Sequence[str], options: PrepareOptions | None = None, says_next: bool = True
) -> Prepared:
    """Prepare a text with bars and notes on stderr, and print a summary of the dataset.

    says_next: whether the summary ends with the command that trains on it.
    """
    with Bars() as bars:
        done = prepare(sources, options, bars.progress, bars.note)
    runs = runs_on(done.dataset.folder)
    forget_unneeded_versions(done.dataset.folder, runs)
    summary = _summary(done, runs)
    print(summary if says_next else summary.rpartition("\n")[0])
    return done


def describe_task(done: PreparedTask) -> str:
    """A task in a few lines: some problems, and the next command."""
    dataset, tests = done.dataset, done.dataset.test_problems
    problems = tests["unseen"] + tests.get("longer", [])
    shown = [as_written(dataset.task, p) for p in problems[:: max(1, len(problems) // 4)]]
    label = dataset.meta["source"]["label"]
    lines = [
        f"{dataset.name}: {'already prepared, nothing to do' if done.skipped else label}",
        *(f"  {'problems' * (not n):10}  {problem}" for n, problem in enumerate(shown)),
        f"  vocabulary  {dataset.tokenizer.kind}, {dataset.vocab_size:,} ids",
        f"  training    {dataset.train_tokens // dataset.longest:,} problems of at most "
        f"{dataset.longest} tokens; the loss counts their answers",
        f"  test        {len(tests['unseen']):,} other problems, which no training meets"
        + (f", and {len(tests['longer']):,} longer ones" if "longer" in tests else ""),
        f"  written     {display(dataset.folder)}",
    ]
    if dataset.task.is_reversed:
        lines.insert(-1, "  reversed    answers are learned last character first, shown as here")
    options = {"dataset": dataset.name, "block_size": dataset.longest_tested - 1}
    command = " ".join(map(quoted, ["python", "train.py", *option_words(options)]))
    return "\n".join([*lines, runnable(f"Next: {command}")])


@dataclass(frozen=True)
class PreviewOptions:
    """Looking first"""

    show: Annotated[
        bool, "show the first three documents as they will be read, and write nothing"
    ] = False


def preview(sources: Sequence[str], options: PrepareOptions) -> str:
    """The first three documents of a source as they will be read, with notes on stderr."""
    with Bars() as bars:
        first, is_all = first_documents(sources, options, 3, bars.note)
    parts = []
    for number, (place, text) in enumerate(first, 1):
        shown = text[:_SHOWN_CHARACTERS].split("\n")[:_SHOWN_LINES]
        rest = len(text) - len("\n".join(shown))
        parts.append(f"Document {number} ({display(place)}):")
        parts += [f"  | {line}" for line in shown]
        if rest > 0:
            more = " or more" if len(text) > _SHOWN_CHARACTERS else ""
            parts.append(f"  ({rest:,}{more} further characters)")
    parts.append("These are all." if is_all else "More documents follow.")
    parts.append("Nothing is written yet: the same command without --show prepares the text.")
    return "\n".join(parts)


@dataclass(frozen=True)
class ListOptions:
    """Show"""

    list: Annotated[bool, "show the prepared datasets and the known corpora"] = False


def _summary(done: Prepared, runs: list[DatasetRun]) -> str:
    """The prepared dataset in a few lines, and the next command."""
    dataset, meta = done.dataset, done.dataset.meta
    tokens = meta["train_tokens"] + meta["val_tokens"]
    size = meta["train_bytes"] + meta["val_bytes"]
    split = meta["split"]
    kinds = {"document": "whole documents", "tail": "the end of the text", "file": split.get("val")}
    how = kinds[split["how"]]
    share = meta["val_bytes"] / size
    state = (
        "already prepared, nothing to do (--overwrite prepares it again)" if done.skipped else ""
    )
    lines = [
        f"{dataset.name}: {state or meta['source']['label']}",
        f"  text        {size:,} bytes, {meta['characters']:,} characters, "
        f"{_plural(meta['documents'], 'document')}",
        f"  vocabulary  {meta['tokenizer']['kind']}, {dataset.vocab_size:,} ids",
        f"  tokens      {tokens:,} ({size / tokens:.2f} bytes per token)",
        f"  training    {meta['train_tokens']:,} tokens",
        f"  validation  {meta['val_tokens']:,} tokens ({how}, {share:.1%})",
        _baselines(meta),
        f"  written     {display(dataset.folder)}",
    ]
    if kept := kept_versions(dataset.folder):
        lines.append(f"  kept        {'; '.join(kept)}")
    lines.append(runnable(f"Next: {_next_command(dataset, runs)}"))
    return "\n".join(lines)


def _baselines(meta: dict) -> str:
    if is_chat(meta):
        share = meta["train_counted_tokens"] / meta["train_tokens"]
        return f"  loss        on {share:.0%} of the tokens: the assistant's turns and their end"
    levels = ", ".join(f"{name} {loss:.2f}" for name, loss in TextUnits(meta).levels().items())
    return f"  baselines   {levels}\n              losses to beat, in nats per token"


def _next_command(dataset: Dataset, runs: list[DatasetRun]) -> str:
    """The command that trains on a dataset: from the newest model of an older version of it."""
    options = {"dataset": dataset.name}
    ready = [run for run in runs if not run.record.is_running]
    former = next((run for run in ready if not run.is_unfinished), ready[0] if ready else None)
    if former is not None and former.fingerprint != dataset.fingerprint:
        options["init_from"] = display(former.folder)
        if dataset.vocab_size > former.record.settings.get("vocab_size", dataset.vocab_size):
            options["extend_vocabulary"] = True
        options["out_dir"] = display(fresh_folder(former.folder))
    elif model := _model_of_tokenizer(dataset.meta):
        options |= _options_from(model, dataset)
    return " ".join(map(quoted, ["python", "train.py", *option_words(options)]))


def _model_of_tokenizer(meta: Meta) -> Path | None:
    """The model whose tokenizer a text was prepared with, where it is still here."""
    word = (meta.get("options") or {}).get("tokenizer") or "auto"
    path = model_at(word)
    path = path.parent if path.name == "tokenizer.json" else path
    is_model = path.suffix == ".pt" or (path / "config.json").is_file() or Run(path).exists()
    return path if is_model and word not in KINDS else None


def _options_from(model: Path, dataset: Dataset) -> dict:
    """Options that train a model on: a run of here as it is, one from elsewhere by the recipe."""
    from gptlab.training.config import read_recipe
    from gptlab.training.run_recipe import read_run_recipe

    run, settings = Run(model if model.is_dir() else model.parent), {}
    options = {"init_from": display(model)}
    with contextlib.suppress(OSError, ConfigError):
        settings = read_run_recipe(run.recipe).values
    if not settings:
        window = run.origin().get("block_size")
        if (model / "config.json").is_file():  # a folder that transformers wrote
            content = read_json(model / "config.json")
            window = content.get("max_position_embeddings") or content.get("n_positions")
        options["config"] = FINE_TUNING
        if window and window < read_recipe(FINE_TUNING)["block_size"]:
            options["block_size"] = window
    elif dataset.vocab_size > settings.get("vocab_size", dataset.vocab_size):
        options["extend_vocabulary"] = True
    return {**options, "out_dir": display(fresh_folder(out_home() / dataset.name))}


def kept_versions(folder: Path) -> list[str]:
    """The older versions of a dataset, each with its size and the runs that it stays for."""
    runs, found = runs_on(folder), []
    for path in older_versions(folder):
        meta = find_meta(path) or {}
        tokens = meta.get("train_tokens", 0) + meta.get("val_tokens", 0)
        users = [
            display(run.folder)
            for run in runs
            if run.is_unfinished and version_folder(folder, run.fingerprint) == path
        ]
        why = f" for {', '.join(users)}, which --resume may continue" if users else ""
        found.append(f"version {meta.get('version', 1)} ({tokens:,} tokens){why}")
    return found


def listing() -> str:
    """The prepared datasets with their sizes, and the corpora known by name."""
    known = [f"  {name:20}  {sentence}" for name, sentence in KNOWN.items()]
    heading = runnable("Known by name (python prepare.py NAME):")
    tasks = ["Tasks with an answer, each problem made while training:", *list_tasks()]
    return "\n".join([list_prepared(), heading, *known, *tasks])


def list_prepared() -> str:
    """The prepared datasets with their sizes."""
    rows = []
    for name, meta in list_datasets():
        if meta is None:
            rows.append(f"  {name:20}  token files without a readable meta.json")
            continue
        tokens = meta.get("train_tokens", 0) + meta.get("val_tokens", 0)
        size = meta.get("train_bytes", 0) + meta.get("val_bytes", 0)
        if is_task(meta):
            rows.append(f"  {name:20}  {meta['source']['label']}, {meta['vocab_size']:,} ids")
            continue
        kind = (meta.get("tokenizer") or {}).get("kind", "unknown")
        label = (meta.get("source") or {}).get("label", "unknown")
        version = f", version {meta['version']}" if meta.get("version", 1) > 1 else ""
        rows.append(
            f"  {name:20}  {size / 1e6:>10,.1f} MB  {tokens:>14,} tokens  {kind:8}  "
            f"{meta.get('vocab_size', 0):>7,} ids  from {label}{version}"
        )
    return "\n".join([f"Prepared, in {display(data_home())}:", *(rows or ["  nothing yet"])])


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
