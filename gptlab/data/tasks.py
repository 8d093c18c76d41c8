"""Tasks with an answer: problems of arithmetic, of lists, of brackets, of one's own.

A task turns random numbers into problems. Its options are dataclass fields, written into its name:

    task:addition:digits=3          sums of numbers of one to three digits
    task:sorting:length=8           letters to put in order
    task:my_problems.jsonl          problems of one's own: a line is {"prompt": ..., "answer": ...}
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from gptlab.data.arithmetic_tasks import Addition, Calculator, Modular
from gptlab.data.problems import Problem, Task
from gptlab.data.symbol_tasks import Brackets, Copying, Parity, Repeat, Reversing, Sorting
from gptlab.errors import ConfigError, DataError
from gptlab.files import display
from gptlab.options import coerce, options_of, unknown_option

PREFIX = "task:"


@dataclass(frozen=True)
class Own(Task):
    """problems of your own: a .jsonl file whose lines are objects with prompt and answer"""

    reverse: Annotated[bool, "write the answers last character first"] = False
    problems: tuple[Problem, ...] = ()

    @property
    def is_reversed(self) -> bool:
        return self.reverse

    @property
    def characters(self) -> str:  # type: ignore[override]
        return "".join(sorted({c for p in self.problems for c in p.prompt + p.answer}))

    @property
    def lengths(self) -> range:
        return range(1, 2)

    def longest(self, length: int) -> int:
        return max(len(p.prompt) + len(p.answer) for p in self.problems)

    def count(self, length: int) -> int:
        return len(self.problems)

    def all(self) -> list[Problem]:
        return list(self.problems)


def read_problems(path: Path, is_reversed: bool) -> tuple[Problem, ...]:
    """The problems of a JSONL file. Raises DataError with the number of a line that is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{display(path)} is not UTF-8 at byte {error.start:,}", "save it as UTF-8"
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, answer = row["prompt"], row["answer"]
            is_sound = isinstance(prompt, str) and isinstance(answer, str) and prompt and answer
        except (ValueError, RecursionError, LookupError, TypeError):
            is_sound = False
        if not is_sound:
            raise DataError(
                f"Line {number:,} of {display(path)} is no problem",
                'write a JSON object with the texts "prompt" and "answer", neither of them empty',
            )
        found.append(Problem(prompt, answer[::-1] if is_reversed else answer, prompt, 1))
    if len({problem.key for problem in found}) < 2:
        raise DataError(
            f"{display(path)} holds fewer than two different problems",
            "add more: one part is trained on, and another one tests",
        )
    return tuple(found)


TASKS: dict[str, type[Task]] = {
    "addition": Addition,
    "calculator": Calculator,
    "modular": Modular,
    "sorting": Sorting,
    "copying": Copying,
    "reversing": Reversing,
    "parity": Parity,
    "brackets": Brackets,
    "repeat": Repeat,
    "own": Own,
}


# The name of a task -------------------------------------------------------------------------------


class TaskName(NamedTuple):
    """A task as it is written: its kind, its options, the file of one's own problems."""

    kind: str
    options: dict
    path: Path | None = None


def is_task_word(word: str) -> bool:
    """Whether a word names a task, such as task:addition:digits=3."""
    return word.startswith(PREFIX)


def folder_name(word: str) -> str:
    """The name of a task's dataset: task:addition:digits=3 -> addition-digits-3."""
    name = re.split(r"[/\\]", word.removeprefix(PREFIX))[-1].replace(".jsonl", "")
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "task"


def read_name(word: str) -> TaskName:
    """What a word such as task:addition:digits=3 asks for. Raises ConfigError."""
    kind, settings = word.removeprefix(PREFIX), []
    while match := re.fullmatch(r"(.*):(\w+)=([^:]*)", kind, re.DOTALL):
        kind, settings = match[1], [(match[2], match[3]), *settings]
    path = None
    if kind.endswith(".jsonl"):
        kind, path = "own", Path(kind).expanduser()
    if kind not in TASKS or (kind == "own" and path is None):
        names = ", ".join(name for name in TASKS if name != "own")
        raise ConfigError(
            f"There is no task {kind!r}",
            f"write {PREFIX}NAME:OPTION=VALUE with one of {names}, or {PREFIX}FILE.jsonl for "
            "problems of your own",
        )
    known = options_of(TASKS[kind])
    for name, _ in settings:
        if name not in known:
            raise unknown_option(f"{name} of the task {kind}", name, known)
    return TaskName(kind, {name: coerce(known[name], value) for name, value in settings}, path)


def make_task(kind: str, options: dict, path: Path | None = None) -> Task:
    """The task of this kind with these options. path: of the problems of one's own.

    Raises ConfigError or DataError.
    """
    if path is None:
        return TASKS[kind](**options)
    return Own(**options, problems=read_problems(path, options.get("reverse", False)))


def described(task: Task) -> dict:
    """The options of a task as its meta.json keeps them."""
    return {name: getattr(task, name) for name in options_of(type(task))}


def list_tasks() -> Iterator[str]:
    """A line for each task: its name, what it is, its options."""
    for name, task in TASKS.items():
        sentence = (task.__doc__ or "").splitlines()[0]
        word = f"{PREFIX}FILE.jsonl" if task is Own else f"{PREFIX}{name}"
        options = ", ".join(
            field.name for field in dataclasses.fields(task) if field.name in options_of(task)
        )
        yield f"  {word:20}  {sentence}" + (f" ({options})" if options else "")
