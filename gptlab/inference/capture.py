"""Look inside a model from outside: what each block, head and MLP reads and writes, and without it.

Hooks on blocks, attention and MLPs see the residual stream and what is added to it. The calls of
`F.scaled_dot_product_attention` are intercepted, so the attention shown is that of the very q and k
which the model used, after its norms and rotation. The model itself does not change.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from gptlab.data.tokenizer import Tokenizer
from gptlab.errors import GenerationError
from gptlab.inference.decoding import evaluating
from gptlab.model.lora import LoRALinear
from gptlab.model.transformer import GPT

SCORE_TOKENS, SCORE_SEQUENCES = 50, 4  # random tokens, each sequence twice; sequences


class Part(NamedTuple):
    """A head of a layer, or (head None) the layer's MLP; its name is 2.3 or mlp2."""

    layer: int
    head: int | None = None

    def __str__(self) -> str:
        return f"mlp{self.layer}" if self.head is None else f"{self.layer}.{self.head}"


@dataclass(frozen=True)
class Capture:
    """What a model computed for one sequence of T tokens, in L layers of H heads; float32.

    residual: [L + 1, T, C], the stream before each block and after the last. attention: weights
    [L, H, T, T], each row sums to one. mixed: [L, H, T, D], the values that each head mixed, before
    o_proj. attention_out, mlp_out: [L, T, C], what is added to the stream; zeros for no MLP.
    logits: [T, V].
    """

    residual: torch.Tensor
    attention: torch.Tensor
    mixed: torch.Tensor
    attention_out: torch.Tensor
    mlp_out: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True)
class Means:
    """What each part writes on average: heads [L, H, D] before o_proj, mlps [L, C]."""

    heads: torch.Tensor
    mlps: torch.Tensor


class _HeadOutputs(TorchFunctionMode):
    """Passes each layer's attention to `visit(layer, arguments, y)`, whose result takes y's place.

    layer: that of the block whose attention runs; set by a hook.
    """

    def __init__(self, visit):
        super().__init__()
        self.visit, self.layer, self.seen = visit, -1, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is not F.scaled_dot_product_attention or self.layer < 0:
            return result
        self.seen += 1
        return self.visit(self.layer, (args, kwargs or {}), result)


@contextlib.contextmanager
def _visiting(model: GPT, visit, hooks: Iterable = ()) -> Iterator[_HeadOutputs]:
    """Run the block in evaluation mode with `visit` at each layer's heads; hooks end with it."""
    mode = _HeadOutputs(visit)
    handles = list(hooks)
    for layer, block in enumerate(model.blocks):

        def enter(module, inputs, layer=layer):
            mode.layer = layer

        def leave(module, inputs, output):
            mode.layer = -1

        handles.append(block.attention.register_forward_pre_hook(enter))
        handles.append(block.attention.register_forward_hook(leave))
    try:
        with evaluating(model), torch.no_grad(), mode:
            yield mode
    finally:
        for handle in handles:
            handle.remove()


def capture(model: GPT, tokens: Sequence[int]) -> Capture:
    """What the model computes for these token ids, at most a window of them.

    Raises GenerationError where the attention does not call `F.scaled_dot_product_attention` once
    in each layer (an edited model page).
    """
    found: dict[str, dict[int, torch.Tensor]] = {}

    def keep(name: str, layer: int, value: torch.Tensor) -> None:
        found.setdefault(name, {})[layer] = value[0].detach().float()

    def visit(layer, arguments, y):
        args, kwargs = arguments
        keep("mixed", layer, y)
        keep("attention", layer, attention_weights(*args, **kwargs))
        return y

    hooks = []
    for layer, block in enumerate(model.blocks):
        hooks.append(
            block.register_forward_pre_hook(
                lambda module, inputs, layer=layer: keep("residual", layer, inputs[0])
            )
        )
        branches = [("attention_out", block.attention), ("mlp_out", block.mlp)]
        for name, branch in branches:
            if branch is not None:
                hooks.append(
                    branch.register_forward_hook(
                        lambda module, inputs, output, layer=layer, name=name: keep(
                            name, layer, output
                        )
                    )
                )
    last = len(model.blocks)
    hooks.append(
        model.blocks[-1].register_forward_hook(
            lambda module, inputs, output: keep("residual", last, output)
        )
    )
    device = next(model.parameters()).device
    with _visiting(model, visit, hooks) as mode:
        logits = model(torch.tensor([list(tokens)], device=device))[0]
    if mode.seen != last:
        raise GenerationError(
            f"The model's attention calls F.scaled_dot_product_attention {mode.seen} times in "
            f"{last} layers, so its heads cannot be seen",
            "compute attention with it, once in each layer",
        )
    silent = torch.zeros_like(found["residual"][0])  # what a missing MLP adds
    found["mlp_out"] = {n: found.get("mlp_out", {}).get(n, silent) for n in range(last)}
    stacked = {
        name: torch.stack([values[n] for n in sorted(values)]) for name, values in found.items()
    }
    return Capture(logits=logits[0].float(), **stacked)


