"""A task as a dataset: its problems are made while a model trains on them.

Each problem belongs to training or to the test by a hash of its key, so no tested problem is ever
trained on. Problem n of a run is a pure function of (seed, n), and so is the row that holds it.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptlab.data.batches import mix, permute, random_numbers
from gptlab.data.problems import Problem, Task
from gptlab.data.token_files import Meta
from gptlab.data.tokenizer import CharTokenizer, Tokenizer
from gptlab.data.windows import Windows, evaluation_windows
from gptlab.errors import DataError

PROBLEMS = "problems.jsonl"  # in its folder, the copy of one's own
TESTED = 1000  # problems of the lengths trained on, if there are as many
TESTED_LONGER = 200  # of each longer length
_ATTEMPTS = 400  # draws for a problem that belongs to the part wanted
_TRAIN, _TEST = 0, 1  # streams of random numbers


@dataclass(frozen=True)
class TaskDataset:
    """A task with its vocabulary, as a part of a mixture."""

    name: str
    folder: Path
    meta: Meta
    task: Task
    seed: int
    tokenizer: Tokenizer
    val_leaks = None  # its test problems are never trained on

    @property
    def vocab_size(self) -> int:
        """The ids of its tokenizer."""
        return self.tokenizer.vocab_size

    @property
    def train_tokens(self) -> int:
        """Tokens of all problems to train on."""
        return self.meta["train_tokens"]

    @property
    def val_tokens(self) -> int:
        """Tokens of the problems that test."""
        return self.meta["val_tokens"]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex digest: the same for the same problems and tokenizer."""
        content = json.dumps(self.meta["task"], sort_keys=True)
        return hashlib.sha256(f"{content}{self.tokenizer.fingerprint}".encode()).hexdigest()

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest problem that is trained on."""
        if own := self.task.all():
            return max(len(ids) for ids, _ in map(self.encoded, own))
        return self._longest(self.task.lengths)

    @functools.cached_property
    def longest_tested(self) -> int:
        """Tokens of the longest problem of all."""
        return max(self.longest, self._longest(self.task.longer))

    def _longest(self, lengths: range) -> int:
        extra = len(self._begin) + len(self._end)
        return max(map(self.task.longest, lengths), default=0) + extra

    @property
    def _begin(self) -> list[int]:
        return [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]

    @property
    def _end(self) -> list[int]:
        return [self.tokenizer.eot_id] if self.task.ends else []

    @functools.cached_property
    def _encode(self):
        if not isinstance(self.tokenizer, CharTokenizer):
            return self.tokenizer.encode
        ids = {character: i for i, character in enumerate(self.tokenizer.characters)}
        return lambda text: [ids[character] for character in text]

    def encoded(self, problem: Problem) -> tuple[list[int], int]:
        """(ids of a problem, how many of them are its prompt)."""
        prompt = [*self._begin, *self._encode(problem.prompt)]
        return [*prompt, *self._encode(problem.answer), *self._end], len(prompt)

    def is_trained_on(self, key: str) -> bool:
        """Whether problems of this key belong to training; a hash that never changes decides."""
        digest = hashlib.blake2b(f"{self.seed} {key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") < self.task.share * 2**64

    @functools.cached_property
    def finite(self) -> tuple[list[Problem], list[Problem]] | None:
        """(problems to train on, problems to test), of a task that has few."""
        own = self.task.all()
        if own is None:
            return None
        parts = [], []
        for problem in own:
            parts[not self.is_trained_on(problem.key)].append(problem)
        for part, words in zip(parts, ("train on", "test"), strict=True):
            if not part:
                raise DataError(
                    f"{self.name} has no problem left to {words}",
                    "add problems, or prepare it with another share or --seed",
                )
        return parts

    def problems(self, numbers: np.ndarray, seed: int) -> list[Problem]:
        """The problems of these numbers, int64 [n], in the training of this seed."""
        if self.finite:
            own = self.finite[0]
            found, epochs = [], numbers // len(own)
            for epoch in np.unique(epochs):
                places = permute(
                    numbers[epochs == epoch] % len(own), len(own), mix(seed, int(epoch))
                )
                found += [own[place] for place in places]
            return found
        lengths = self.task.lengths
        count = 1 + max(map(self.task.draws, lengths))
        found: list = [None] * len(numbers)
        left = list(range(len(numbers)))
        for attempt in range(_ATTEMPTS):  # a problem of the test is drawn again
            drawn = random_numbers(mix(seed, self.seed, _TRAIN, attempt), numbers[left], count)
            again = []
            for place, draws in zip(left, drawn, strict=True):
                problem = self.task.problem(lengths[draws[0] % len(lengths)], draws[1:])
                if self.is_trained_on(problem.key):
                    found[place] = problem
                else:
                    again.append(place)
            left = again
            if not left:
                return found
        raise DataError(
            f"{self.name} has hardly any problem to train on", "prepare it with a longer length"
        )

    def _tested(self, length: int, wanted: int, is_longer: bool) -> list[Problem]:
        """Different problems of this length that are never trained on, at most so many."""
        count, found = self.task.draws(length), {}
        for block in range(_ATTEMPTS):
            before = len(found)
            numbers = np.arange(block * wanted, (block + 1) * wanted)
            for draws in random_numbers(mix(self.seed, _TEST, length), numbers, count):
                problem = self.task.problem(length, draws)
                if is_longer or not self.is_trained_on(problem.key):
                    found.setdefault(problem.key, problem)
            if len(found) >= wanted or len(found) == before:  # or there are no others
                break
        return list(found.values())[:wanted]

    @functools.cached_property
    def test_problems(self) -> dict[str, list[Problem]]:
        """Problems to test, by what they are.

        unseen: never trained on. longer: than all that are trained on. train: some that are trained
        on, of a task that reads the same ones again and again.
        """
        if self.finite:
            train, unseen = map(_some, self.finite)
            return {"unseen": unseen, "train": train}
        unseen, lengths, longer = [], self.task.lengths, self.task.longer
        for number, length in enumerate(lengths):  # a short length may have few problems
            wanted = -(-(TESTED - len(unseen)) // (len(lengths) - number))
            unseen += self._tested(length, wanted, False)
        if not unseen:
            raise DataError(
                f"{self.name} has no problem left to test", "prepare it with a longer length"
            )
        found = {"unseen": unseen}
        if longer:
            found["longer"] = [p for n in longer for p in self._tested(n, TESTED_LONGER, True)]
        return found

    # As a part of a mixture -----------------------------------------------------------------------

    def check_length(self, block_size: int) -> None:
        """Raise DataError if a window does not hold the longest problem."""
        if self.longest_tested > block_size + 1:
            raise DataError(
                f"The longest problem of {self.name} has {self.longest_tested:,} tokens, more "
                f"than a window of block_size {block_size} holds",
                f"use --block_size {self.longest_tested - 1} or more, or shorter problems",
            )

    def sequences(self, block_size: int, seed: int) -> "TaskSequences":
        """The sequences of a training, by their number. DataError for a window too short."""
        return TaskSequences(self, block_size, seed)

    def epochs(self, sequences: int, block_size: int) -> float:
        """How often so many sequences read every problem; at least, where short ones are many."""
        problems = sequences * (block_size + 1) // self.longest
        return problems * self.longest / self.train_tokens

    def validation(self, block_size: int, max_tokens: int | None = None) -> Windows:
        """The unseen problems, one in each window; of max_tokens tokens, evenly spread."""
        self.check_length(block_size)
        return self.windows_of(self.test_problems["unseen"], max_tokens)

    def rows(
        self, problems: Sequence[Problem], each: int, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The first of `each` problems that fit into a row, int64 [n / each, width], and which
        tokens are answers, bool."""
        count = len(problems) // each
        padding = 0 if self.tokenizer.eot_id is None else self.tokenizer.eot_id
        tokens = np.full((count, width), padding, dtype=np.int64)
        mask = np.zeros((count, width), dtype=bool)
        for row in range(count):
            begin = 0
            for problem in problems[row * each : (row + 1) * each]:
                ids, prompt = self.encoded(problem)
                end = begin + len(ids)
                if end > width:
                    break
                tokens[row, begin:end] = ids
                mask[row, begin + prompt : end] = True
                begin = end
        return tokens, mask

    def windows_of(self, problems: Sequence[Problem], max_tokens: int | None = None) -> Windows:
        """Problems as windows whose targets are the answers."""
        width = self.longest_tested
        if max_tokens is not None:
            starts = evaluation_windows(len(problems) * width + 1, width, max_tokens) // width
            problems = [problems[place] for place in starts]
        tokens, mask = self.rows(problems, 1, width)
        return Windows(
            tokens.ravel(),
            np.arange(len(problems), dtype=np.int64) * width,
            width - 1,
            mask.ravel(),
            np.array([problem.length for problem in problems]),
        )

    def tests(self) -> dict[str, Windows]:
        """Windows of the problems that measure how many answers are right, by what they are."""
        return {kind: self.windows_of(found) for kind, found in self.test_problems.items()}


