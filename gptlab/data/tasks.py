"""Tasks with an answer: problems of arithmetic, of lists, of brackets, of one's own.

A task turns random numbers into problems. Its options are dataclass fields, written into its name:

    task:addition:digits=3          sums of numbers of one to three digits
    task:sorting:length=8           letters to put in order
    task:my_problems.jsonl          problems of one's own: a line is {"prompt": ..., "answer": ...}
"""

import dataclasses
import json
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

from gptlab.errors import ConfigError, DataError
from gptlab.files import display
from gptlab.options import coerce, options_of, unknown_option

PREFIX = "task:"
ALPHABET = string.ascii_lowercase
_BRACKETS = "()[]{}"


class Problem(NamedTuple):
    """A prompt and its answer. key: the same for problems that are one, such as a+b and b+a.

    length: how hard it is, such as the digits of a sum.
    """

    prompt: str
    answer: str
    key: str
    length: int


@dataclass(frozen=True)
class Task:
    """A kind of problems. characters: all that occur in them. ends: whether an end of text follows
    an answer. words: whether each number is one token, as in modular arithmetic."""

    characters: ClassVar[str]
    ends: ClassVar[bool] = True
    words: ClassVar[bool] = False
    share: Annotated[float, "share of all problems to train on; the others are the test"] = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"share cannot be {self.share:g}", "it is between 0 and 1")

    @property
    def lengths(self) -> range:
        """The lengths of the problems that are trained on."""
        raise NotImplementedError

    @property
    def longer(self) -> range:
        """The lengths that are only tested."""
        return range(0)

    @property
    def is_reversed(self) -> bool:
        """Whether answers are written last character first."""
        return False

    def longest(self, length: int) -> int:
        """The most characters that a problem of this length has, its answer included."""
        raise NotImplementedError

    def count(self, length: int) -> int:
        """How many prompts of this length there are."""
        raise NotImplementedError

    def draws(self, length: int) -> int:
        """How many random numbers a problem of this length takes."""
        raise NotImplementedError

    def problem(self, length: int, draws: Sequence[int]) -> Problem:
        """The problem that these random numbers, below 2**64, choose."""
        raise NotImplementedError

    def all(self) -> list[Problem] | None:
        """Every problem, of a task that is learned from few, which are read again and again."""
        return None


# Arithmetic ---------------------------------------------------------------------------------------


def _check_lengths(name: str, shortest: int, longest: int, test_name: str, tested: int) -> None:
    """Raise ConfigError for lengths that are none."""
    if not 1 <= shortest <= longest <= 64:
        raise ConfigError(
            f"{name} cannot be {longest}", f"it is {shortest} or more, and at most 64"
        )
    if tested and not longest < tested <= 64:
        raise ConfigError(
            f"{test_name} cannot be {tested}", f"it is above {name}, which is {longest}"
        )


def _two_numbers(length: int, draws: Sequence[int]) -> tuple[int, int]:
    """Two numbers of at most `length` digits, one of which has as many."""
    least = 10 ** (length - 1) if length > 1 else 0
    a, b = least + draws[0] % (10**length - least), draws[1] % 10**length
    return (a, b) if draws[2] & 1 else (b, a)


@dataclass(frozen=True)
class _Arithmetic(Task):
    """Problems of two numbers."""

    digits: Annotated[int, "most digits of a number"] = 3
    least_digits: Annotated[int, "fewest digits of the larger number"] = 1
    test_digits: Annotated[
        int, "also test longer numbers, up to this many digits; 0 = no longer ones"
    ] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_lengths("digits", self.least_digits, self.digits, "test_digits", self.test_digits)
        if self.least_digits < 1:
            raise ConfigError(f"least_digits cannot be {self.least_digits}", "use 1 or more")

    @property
    def lengths(self) -> range:
        return range(self.least_digits, self.digits + 1)

    @property
    def longer(self) -> range:
        return range(self.digits + 1, self.test_digits + 1)

    def draws(self, length: int) -> int:
        return 4


