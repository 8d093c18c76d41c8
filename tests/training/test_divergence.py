"""A run whose loss explodes stops within a few steps and keeps what was good."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

from gptlab.checkpoints import read_checkpoint, write_checkpoint
from gptlab.errors import CheckpointError, TrainingError
from gptlab.runs import Run
from gptlab.training import loop
from gptlab.training.config import build
from gptlab.training.loop import StepResult
from gptlab.training.stability import Stability


def test_a_rate_far_too_high_ends_within_a_few_steps_and_names_the_step(train, tmp_path):
    with pytest.raises(TrainingError, match=r"at step (\d+)") as caught:
        train(max_iters=200, eval_interval=50, learning_rate=1e4, grad_clip=0)
    records = Run(tmp_path / "run").records()
    assert len(records) < 20
    assert f"at step {records[-1]['step']}" in str(caught.value)  # it is on record as well
    assert "there is no checkpoint yet" in str(caught.value)
    assert "--learning_rate 1000" in str(caught.value) and caught.value.exit_code == 1


def test_the_rate_that_a_diverged_run_names_leads_to_one_that_learns(train):
    rate, tried = 1e3, 0
    while True:
        try:
            train(max_iters=30, eval_interval=15, learning_rate=rate, grad_clip=1, overwrite=True)
        except TrainingError as error:
            (named,) = re.findall(r"--learning_rate ([^,]+),", str(error))
            rate, tried = float(named), tried + 1
            continue
        break
    assert 0 < tried < 6


@pytest.mark.parametrize("rate", [1e6, 1e38], ids=["finite", "not finite"])
def test_a_diverged_state_is_never_saved(train, tmp_path, monkeypatch, caplog, rate):
    # one update of absurd size at step 11, so that the checkpoint due at step 12 would be ruined
    monkeypatch.setattr(loop, "learning_rate", lambda _, step: rate if step == 10 else 1e-3)
    with pytest.raises(TrainingError, match=r"at step 16.*ckpt\.pt is the last good checkpoint"):
        train(max_iters=40, eval_interval=4)
    state = read_checkpoint(tmp_path / "run" / "ckpt.pt")
    assert state["step"] == 8
    assert all(weight.isfinite().all() for weight in state["model"].values())
    assert "Step 12 was not saved" in caplog.text


def test_a_run_that_ends_diverged_does_not_end_well(train, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "learning_rate", lambda _, step: 1e6 if step == 10 else 1e-3)
    with pytest.raises(TrainingError, match="at step 12"):
        train(max_iters=12, eval_interval=4)
    assert read_checkpoint(tmp_path / "run" / "ckpt.pt")["step"] == 8


def verdicts(*steps, scaler=None, device="cpu"):
    """Feed (skipped, loss) of consecutive steps to a Stability; it and the state after them."""
    config = build(
        dict(vocab_size=65, device=device, log_interval=10, eval_interval=100, max_iters=1000)
    )
    setup = SimpleNamespace(config=config, run=Run("nowhere"))
    state = SimpleNamespace(
        precision=SimpleNamespace(scaler=scaler), skipped_steps=0, is_finished=False, step=0
    )
    stability = Stability(SimpleNamespace(diverged=lambda step, loss: None))
    for skipped, loss in steps:
        state.step += 1
        result = StepResult(torch.tensor(float(loss)), None, torch.tensor(float(skipped)), 0.1)
        assert stability.find_spike(setup, state, result) is None
    return stability, state


def test_a_spike_that_recovers_does_not_end_a_run():
    stability, _ = verdicts(*[(False, 1e3)] * 4, (False, 3.0), *[(False, 1e3)] * 4, (False, 3.0))
    assert (stability.bad_in_a_row, stability.is_diverged) == (0, False)


def test_the_loss_of_an_untrained_or_foreign_model_is_no_divergence():
    assert verdicts(*[(False, 5 * math.log(65))] * 20)[0].bad_in_a_row == 0


def test_skipped_steps_are_counted_and_float16_may_skip_more_at_its_start():
    assert verdicts(*[(True, 4.0)] * 4)[1].skipped_steps == 4
    with pytest.raises(TrainingError, match="not finite"):
        verdicts(*[(True, 4.0)] * 5)
    assert verdicts(*[(True, 4.0)] * 29, scaler=object())[1].skipped_steps == 29


def test_an_accelerator_is_asked_at_log_steps_only_and_nothing_is_lost():
    waiting, state = verdicts(*[(True, 4.0)] * 4, *[(False, 4.0)] * 5, device="cuda")
    assert (len(waiting.pending), state.skipped_steps) == (9, 0)
    asked, state = verdicts(*[(True, 4.0)] * 4, *[(False, 4.0)] * 6, device="cuda")
    assert (len(asked.pending), state.skipped_steps) == (0, 4)


@pytest.fixture
def run_with_a_nan(train, tmp_path):
    """A run at step 8 whose ckpt.pt has one weight that is not a number; ckpt.prev.pt is good."""
    train(max_iters=8, eval_interval=4)
    path = tmp_path / "run" / "ckpt.pt"
    state = torch.load(path)
    state["model"]["blocks.0.mlp.up_proj.weight"][0, 0] = math.nan
    write_checkpoint(state, path)
    return tmp_path / "run"


def test_a_checkpoint_with_a_nan_is_not_continued_but_the_one_before_it(
    run_with_a_nan, train, caplog
):
    outcome = train(resume=True, max_iters=12)
    assert outcome.step == 12 and math.isfinite(outcome.best_val_loss)
    assert "ckpt.pt holds weights that are not finite" in caplog.text
    assert "at step 4 instead" in caplog.text
    records = Run(run_with_a_nan).records()
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))


def test_a_nan_in_the_only_checkpoint_is_a_sentence(run_with_a_nan, train):
    (run_with_a_nan / "ckpt.prev.pt").unlink()
    with pytest.raises(CheckpointError, match=r"ckpt\.pt holds weights that are not finite"):
        train(resume=True, max_iters=12)
