"""What must not be written, or less likely: biases of tokens, and banned text."""

import math
from collections.abc import Sequence

import torch

from gptlab.errors import GenerationError, TokenizerError
from gptlab.inference.config import read_bias


def bias_of(entries: Sequence[str], tokenizer) -> torch.Tensor | None:
    """What is added to the logits, float32 [V]; None without entries. GenerationError.

    entries: "TEXT=NUMBER" where TEXT is one token, the name of a special token, or "id:N".
    """
    if not entries:
        return None
    bias = torch.zeros(tokenizer.vocab_size)
    for entry in entries:
        text, number = read_bias(entry)
        bias[_token_of(text, tokenizer)] += number
    if bool((bias == -math.inf).all()):
        raise GenerationError("logit_bias bans every token", "leave at least one")
    return bias


def _token_of(text: str, tokenizer) -> int:
    if text.startswith("id:") and text[3:].isdecimal():
        if int(text[3:]) >= tokenizer.vocab_size:
            raise GenerationError(
                f"logit_bias names the id {text[3:]}, and this model has {tokenizer.vocab_size:,}",
                f"the largest is {tokenizer.vocab_size - 1:,}",
            )
        return int(text[3:])
    special = tokenizer.special_ids
    if text in special:
        return special[text]
    check_can_be_written("logit_bias", text, tokenizer)
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise GenerationError(
            f"logit_bias {text!r} is {len(ids)} tokens of this model, and a bias belongs to one",
            f"name one of them (id:{ids[0]}), or ban the text with --bad_words",
        )
    return ids[0]


def check_can_be_written(option: str, text: str, tokenizer) -> None:
    """GenerationError for text that the vocabulary cannot spell: it would have no effect."""
    try:
        tokenizer.encode(text)
    except TokenizerError as error:
        raise GenerationError(
            f"{option} {text!r} is text that this model cannot write, so it has no effect "
            f"({error.problem})",
            "leave it out",
        ) from None


class BannedText:
    """Follows a text, and knows which bytes would complete a banned word in it.

    words: the banned texts, wherever they stand. before: the bytes of the prompt.
    """

    def __init__(self, words: Sequence[str], before: bytes = b""):
        self.words = [word.encode() for word in words]
        self._longest = max(map(len, self.words), default=1)
        self._tail = self._last(before)

    def _last(self, data: bytes) -> bytes:
        return data[max(0, len(data) - self._longest + 1) :]

    def would_appear(self, piece: bytes) -> bool:
        """Whether a banned word would end in these next bytes."""
        for word in self.words:
            start = max(0, len(self._tail) - len(word) + 1)
            if word in self._tail[start:] + piece:
                return True
        return False

    def add(self, piece: bytes) -> None:
        """The text goes on with these bytes."""
        if self.words:
            self._tail = self._last(self._tail + piece)
