"""The options of text generation (no torch)."""

import math
from dataclasses import dataclass
from typing import Annotated

from gptlab.errors import GenerationError
from gptlab.options import ESCAPED


@dataclass(frozen=True)
class SamplingConfig:
    """Generation.

    How to choose the next token and when to stop. The filters apply in this order: repetition
    penalty, temperature, top_k, top_p, min_p; each works on the tokens that the one before has
    kept. Raises GenerationError for a value out of range.
    """

    max_tokens: Annotated[int, "stop after this many tokens"] = 100
    temperature: Annotated[float, "below 1 safer, above 1 wilder, 0 = always the likeliest"] = 0.8
    top_k: Annotated[int, "draw from the k likeliest tokens; 1 = always the likeliest, 0 = all"] = (
        200
    )
    top_p: Annotated[
        float, "draw from the likeliest tokens that together hold this probability (Holtzman 2020)"
    ] = 0.9
    min_p: Annotated[
        float, "drop tokens less likely than this share of the likeliest one (Nguyen 2024)"
    ] = 0.0
    repetition_penalty: Annotated[
        float, "above 1 makes tokens that are already in the text less likely (Keskar 2019)"
    ] = 1.0
    num_samples: Annotated[int, "number of texts for each prompt"] = 1
    seed: Annotated[int | None, "the same seed gives the same text [new each time]"] = None
    beam_width: Annotated[
        int, "above 1: search for the likeliest text with this many beams instead of drawing"
    ] = 1
    prompt_lookup: Annotated[
        int,
        "with one text: draft up to this many tokens from earlier text and check them in one step "
        "(Saxena 2023): faster, the same text; 0 = off",
    ] = 10
    stop: Annotated[
        tuple[str, ...],
        "end before this text (\\n is a line end); may be given several times",
        ESCAPED,
    ] = ()
    bad_words: Annotated[
        tuple[str, ...],
        "never write this text, also inside a word; may be given several times",
        ESCAPED,
    ] = ()
    logit_bias: Annotated[
        tuple[str, ...],
        "TEXT=NUMBER: add to the logit of the token TEXT (or id:N); -inf bans it; may be given "
        "several times",
        ESCAPED,
    ] = ()

    def __post_init__(self):
        for name in ("stop", "bad_words", "logit_bias"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        for name in ("max_tokens", "num_samples", "beam_width"):
            if getattr(self, name) < 1:
                raise GenerationError(f"{name} is {getattr(self, name)}", "it must be at least 1")
        if not 0 <= self.temperature < math.inf:
            raise GenerationError(
                f"temperature is {self.temperature}",
                "it must be 0 (always the likeliest token) or a finite positive number such as 0.8",
            )
        if self.top_k < 0:
            raise GenerationError(
                f"top_k is {self.top_k}", "it must be 1 or more, or 0 to switch it off"
            )
        if not 0 < self.top_p <= 1:
            raise GenerationError(
                f"top_p is {self.top_p}",
                "it must be above 0 and at most 1, where 1 switches it off",
            )
        if not 0 <= self.min_p <= 1:
            raise GenerationError(
                f"min_p is {self.min_p}", "it must be between 0 (which switches it off) and 1"
            )
        if not 0 <= self.prompt_lookup <= 15:
            raise GenerationError(
                f"prompt_lookup is {self.prompt_lookup}",
                "it must be between 0 (which switches it off) and 15",
            )
        if not 0 < self.repetition_penalty < math.inf:
            raise GenerationError(
                f"repetition_penalty is {self.repetition_penalty}",
                "it must be above 0, and 1 switches it off",
            )
        if self.seed is not None and self.seed < 0:
            raise GenerationError(f"seed is {self.seed}", "it must be 0 or more")
        if "" in self.stop:
            raise GenerationError("stop is empty", "give the text to end before, or leave it out")
        if "" in self.bad_words:
            raise GenerationError("bad_words is empty", "give the text to ban, or leave it out")
        for entry in self.logit_bias:
            read_bias(entry)
        for name in ("bad_words", "logit_bias"):
            if getattr(self, name) and self.beam_width > 1:
                raise GenerationError(
                    f"beam_width searches for the model's likeliest text, and {name} is not part "
                    "of that",
                    "leave one of the two out",
                )
        if 1 < self.beam_width < self.num_samples:
            raise GenerationError(
                f"num_samples {self.num_samples} is more than beam_width {self.beam_width} beams "
                "can give",
                f"use --beam_width {self.num_samples}, or fewer samples",
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken, so that no seed matters."""
        return self.temperature == 0 or self.top_k == 1


def read_bias(entry: str) -> tuple[str, float]:
    """(token, what is added to its logit) of "TEXT=NUMBER"; -inf bans. Raises GenerationError."""
    text, equals, number = entry.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (equals and text) or math.isnan(value) or value == math.inf:
        raise GenerationError(
            f"logit_bias cannot be {entry!r}",
            'write TEXT=NUMBER, such as "x=-5", or "x=-inf", which bans it',
        )
    return text, value
