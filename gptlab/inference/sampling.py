"""Choose the next token from its logits: pure functions on a batch of rows.

Shapes: B rows, V token ids. Excluded ids have the logit -inf. Among equally likely tokens the lower
id comes first, so that the result never depends on how a sort breaks ties.
"""

import torch

from gptlab.errors import GenerationError
from gptlab.inference.config import SamplingConfig


def apply_repetition_penalty(logits, seen, penalty: float):
    """Make the ids in `seen` (bool [B, V]) less likely, for penalty > 1 (Keskar et al. 2019)."""
    weakened = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, weakened, logits)


def keep_top_k(logits, k: int):
    """Exclude all but the k likeliest ids of each row; k = 0 or k >= V excludes none."""
    if k == 0 or k >= logits.size(-1):
        return logits
    smallest = logits.topk(k).values[:, -1:]  # [B, 1]
    return _keep_largest(logits, smallest, k)


def keep_top_p(logits, p: float):
    """Keep the smallest set of likeliest ids that together hold probability p or more.

    Nucleus sampling (Holtzman et al. 2020). The likeliest id is always kept.
    """
    if p >= 1:
        return logits
    candidates = int((logits > -torch.inf).sum(-1).max())  # few after top-k, so topk beats a sort
    values = logits.topk(max(1, candidates)).values  # [B, n], descending
    mass = values.double().softmax(-1)
    before = mass.cumsum(-1) - mass  # mass of the likelier ids
    count = (before < p).sum(-1, keepdim=True).clamp_min(1)  # [B, 1]
    return _keep_largest(logits, values.gather(-1, count - 1), count)


def keep_min_p(logits, p: float):
    """Exclude ids with less than p times the probability of the likeliest (Nguyen et al. 2024).

    logits [B, V] -> [B, V].
    """
    if p == 0:
        return logits
    mass = logits.double().softmax(-1)
    return logits.masked_fill(mass < p * mass.amax(-1, keepdim=True), -torch.inf)


def _keep_largest(logits, smallest, count):
    """Keep the `count` largest logits; `smallest` [B, 1] is the last of them; lower ids first."""
    above, tied = logits > smallest, logits == smallest
    room = count - above.sum(-1, keepdim=True)
    return logits.masked_fill(~(above | (tied & (tied.cumsum(-1) <= room))), -torch.inf)


def draw(logits, uniforms):
    """The id of each row at which the cumulative probability passes `uniforms` (float64 [B]).

    Inverse transform sampling: one number in [0, 1] decides the id of a row, alone or in a batch.
    An excluded id is never returned.
    """
    mass = logits.double().softmax(-1)
    cumulative = mass.cumsum(-1)
    passed = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    last_allowed = logits.size(-1) - 1 - (mass > 0).flip(-1).int().argmax(-1)
    return torch.minimum(passed[:, 0], last_allowed)


def sample(logits, config: SamplingConfig, uniforms, seen=None, bias=None):
    """The next token of each row: logits [B, V] -> (int64 [B], log-probabilities [B]).

    uniforms: one number in [0, 1) for each row (unused if config is greedy). seen: bool [B, V], the
    ids to which the repetition penalty applies. bias: float [V], added to the logits after that;
    -inf bans an id. The log-probability is the model's own, before any of it. Raises
    GenerationError if the model's logits are not finite, or if no id is left.
    """
    logits = logits.float()
    if logits.device.type not in ("cpu", "cuda"):
        # MPS has returned ids of probability zero, and neither MPS nor Intel Arc has float64
        logits = logits.cpu()
        seen = None if seen is None else seen.cpu()
    scores = logits
    if seen is not None:
        scores = apply_repetition_penalty(scores, seen, config.repetition_penalty)
    if bias is not None:
        scores = scores + bias.to(scores.device)
        if torch.isneginf(scores.amax(-1)).any():
            raise GenerationError(
                "No token may be written here",
                "ban less with logit_bias and bad_words",
            )
    if config.is_greedy:
        chosen = scores.argmax(-1)
    else:
        # with the maximum at zero, the smallest temperature does not overflow
        scores = (scores - scores.amax(-1, keepdim=True)).double() / config.temperature
        scores = keep_min_p(
            keep_top_p(keep_top_k(scores, config.top_k), config.top_p), config.min_p
        )
        chosen = draw(scores, torch.as_tensor(uniforms, dtype=torch.float64, device=scores.device))
    log_probs = logits.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
    check_logits(log_probs)
    return chosen, log_probs


def check_logits(log_probs) -> None:
    """Raise GenerationError if a log-probability is NaN, before nonsense is shown as text."""
    if torch.isnan(log_probs).any():
        raise GenerationError(
            "The model's logits are not finite (its weights are damaged, or its precision is too "
            "low): use an earlier checkpoint, or --dtype float32."
        )
