"""Measure how well a model predicts a text that it never saw, in units that all models share.

Bits per byte count the bytes of the text itself, so a model with another tokenizer, or a
compressor, has the same unit.
"""

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gptlab.checkpoints import Checkpoint, model_from
from gptlab.data.corpora import find
from gptlab.data.leaks import are_clean
from gptlab.data.mixture import Part, open_part
from gptlab.data.text_files import Reading
from gptlab.data.token_files import find_meta, is_task
from gptlab.data.unknown import DROP, UnknownCharacters
from gptlab.errors import CheckpointError, ConfigError, DataError, RunError
from gptlab.inference.answers import accuracy_fields, right_answers
from gptlab.inference.evaluate import (
    TokenLoss,
    bits_per_byte,
    measure_tokens,
    sliding_windows,
)
from gptlab.interop.read.models import read_model
from gptlab.runs import Run, find_run, load_checkpoint
from gptlab.sharded_checkpoints import has_shards

# stage, windows done since the last call, windows in all
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Evaluation:
    """The loss of one model on one text. data: the text's name; bytes: of the predicted text, None
    for token files that nobody can read.

    unknown: the characters of the text that the model lacks, which were left out. clean: of the
    windows that hold no passage of the training text; None where there are few such passages.
    answers: of a task, how many are right (`inference.answers.accuracy_fields`). members: of an
    ensemble, each with its own loss on the same tokens in the same windows.
    """

    model: str
    step: int
    data: str
    data_sha256: str
    measured: TokenLoss
    bytes: float | None
    block_size: int
    stride: int
    unknown: Counter = field(default_factory=Counter)
    clean: TokenLoss | None = None
    answers: dict = field(default_factory=dict)
    members: tuple[tuple[Checkpoint, TokenLoss], ...] = ()

    @property
    def perplexity(self) -> float:
        """Exponential of the loss: the number of equally likely tokens that is as uncertain."""
        return math.exp(min(self.measured.loss, 700.0))

    @property
    def bits_per_byte(self) -> float | None:
        """Bits that the model needs per byte of the text; None where its bytes are unknown."""
        return self.in_bits_per_byte(self.measured)

    def in_bits_per_byte(self, measured: TokenLoss) -> float | None:
        """A loss on this text as bits per byte of it; None where its bytes are unknown."""
        if self.bytes is None:
            return None
        return bits_per_byte(measured.loss, measured.tokens, self.bytes)

    def to_dict(self) -> dict:
        """Plain types, for JSON."""
        return {
            "model": self.model,
            "step": self.step,
            "data": self.data,
            "data_sha256": self.data_sha256,
            "tokens": self.measured.tokens,
            "bytes": None if self.bytes is None else round(self.bytes),
            "loss": self.measured.loss,
            "perplexity": self.perplexity,
            "bits_per_byte": self.bits_per_byte,
            "clean_loss": self.clean and self.clean.loss,
            "clean_tokens": self.clean and self.clean.tokens,
            "block_size": self.block_size,
            "stride": self.stride,
            "unknown_characters": dict(self.unknown),
            **self.answers,
            **({"members": self._members()} if self.members else {}),
            "by_position": [
                {"first": first, "last": last, "tokens": tokens, "loss": loss}
                for first, last, tokens, loss in self.measured.by_position()
            ],
        }

    def _members(self) -> list[dict]:
        """The members of an ensemble, for JSON."""
        return [
            {
                "model": member.name,
                "step": member.step,
                "loss": measured.loss,
                "bits_per_byte": self.in_bits_per_byte(measured),
            }
            for member, measured in self.members
        ]


# The model ----------------------------------------------------------------------------------------


def open_model(word: str, device: str = "cpu") -> tuple[Checkpoint, Run | None]:
    """Open a run, a checkpoint, a Hugging Face folder or a GGUF file: (model, its run or None).

    Nothing is written: other formats are imported into memory only. Raises a GPTLabError.
    """
    path = Path(word).expanduser()
    if not path.is_file():
        with contextlib.suppress(RunError):
            path = find_run(word)
    if path.is_dir() and Run(path).exists():
        return load_checkpoint(path, device), Run(path)
    if has_shards(path) or (path.suffix == ".pt" and path.is_file()):
        run = Run(path.parent)
        return load_checkpoint(path, device), run if run.exists() else None
    is_foreign = (path / "config.json").is_file() or (path.suffix == ".gguf" and path.is_file())
    if not is_foreign:
        raise CheckpointError(
            f"No model found at {word!r}",
            "name a run (its directory, or its name under out/), a checkpoint, a Hugging Face "
            "folder or a .gguf file",
        )
    imported = read_model(path)
    content = {
        "model_config": imported.config.to_dict(),
        "model": imported.weights,
        "chat_template": imported.chat_template,
    }
    model = model_from(content, path, device).eval()
    return Checkpoint(model, imported.tokenizer, path, 0, None, content), None


