"""The prepared datasets that a run trains on, one or several of one tokenizer, and their shares.

    shakespeare            one dataset
    plays:0.7,letters:0.3  seven of ten sequences are from plays
    plays,letters          shares by size: both are read equally often

The order of the sequences is that of data/batches.py: a pure function of their number.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gptlab.data.batches import MixedSequences, sequences_of_each
from gptlab.data.prepare_command import prepare_command
from gptlab.data.task_dataset import TaskDataset
from gptlab.data.task_files import open_task, prepare_task
from gptlab.data.tasks import is_task_word
from gptlab.data.token_files import (
    SCAN_TOKENS,
    Dataset,
    Meta,
    dataset_folder,
    find_meta,
    is_dataset,
    is_task,
    open_dataset,
)
from gptlab.data.tokenizer import CharTokenizer, Tokenizer
from gptlab.data.windows import Windows
from gptlab.errors import ConfigError, DataError
from gptlab.files import display, quoted

logger = logging.getLogger(__name__)

Part = Dataset | TaskDataset
_PARTS_OF_SHARES = 1_000_000  # the weights of a mix are whole numbers of about this sum


def parse_mixture(word: str) -> list[tuple[str, float | None]]:
    """(dataset, weight or None) of each dataset that the option names. Raises ConfigError."""
    is_one = "," not in word or is_dataset(dataset_folder(word))
    if is_one:
        return [(word, None)]
    parts = [_with_weight(part.strip()) for part in word.split(",")]
    names = [name for name, _ in parts]
    if "" in names:
        raise ConfigError(f"dataset {word!r} has a part without a name", "write a:0.7,b:0.3")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"dataset {word!r} names {twice} twice", "name each dataset once")
    if len({weight is None for _, weight in parts}) > 1:
        bare = next(name for name, weight in parts if weight is None)
        raise ConfigError(
            f"dataset {word!r} gives {bare} no weight",
            "give every dataset one, such as a:0.7,b:0.3, or none: then their sizes count",
        )
    return parts


def _with_weight(part: str) -> tuple[str, float | None]:
    name, colon, number = part.rpartition(":")
    try:
        weight = float(number)
    except ValueError:  # C:\data\plays has a colon too
        is_weight = colon and "=" not in number and is_dataset(dataset_folder(name))
        weight = 0.0 if is_weight else None
    if not colon or weight is None:
        return part, None
    if not 0 < weight < 1e9:
        raise ConfigError(f"The weight of {name} is {number}", "it is a number above 0")
    return name, weight


def dataset_names(word: str) -> list[str]:
    """The names or paths of the datasets that the option names. Raises ConfigError."""
    return [name for name, _ in parse_mixture(word)]


def absolute_mixture(word: str) -> str:
    """The same option for any working directory: names stay names."""
    named = [
        (name if Path(name).name == name else str(dataset_folder(name).resolve()), weight)
        for name, weight in parse_mixture(word)
    ]
    return ",".join(name if weight is None else f"{name}:{weight!r}" for name, weight in named)


def whole_weights(given: Sequence[float | None], sizes: Sequence[int]) -> tuple[int, ...]:
    """The weights as whole numbers; without them the sizes of the training parts count."""
    wanted = [size if weight is None else weight for weight, size in zip(given, sizes, strict=True)]
    total = sum(wanted)
    return tuple(max(1, round(_PARTS_OF_SHARES * each / total)) for each in wanted)


class TaskError(DataError):
    """A task with answers, where a text is needed."""


@dataclass(frozen=True)
class Mixture:
    """Opened datasets. weights: of their sequences, in proportion. by_size: no weights were given.

    meta: that of a single dataset, else what describes all of them in its form.
    """

    parts: tuple[Part, ...]
    weights: tuple[int, ...]
    by_size: bool
    meta: Meta | None
    chat_template: str

    @property
    def shares(self) -> list[float]:
        """The share of each dataset in the sequences of a training."""
        return [weight / sum(self.weights) for weight in self.weights]

    @property
    def name(self) -> str:
        """The dataset's name, or the names with their shares."""
        return _joined([part.name for part in self.parts], self.weights)

    @property
    def fingerprint(self) -> str:
        """The same for the same tokens, tokenizer and weights: of a mix, those of its datasets."""
        if len(self.parts) == 1:
            return self.parts[0].fingerprint
        both = zip(self.parts, self.weights, strict=True)
        return ",".join(f"{part.fingerprint}:{weight}" for part, weight in both)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that all of them share."""
        return self.parts[0].tokenizer

    @property
    def vocab_size(self) -> int:
        """The ids that all of them share."""
        return self.parts[0].vocab_size

    @property
    def train_tokens(self) -> int:
        """Tokens of all training parts."""
        return sum(part.train_tokens for part in self.parts)

    @property
    def val_tokens(self) -> int:
        """Tokens of all validation parts."""
        return sum(part.val_tokens for part in self.parts)

    def check_lengths(self, block_size: int) -> None:
        """Raise DataError if a dataset is too short for one window, or a window for a problem."""
        for part in self.parts:
            part.check_length(block_size)

    def sequences(self, block_size: int, seed: int) -> MixedSequences:
        """The sequences of a training, by their number."""
        return MixedSequences(
            [part.sequences(block_size, seed) for part in self.parts], self.weights
        )

    def tests(self) -> dict[str, dict[str, Windows]]:
        """The problems that measure how many answers are right, of each task that it holds."""
        return {part.name: tests for part in self.parts if (tests := part.tests())}

    @property
    def example_prompt(self) -> str:
        """The prompt of a problem that no training meets; "" for texts."""
        task = next((part for part in self.parts if is_task(part.meta)), None)
        return task.test_problems["unseen"][-1].prompt if task else ""

    @property
    def has_reversed_answers(self) -> bool:
        """Whether all that a model of it writes is an answer, last character first."""
        return all(is_task(part.meta) and part.task.is_reversed for part in self.parts)

    def refuse_tasks(self, wanted: str) -> None:
        """Raise TaskError where a dataset is a task. wanted: what needs a text, such as blame."""
        for part in self.parts:
            if is_task(part.meta):
                raise TaskError(
                    f"{part.name} is a task, whose problems are made while training, and {wanted} "
                    "needs a text",
                    "name a run that was trained on one",
                )

    @property
    def separator(self) -> int:
        """The id that stands between documents, in all of them.

        Raises ConfigError where documents cannot be told apart, or where there is only one.
        """
        for part in self.parts:
            meta = part.meta or {}
            why = ""
            if is_task(meta):
                why = f"{part.name} is a task, whose rows are whole problems"
            elif meta.get("chat_template") is not None:
                why = (
                    f"{part.name} holds conversations, whose templates end messages too with the "
                    "end of text"
                )
            elif part.tokenizer is None or part.tokenizer.eot_id is None:
                why = f"nothing tells which id stands between the documents of {part.name}"
            elif not _has_separator(part):
                why = f"{part.name} is one document without an end of text in it"
            if why:
                raise ConfigError(
                    f"--document_mask has no effect: {why}",
                    "leave it out, or prepare the text with --document or --separator",
                    sep="; ",
                )
        return self.tokenizer.eot_id

    def positions(self, sequences_seen: int) -> dict[str, int]:
        """How many of the first sequences of a training are from each dataset, by its name."""
        counts = sequences_of_each(sequences_seen, self.weights)
        return {part.name: count for part, count in zip(self.parts, counts, strict=True)}

    def epochs(self, sequences: int, block_size: int) -> dict[str, float]:
        """How often so many sequences of a training read each dataset, by its name."""
        read = self.positions(sequences)
        return {part.name: part.epochs(read[part.name], block_size) for part in self.parts}


def _has_separator(part: Dataset) -> bool:
    """Whether the training part holds an end of text; looks no further than the first one."""
    eot, tokens = part.tokenizer.eot_id, part.train
    starts = range(0, len(tokens), SCAN_TOKENS)
    return any((tokens[start : start + SCAN_TOKENS] == eot).any() for start in starts)


def _joined(names: Sequence[str], weights: Sequence[int]) -> str:
    if len(names) == 1:
        return names[0]
    total = sum(weights)
    return ", ".join(f"{n} {100 * w / total:.3g}%" for n, w in zip(names, weights, strict=True))


def open_part(word: str, vocab_size: int | None = None, fingerprint: str | None = None) -> Part:
    """Open a dataset of token files as `open_dataset` does, or a task, which is made where it is
    only named. Raises DataError, and ConfigError for a task that there is not."""
    folder = dataset_folder(word)
    if is_task_word(word) and not is_dataset(folder):
        made = prepare_task(word)
        logger.warning("%s", made.sentence)
    return (
        open_task(folder)
        if is_task(find_meta(folder))
        else open_dataset(word, vocab_size, fingerprint)
    )


def open_mixture(
    word: str, vocab_size: int | None = None, fingerprint: str | None = None
) -> Mixture:
    """Open what the option `dataset` names; vocab_size as in `open_dataset`.

    fingerprint: of the mixture that a run began with, whose versions are opened where they are
    still there; else the newest.

    Raises ConfigError for a mix that cannot be read, DataError for a dataset that cannot be opened
    or that was prepared with another tokenizer or chat template than the first.
    """
    named = parse_mixture(word)
    began = [part.partition(":")[0] for part in fingerprint.split(",")] if fingerprint else []
    if len(began) != len(named):
        began = [None] * len(named)
    parts = tuple(
        open_part(name, vocab_size, before) for (name, _), before in zip(named, began, strict=True)
    )
    if len({part.name for part in parts}) < len(parts):
        raise ConfigError(f"dataset {word!r} names two folders of one name", "rename one of them")
    has_task = any(is_task(part.meta) for part in parts)
    if has_task and len(parts) > 1 and named[0][1] is None:
        raise ConfigError(
            f"dataset {word!r} gives no weights, and a task has no size that could count",
            f"write {','.join(f'{name}:1' for name, _ in named)}, or other weights",
        )
    _check_tokenizers(parts)
    templates = {(part.meta or {}).get("chat_template") for part in parts} - {None}
    if len(templates) > 1:
        raise DataError(
            f"The datasets of {word!r} were prepared with different chat templates",
            "prepare them with the same --tokenizer",
        )
    template = templates.pop() if templates else ""
    weights = whole_weights([weight for _, weight in named], [part.train_tokens for part in parts])
    meta = _meta_of_all([part.meta for part in parts], weights)
    by_size = len(parts) > 1 and named[0][1] is None
    return Mixture(parts, weights, by_size, meta, template)


def find_mixture_meta(word: str) -> Meta | None:
    """The `meta` of what the option names, without reading tokens; None where one is missing."""
    try:
        named = parse_mixture(word)
    except ConfigError:
        return None
    metas = [find_meta(name) for name, _ in named]
    if None in metas:
        return None
    sizes = [meta["train_tokens"] for meta in metas]
    return _meta_of_all(metas, whole_weights([weight for _, weight in named], sizes))


def _meta_of_all(metas: Sequence[Meta | None], weights: Sequence[int]) -> Meta | None:
    """One description of a mix, in which each dataset's validation counts by its weight.

    None where a dataset has no meta.json.
    """
    if len(metas) == 1 or None in metas:
        return metas[0] if len(metas) == 1 else None
    first = metas[0]
    names = ("characters", "documents", "train_tokens", "val_tokens", "train_bytes", "val_bytes")
    mixed = {name: sum(meta.get(name, 0) for meta in metas) for name in names}
    sources = [(meta.get("source") or {}).get("label") or "a text" for meta in metas]
    mixed |= {
        "format_version": first["format_version"],
        "name": _joined([meta.get("name", "") for meta in metas], weights),
        "dtype": first["dtype"],
        "vocab_size": first["vocab_size"],
        "tokenizer": first.get("tokenizer") or {},
        "source": {"label": "; ".join(sources)},
    }
    sizes = []  # bytes for as many tokens of each as its weight
    for meta, weight in zip(metas, weights, strict=True):
        part = "val_counted" if meta.get("val_counted_tokens") else "val"
        sizes.append(weight * meta.get(f"{part}_bytes", 0) / (meta[f"{part}_tokens"] or 1))
    if not all(sizes):
        return mixed
    baselines = [meta.get("baselines") or {} for meta in metas]
    shared = [name for name in baselines[0] if all(each.get(name) for each in baselines)]
    return mixed | {
        "val_counted_tokens": sum(weights),
        "val_counted_bytes": round(sum(sizes)),
        "baselines": {
            name: sum(size * each[name] for size, each in zip(sizes, baselines, strict=True))
            / sum(sizes)
            for name in shared
        },
    }


def _check_tokenizers(parts: Sequence[Dataset]) -> None:
    """Raise DataError, with commands that mend it, for datasets of different tokenizers."""

    def identity(part: Part) -> str | int:
        return part.tokenizer.fingerprint if part.tokenizer else part.vocab_size

    other = next((part for part in parts[1:] if identity(part) != identity(parts[0])), None)
    if other is None:
        return
    first = parts[0]
    problem = (
        f"{first.name} and {other.name} were prepared with different tokenizers, so their ids mean "
        "different text"
    )
    # a tokenizer of characters encodes only what it has met
    base = next((p for p in (first, other) if _knows_all(p, (first, other))), None)
    commands = []
    if base is None:
        base = first
        commands.append(_command(first, "bpe"))
    rest = [part for part in (first, other) if part is not base]
    commands += [_command(part, display(base.folder)) for part in rest]
    raise DataError(problem, f"prepare them alike: {', then '.join(commands)}")


def _knows_all(part: Part, others: Sequence[Dataset]) -> bool:
    if not isinstance(part.tokenizer, CharTokenizer):
        return part.tokenizer is not None
    return all(
        isinstance(each.tokenizer, CharTokenizer)
        and set(each.tokenizer.alphabet) <= set(part.tokenizer.alphabet)
        for each in others
    )


def _command(part: Part, tokenizer: str) -> str:
    again = prepare_command(part.meta or {}, tokenizer=tokenizer)
    name = quoted(Path(part.name).name)
    return f"`{again or f'python prepare.py YOUR_TEXT --tokenizer {tokenizer} --dataset {name}'}`"
