"""Windows of held-out tokens, the same at every evaluation."""

from dataclasses import dataclass

import numpy as np

from gptlab.errors import DataError


@dataclass(frozen=True)
class Windows:
    """Windows of `tokens` [n] that begin at `starts`, int64 [W], and predict block_size tokens.

    loss_mask: bool [n], which tokens are targets; None: all. lengths: of the problem in each
    window, int64 [W]; None for a text.
    """

    tokens: np.ndarray
    starts: np.ndarray
    block_size: int
    loss_mask: np.ndarray | None = None
    lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts)


def evaluation_windows(n_tokens: int, block_size: int, max_tokens: int | None = None) -> np.ndarray:
    """The starts of an evaluation's windows: int64 [W], ascending, without overlap.

    A window at w predicts tokens w + 1 to w + block_size from those before them in the window.
    Without max_tokens the windows tile the split: each token but the first is predicted exactly
    once, the last window may be shorter. With it, as many whole windows as fit into max_tokens (at
    least one) are spread evenly from the first token to the last. Neither depends on a batch size.
    Raises DataError when there is nothing to predict.
    """
    n_targets = n_tokens - 1
    if n_targets < 1:
        raise DataError(f"Evaluation needs at least 2 tokens, and there are {n_tokens}.")
    count = None if max_tokens is None else max(1, max_tokens // block_size)
    if count is None or count * block_size >= n_targets:
        return np.arange(0, n_targets, block_size, dtype=np.int64)
    # count * block_size < n_targets, so neighbours lie at least block_size apart
    return np.arange(count, dtype=np.int64) * (n_targets - block_size) // max(1, count - 1)


def check_loss_mask(loss_mask: np.ndarray | None, windows: np.ndarray, block_size: int) -> None:
    """Raise DataError if the loss mask leaves no target in these windows."""
    if loss_mask is None or any(loss_mask[w + 1 : w + block_size + 1].any() for w in windows):
        return
    raise DataError(
        f"No assistant speaks in the {len(windows) * block_size:,} tokens that an evaluation "
        "reads: use a larger --eval_tokens, or prepare more conversations."
    )
