"""Tasks of symbols: letters to copy, reverse, sort and count, brackets, and what repeats."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from gptlab.data.problems import Problem, Task, check_lengths
from gptlab.errors import ConfigError

ALPHABET = string.ascii_lowercase
_BRACKETS = "()[]{}"
_SYMBOLS = "".join(c for c in map(chr, range(33, 1300)) if c.isprintable())


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
        check_lengths("length", self.least_length, self.length, self.test_length)

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
