"""torch.compile: a gain where it works, one line where it does not, and never another result."""

import numpy as np
import pytest
import torch

from gptlab.checkpoints import read_checkpoint
from gptlab.runs import Run

SETTINGS = dict(max_iters=12, dropout=0.1, learning_rate=1e-2, compile_model=True)


def losses(folder):
    return [record["loss"] for record in Run(folder).records() if "loss" in record]


@pytest.mark.parametrize("fails", ["when the model is wrapped", "at the first call"])
def test_a_failing_compiler_is_one_line_and_training_goes_on_with_equal_numbers(
    train, tmp_path, monkeypatch, caplog, fails
):
    train("eager", **SETTINGS | dict(compile_model=False))

    def fail(*args, **kwargs):
        raise RuntimeError("no triton on this machine\nand a page of more")

    def fake_compile(model, *args, **kwargs):
        return fail if fails == "at the first call" else fail()

    monkeypatch.setattr(torch, "compile", fake_compile)
    assert train("fallen", **SETTINGS).step == 12
    lines = [r.getMessage() for r in caplog.records if "torch.compile" in r.getMessage()]
    assert lines == [
        "torch.compile does not work here (RuntimeError: no triton on this machine): training "
        "without it."
    ]
    assert losses(tmp_path / "fallen") == losses(tmp_path / "eager")


@pytest.mark.slow
def test_a_compiled_run_stopped_and_resumed_equals_the_unbroken_one(train, tmp_path):
    settings = SETTINGS | dict(
        max_iters=24, eval_interval=5, gradient_accumulation_steps=2, ema_decay=0.9,
        optimizer="muon",
    )  # fmt: skip
    torch.set_num_threads(2)  # with which compiled code once gave other weights in each run
    train("eager", **settings | dict(compile_model=False))
    train("whole", **settings)
    train("broken", **settings, stop_at=12)
    train("broken", resume=True)
    np.testing.assert_allclose(losses(tmp_path / "whole"), losses(tmp_path / "eager"), atol=1e-3)
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")
    states = [read_checkpoint(tmp_path / name / "ckpt.pt") for name in ("whole", "broken")]
    for part in ("model", "ema"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), name
    assert not any("_orig_mod" in name for name in states[0]["model"])
    assert states[0]["train_config"]["resolved"]["compile_model"] is True
