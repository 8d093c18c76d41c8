"""A run that was stopped and continued ends exactly where the unbroken run ends."""

import pytest
import torch

from gptlab.runs import Run, read_checkpoint

TIMING = ("time", "tokens_per_second", "mfu")


def state_of(folder, name="ckpt.pt"):
    return read_checkpoint(folder / name)


def records_of(folder):
    """metrics.jsonl without what a clock measured."""
    return [
        {key: value for key, value in record.items() if key not in TIMING}
        for record in Run(folder).records()
    ]


def differing(one, other, path=""):
    """Paths of leaves that are not bitwise equal in two nested states."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype
        return [] if same and torch.equal(one, other) else [path]
    if isinstance(one, dict):
        if not isinstance(other, dict) or one.keys() != other.keys():
            return [path]
        return [leaf for key in one for leaf in differing(one[key], other[key], f"{path}/{key}")]
    return [] if one == other else [path]


KEPT = ("model", "optimizer", "ema", "step", "sequences_seen", "best_val_loss", "best_step")


def assert_same_run(one, other):
    """Weights, optimizer, averages, best checkpoint and records of two folders are equal."""
    first, second = state_of(one), state_of(other)
    for key in KEPT:
        assert differing(first[key], second[key], key) == []
    best, other_best = state_of(one, "best.pt"), state_of(other, "best.pt")
    for key in ("model", "step", "val_loss", "weights"):
        assert differing(best[key], other_best[key], key) == []
    assert records_of(one) == records_of(other)


SETTINGS = dict(
    max_iters=120, eval_interval=25, dropout=0.1, gradient_accumulation_steps=2, ema_decay=0.95,
    learning_rate=1e-2,
)  # fmt: skip


@pytest.mark.parametrize(("optimizer", "schedule"), [("adamw", "cosine"), ("muon", "wsd")])
def test_a_run_stopped_at_step_60_and_resumed_equals_the_unbroken_one(
    train, tmp_path, optimizer, schedule
):
    settings = dict(SETTINGS, optimizer=optimizer, schedule=schedule)
    whole = train("whole", **settings)
    stopped = train("broken", stop_at=60, **settings)
    assert (whole.exit_code, whole.step) == (0, 120)
    assert (stopped.exit_code, stopped.step) == (130, 60)
    torch.manual_seed(99)  # whatever the process did in between
    resumed = train("broken", resume=True)
    assert (resumed.exit_code, resumed.step) == (0, 120)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
