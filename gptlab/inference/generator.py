"""Generate text from prompts with a KV cache: streamed, in batches, with stop strings."""

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
from gptlab.inference.token_bias import BannedText, bias_of, check_can_be_written

logger = logging.getLogger(__name__)

StopReason = Literal["end_of_text", "stop", "max_tokens"]


@dataclass(frozen=True)
class Completion:
    """A text that the model wrote.

    text: the continuation without the prompt; it ends before a stop string and before the end of
    text. token_ids: all chosen tokens, including those of a stop string or end of text. log_probs:
    the log-probability of each token under the model itself (temperature 1, no filter), in nats.
    """

    prompt: str | Sequence[int]
    text: str
    token_ids: list[int]
    log_probs: list[float]
    stopped_by: StopReason


@dataclass
class _Row:
    """The state of one text while it is generated."""

    prompt: str | Sequence[int]
    prompt_ids: list[int]
    text: TextStream
    banned: BannedText
    random: np.random.Generator
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    stopped_by: StopReason | None = None


class Generator:
    """Generates text with a model and its tokenizer.

        generator = Generator(model, tokenizer)
        for piece in generator.stream("Once upon a time", SamplingConfig(max_tokens=50)):
            print(piece, end="")

    A prompt is text or token ids. Text is always plain text: the string of the end-of-text token in
    it is not that token. Only the end of a prompt longer than the model's window is used, with a
    logged warning. An empty prompt stands for the start of a document. The model keeps its mode and
    device. native: decodes several times faster on a CPU (`native.NativeDecoder.of(model)`), with
    the same results within rounding. Raises GenerationError if the model and the tokenizer do not
    belong together.
    """

    # rows per batch: limits the memory of the cache and changes no text
    batch_size = 32

    def __init__(self, model, tokenizer, native=None):
        if tokenizer.vocab_size > model.config.vocab_size:
            raise GenerationError(
                f"The tokenizer knows {tokenizer.vocab_size:,} ids, but the model "
                f"{model.config.vocab_size:,}: they do not belong together, so use the tokenizer "
                "that the model was trained with."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.native = native
        # ids that end a text; a chat model may end its turn with another id
        self.end_ids = {tokenizer.eot_id}
        # whether the model writes answers last character first; texts are given as usual
        self.reverses = False

    def stream(
        self,
        prompt: str | Sequence[int],
        config: SamplingConfig | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Iterator[str]:
        """Yield the continuation of one prompt in pieces, each as soon as it is certain.

        Joined, the pieces are the text of `generate`. The iterator returns the Completion (the
        value of `yield from`). A beam search yields one piece at its end. progress: as in
        `generate`. Raises GenerationError for more than one sample.
        """
        config = config or SamplingConfig()
        if config.num_samples > 1:
            raise GenerationError(
                f"num_samples is {config.num_samples}, but only one text can be streamed: use "
                "Generator.generate."
            )
        if config.beam_width > 1:
            completion = self._search(prompt, config, progress)[0]
            yield completion.text
            return completion
        row = self._new_row(prompt, self.prompt_ids(prompt), config, 0)
        for tokens in self._write([row], config):
            if progress:
                progress(tokens)
            if row.pieces[-1] and not self.reverses:
                yield row.pieces[-1]
        completion = self._completion(row)
        if self.reverses:
            yield completion.text
        return completion

    def generate(
        self,
        prompts: str | Sequence[str | Sequence[int]],
        config: SamplingConfig | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> list[Completion]:
        """num_samples completions of each prompt: all of the first prompt, then the next, in order.

        A text depends only on its prompt, the seed and its number among the samples of the prompt,
        not on the other prompts. progress(tokens) is called after each step with the number of new
        tokens plus, for a text that ends early, the rest of its max_tokens.
        """
        config = config or SamplingConfig()
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if config.beam_width > 1:
            return [best for p in prompts for best in self._search(p, config, progress)]
        rows = []
        for prompt in prompts:
            ids = self.prompt_ids(prompt)
            rows += [self._new_row(prompt, ids, config, n) for n in range(config.num_samples)]
        for first in range(0, len(rows), self.batch_size):
            for tokens in self._write(rows[first : first + self.batch_size], config):
                if progress:
                    progress(tokens)
        return [self._completion(row) for row in rows]

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """The tokens of a prompt that the model sees: at least one, at most a window.

        Text gets the begin token in front if the model was trained with one. Raises
        GenerationError for an id outside the vocabulary.
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
                "The prompt has %s tokens, but the model sees %s: only its end is used.",
                f"{len(ids):,}",
                f"{window:,}",
            )
        return ids[-window:] or [self._first_id()]

    def _first_id(self) -> int:
        """The token that an empty prompt starts from: the end of text, or else a line end."""
        if self.tokenizer.eot_id is not None:
            return self.tokenizer.eot_id
        try:
            return self.tokenizer.encode("\n")[-1]
        except (TokenizerError, IndexError):
            raise GenerationError(
                "The prompt is empty, and this vocabulary has neither an end of text nor a line "
                "end to start from: give a prompt."
            ) from None

    def _completion(self, row: _Row) -> Completion:
        """What a finished row has written."""
        text = "".join(row.pieces)
        text = text[::-1] if self.reverses else text
        return Completion(row.prompt, text, row.token_ids, row.log_probs, row.stopped_by)

    def check(self, config: SamplingConfig) -> None:
        """GenerationError for text in the options that this vocabulary cannot spell."""
        for name in ("stop", "bad_words"):
            for text in getattr(config, name):
                check_can_be_written(name, text, self.tokenizer)
        bias_of(config.logit_bias, self.tokenizer)

    def _new_row(self, prompt, prompt_ids: list[int], config: SamplingConfig, number: int) -> _Row:
        """An empty row for sample `number` of a prompt, with its own random numbers."""
        random = np.random.default_rng(None if config.seed is None else (config.seed, number))
        before = b"".join(map(self.tokenizer.token_bytes, prompt_ids)) if config.bad_words else b""
        banned = BannedText(config.bad_words, before)
        return _Row(prompt, prompt_ids, TextStream(config.stop), banned, random)

    def _write(self, rows: list[_Row], config: SamplingConfig) -> Iterator[int]:
        """Generate all rows in one batch until each has stopped; yield after each step.

        The yielded numbers add up to len(rows) * max_tokens: the new tokens plus, for a row that
        ends early, the tokens that it does not need.
        """
        with evaluating(self.model):
            prompts = list(dict.fromkeys(tuple(row.prompt_ids) for row in rows))
            # a prompt is processed once for all of its samples
            decoder = Decoder(self.model, prompts, self.native, config.prompt_lookup)
            decoder.select([prompts.index(tuple(row.prompt_ids)) for row in rows])
            seen = self._seen(rows) if config.repetition_penalty != 1 else None
            bias = bias_of(config.logit_bias, self.tokenizer)
            while True:
                chosen, log_probs = self._choose(decoder, rows, config, seen, bias)
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

    def _choose(self, decoder: Decoder, rows: list[_Row], config: SamplingConfig, seen, bias):
        """The next token of each row and its log-probability, as lists."""
        logits = decoder.logits[:, : self.tokenizer.vocab_size]  # the embedding may be padded
        uniforms = [row.random.random() for row in rows]
        chosen, log_probs = (part.tolist() for part in sample(logits, config, uniforms, seen, bias))
        for number, row in enumerate(rows):
            own = slice(number, number + 1)
            allowed = None  # a token that completes a banned text is drawn again without it
            while row.banned.would_appear(self.tokenizer.token_bytes(chosen[number])):
                if allowed is None:
                    allowed = torch.zeros(logits.size(-1)) if bias is None else bias.clone()
                allowed[chosen[number]] = -torch.inf
                marks = None if seen is None else seen[own]
                again = sample(logits[own], config, [row.random.random()], marks, allowed)
                chosen[number], log_probs[number] = (part.item() for part in again)
        return chosen, log_probs

    def _seen(self, rows: list[_Row]) -> torch.Tensor:
        """The ids in each prompt, bool [B, V], without the end of text of an empty prompt."""
        seen = torch.zeros(len(rows), self.tokenizer.vocab_size, dtype=torch.bool)
        for row, marks in zip(rows, seen, strict=True):
            marks[row.prompt_ids] = True
        if self.tokenizer.eot_id is not None:
            seen[:, self.tokenizer.eot_id] = False
        return seen.to(next(self.model.parameters()).device)

    def _take(self, row: _Row, token: int, log_prob: float, config: SamplingConfig) -> None:
        """Add a chosen token to a row and set why the row stops, if it does."""
        row.token_ids.append(token)
        row.log_probs.append(log_prob)
        row.banned.add(self.tokenizer.token_bytes(token))
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
        """The num_samples best continuations of a beam search."""

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
            row = self._new_row(prompt, prompt_ids, config, 0)
            for token, log_prob in zip(hypothesis.token_ids, hypothesis.log_probs, strict=True):
                self._take(row, token, log_prob, config)
            completions.append(self._completion(row))
        return completions
