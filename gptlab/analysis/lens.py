"""What a model computes for one prompt, as views: plain lists, which the screen and the page draw.

    {
      "format_version": 1,
      "model": {"name", "layers": L, "heads": H, "channels": C, "vocab_size": V, "parameters"},
      "prompt": text,
      "tokens": [T] ids,
      "texts": {id as a string: its text}, of every id anywhere in here,
      "position": whose next token is explained,      "target": id of that token,
      "views": {name: {"title", "sentence", "reference", ...}} in the order of VIEWS:
        "lens":          "layers": [L + 1][T] of {"top": [[id, probability] x 5], "next": [rank from
                         1, probability] of the real next token, null at the end}; layer l is the
                         stream before block l, layer L the model's output.
                         "tuned": the same with trained translators, or null
        "attention":     "weights": [L][H][T][t + 1]; row t has the tokens 0 to t
        "contributions": "logit": of the target; "parts": [{"part", "logit"}], which add up to it;
                         part is embedding, 2.3 (layer.head), mlp2, or biases
        "ablation":      "means": in words, what the means are of; "loss": of the target at the
                         position, "text_loss": mean over the prompt (null for one token), "top"
                         as in the lens, "probability" of the target; "parts": [{"parts":
                         ["2.3"], "loss", "text_loss", "top", "probability"}] of the model
                         without them; "chosen": the same for --ablate, or null
        "heads":         "threshold"; "previous", "induction", "duplicate": [L][H] scores from 0 to
                         1; "found": {kind: [names of the heads from the threshold on, best first]}
        "surprise":      "nats": [T], of each token after those before it; null for the first
        "neighbours":    "nearest": {id as a string: [[id, cosine] x 8]} of each distinct token
      "left_out": {name of a view: why this model or prompt has none}
    }

Losses and surprise are in nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from gptlab.analysis.attribution import Progress, ablations, contributions, four_figures, likeliest
from gptlab.analysis.trace import training_data
from gptlab.data.token_files import Dataset
from gptlab.data.tokenizer import Tokenizer
from gptlab.errors import ConfigError, DataError, GenerationError, GPTLabError
from gptlab.inference.capture import (
    Capture,
    Means,
    Part,
    capture,
    head_scores,
    mean_outputs,
    plain_ids,
)
from gptlab.model.arithmetic import active_in_words
from gptlab.model.transformer import GPT
from gptlab.runs import Run
from gptlab.training.head_curves import HEAD_THRESHOLD

MOST_WEIGHTS = 5_000_000  # of attention in all heads; a page of them has some 25 MB
NEAREST = 8  # tokens that are named
MEAN_TOKENS, MEAN_SIZE = 1024, 256  # of validation text for means; of a sequence of it


class View(NamedTuple):
    """What a view is called and shows, in a sentence for newcomers, and whose idea it is."""

    title: str
    sentence: str
    reference: str


VIEWS = {
    "lens": View(
        "What the model would say at each layer",
        "Each row is a token of the prompt; from left to right, the next token that the model "
        "would guess if it stopped after that layer.",
        "logit lens: nostalgebraist 2020",
    ),
    "attention": View(
        "Where each head looks",
        "To read a token, a head looks back at earlier tokens; the weights of a row say how much "
        "at which, and add up to one.",
        "Vaswani et al. 2017",
    ),
    "contributions": View(
        "Who votes for the next token",
        "The score (logit) of a next token is a sum: so much comes from the embedding, so much "
        "from each head and MLP.",
        "direct logit attribution: Elhage et al. 2021",
    ),
    "ablation": View(
        "What the prediction needs",
        "Each head and MLP is replaced by its average, one at a time: where the loss rises most, "
        "the prediction needs it most.",
        "mean ablation: Wang et al. 2022",
    ),
    "heads": View(
        "Heads with a known job",
        "On random tokens that come twice, some heads look at the token before, at the same token "
        "earlier, or at what followed it (induction: how a model copies a pattern).",
        "Olsson et al. 2022",
    ),
    "surprise": View(
        "What surprises the model",
        "The more unlikely the model found a token after those before it, the stronger its colour.",
        "surprisal: Shannon 1948",
    ),
    "neighbours": View(
        "Tokens that are alike to the model",
        "Each token is a vector; tokens whose vectors point almost the same way are used alike.",
        "Mikolov et al. 2013",
    ),
}


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model sees it, and the prediction that is explained.

    ids: with the begin token in front, if the model was trained with one. target: the token after
    `position` whose score is explained; None for the likeliest.
    """

    text: str
    ids: tuple[int, ...]
    position: int
    target: int | None = None