def attention_weights(
    q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
) -> torch.Tensor:
    """The weights [B, H, T, S] of `F.scaled_dot_product_attention` with these arguments.

    softmax(q k^T / sqrt(D)), masked (Vaswani et al. 2017); q [B, H, T, D], k [B, K, S, D].
    """
    k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)  # [B, H, S, D]
    scores = q.float() @ k.float().transpose(-2, -1)  # [B, H, T, S]
    scores *= 1 / math.sqrt(q.size(-1)) if scale is None else scale
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores.masked_fill_(later, -torch.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores.masked_fill_(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores += attn_mask
    return scores.softmax(-1)


def head_outputs(model: GPT, captured: Capture) -> torch.Tensor:
    """What each head adds to the residual stream, [L, H, T, C]: its values through o_proj.

    Its bias, where it has one, belongs to no head.
    """
    added = []
    for block, mixed in zip(model.blocks, captured.mixed, strict=True):
        projection = block.attention.o_proj
        is_adapted = isinstance(projection, LoRALinear)
        weight = projection.merged_weight() if is_adapted else projection.weight  # [C, H D]
        heads, _, size = mixed.shape
        of_heads = weight.detach().float().view(-1, heads, size).permute(1, 2, 0)  # [H, D, C]
        added.append(mixed @ of_heads)
    return torch.stack(added)


def mean_outputs(model: GPT, sequences: Iterable[Sequence[int]]) -> Means:
    """The means of each part's output over all tokens of some sequences of equal length."""
    heads, mlps = [], []
    for tokens in sequences:
        captured = capture(model, tokens)
        heads.append(captured.mixed.mean(2))
        mlps.append(captured.mlp_out.mean(1))
    return Means(torch.stack(heads).mean(0), torch.stack(mlps).mean(0))


@contextlib.contextmanager
def ablated(
    model: GPT, parts: Sequence[Part], means: Means, rows: Sequence[int] | None = None
) -> Iterator[None]:
    """Inside, the outputs of some parts are their means, at every position (mean ablation).

    rows: for each part the row of the batch that goes without it; None for all rows.
    """
    places = [slice(None)] * len(parts) if rows is None else list(rows)
    chosen = list(zip(parts, places, strict=True))

    def visit(layer, arguments, y):
        for part, row in chosen:
            if part.layer == layer and part.head is not None:
                y = y.clone()
                y[row, part.head] = means.heads[layer, part.head].to(y.dtype)
        return y

    def without(layer, output):
        output = output.clone()
        for part, row in chosen:
            if part == (layer, None):
                output[row] = means.mlps[layer].to(output.dtype)
        return output

    hooks = [
        model.blocks[layer].mlp.register_forward_hook(
            lambda module, inputs, output, layer=layer: without(layer, output)
        )
        for layer in {part.layer for part in parts if part.head is None}
    ]
    with _visiting(model, visit, hooks):
        yield


def head_scores(
    model: GPT, ids: Sequence[int], seed: int = 0, sequences: int = SCORE_SEQUENCES
) -> dict[str, list[list[float]]]:
    """How much each head attends by a rule, on random tokens that come twice (Olsson et al. 2022).

    {"previous", "induction", "duplicate"}: [L][H], the mean attention from 0 to 1 on the token
    before; in the second half, on the token that followed the same token before, and on the same
    token itself. ids: to draw from, each at most once in a half, so that a match is unique.
    Raises GenerationError for fewer than two ids, or a window below four tokens.
    """
    half = min(SCORE_TOKENS, model.config.block_size // 2, len(ids))
    if half < 2:
        raise GenerationError(
            "Scores of heads need a window of four tokens or more, and two different tokens."
        )
    random = torch.Generator().manual_seed(seed)
    patterns = []
    for _ in range(sequences):
        drawn = [ids[i] for i in torch.randperm(len(ids), generator=random)[:half].tolist()]
        patterns.append(capture(model, drawn + drawn).attention)
    return pattern_scores(torch.stack(patterns).mean(0), half)


def plain_ids(tokenizer: Tokenizer | None, vocab_size: int) -> list[int]:
    """The ids that stand for text: without rows that pad a table, without special ids."""
    if tokenizer is None:
        return list(range(vocab_size))
    special = set(tokenizer.special_ids.values())
    return [i for i in range(tokenizer.vocab_size) if i not in special]


def pattern_scores(attention: torch.Tensor, half: int) -> dict[str, list[list[float]]]:
    """The scores of `head_scores` from attention [L, H, T, T] on `half` tokens that come twice."""

    def towards(distance: int, first: int) -> list[list[float]]:
        # the diagonal has the rows from `distance` on
        return attention.diagonal(-distance, -2, -1)[..., first - distance :].mean(-1).tolist()

    return {
        "previous": towards(1, 1),
        "induction": towards(half - 1, half),
        "duplicate": towards(half, half),
    }
