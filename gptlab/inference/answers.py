"""How many answers of a task are right: the exact match of whole answers."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import numpy as np
import torch

from gptlab.data.windows import Windows
from gptlab.inference.decoding import evaluating
from gptlab.inference.evaluate import read_windows

ROWS_TOKENS = 16384  # of a forward pass


@torch.no_grad()
def right_answers(
    model: torch.nn.Module,
    windows: Windows,
    device: str | torch.device,
    *,
    autocast: Callable = nullcontext,
    share: tuple[int, int] = (0, 1),
) -> np.ndarray:
    """Which answers the model gives exactly, int64 [W], 1 or 0: what greedy decoding would write.

    One forward pass over prompt and answer decides it. Greedy decoding writes the answer just
    where each of its tokens is the likeliest after those before it, which are then the answer's.
    share: (rank, world size) of the processes that divide the windows; those of others are 0.
    """
    rows = max(1, ROWS_TOKENS // windows.block_size)
    found = np.zeros(len(windows), dtype=np.int64)
    with evaluating(model):
        # all processes take equally many passes, some without a problem: a sharded model waits
        for every in range(0, len(windows), share[1] * rows):
            first = every + share[0] * rows
            starts = windows.starts[first : first + rows]
            inputs, targets = read_windows(
                windows.tokens, starts, windows.block_size, max(1, len(starts)), windows.loss_mask
            )
            targets = targets.to(device)
            with autocast():
                hidden = model.features(inputs.to(device))  # [B, T, C]
                likeliest = model.unembed(hidden).argmax(-1)
            is_right = ((likeliest == targets) | (targets == -1)).all(1)
            found[first : first + len(starts)] = is_right[: len(starts)].cpu().numpy()
    return found


def accuracy_fields(
    tests: Mapping[str, Mapping[str, Windows]], right: Mapping[tuple[str, str], np.ndarray]
) -> dict:
    """What a record says of the answers; {} where there are no problems.

    tests: the problems of each dataset, by what they are. right: which of them, by both, int64 [W].
    accuracy: share of the unseen problems of lengths that are trained on. accuracy_by_length: of
    these and of longer ones, [right, problems] by the length. train_accuracy: of problems that are
    trained on again and again.
    """
    fields, by_length = {}, {}
    for name, kinds in tests.items():
        for kind, windows in kinds.items():
            if kind == "train":
                continue
            for length in np.unique(windows.lengths):
                chosen = right[name, kind][windows.lengths == length]
                label = f"{name} {length}" if len(tests) > 1 else str(length)
                by_length[label] = [int(chosen.sum()), len(chosen)]
    for field, kind in (("accuracy", "unseen"), ("train_accuracy", "train")):
        each = [answers for (_, its_kind), answers in right.items() if its_kind == kind]
        if each:
            fields[field] = float(np.concatenate(each).mean())
    if by_length:
        fields["accuracy_by_length"] = by_length
    return fields
