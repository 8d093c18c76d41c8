"""Decode rows of tokens with a KV cache: the logits of each row's next token.

Sampling and beam search build on this. It handles tokens only, not text.
"""

import contextlib

import torch

from gptlab.inference.native import MOST_TOKENS, NativeDecoder
from gptlab.inference.speculation import PromptLookup
from gptlab.model.kv_cache import KVCache
from gptlab.model.transformer import GPT

# the time of one more token in a step of torch, as a share of a step of one token; on a GPU a step
# waits for memory and for kernel launches, whatever the number of tokens
COST_ON_CPU, COST_ON_GPU = 0.35, 0.05


@contextlib.contextmanager
def evaluating(model: torch.nn.Module):
    """Put the model into evaluation mode (no dropout), and afterwards back into its former mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class Decoder:
    """A batch of rows with a KV cache: `logits` [B, V] are those of the token after each row.

    A row sees at most block_size tokens. When one more is needed it keeps its last block_size // 2,
    which are cached again from position 0: each token is computed at most twice, so long texts take
    linear time. `GPT.generate` has the same rule. native: takes the steps of a few rows instead of
    torch. drafts: up to so many draft tokens, which the text of a single row suggests, are computed
    along with a step (`speculation.PromptLookup`). Where the row continues with them, their logits
    are there already; otherwise they are dropped. So the text is the same as without them: to the
    bit with native, within float32 rounding in torch.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: GPT,
        prompts: list[list[int]],
        native: NativeDecoder | None = None,
        drafts: int = 0,
    ):
        self.model, self.native = model, native
        weight = next(model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        # in 16 bits the likeliest tokens are often equal within rounding, which depends on how many
        # tokens torch computes at once: a draft would change the text
        self.drafts = drafts if native or torch.finfo(self.dtype).bits >= 32 else 0
        self.lookup = None
        self.ahead = []  # (token, logits [1, V] after it) of draft tokens not yet accepted
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
        lookup = self._lookup_of(tokens)
        accepted = bool(self.ahead) and self.ahead[0][0] == tokens[0]
        if not accepted:
            self.ahead = []
            self._slide_full_rows()
        for context, token in zip(self.contexts, tokens, strict=True):
            context.append(token)
        if accepted:
            _, self.logits = self.ahead.pop(0)
            self.cache.advance(1)  # over the slot of the draft token
            return
        room = self.model.config.block_size - self.cache.lengths[0] - 1
        draft = lookup.draft(room) if lookup else []
        logits = self._step([[token, *draft] for token in tokens])
        self.logits = logits[:, 0]
        if draft:  # a row holds chosen tokens only: a rejected draft is overwritten
            self.cache.advance(-len(draft))
            self.ahead = [(token, logits[:, n]) for n, token in enumerate(draft, start=1)]

    def _step(self, tokens: list[list[int]]) -> torch.Tensor:
        """Logits [B, T, V] after each of T more tokens of each row."""
        piece = torch.tensor(tokens, device=self.device)
        if self.native is not None and piece.numel() <= MOST_TOKENS:
            return self.native.step(piece, self.cache)
        return self.model.unembed(self.model.features(piece, cache=self.cache))

    def _lookup_of(self, tokens: list[int]) -> PromptLookup | None:
        """The source of draft tokens after these next tokens; None without drafts."""
        if not self.drafts or len(tokens) > 1:
            return None
        if self.lookup is None:
            if self.native is not None:
                cost = self.native.token_cost
            else:
                cost = COST_ON_CPU if self.device.type == "cpu" else COST_ON_GPU
            self.lookup = PromptLookup(self.contexts[0], self.drafts, cost)
        self.lookup.add(tokens[0])
        return self.lookup

    def _slide_full_rows(self) -> None:
        """Shorten full rows, so that with the next token they hold block_size // 2."""
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
        """Make row i a copy of row `rows[i]`: drop rows, repeat them, change their order."""
        if rows == list(range(len(self.contexts))):
            return
        self.lookup, self.ahead = None, []
        index = torch.tensor(rows, device=self.device)
        self.cache.select(index)
        self.contexts = [list(self.contexts[row]) for row in rows]
        self.logits = self.logits[index]
