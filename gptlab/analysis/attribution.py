"""What a prediction rests on: what each head and MLP adds to its logit, and what is lost without.

A contribution says what a part writes in the direction of a token; an ablation also counts what
later parts made of it.
"""

from collections.abc import Callable, Sequence

import torch

from gptlab.errors import ConfigError
from gptlab.inference.capture import Capture, Means, Part, ablated, head_outputs
from gptlab.model.transformer import GPT, LayerNorm

TOP = 5  # tokens that are named
PASS_LOGITS = 1 << 25  # of one forward pass of ablations: 128 MB

Progress = Callable[[str, int, int], None]


def parse_parts(text: str, model: GPT) -> list[Part]:
    """The parts that --ablate names: 2.3 is head 3 of layer 2, mlp2 the MLP of layer 2.

    Raises ConfigError for a word that names none, or one that the model does not have.
    """
    layers, heads = model.config.n_layer, model.config.n_head
    known = f"the heads are 0.0 to {layers - 1}.{heads - 1} (layer.head)"
    has_mlps = [block.mlp is not None for block in model.blocks]
    if any(has_mlps):
        known += f", the MLPs mlp0 to mlp{layers - 1}"
    parts = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        is_mlp = word.startswith("mlp")
        numbers = [word[3:]] if is_mlp else word.split(".")
        if len(numbers) != 2 - is_mlp or not all(n.isascii() and n.isdigit() for n in numbers):
            raise ConfigError(f"--ablate {word!r} names no head and no MLP", known)
        part = Part(*map(int, numbers))
        is_there = part.layer < layers and (
            has_mlps[part.layer] if part.head is None else part.head < heads
        )
        if not is_there:
            raise ConfigError(f"This model has no {word}", known)
        parts.append(part)
    if not parts:
        raise ConfigError("--ablate is empty", known)
    return list(dict.fromkeys(parts))


@torch.no_grad()
def contributions(model: GPT, captured: Capture, position: int, target: int) -> dict:
    """What each part adds to the logit of `target` after `position` (Elhage et al. 2021, 2).

    The final norm's scale is frozen at what it is, so the logit is a sum over what was written to
    the residual stream. embedding: of token and position.
    """
    norm, stream = model.final_norm, captured.residual[-1, position]  # [C]
    direction = norm.weight.float() * model.lm_head.weight[target].float()  # [C]
    constant = 0.0
    if isinstance(norm, LayerNorm):
        direction = direction / (stream.var(unbiased=False) + norm.eps).sqrt()
        direction = direction - direction.mean()  # the norm removes the mean of each part
        if norm.bias is not None:
            constant = float(norm.bias.float() @ model.lm_head.weight[target].float())
    else:
        direction = direction / (stream.square().mean() + norm.eps).sqrt()
    heads = head_outputs(model, captured)[:, :, position]  # [L, H, C]
    of_heads, of_mlps = heads @ direction, captured.mlp_out[:, position] @ direction
    parts = [("embedding", float(captured.residual[0, position] @ direction))]
    for layer, block in enumerate(model.blocks):
        parts += [(str(Part(layer, h)), v) for h, v in enumerate(of_heads[layer].tolist())]
        if block.mlp is not None:
            parts.append((str(Part(layer)), float(of_mlps[layer])))
        if block.attention.o_proj.bias is not None:
            constant += float(block.attention.o_proj.bias.float() @ direction)
    if constant:
        parts.append(("biases", constant))
    return {
        "logit": float(captured.logits[position, target]),
        "parts": [{"part": part, "logit": logit} for part, logit in parts],
    }


@torch.no_grad()
def ablations(
    model: GPT,
    tokens: Sequence[int],
    position: int,
    target: int,
    known: int,
    means: Means,
    chosen: Sequence[Part] = (),
    progress: Progress = lambda stage, advance, total: None,
) -> dict:
    """The losses of the whole model, and without each part and without the `chosen` ones together.

    Form: that of the view "ablation" in lens.py. known: ids of the vocabulary. means: what the
    parts become. progress: called with "ablating", parts done since the last call, their total.
    """
    ids = torch.tensor(tokens)

    def measured(logits) -> dict:
        logits = logits[:, :known].float()
        log_probs = logits.log_softmax(-1)
        real = log_probs[:-1].gather(1, ids[1:, None])
        of_target = log_probs[position, target]
        return {
            "loss": -float(of_target),
            "text_loss": -float(real.mean()) if len(ids) > 1 else None,
            "top": likeliest(log_probs[position].exp()),
            "probability": four_figures(float(of_target.exp())),
        }

    def without(parts, rows=None) -> torch.Tensor:
        with ablated(model, parts, means, rows):
            return model(ids.expand(max(rows or [0]) + 1, -1))[0]

    every = [Part(layer, h) for layer in range(len(model.blocks)) for h in _branches(model, layer)]
    at_once = max(1, min(16, PASS_LOGITS // (len(ids) * model.config.vocab_size)))
    found = []
    for first in range(0, len(every), at_once):
        some = every[first : first + at_once]
        logits = without(some, list(range(len(some))))
        found += [
            {"parts": [str(part)], **measured(row)} for part, row in zip(some, logits, strict=True)
        ]
        progress("ablating", len(some), len(every))
    together = None
    if chosen:
        together = {"parts": list(map(str, chosen)), **measured(without(chosen)[0])}
    return {**measured(model(ids[None])[0][0]), "parts": found, "chosen": together}


def _branches(model: GPT, layer: int) -> list[int | None]:
    """The heads of a layer, and None for its MLP."""
    return [*range(model.config.n_head), *[None] * (model.blocks[layer].mlp is not None)]


def likeliest(probabilities: torch.Tensor) -> list[list]:
    """[id, probability] of the few likeliest tokens, by their probabilities [V]."""
    top = probabilities.topk(min(TOP, len(probabilities)))
    both = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [[token, four_figures(chance)] for token, chance in both]


def four_figures(probability: float) -> float:
    """Four significant figures, for a small page."""
    return float(f"{probability:.4g}")