def members_of(checkpoint: Checkpoint) -> list[Checkpoint]:
    """The models of an ensemble, or the one model."""
    return list(checkpoint.members) or [checkpoint]


# The text -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldOut:
    """A text as ids. loss_mask: bool [n], the tokens of the text itself; bytes: of these.

    unknown: the characters that the tokenizer lacks, which were left out.
    """

    label: str
    sha256: str
    ids: np.ndarray
    loss_mask: np.ndarray
    bytes: int
    unknown: Counter


def begin_id(tokenizer) -> int | None:
    """The id before a text: the begin token, else the end of text, if there is one."""
    return tokenizer.eot_id if tokenizer.bos_id is None else tokenizer.bos_id


def read_text(word: str, tokenizer, name: str) -> HeldOut:
    """A file, folder or glob (as prepare.py reads it) as ids of a tokenizer, in memory.

    The token that begins a text precedes every document: the model sees it, but it is no target.
    Without such a token, a document's first token is no target. Characters that the tokenizer lacks
    are left out and counted. name: of the model, for errors.
    """
    if tokenizer is None:
        raise CheckpointError(
            f"{name} was trained on token ids without a tokenizer",
            "put a tokenizer.json next to its train.bin and train again",
        )
    source = find([word], None, lambda sentence: None)
    begin, unknown = begin_id(tokenizer), UnknownCharacters(DROP)
    ids, loss_mask, size = [], [], 0
    for document in source.documents(Reading()):
        text = "".join(unknown.known(document, tokenizer))
        own = tokenizer.encode_to_array(text).astype(np.int64)
        if not len(own):
            continue
        marks = np.ones(len(own), dtype=bool)
        size += len(text.encode())
        if begin is None:
            marks[0] = False
            size -= len(tokenizer.token_bytes(int(own[0])))
        else:
            own, marks = np.insert(own, 0, begin), np.insert(marks, 0, False)
        ids.append(own)
        loss_mask.append(marks)
    if not ids and unknown.found:
        raise DataError(
            f"{name} has none of the characters of {source.label} in its vocabulary",
            "name a text in a script that it was trained on",
        )
    if not ids:
        raise DataError(f"{source.label} holds no text", "name a file with text in it")
    return HeldOut(
        source.label,
        source.fingerprint,
        np.concatenate(ids),
        np.concatenate(loss_mask),
        size,
        unknown.found,
    )


def evaluate_text(
    checkpoint: Checkpoint,
    word: str,
    *,
    stride: int | None = None,
    block_size: int | None = None,
    max_tokens: int | None = None,
    autocast: Callable = contextlib.nullcontext,
    progress: Progress = lambda stage, advance, total: None,
) -> Evaluation:
    """Measure a model on a text file, all of it or its first max_tokens.

    stride: tokens from one window to the next; by default windows lie side by side, and the first
    tokens of each have little context. Raises ConfigError, DataError.
    """
    name, members = checkpoint.name, members_of(checkpoint)
    text = read_text(word, checkpoint.tokenizer, name)
    ids, loss_mask, size = text.ids, text.loss_mask, text.bytes
    if max_tokens is not None and loss_mask.sum() > max_tokens:
        end = int(np.flatnonzero(loss_mask)[max_tokens - 1]) + 1
        ids, loss_mask = ids[:end], loss_mask[:end]
        size = sum(map(len, map(checkpoint.tokenizer.token_bytes, ids[loss_mask].tolist())))
    block_size, stride = _window(checkpoint, block_size, stride)
    windows = sliding_windows(len(ids), block_size, stride)
    begin = begin_id(checkpoint.tokenizer)
    measured, *of_each = measure_tokens(
        [member.model for member in members], ids, windows, block_size,
        loss_mask=loss_mask, autocast=autocast,
        separators=[member.separator and begin for member in members],
        progress=lambda done, total: progress("evaluating", done, total),
    )  # fmt: skip
    left_out = text.unknown.total()
    label = text.label + (f" without {left_out:,} unknown characters" if left_out else "")
    return Evaluation(
        name, checkpoint.step, label, text.sha256, measured, size, block_size, stride, text.unknown,
        members=tuple(zip(members, of_each, strict=False)),
    )  # fmt: skip


