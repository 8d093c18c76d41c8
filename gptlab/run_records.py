"""The lines of a run's metrics.jsonl and evaluations.jsonl: their forms, written and read."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypedDict

import msgspec

from gptlab.errors import RunError
from gptlab.files import FORMAT_VERSIONS, check_format_version
from gptlab.typed_json import Count, Number, misfit

METRICS_HEAD = json.dumps({"format_version": FORMAT_VERSIONS["metrics"]}) + "\n"
EVALUATIONS_HEAD = json.dumps({"format_version": FORMAT_VERSIONS["evaluations"]}) + "\n"
# none of them is so large; null: it was not finite
Figure = Annotated[float, msgspec.Meta(gt=-(2.0**63), lt=2.0**63)] | None


class Record(TypedDict):
    """What every line of a file of records has."""

    step: Count


class Look(TypedDict, total=False):
    """What a look inside the model found (training/inside.py); heads: [L][H] by kind."""

    heads: dict[str, list[list[Figure]]]
    stream: list[Figure]
    norms: dict[str, Figure]
    ranks: dict[str, Figure]


class Planned(TypedDict, total=False):
    """A moved end (training/budget.py). schedule: the last step of the first one, unless set."""

    end: Count
    schedule: Count | None
    seconds_left: Figure
    step_seconds: Figure
    pause_seconds: Figure


class ExpertUse(TypedDict):
    """Of each layer: shares of the tokens that each expert had, and their entropy over its most."""

    load: list[list[Figure]]
    entropy: list[Figure]


class Processes(TypedDict, total=False):
    """How each process fared (training/pace.py), in the order of their ranks."""

    tokens_per_second: list[Figure]
    busy: list[Figure]
    data_share: list[Figure]
    memory: list[Figure]
    slowest: Count


class Measured(Record, total=False):
    """A line of metrics.jsonl, of training, of an evaluation, a look inside or a moved end."""

    loss: Figure
    distill_loss: Figure
    bits_per_byte: Figure
    grad_norm: Figure
    learning_rate: Figure
    sequences_seen: Figure
    skipped_steps: Figure
    tokens_per_second: Figure
    data_share: Figure
    time: Figure
    mfu: Figure
    processes: Processes
    val_loss: Figure
    val_bits_per_byte: Figure
    ema_val_loss: Figure
    clean_val_loss: Figure
    accuracy: Figure
    train_accuracy: Figure
    accuracy_by_length: dict[str, tuple[Count, Count]]  # (right, problems)
    experts: ExpertUse
    sample: str
    inside: Look
    planned: Planned


class _EvaluatedText(Record):
    data: str
    time: str
    loss: Number
    perplexity: Number
    bits_per_byte: Number | None  # None for token files that nobody can read as text
    tokens: Number


class EvaluatedText(_EvaluatedText, total=False):
    """A line of evaluations.jsonl: a text or a dataset was measured."""

    clean_loss: Number | None


class Origin(TypedDict, total=False):
    """The content of imported.json. stored_as: how the files held the weights."""

    kind: str
    name: str
    license: str
    stored_as: str
    is_chat: bool
    block_size: Count


class EvaluatedTasks(Record):
    """A line of evaluations.jsonl: the figures of lm-eval, by task and metric."""

    data: str
    time: str
    tasks: dict[str, dict[str, Number]]


class QualityMeasure(TypedDict):
    """One measure of samples, and of held-out text; null: it cannot be taken."""

    name: str
    samples: Number | None
    held_out: Number | None
    differs: str | None


class EvaluatedSamples(Record):
    """A line of evaluations.jsonl: what the model wrote was measured."""

    data: str
    time: str
    verdict: str
    measures: list[QualityMeasure]


def append_record(path: Path, head: str, record: dict) -> None:
    """Add a line; `head` is the first one of a new file."""
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        if file.tell() == 0:
            file.write(head)
        file.write(json.dumps(record) + "\n")


def read_records(path: Path, *forms, kind: str = "metrics") -> Iterator[dict]:
    """The records of a file, a line each.

    A line that a kill cut short, or that is of none of the forms, is left out.
    """
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                if not all(misfit(record, form) for form in forms):
                    yield record
                elif isinstance(record, dict) and "format_version" in record:
                    check_format_version(record["format_version"], kind, path, RunError)
