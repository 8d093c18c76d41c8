"""Look inside the model while it trains (lens_interval): jobs of heads, norms, ranks of matrices.

A look draws from a generator of its own and changes nothing: a run with it is, to the bit, the run
without.
"""

import logging
import math
from collections.abc import Sequence

import numpy as np
import torch

from gptlab.errors import GenerationError
from gptlab.inference.capture import capture, head_scores, plain_ids
from gptlab.model.lora import merged_weights
from gptlab.model.proof import computing_plainly
from gptlab.model.shards import whole
from gptlab.model.transformer import GPT
from gptlab.training.setup import Setup
from gptlab.training.state import TrainState

logger = logging.getLogger(__name__)

STREAM_TOKENS = 100  # at most, of the text on which the residual stream is measured


def record_inside(setup: Setup, state: TrainState, metrics) -> None:
    """Record what is inside the model, at the steps of lens_interval and at the end.

    All processes call it: the first one looks at the weights as they are trained, not at their
    average, and the others wait. Where the model is sharded, all look together.
    """
    interval = setup.config.evaluation.lens_interval
    if not interval or (state.step % interval and not state.is_finished):
        return

    def look() -> dict:
        text, _ = setup.batches.sequences.windows(np.array([0]))  # the first that is trained on
        ids = plain_ids(setup.data.tokenizer, setup.config.model.vocab_size)
        with setup.apart(state.model), computing_plainly(state.model):
            return {**heads_and_stream(state.model, ids, text[0]), **norms_and_ranks(state.model)}

    with metrics.looking():
        metrics.inside(state.step, setup.parallel.with_model(look))


def heads_and_stream(model: GPT, ids: Sequence[int], text: Sequence[int]) -> dict:
    """{"stream", "heads"}; what a model does not have (an edited page, a window of 3) is left out.

    stream: [L + 1], the root mean square of the residual stream before each block and after the
    last, on the first tokens of `text`. heads: {kind: [L][H]} of `head_scores`.
    """
    found: dict = {}
    try:
        stream = capture(model, text[:STREAM_TOKENS]).residual  # [L + 1, T, C]
        found["stream"] = [figure(x) for x in stream.square().mean((1, 2)).sqrt().tolist()]
        scores = head_scores(model, ids)
        found["heads"] = {
            kind: [[figure(score) for score in layer] for layer in table]
            for kind, table in scores.items()
        }
    except GenerationError as error:
        logger.warning("Not all of the model's inside is recorded (%s).", error)
    return found


def norms_and_ranks(model: GPT) -> dict:
    """{"norms", "ranks"} of each matrix by its name, with its adapter where it has one.

    Frobenius norms, and effective ranks: the exponential of the entropy of the singular values as
    shares of their sum (Roy & Vetterli 2007), from 1 to the smaller side of the matrix.
    """
    norms, ranks = {}, {}
    for name, weight in merged_weights(model).items():
        if weight.dim() != 2 or (name == "lm_head.weight" and model.config.tie_weights):
            continue
        name = name.removesuffix(".weight")
        matrix = whole(weight).cpu().double()  # squares need the digits, and MPS has no float64
        norms[name] = figure(matrix.norm().item())
        ranks[name] = figure(effective_rank(matrix)) if norms[name] else norms[name]
    return {"norms": norms, "ranks": ranks}


def effective_rank(matrix: torch.Tensor) -> float:
    """The effective rank of a finite matrix that is not zero."""
    wide = matrix if matrix.size(0) < matrix.size(1) else matrix.T
    # eigenvalues of the product with itself: ten times sooner than singular values
    sizes = torch.linalg.eigvalsh(wide @ wide.T).clamp_min(0).sqrt()
    shares = sizes / sizes.sum()
    return torch.special.entr(shares).sum().exp().item()


def figure(value: float) -> float | None:
    """Four digits of it, None where it is not finite, as JSON has no word for that."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