def evaluate_dataset(
    checkpoint: Checkpoint,
    name: str,
    *,
    stride: int | None = None,
    block_size: int | None = None,
    max_tokens: int | None = None,
    autocast: Callable = contextlib.nullcontext,
    progress: Progress = lambda stage, advance, total: None,
) -> Evaluation:
    """Measure a model on the validation part of a prepared dataset.

    max_tokens: about so many, in evenly spread windows as during training. Raises ConfigError for
    another tokenizer than the model's, or another vocabulary.
    """
    known = None if find_meta(name) else checkpoint.model.config.vocab_size
    dataset = open_part(name, known)
    ours, peer = checkpoint.tokenizer, dataset.tokenizer
    if ours is not None and peer is not None and ours.fingerprint != peer.fingerprint:
        raise ConfigError(
            f"{dataset.name} was prepared with another tokenizer than that of {checkpoint.name}",
            "name the text itself with --data, which any model can read",
        )
    if dataset.vocab_size > checkpoint.model.config.vocab_size:
        raise ConfigError(
            f"{dataset.name} has {dataset.vocab_size:,} ids, but {checkpoint.name} has "
            f"{checkpoint.model.config.vocab_size:,}: they do not belong together."
        )
    block_size, stride = _window(checkpoint, block_size, stride)
    held_out = dataset.validation(block_size, max_tokens)
    size, answers = None, {}
    if is_task(dataset.meta):
        answers = answers_to(checkpoint.model, dataset, autocast)
        block_size = stride = held_out.block_size
    else:
        size = _bytes_per_token(dataset, ours)
    windows = [(int(start), 0) for start in held_out.starts]
    if max_tokens is None and stride < block_size:
        windows = sliding_windows(len(held_out.tokens), block_size, stride)

    members = members_of(checkpoint)

    def measure(chosen: list[tuple[int, int]]) -> list[TokenLoss]:
        return measure_tokens(
            [member.model for member in members], held_out.tokens, chosen, block_size,
            loss_mask=held_out.loss_mask, autocast=autocast,
            separators=[member.separator for member in members],
            progress=lambda done, _: progress("evaluating", done, len(windows)),
        )  # fmt: skip

    is_clean = _are_clean(dataset, windows, block_size)
    clean = None
    if is_clean.all() or not is_clean.any():
        measured, *of_each = measure(windows)
    else:
        clean, *clean_of_each = measure(list(itertools.compress(windows, is_clean)))
        rest, *rest_of_each = measure(list(itertools.compress(windows, ~is_clean)))
        measured = clean + rest
        of_each = [one + other for one, other in zip(clean_of_each, rest_of_each, strict=True)]
    return Evaluation(
        checkpoint.name,
        checkpoint.step,
        f"the validation part of {dataset.name}",
        dataset.fingerprint,
        measured,
        None if size is None else size * measured.tokens,
        block_size,
        stride,
        clean=clean,
        answers=answers,
        members=tuple(zip(members, of_each, strict=False)),
    )


def answers_to(model, dataset: Part, autocast: Callable = contextlib.nullcontext) -> dict:
    """How many answers of a task are right, as `accuracy_fields` says it."""
    device, tests = next(model.parameters()).device, dataset.tests()
    right = {
        (dataset.name, kind): right_answers(model, windows, device, autocast=autocast)
        for kind, windows in tests.items()
    }
    return accuracy_fields({dataset.name: tests}, right)


def _are_clean(dataset: Part, windows: list[tuple[int, int]], block_size: int) -> np.ndarray:
    """Which windows have only targets that do not stand in the training text: bool [W]."""
    if dataset.val_leaks is None:
        return np.ones(len(windows), bool)
    return are_clean(dataset.val_leaks, [start for start, _ in windows], block_size)


def _bytes_per_token(dataset, tokenizer) -> float | None:
    """Bytes of text for each predicted token of the validation part; None where nobody knows."""
    part = "val" if dataset.val_loss_mask is None else "val_counted"
    if size := (dataset.meta or {}).get(f"{part}_bytes"):
        return size / dataset.meta[f"{part}_tokens"]
    if tokenizer is None or dataset.val_loss_mask is not None:
        return None
    counts = np.bincount(dataset.val, minlength=dataset.vocab_size)
    known = range(min(len(counts), tokenizer.vocab_size))
    return sum(len(tokenizer.token_bytes(i)) * int(counts[i]) for i in known) / len(dataset.val)


def _window(checkpoint: Checkpoint, block_size: int | None, stride: int | None):
    """The window and the step between windows, checked."""
    longest = checkpoint.model.config.block_size  # of an ensemble, the shortest of its members
    block_size = longest if block_size is None else block_size
    if min(block_size, stride or 1) < 1 or stride == 0:
        raise ConfigError("block_size and stride are numbers of tokens", "use 1 or more")
    if block_size > longest:
        raise ConfigError(
            f"block_size {block_size} is longer than the window of {longest} that "
            f"{checkpoint.name} has",
            f"use {longest} or less",
        )
    stride = block_size if stride is None else stride
    if stride > block_size:
        raise ConfigError(
            f"stride {stride} would leave out text between windows of {block_size}",
            f"use {block_size} or less",
        )
    return block_size, stride
