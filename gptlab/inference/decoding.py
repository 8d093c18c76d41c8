"""Rows of tokens that grow, with their keys and values cached: what the next token may be.

Sampling and beam search both stand on this. It knows nothing of text.
"""

import contextlib

import torch

from gptlab.inference.native import MOST_ROWS, NativeDecoder
from gptlab.model.kv_cache import KVCache
from gptlab.model.transformer import GPT


@contextlib.contextmanager
def evaluating(model: torch.nn.Module):
    """The model in evaluation mode (no dropout), and afterwards in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class Decoder:
    """A batch of rows with a KV cache: `logits` [B, V] are those of the token after each row.

    A row sees at most block_size tokens. When one more is needed it keeps its last block_size // 2,
    which are cached anew from position 0: each token is then computed at most twice, so long
    texts take linear time. The same rule as in `GPT.generate`. native: what takes the steps of a
    few rows instead of torch.
    """

    @torch.inference_mode()
    def __init__(self, model: GPT, prompts: list[list[int]], native: NativeDecoder | None = None):
        self.model, self.native = model, native
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.contexts = [list(prompt[-model.config.block_size :]) for prompt in prompts]
        self.cache, hidden = self._prefill(self.contexts)
        last = torch.tensor([len(context) - 1 for context in self.contexts], device=self.device)
        self.logits = model.unembed(hidden[torch.arange(len(prompts), device=self.device), last])

    def _prefill(self, rows: list[list[int]]) -> tuple[KVCache, torch.Tensor]:
        """A new cache that holds these rows, and their hidden states [B, T, C]."""
        lengths = [len(row) for row in rows]
        padded = [row + [0] * (max(lengths) - len(row)) for row in rows]
        cache = KVCache(self.model.config, len(rows), self.device, self.dtype)
        hidden = self.model.features(torch.tensor(padded, device=self.device), cache=cache)
        cache.set_lengths(lengths)
        return cache, hidden

    @torch.inference_mode()
    def append(self, tokens: list[int]) -> None:
        """Add one token to each row, and compute the logits of the one after it."""
        self._slide_full_rows()
        for context, token in zip(self.contexts, tokens, strict=True):
            context.append(token)
        column = torch.tensor(tokens, device=self.device)[:, None]
        if self.native is not None and len(tokens) <= MOST_ROWS:
            self.logits = self.native.step(column[:, 0], self.cache)
            return
        self.logits = self.model.unembed(self.model.features(column, cache=self.cache)[:, -1])

    def _slide_full_rows(self) -> None:
        """Let full rows keep so many tokens that with the next one they hold block_size // 2."""
        block_size = self.model.config.block_size
        full = [row for row, length in enumerate(self.cache.lengths) if length == block_size]
        if not full:
            return
        keep = max(1, block_size // 2) - 1
        for row in full:
            self.contexts[row] = self.contexts[row][block_size - keep :]
        if keep:
            refilled, _ = self._prefill([self.contexts[row] for row in full])
            for index, row in enumerate(full):
                self.cache.take_row(row, refilled, index)
        else:
            self.cache.set_lengths(
                [0 if row in full else length for row, length in enumerate(self.cache.lengths)]
            )

    @torch.inference_mode()
    def select(self, rows: list[int]) -> None:
        """Let row i become a copy of row `rows[i]`: drop rows, repeat them, change their order."""
        if rows == list(range(len(self.contexts))):
            return
        index = torch.tensor(rows, device=self.device)
        self.cache.select(index)
        self.contexts = [list(self.contexts[row]) for row in rows]
        self.logits = self.logits[index]
