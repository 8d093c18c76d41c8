"""Checks of the model page: what a token sees, the cache, the settings behind it.

They look at a narrow copy with large random weights (`model/building.py`): at the start a branch
may be zero, and would hide what it computes.
"""

import copy
import dataclasses
import math

import torch

from gptlab.analysis.check import CheckLine, Subject, within
from gptlab.errors import GenerationError
from gptlab.inference.decoding import Decoder
from gptlab.model import kv_cache, reference
from gptlab.model.dropout import dropout_masks
from gptlab.model.proof import computing_plainly

TOKENS = 48  # of a sequence, at most: several times a chunk, and fast
# of the largest logit: float32 rounding reaches 1e-5, an off-by-one 1e-1
ROUNDING = 1e-3
SEEN = 1e-2  # of the largest logit: less is no answer to a changed token


def logits_of(model, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] in float32, without dropout and gradients."""
    with computing_plainly(model):
        return model(tokens)[0].float()


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest expected value; inf where one is nan."""
    largest = max(expected.abs().max().item(), 1e-30)
    return (found - expected).abs().nan_to_num(nan=math.inf).max().item() / largest


def _narrow_tokens(subject: Subject, rows: int, length: int = TOKENS) -> torch.Tensor:
    config = subject.narrow.config
    return subject.tokens(rows, min(length, config.block_size), config.vocab_size)


# What a token sees --------------------------------------------------------------------------------