def read_prompt(
    text: str,
    model: GPT,
    tokenizer: Tokenizer,
    position: int | None = None,
    target: str | None = None,
) -> Prompt:
    """The prompt as tokens; position None is the last, target None the likeliest token.

    Raises ConfigError for a prompt that is empty or too long for the window or the lens, a position
    outside it, or a target that is not one token; TokenizerError for unknown characters.
    """
    ids = tokenizer.encode(text)
    if not ids:
        raise ConfigError("The prompt is empty", "give a few words with --prompt TEXT")
    if tokenizer.bos_id is not None:
        ids.insert(0, tokenizer.bos_id)
    window, heads = model.config.block_size, model.config.n_layer * model.config.n_head
    longest = int((2 * MOST_WEIGHTS / heads) ** 0.5)
    if len(ids) > window:
        raise ConfigError(
            f"The prompt has {len(ids):,} tokens and the model's window is {window:,}",
            "give a shorter prompt",
        )
    if len(ids) > longest:
        raise ConfigError(
            f"The prompt has {len(ids):,} tokens, and of a model of {heads:,} heads the lens shows "
            f"{longest:,} at most",
            "give a shorter prompt",
        )
    if position is None:
        position = len(ids) - 1
    elif not 0 <= position < len(ids):
        raise ConfigError(
            f"--position is {position}, and the prompt's tokens are 0 to {len(ids) - 1}",
            "choose one of them",
        )
    wanted = None if target is None else tokenizer.encode(target)
    if wanted is not None and len(wanted) != 1:
        raise ConfigError(
            f"--target {target!r} is {len(wanted)} tokens of this model", "name a single token"
        )
    return Prompt(text, tuple(ids), position, wanted and wanted[0])


