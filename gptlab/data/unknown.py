"""Characters that a text has and a tokenizer of characters lacks: left out, replaced or added."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gptlab.data.spelling import name_characters
from gptlab.data.tokenizer import CharTokenizer, Tokenizer
from gptlab.errors import ConfigError

ADD, DROP, REPLACE = "add", "drop", "replace:"
WAYS = (
    f"--unknown {ADD} gives them new ids (train.py --init_from MODEL --extend_vocabulary then "
    f"learns them), --unknown {DROP} leaves them out, --unknown {REPLACE}TEXT puts a text in their "
    "place"
)


@dataclass
class UnknownCharacters:
    """What is done with the characters that a tokenizer lacks.

    word: "add", "drop", "replace:TEXT", or "" to refuse them. found: what was dropped or replaced.
    """

    word: str
    found: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.word not in ("", ADD, DROP) and not self.word.startswith(REPLACE):
            raise ConfigError(
                f"unknown cannot be {self.word!r}", f"choose {ADD}, {DROP} or {REPLACE}TEXT"
            )

    @property
    def are_added(self) -> bool:
        """Whether they get ids of their own."""
        return self.word == ADD

    def check(self, tokenizer: Tokenizer | None) -> None:
        """Raise ConfigError where the option has no effect with this tokenizer, or no sense."""
        if not self.word:
            return
        if tokenizer is None:
            raise ConfigError(
                "--unknown has no effect: this tokenizer is learned from the text, so it lacks no "
                "character",
                "leave it out, or name the tokenizer of a model with --tokenizer",
                sep="; ",
            )
        if not isinstance(tokenizer, CharTokenizer):
            raise ConfigError(
                f"--unknown has no effect: a {tokenizer.kind} tokenizer is not one of characters",
                "leave it out",
                sep="; ",
            )
        if self.word.startswith(REPLACE):
            tokenizer.encode(self.word.removeprefix(REPLACE))  # raises TokenizerError

    def known(self, blocks: Iterable[str], tokenizer: Tokenizer | None) -> Iterable[str]:
        """Blocks in which the unknown characters are dropped or replaced, and counted in found."""
        if self.word in ("", ADD) or not isinstance(tokenizer, CharTokenizer):
            return blocks
        return self._replaced(blocks, re.compile(f"[^{re.escape(tokenizer.alphabet)}]"))

    def _replaced(self, blocks: Iterable[str], unknown: re.Pattern) -> Iterator[str]:
        text = self.word.removeprefix(REPLACE) if self.word != DROP else ""
        for block in blocks:
            found = unknown.findall(block)
            self.found.update(found)
            yield unknown.sub(lambda _: text, block) if found else block

    def remark(self) -> str:
        """A sentence on what was dropped or replaced."""
        if not self.found:
            return f"--unknown {self.word} changed nothing: the tokenizer has all characters."
        what = "dropped" if self.word == DROP else f"replaced by {self.word[len(REPLACE) :]!r}"
        return (
            f"Characters that the tokenizer lacks, {what}: {self.found.total():,} "
            f"({name_characters(self.found)})."
        )
