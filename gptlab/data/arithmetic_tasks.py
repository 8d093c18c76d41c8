"""Tasks of arithmetic: sums, a calculator with and without its steps, sums modulo a prime."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from gptlab.data.problems import Problem, Task, check_lengths
from gptlab.errors import ConfigError


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
        check_lengths("digits", self.least_digits, self.digits, self.test_digits)

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
