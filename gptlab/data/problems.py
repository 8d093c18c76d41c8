"""What a task is: random numbers become problems, each a prompt and its answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

from gptlab.errors import ConfigError


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


def check_lengths(name: str, least: int, most: int, tested: int) -> None:
    """Raise ConfigError for lengths that are none. name: of the option that is the most."""
    if least < 1:
        raise ConfigError(f"least_{name} cannot be {least}", "use 1 or more")
    if not least <= most <= 64:
        raise ConfigError(f"{name} cannot be {most}", f"it is {least} or more, and at most 64")
    if tested and not most < tested <= 64:
        raise ConfigError(f"test_{name} cannot be {tested}", f"it is above {name}, which is {most}")