def validation_sequences(run: Run, count: int, size: int) -> list[list[int]]:
    """At most `count` sequences of `size` tokens, evenly spread over the run's validation text.

    Raises a GPTLabError where there is no validation text of so many tokens: DataError, or the
    reason why the run's data cannot be opened.
    """
    parts = [part for part in training_data(run) if isinstance(part, Dataset)]  # a task has no text
    sequences = []
    for part in parts:
        possible = len(part.val) // size
        chosen = min(possible, -(-count // len(parts)))
        for number in range(chosen):
            start = number * possible // chosen * size
            sequences.append([int(i) for i in part.val[start : start + size]])
    if not sequences:
        raise DataError(f"it has no text of {size:,} tokens for validation")
    return sequences


def known_means(model: GPT, run: Run | None) -> tuple[Means, str] | None:
    """What each part writes on average over the run's validation text, and how much, in words.

    None where there is no such text.
    """
    size = min(MEAN_SIZE, model.config.block_size)
    try:
        sequences = validation_sequences(run, MEAN_TOKENS // size, size) if run else []
    except (GPTLabError, OSError):
        return None
    words = f"{len(sequences) * size:,} tokens of the validation text"
    return (mean_outputs(model, sequences), words) if sequences else None


def make_views(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: Prompt,
    wanted: Sequence[str] = tuple(VIEWS),
    *,
    name: str = "",
    means: tuple[Means, str] | None = None,
    chosen: Sequence[Part] = (),
    translators: tuple[torch.Tensor, torch.Tensor] | None = None,
    progress: Progress = lambda stage, advance, total: None,
) -> dict:
    """The views `wanted` of a prompt, as the module's docstring has them.

    means: for ablations, as `known_means` has them; None for those of the prompt. chosen: the parts
    that are ablated together. translators: weights [L, C, C] and biases [L, C] of the tuned lens.
    progress: called with "ablating", parts done since the last call, and their total.
    """
    captured = capture(model, prompt.ids)
    known = tokenizer.vocab_size  # the embedding may be padded
    target = prompt.target
    if target is None:
        target = int(captured.logits[prompt.position, :known].argmax())
    views, left_out = {}, {}
    for view in VIEWS:
        if view not in wanted:
            continue
        if view == "lens":
            content = {
                "layers": _lens(model, captured, prompt.ids, known),
                "tuned": translators and _lens(model, captured, prompt.ids, known, *translators),
            }
        elif view == "attention":
            content = {"weights": _lower_triangles(captured.attention)}
        elif view == "contributions":
            content = contributions(model, captured, prompt.position, target)
        elif view == "ablation":
            own = Means(captured.mixed.mean(2), captured.mlp_out.mean(1))
            words = f"the {len(prompt.ids):,} tokens of the prompt (there is no validation text)"
            values, of_what = means or (own, words)
            content = {"means": of_what} | ablations(
                model, prompt.ids, prompt.position, target, known, values, chosen, progress
            )
        elif view == "heads":
            try:
                content = _scores(model, tokenizer)
            except GenerationError as error:
                left_out[view] = str(error)
                continue
        elif view == "surprise":
            content = {"nats": _surprise(captured.logits[:, :known], prompt.ids)}
        else:
            content = {"nearest": _neighbours(model, set(prompt.ids), known)}
        views[view] = VIEWS[view]._asdict() | content
    config = model.config
    made = {
        "format_version": 1,
        "model": {
            "name": name,
            "layers": config.n_layer,
            "heads": config.n_head,
            "channels": config.n_embd,
            "vocab_size": known,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "active": active_in_words(config),
        },
        "prompt": prompt.text,
        "tokens": list(prompt.ids),
        "texts": {},
        "position": prompt.position,
        "target": target,
        "views": views,
        "left_out": left_out,
    }
    made["texts"] = _texts(tokenizer, _ids_in(made))
    return made


def layer_logits(model: GPT, residual: torch.Tensor, weight=None, bias=None) -> torch.Tensor:
    """What the model would say of a residual stream [..., C]: logits [..., V].

    The final norm and the unembedding follow at once (logit lens, nostalgebraist 2020), after the
    translator of the layer where there is one: x + x W^T + b (Belrose et al. 2023).
    """
    if weight is not None:
        residual = residual + F.linear(residual, weight, bias)
    return model.unembed(model.final_norm(residual))


@torch.no_grad()
def _lens(model: GPT, captured: Capture, ids, known: int, weights=None, biases=None) -> list:
    layers = []
    after = torch.tensor(ids[1:], dtype=torch.long)[:, None]  # [T - 1, 1]
    for layer, residual in enumerate(captured.residual):
        translator = ()
        if weights is not None and layer < len(weights):  # the last layer is the output itself
            translator = weights[layer], biases[layer]
        logits = layer_logits(model, residual, *translator)[:, :known].float()
        probabilities = logits.softmax(-1)
        ranks = (logits[:-1] > logits[:-1].gather(1, after)).sum(1) + 1
        chances = probabilities[:-1].gather(1, after)[:, 0]
        following = [
            [rank, four_figures(chance)]
            for rank, chance in zip(ranks.tolist(), chances.tolist(), strict=True)
        ]
        layers.append(
            [
                {"top": likeliest(row), "next": real}
                for row, real in zip(probabilities, [*following, None], strict=True)
            ]
        )
    return layers


def _lower_triangles(attention: torch.Tensor) -> list:
    return [
        [[[round(w, 3) for w in row[: t + 1]] for t, row in enumerate(head)] for head in layer]
        for layer in attention.tolist()
    ]


def _scores(model: GPT, tokenizer: Tokenizer) -> dict:
    scores = head_scores(model, plain_ids(tokenizer, model.config.vocab_size))
    found = {}
    for kind, table in scores.items():
        ranked = sorted(
            ((score, Part(n, h)) for n, row in enumerate(table) for h, score in enumerate(row)),
            reverse=True,
        )
        found[kind] = [str(part) for score, part in ranked if score >= HEAD_THRESHOLD]
        scores[kind] = [[round(score, 4) for score in row] for row in table]
    return {"threshold": HEAD_THRESHOLD, **scores, "found": found}


def _surprise(logits: torch.Tensor, ids: Sequence[int]) -> list[float | None]:
    losses = F.cross_entropy(logits[:-1], torch.tensor(ids[1:], dtype=torch.long), reduction="none")
    return [None, *[round(loss, 4) for loss in losses.tolist()]]


@torch.no_grad()
def _neighbours(model: GPT, ids: set[int], known: int) -> dict[str, list]:
    vectors = F.normalize(model.token_embedding.weight[:known].float(), dim=-1)  # [V, C]
    nearest = {}
    for i in sorted(ids):
        cosines = vectors @ vectors[i]
        cosines[i] = -torch.inf  # every token is nearest to itself
        best = cosines.topk(min(NEAREST, known - 1))
        nearest[str(i)] = [
            [j, round(c, 4)] for j, c in zip(*(x.tolist() for x in best[::-1]), strict=True)
        ]
    return nearest


def _texts(tokenizer: Tokenizer, ids: set[int]) -> dict[str, str]:
    """The text of each id; U+FFFD where it is only a part of a character."""
    special = {number: text for text, number in tokenizer.special_ids.items()}
    return {
        str(i): special.get(i) or tokenizer.token_bytes(i).decode("utf-8", "replace")
        for i in sorted(ids)
    }


def _ids_in(made: dict) -> set[int]:
    """Every id in the views."""
    found = {*made["tokens"], made["target"]}
    views = made["views"]
    lens = views.get("lens", {})
    for layers in (lens.get("layers"), lens.get("tuned")):
        found |= {i for row in layers or () for cell in row for i, _ in cell["top"]}
    ablation = views.get("ablation")
    if ablation:
        rows = [ablation, *ablation["parts"], *[ablation["chosen"]] * bool(ablation["chosen"])]
        found |= {i for row in rows for i, _ in row["top"]}
    for near in views.get("neighbours", {}).get("nearest", {}).values():
        found |= {i for i, _ in near}
    return found