def causality(subject: Subject) -> CheckLine:
    """Another token changes its own logits and later ones, and none before it."""
    model, tokens = subject.narrow, _narrow_tokens(subject, 2)
    before, T = logits_of(model, tokens), tokens.size(1)
    early, own = 0.0, math.inf
    for position in sorted({1, T // 2, T - 1}):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % model.config.vocab_size
        after = logits_of(model, changed)
        early = max(early, apart(after[:, :position], before[:, :position]))
        own = min(own, apart(after[:, position], before[:, position]))
    if own < SEEN:
        return CheckLine("FAIL", f"a token hardly changes its own logits ({own:.1g})", own)
    return within(
        early,
        ROUNDING,
        "another token changes no logit before it (by {} at most)",
        "another token changes logits before it, by {}: the model sees what it should predict",
    )


def rows_apart(subject: Subject) -> CheckLine:
    """The rows of a batch do not see each other: each is what it is alone."""
    tokens = _narrow_tokens(subject, 3)
    together = logits_of(subject.narrow, tokens)
    alone = torch.cat([logits_of(subject.narrow, row[None]) for row in tokens])
    return within(
        apart(together, alone),
        ROUNDING,
        "a row of a batch has the logits that it has alone (within {})",
        "a row of a batch has other logits than alone, by {}: rows see each other",
    )


def positions(subject: Subject) -> CheckLine:
    """The order of earlier tokens counts; with RoPE, only distances do (Su et al. 2021)."""
    model, tokens = subject.narrow, _narrow_tokens(subject, 2)
    # with one layer nothing but the encoding tells the last token their order
    flat = subject.build_narrow(n_layer=1)
    turned = torch.cat((tokens[:, :-1].flip(1), tokens[:, -1:]), dim=1)
    order = apart(logits_of(flat, turned)[:, -1], logits_of(flat, tokens)[:, -1])
    if order < SEEN and tokens.size(1) > 2:
        return CheckLine("FAIL", f"the order of tokens has no effect ({order:.1g})", order)
    if model.config.position_encoding != "rope":
        return CheckLine("PASS", f"the order of tokens changes logits (by {order:.2g})", order)
    shift = model.config.block_size // 2
    moved = copy.deepcopy(model)
    moved.cos, moved.sin = moved.cos[shift:], moved.sin[shift:]
    tokens = tokens[:, : len(moved.cos)]
    return within(
        apart(logits_of(moved, tokens), logits_of(model, tokens)),
        ROUNDING,
        f"the same tokens {shift} positions later: the same logits (within {{}})",
        f"the same tokens {shift} positions later: other logits, by {{}}, though rotary positions "
        "are relative (which channels turn, and are both queries and keys turned?)",
    )


def grouped_queries(subject: Subject) -> CheckLine:
    """Grouped queries equal plain attention whose key/value heads are repeated."""
    model, config = subject.narrow, subject.narrow.config
    if config.n_kv_head == config.n_head:
        return CheckLine("SKIP", "each head has its own keys and values")
    group, weights = config.n_head // config.n_kv_head, {}
    for name, value in model.state_dict().items():
        if name.split(".")[-2] in ("k_proj", "v_proj"):
            heads = value.unflatten(0, (config.n_kv_head, config.head_dim))
            value = heads.repeat_interleave(group, dim=0).flatten(0, 1)
        weights[name] = value
    plain = type(model)(dataclasses.replace(config, n_kv_head=config.n_head))
    plain.load_state_dict(weights)
    plain.to(subject.device).eval()
    tokens = _narrow_tokens(subject, 2)
    return within(
        apart(logits_of(model, tokens), logits_of(plain, tokens)),
        ROUNDING,
        f"{config.n_kv_head} key/value heads repeated {group} times: the same logits (within {{}})",
        f"{config.n_kv_head} key/value heads repeated {group} times: other logits, by {{}}: heads "
        "are grouped in another order",
    )


# The cache ----------------------------------------------------------------------------------------


def _cached(model, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Logits [B, T, V] of pieces of these sizes, one after the other through a cache."""
    cache = kv_cache.KVCache(model.config, len(tokens), tokens.device)
    with computing_plainly(model):
        pieces = tokens.split(sizes, dim=1)
        return torch.cat([model(piece, cache=cache)[0] for piece in pieces], dim=1)


def _against_full_pass(subject: Subject, sizes_of, what: str) -> CheckLine:
    tokens = _narrow_tokens(subject, 2)
    found = _cached(subject.narrow, tokens, sizes_of(tokens.size(1)))
    return within(
        apart(found, logits_of(subject.narrow, tokens)),
        ROUNDING,
        f"{what}: the logits of the full pass (within {{}})",
        f"{what}: other logits than the full pass, by {{}}",
    )


def cache_by_steps(subject: Subject) -> CheckLine:
    """One token after the other."""
    return _against_full_pass(subject, lambda length: [1] * length, "one token at a time")


def cache_in_chunks(subject: Subject) -> CheckLine:
    """Several tokens after those that are cached, and rows of unequal length."""

    def sizes(length: int) -> list[int]:
        first, second = length // 4, length // 3
        return [first, second, length - first - second]

    line = _against_full_pass(subject, sizes, "in three chunks")
    if line.status == "PASS":
        return _unequal_rows(subject, line)
    return line


def _unequal_rows(subject: Subject, line: CheckLine) -> CheckLine:
    """Two rows of unequal length, padded on the right, and two more tokens in each."""
    model, tokens = subject.narrow, _narrow_tokens(subject, 2)
    T = tokens.size(1)
    lengths, more = [T // 3, T - 2], 2
    padded = tokens.clone()
    padded[0, lengths[0] :] = 0
    cache = kv_cache.KVCache(model.config, 2, tokens.device)
    rows = range(len(lengths))
    with computing_plainly(model):
        model.features(padded[:, : lengths[1]], cache=cache)
        cache.set_lengths(lengths)
        next_ones = torch.stack([tokens[r, lengths[r] : lengths[r] + more] for r in rows])
        found = model(next_ones, cache=cache)[0]
    expected = logits_of(model, tokens)
    expected = torch.stack([expected[r, lengths[r] : lengths[r] + more] for r in rows])
    return within(
        max(line.number, apart(found, expected)),
        ROUNDING,
        "in three chunks, and rows of unequal length: the logits of the full pass (within {})",
        "rows of unequal length: other logits than each alone, by {}: padding is seen",
    )


@torch.inference_mode()
def cache_at_edge(subject: Subject) -> CheckLine:
    """The last slot, the refusal of one more token, and the window that slides in decoding."""
    model, config = subject.narrow, subject.narrow.config
    size = config.block_size
    keep = max(1, size // 2)
    tokens = subject.tokens(1, size + keep // 2 + 2, config.vocab_size)
    decoder = Decoder(model, [tokens[0, : size - 1].tolist()])
    worst = 0.0
    for end in range(size, tokens.size(1) + 1):
        decoder.append([tokens[0, end - 1].item()])
        # of the window that was full, the last block_size // 2 tokens stay
        window = tokens[:, :end] if end <= size else tokens[:, size + 1 - keep : end]
        worst = max(worst, apart(decoder.logits[0], logits_of(model, window)[0, -1]))
    cache = kv_cache.KVCache(config, 1, tokens.device)
    model.features(tokens[:, :size], cache=cache)
    try:
        model.features(tokens[:, :1], cache=cache)
        return CheckLine("FAIL", f"token {size + 1} of a window of {size} is not refused")
    except GenerationError:
        pass
    return within(
        worst,
        ROUNDING,
        f"full at {size} tokens, and sliding after it: the logits of the full pass (within {{}})",
        f"at the edge of {size} tokens: other logits than the full pass, by {{}}",
    )


# The code -----------------------------------------------------------------------------------------


def repeatable(subject: Subject) -> CheckLine:
    """Evaluation draws nothing; training drops, where the settings say so."""
    model = subject.build_narrow(dropout=0.5)
    tokens = _narrow_tokens(subject, 2, subject.narrow.config.block_size)
    masks = [dropout_masks(model.config, seed, range(2), subject.device) for seed in (0, 1)]
    with torch.no_grad():
        model.eval()
        number = apart(model(tokens)[0], model(tokens)[0])
        model.train()
        drops = apart(*(model(tokens, masks=drawn)[0] for drawn in masks))
    if drops < SEEN:
        return CheckLine("WARN", "dropout 0.5 changes nothing in training", drops)
    return within(
        number,
        0.0 if subject.device == "cpu" else ROUNDING,
        "evaluated twice: the same logits, with dropout 0.5 in the settings",
        "evaluated twice, logits differ by {}: dropout or other noise is on in evaluation",
    )


def like_reference(subject: Subject) -> CheckLine:
    """The module against the description in model/reference.py, which other programs share."""
    if reason := reference.disagreement(subject.narrow):
        return CheckLine(
            "WARN",
            f"unlike model/reference.py: {reason}. If you meant that, continue: sampling leaves "
            "the native decoder, and exports refuse",
        )
    return CheckLine("PASS", "the logits of the formulas in model/reference.py")


MODEL_CHECKS = {
    "causality": causality,
    "rows of a batch": rows_apart,
    "positions": positions,
    "grouped queries": grouped_queries,
    "cache by steps": cache_by_steps,
    "cache in chunks": cache_in_chunks,
    "cache at the edge": cache_at_edge,
    "repeatable": repeatable,
    "architecture": like_reference,
}