@dataclass(frozen=True)
class Addition(_Arithmetic):
    """sums, such as 123+456=579"""

    characters: ClassVar[str] = string.digits + "+="
    reverse: Annotated[
        bool, "write the answer last digit first, as it is computed (sample.py shows it as usual)"
    ] = True

    @property
    def is_reversed(self) -> bool:
        return self.reverse

    def longest(self, length: int) -> int:
        return 3 * length + 3

    def count(self, length: int) -> int:
        return 100**length - (100 ** (length - 1) if length > 1 else 0)

    def problem(self, length: int, draws: Sequence[int]) -> Problem:
        a, b = _two_numbers(length, draws)
        answer = str(a + b)
        key = f"{a}+{b}" if a <= b else f"{b}+{a}"
        return Problem(f"{a}+{b}=", answer[::-1] if self.reverse else answer, key, length)


@dataclass(frozen=True)
class Calculator(_Arithmetic):
    """sums, differences, products, and quotients with a remainder, such as 47/5=9r2"""

    characters: ClassVar[str] = string.digits + "+-*/=,;r"
    digits: Annotated[int, "most digits of a number"] = 2
    operations: Annotated[str, "which of + - * / occur"] = "+-*/"
    steps: Annotated[bool, "write the steps of the calculation before its result"] = False
    reverse: Annotated[
        bool | None, "write the answer last digit first [where there are no steps]"
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.operations or not set(self.operations) <= set("+-*/"):
            raise ConfigError(
                f"operations cannot be {self.operations!r}", "name some of + - * /, such as +-"
            )
        if self.steps and self.reverse:
            raise ConfigError(
                "reverse has no effect on an answer with steps", "leave it out, or steps"
            )

    @property
    def is_reversed(self) -> bool:
        return not self.steps if self.reverse is None else self.reverse

    def longest(self, length: int) -> int:
        if not self.steps:
            return 4 * length + 3
        each = max(self._steps_length(operation, length) for operation in self.operations)
        return 2 * length + 2 + each + 2 * length + 1

    def _steps_length(self, operation: str, length: int) -> int:
        """The most characters that the steps of an operation can have, from its longest steps:
        9+9+1=19, 18-9-1=8, 9*9+8=89, and of a division 98/99=0 and 98-97=1."""
        columns = {"+": 8 * length, "-": 9 * length, "/": length * (5 * length + 7)}
        return columns.get(operation, 9 * length**2 + 16 * length * (length - 1))

    def count(self, length: int) -> int:
        return len(self.operations) * (100**length - (100 ** (length - 1) if length > 1 else 0))

    def problem(self, length: int, draws: Sequence[int]) -> Problem:
        a, b = _two_numbers(length, draws)
        operation = self.operations[draws[3] % len(self.operations)]
        if operation == "/" and b == 0:
            b = 1 + draws[1] // 10**length % 9
        answer = calculate(a, operation, b)
        if self.steps:
            answer = f"{','.join(_STEPS[operation](a, b))};{answer}"
        elif self.is_reversed:
            answer = answer[::-1]
        first, second = sorted((a, b)) if operation in "+*" else (a, b)
        return Problem(f"{a}{operation}{b}=", answer, f"{first}{operation}{second}", length)


def calculate(a: int, operation: str, b: int) -> str:
    """The result of an operation as a person writes it; a quotient with its remainder."""
    if operation == "/":
        return f"{a // b}r{a % b}" if a % b else str(a // b)
    return str(a + b if operation == "+" else a - b if operation == "-" else a * b)


def _digits(number: int) -> list[int]:
    """The digits of a number, the last one first."""
    return [int(digit) for digit in reversed(str(number))]


def adding_steps(a: int, b: int) -> list[str]:
    """A sum, column by column from the right: 47+85 -> 7+5=12, 4+8+1=13."""
    steps, carry, left, right = [], 0, _digits(a), _digits(b)
    for place in range(max(len(left), len(right))):
        terms = [column[place] for column in (left, right) if place < len(column)]
        terms += [carry] if carry else []
        steps.append(f"{'+'.join(map(str, terms))}={sum(terms)}")
        carry = sum(terms) // 10
    return steps


def subtracting_steps(a: int, b: int) -> list[str]:
    """The smaller number from the larger, column by column: 85-47 -> 15-7=8, 8-4-1=3."""
    steps, borrowed, (small, large) = [], 0, sorted((a, b))
    lower = _digits(small)
    for place, digit in enumerate(_digits(large)):
        minus = [lower[place]] if place < len(lower) else []
        minus += [borrowed] if borrowed else []
        borrowed = int(sum(minus) > digit)
        digit += 10 * borrowed
        steps.append(f"{'-'.join(map(str, [digit, *minus]))}={digit - sum(minus)}")
    return steps


def multiplying_steps(a: int, b: int) -> list[str]:
    """A product: each digit of b times each digit of a with its carry, then the sum of the rows."""
    steps, total = [], 0
    for place, factor in enumerate(_digits(b)):
        carry = 0
        for digit in _digits(a):
            product = digit * factor + carry
            steps.append(f"{digit}*{factor}{f'+{carry}' if carry else ''}={product}")
            carry = product // 10
        row = a * factor * 10**place
        if place:
            steps += adding_steps(total, row)
        total += row
    return steps


def dividing_steps(a: int, b: int) -> list[str]:
    """Long division: 85/7 -> 8/7=1, 8-7=1, 15/7=2, 15-14=1."""
    steps, rest = [], 0
    for digit in map(int, str(a)):
        rest = 10 * rest + digit
        quotient = rest // b
        steps.append(f"{rest}/{b}={quotient}")
        if quotient:
            steps.append(f"{rest}-{quotient * b}={rest - quotient * b}")
        rest -= quotient * b
    return steps


_STEPS = {"+": adding_steps, "-": subtracting_steps, "*": multiplying_steps, "/": dividing_steps}


@dataclass(frozen=True)
class Modular(Task):
    """sums modulo a prime, such as 90+15=8 modulo 97, of which a share is learned by heart first"""

    words: ClassVar[bool] = True
    modulus: Annotated[int, "the numbers are those below it"] = 97
    operation: Annotated[Literal["+", "-", "*"], "what is done with the two numbers"] = "+"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.modulus <= 1000:
            raise ConfigError(f"modulus cannot be {self.modulus}", "it is from 2 to 1000")

    @property
    def vocabulary(self) -> list[str]:
        """The words of which problems consist: numbers and signs."""
        return [*map(str, range(self.modulus)), self.operation, "="]

    @property
    def characters(self) -> str:  # type: ignore[override]
        return f"{string.digits}{self.operation}="

    @property
    def lengths(self) -> range:
        return range(1, 2)

    def longest(self, length: int) -> int:
        return 3 * len(str(self.modulus - 1)) + 2

    def count(self, length: int) -> int:
        return self.modulus**2

    def all(self) -> list[Problem]:
        numbers, sign = range(self.modulus), self.operation
        return [self._problem(a, sign, b) for a in numbers for b in numbers]

    def _problem(self, a: int, sign: str, b: int) -> Problem:
        first, second = sorted((a, b)) if sign != "-" else (a, b)
        answer = int(calculate(a, sign, b)) % self.modulus
        return Problem(f"{a}{sign}{b}=", str(answer), f"{first}{sign}{second}", 1)


# Lists and brackets -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Letters(Task):
    """Problems of a list of letters."""

    characters: ClassVar[str] = ALPHABET + ">"
    length: Annotated[int, "most letters"] = 8
    least_length: Annotated[int, "fewest letters"] = 1
    test_length: Annotated[
        int, "also test longer lists, up to this many letters; 0 = no longer ones"
    ] = 0
    letters: ClassVar[str] = ALPHABET

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_lengths("length", self.least_length, self.length, "test_length", self.test_length)
        if self.least_length < 1:
            raise ConfigError(f"least_length cannot be {self.least_length}", "use 1 or more")

    @property
    def lengths(self) -> range:
        return range(self.least_length, self.length + 1)

    @property
    def longer(self) -> range:
        return range(self.length + 1, self.test_length + 1)

    def longest(self, length: int) -> int:
        return 2 * length + 1

    def count(self, length: int) -> int:
        return len(self.letters) ** length

    def draws(self, length: int) -> int:
        return length

    def problem(self, length: int, draws: Sequence[int]) -> Problem:
        word = "".join(self.letters[draw % len(self.letters)] for draw in draws[:length])
        return Problem(f"{word}>", self.answer(word), self.key(word), length)

    def answer(self, word: str) -> str:
        """The answer for a list of letters."""
        raise NotImplementedError

    def key(self, word: str) -> str:
        """What tells problems apart."""
        return word


class Copying(_Letters):
    """letters to say again, such as bdca>bdca"""

    def answer(self, word: str) -> str:
        return word


class Reversing(_Letters):
    """letters to say backwards, such as bdca>acdb"""

    def answer(self, word: str) -> str:
        return word[::-1]


class Sorting(_Letters):
    """letters to put in order, such as bdca>abcd"""

    def answer(self, word: str) -> str:
        return "".join(sorted(word))

    def key(self, word: str) -> str:
        return self.answer(word)  # another order of the same letters is the same problem


class Parity(_Letters):
    """whether the number of ones is odd (1) or even (0), such as 10110>1"""

    letters: ClassVar[str] = "01"
    characters: ClassVar[str] = "01>"

    def answer(self, word: str) -> str:
        return str(word.count("1") % 2)


class Brackets(_Letters):
    """whether brackets are balanced: ([]){}>y and ([)]>n; as many pairs as length says"""

    characters: ClassVar[str] = _BRACKETS + ">yn"

    def longest(self, length: int) -> int:
        return 2 * length + 2

    def count(self, length: int) -> int:
        return len(_BRACKETS) ** (2 * length)

    def draws(self, length: int) -> int:
        return 4 * length + 3

    def problem(self, length: int, draws: Sequence[int]) -> Problem:
        numbers, word, is_open = iter(draws), "", []
        while len(word) < 2 * length:
            closes = next(numbers) & 1 if len(word) + len(is_open) < 2 * length else 1
            if is_open and closes:
                word += is_open.pop()
            else:
                kind = 2 * (next(numbers) % 3)
                word += _BRACKETS[kind]
                is_open.append(_BRACKETS[kind + 1])
        if next(numbers) & 1:  # half of the problems have another bracket somewhere
            place = next(numbers) % len(word)
            word = word[:place] + _BRACKETS[next(numbers) % 6] + word[place + 1 :]
        return Problem(f"{word}>", "y" if are_balanced(word) else "n", word, length)


def are_balanced(word: str) -> bool:
    """Whether each bracket is closed by its own kind, in order."""
    while (shorter := re.sub(r"\(\)|\[\]|\{\}", "", word)) != word:
        word = shorter
    return not word


@dataclass(frozen=True)
class Repeat(Task):
    """random symbols that repeat with a random period, for induction heads

    A period has no symbol twice, so each symbol of a repetition follows from the one before it.
    The answer begins after the first repeated symbol, and has no end.
    """

    ends: ClassVar[bool] = False
    symbols: Annotated[int, "how many different symbols there are"] = 64
    length: Annotated[int, "tokens of a problem"] = 64
    least_period: Annotated[int, "fewest symbols before they repeat"] = 4
    period: Annotated[int | None, "most symbols before they repeat [half of length]"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.symbols <= len(_SYMBOLS):
            raise ConfigError(
                f"symbols cannot be {self.symbols}", f"it is from 2 to {len(_SYMBOLS)}"
            )
        most = min(self.symbols, self.length - 2)
        if not 1 <= self.least_period <= self._period <= most:
            raise ConfigError(
                f"Periods of {self.least_period} to {self._period} symbols do not fit",
                f"the shortest is at least 1, the longest at most {most} (the symbols, and "
                "length - 2)",
            )

    @property
    def _period(self) -> int:
        return min(self.length // 2, self.symbols) if self.period is None else self.period

    @property
    def characters(self) -> str:  # type: ignore[override]
        return _SYMBOLS[: self.symbols]

    @property
    def lengths(self) -> range:
        return range(self.least_period, self._period + 1)

    def longest(self, length: int) -> int:
        return self.length

    def count(self, length: int) -> int:
        found = 1
        for taken in range(length):
            found *= self.symbols - taken
        return found

    def draws(self, length: int) -> int:
        return length

    def problem(self, length: int, draws: Sequence[int]) -> Problem:
        left = list(self.characters)
        period = "".join(left.pop(draw % len(left)) for draw in draws[:length])
        text = (period * (self.length // length + 1))[: self.length]
        return Problem(text[: length + 1], text[length + 1 :], period, length)


_SYMBOLS = "".join(c for c in map(chr, range(33, 1300)) if c.isprintable())


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
