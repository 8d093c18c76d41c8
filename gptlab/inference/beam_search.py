"""Beam search with the cached decoder: the likeliest text instead of a random one."""

from collections.abc import Callable
from dataclasses import dataclass

from gptlab.inference.decoding import Decoder
from gptlab.inference.sampling import check_logits


@dataclass(frozen=True)
class Hypothesis:
    """A continuation: its tokens and the model's log-probability of each, in nats."""

    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    total: float = 0.0

    @property
    def score(self) -> float:
        """Mean log-probability per token, which makes texts of different lengths comparable."""
        return self.total / max(1, len(self.token_ids))

    def extended(self, token: int, total: float) -> "Hypothesis":
        """This continuation with one more token; `total` is the new sum of log-probabilities."""
        log_probs = (*self.log_probs, total - self.total)
        return Hypothesis((*self.token_ids, token), log_probs, total)


def beam_search(
    decoder: Decoder,
    beam_width: int,
    max_tokens: int,
    is_finished: Callable[[tuple[int, ...]], bool],
    n_best: int = 1,
    vocab_size: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Hypothesis]:
    """The n_best continuations found, best first, by mean log-probability per token.

    decoder: holds the prompt as its only row; the search changes it. A continuation ends when
    is_finished(token ids) is True, or at max_tokens. Ids from vocab_size on are never chosen. The
    search ends early when no open beam can still beat the n_best finished ones. Beyond block_size
    the window slides as in sampling. progress: called with 1 after each step. Length normalisation
    as in Wu et al. (2016) with exponent 1. Raises GenerationError if the logits are not finite.
    """
    open_beams, finished = [Hypothesis()], []
    parents = [0]  # the row that each open beam continues
    for step in range(max_tokens):
        decoder.select(parents)
        if step:
            decoder.append([beam.token_ids[-1] for beam in open_beams])
        log_probs = decoder.logits[:, :vocab_size].float().log_softmax(-1)  # [beams, V]
        check_logits(log_probs)
        totals = log_probs.cpu().double()  # MPS has no float64
        for row, beam in enumerate(open_beams):
            totals[row] += beam.total
        # an end id is one candidate per beam, so half of twice as many candidates go on
        best = totals.flatten().topk(min(2 * beam_width, totals.numel()))
        ahead, parents = [], []
        for total, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            row, token = divmod(index, totals.size(1))
            candidate = open_beams[row].extended(token, total)
            if is_finished(candidate.token_ids):
                finished.append(candidate)
            elif len(ahead) < beam_width:
                ahead.append(candidate)
                parents.append(row)
        open_beams = ahead
        if progress:
            progress(1)
        finished.sort(key=lambda beam: -beam.score)
        if not open_beams or _is_decided(finished, open_beams, max_tokens, n_best):
            break
    else:
        finished += open_beams
        finished.sort(key=lambda beam: -beam.score)
    return finished[:n_best]


def _is_decided(finished, open_beams, max_tokens: int, n_best: int) -> bool:
    """Whether no open beam can still become one of the n_best."""
    if len(finished) < n_best:
        return False
    # at best, all further tokens have probability 1
    return finished[n_best - 1].score >= max(beam.total for beam in open_beams) / max_tokens