def _some(problems: list[Problem]) -> list[Problem]:
    """At most TESTED of the problems, chosen at random, in their order."""
    chosen = permute(np.arange(min(TESTED, len(problems))), len(problems), 0)
    return [problems[place] for place in sorted(chosen)]


class TaskSequences:
    """The sequences of a task, as `batches.Sequences`: rows of whole problems, whose targets are
    the answers. each: problems drawn for a row."""

    def __init__(self, dataset: TaskDataset, block_size: int, seed: int):
        dataset.check_length(block_size)
        self.dataset, self.block_size, self.seed = dataset, block_size, seed
        self.each = (block_size + 1) // dataset.longest
        if not dataset.finite:  # of a few problems all are read; of many, as many as fit
            self.each *= 2
        self._known = range(0), None, None  # sequence numbers, their tokens, their targets

    def _step(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`windows`, of which those of a whole step are kept: its micro-batches follow."""
        first, last = int(numbers.min()), int(numbers.max())
        known, tokens, targets = self._known
        if first not in known or last not in known:
            known = range(first, last + 1)
            problems = np.arange(first * self.each, (last + 1) * self.each)
            found = self.dataset.problems(problems, self.seed)
            rows, mask = self.dataset.rows(found, self.each, self.block_size + 1)
            tokens, targets = rows[:, :-1], np.where(mask, rows, -1)[:, 1:]
            self._known = known, tokens, targets
        return tokens[numbers - known.start], targets[numbers - known.start]

    def count_targets(self, numbers: np.ndarray) -> int:
        """Targets of these sequences: the tokens of the answers."""
        return int((self._step(numbers)[1] != -1).sum())

    def windows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets of these sequences: int64 [n, block_size] each, targets else -1."""
        return self._step(numbers)
