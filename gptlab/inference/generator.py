"""Prompts in, text out: the fast way through the KV cache, streamed, batched, stoppable."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from gptlab.errors import GenerationError, TokenizerError
from gptlab.inference.beam_search import beam_search
from gptlab.inference.config import SamplingConfig
from gptlab.inference.decoding import Decoder, evaluating
from gptlab.inference.sampling import sample
from gptlab.inference.text_stream import TextStream

logger = logging.getLogger(__name__)

StopReason = Literal["end_of_text", "stop", "max_tokens"]


@dataclass(frozen=True)
class Completion:
    """A text that the model wrote.

    text: the continuation without the prompt, ending before a stop string and before the end of
    text. token_ids: every token that was chosen, so also those of what the text leaves out.
    log_probs: of each token under the model itself (temperature 1, no filter), in nats.
    """

    prompt: str | Sequence[int]
    text: str
    token_ids: list[int]
    log_probs: list[float]
    stopped_by: StopReason


@dataclass
class _Row:
    """One text that is being written."""

    prompt: str | Sequence[int]
    prompt_ids: list[int]
    text: TextStream
    random: np.random.Generator
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    stopped_by: StopReason | None = None

    def completion(self) -> Completion:
        text = "".join(self.pieces)
        return Completion(self.prompt, text, self.token_ids, self.log_probs, self.stopped_by)


def _new_row(prompt, prompt_ids: list[int], config: SamplingConfig, number: int) -> _Row:
    """Sample `number` of a prompt, not yet begun; its random numbers are its own."""
    random = np.random.default_rng(None if config.seed is None else (config.seed, number))
    return _Row(prompt, prompt_ids, TextStream(config.stop), random)


class Generator:
    """Text from a model and its tokenizer.

        generator = Generator(model, tokenizer)
        for piece in generator.stream("Once upon a time", SamplingConfig(max_tokens=50)):
            print(piece, end="")

    A prompt is text, or token ids. Text is plain text: the spelling of the end-of-text mark in it
    is not the mark. A prompt longer than the model's window keeps its end, with a logged warning;
    an empty one starts where a document starts. The model's own mode and device are left alone.
    native: takes the steps on a CPU several times faster (`native.NativeDecoder.of(model)`), with
    the same results within rounding. Raises GenerationError when the model and the tokenizer do
    not belong together.
    """

    # rows that share a batch: bounds the memory of the cache, changes no text
    batch_size = 32

    def __init__(self, model, tokenizer, native=None):
        if tokenizer.vocab_size > model.config.vocab_size:
            raise GenerationError(
                f"The tokenizer knows {tokenizer.vocab_size:,} ids and the model "
                f"{model.config.vocab_size:,}: they do not belong together, so use the tokenizer "
                "that the model was trained with."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.native = native
        # a text ends with one of these; a chat model's turn may end with a mark of its own
        self.end_ids = {tokenizer.eot_id}

    def stream(
        self,
        prompt: str | Sequence[int],
        config: SamplingConfig | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Iterator[str]:
        """Yield the continuation of one prompt piece by piece, as soon as each is certain.

        Joined, the pieces are the text of `generate`. What the iteration returns (the value of
        `yield from`) is the Completion. A beam search has one piece: it is certain at its end.
        progress: as in `generate`.
        """
        config = config or SamplingConfig()
        if config.num_samples > 1:
            raise GenerationError(
                f"Only one text can be streamed, not num_samples {config.num_samples}: use "
                "Generator.generate."
            )
        if config.beam_width > 1:
            completion = self._search(prompt, config, progress)[0]
            yield completion.text
            return completion
        row = _new_row(prompt, self.prompt_ids(prompt), config, 0)
        for tokens in self._write([row], config):
            if progress:
                progress(tokens)
            if row.pieces[-1]:
                yield row.pieces[-1]
        return row.completion()

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        config: SamplingConfig | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> list[Completion]:
        """num_samples completions of each prompt, those of one prompt together, in order.

        A text is decided by its prompt, the seed and its number among the samples of the prompt:
        not by the prompts beside it. progress(tokens) is called after each step with the number
        of tokens that came, and with what a text that ended early has left of max_tokens.
        """
        config = config or SamplingConfig()
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if config.beam_width > 1:
            return [best for p in prompts for best in self._search(p, config, progress)]
        rows = []
        for prompt in prompts:
            ids = self.prompt_ids(prompt)
            rows += [_new_row(prompt, ids, config, n) for n in range(config.num_samples)]
        for first in range(0, len(rows), self.batch_size):
            for tokens in self._write(rows[first : first + self.batch_size], config):
                if progress:
                    progress(tokens)
        return [row.completion() for row in rows]

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """The tokens that the model sees of a prompt: at least one, at most a window.

        A text begins with the begin token where the model was trained with one.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(map(int, prompt))
        if isinstance(prompt, str) and self.tokenizer.bos_id is not None:
            ids.insert(0, self.tokenizer.bos_id)
        known = self.tokenizer.vocab_size
        for position, token in enumerate(ids):
            if not 0 <= token < known:
                raise GenerationError(
                    f"The prompt's id {token} at position {position} is outside the vocabulary of "
                    f"{known:,} ids."
                )
        window = self.model.config.block_size
        if len(ids) > window:
            logger.warning(
                "The prompt has %s tokens and the model sees %s: only its end is used.",
                f"{len(ids):,}",
                f"{window:,}",
            )
        return ids[-window:] or [self._first_id()]

    def _first_id(self) -> int:
        """What stands before a text: the end of the one before, or else of a line."""
        if self.tokenizer.eot_id is not None:
            return self.tokenizer.eot_id
        try:
            return self.tokenizer.encode("\n")[-1]
        except (TokenizerError, IndexError):
            raise GenerationError(
                "The prompt is empty and this vocabulary has neither an end of text nor a line "
                "end to start from: give a prompt."
            ) from None

    def _write(self, rows: list[_Row], config: SamplingConfig) -> Iterator[int]:
        """Write the rows side by side until all have stopped, yielding after each step.

        The yielded number counts tokens towards len(rows) * max_tokens: those chosen, and those
        that a row which ended early will not need.
        """
        with evaluating(self.model):
            prompts = list(dict.fromkeys(tuple(row.prompt_ids) for row in rows))
            # samples of one prompt are prefilled once
            decoder = Decoder(self.model, prompts, self.native, config.prompt_lookup)
            decoder.select([prompts.index(tuple(row.prompt_ids)) for row in rows])
            seen = self._seen(rows) if config.repetition_penalty != 1 else None
            while True:
                chosen, log_probs = self._choose(decoder, rows, config, seen)
                for row, token, log_prob in zip(rows, chosen, log_probs, strict=True):
                    self._take(row, token, log_prob, config)
                ended = [row for row in rows if row.stopped_by]
                yield len(rows) + sum(config.max_tokens - len(row.token_ids) for row in ended)
                going = [index for index, row in enumerate(rows) if not row.stopped_by]
                if not going:
                    return
                if seen is not None:
                    seen[torch.arange(len(rows)), chosen] = True
                    seen = seen[going]
                rows = [rows[index] for index in going]
                decoder.select(going)
                decoder.append([chosen[index] for index in going])

    def _choose(self, decoder: Decoder, rows: list[_Row], config: SamplingConfig, seen):
        """The next token of each row and its log-probability, as lists."""
        logits = decoder.logits[:, : self.tokenizer.vocab_size]  # a model's table may be padded
        uniforms = [row.random.random() for row in rows]
        chosen, log_probs = sample(logits, config, uniforms, seen)
        return chosen.tolist(), log_probs.tolist()

    def _seen(self, rows: list[_Row]) -> torch.Tensor:
        """bool [B, V]: the ids in each prompt; the mark that an empty one starts from is none."""
        seen = torch.zeros(len(rows), self.tokenizer.vocab_size, dtype=torch.bool)
        for row, marks in zip(rows, seen, strict=True):
            marks[row.prompt_ids] = True
        if self.tokenizer.eot_id is not None:
            seen[:, self.tokenizer.eot_id] = False
        return seen.to(next(self.model.parameters()).device)

    def _take(self, row: _Row, token: int, log_prob: float, config: SamplingConfig) -> None:
        """Add a chosen token to a row, and say why it stops where it does."""
        row.token_ids.append(token)
        row.log_probs.append(log_prob)
        piece = row.text.feed(self.tokenizer.token_bytes(token))
        if token in self.end_ids:
            row.stopped_by = "end_of_text"
        elif row.text.stopped:
            row.stopped_by = "stop"
        elif len(row.token_ids) == config.max_tokens:
            row.stopped_by = "max_tokens"
        if row.stopped_by:
            piece += row.text.close()
        row.pieces.append(piece)

    def _search(self, prompt, config: SamplingConfig, progress) -> list[Completion]:
        """The num_samples best continuations that a beam search finds."""

        def is_finished(token_ids) -> bool:
            if token_ids[-1] in self.end_ids:
                return True
            if not config.stop:
                return False
            text = b"".join(map(self.tokenizer.token_bytes, token_ids)).decode("utf-8", "replace")
            return any(stop in text for stop in config.stop)

        prompt_ids = self.prompt_ids(prompt)
        with evaluating(self.model):
            best = beam_search(
                Decoder(self.model, [prompt_ids], self.native),
                config.beam_width,
                config.max_tokens,
                is_finished,
                n_best=config.num_samples,
                vocab_size=self.tokenizer.vocab_size,
                progress=progress,
            )
        completions = []
        for hypothesis in best:
            row = _new_row(prompt, prompt_ids, config, 0)
            for token, log_prob in zip(hypothesis.token_ids, hypothesis.log_probs, strict=True):
                self._take(row, token, log_prob, config)
            completions.append(row.completion())
        return completions
