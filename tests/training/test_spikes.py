"""spike_rollback: after a spike the run goes back to a checkpoint and skips the text since."""

import random
import statistics

import pytest
import torch

from gptlab.checkpoints import read_checkpoint
from gptlab.errors import TrainingError
from gptlab.runs import Run
from gptlab.training import stability
from gptlab.training.loss_band import BAND_STEPS, LossBand


def test_the_band_has_the_mean_and_deviation_of_what_was_added():
    source = random.Random(1)
    losses = [source.gauss(3.0, 0.2) for _ in range(BAND_STEPS)]
    band = LossBand()
    for loss in losses:
        band.add(loss)
    # as long as each step weighs the same, these are the plain mean and deviation
    mean, deviation = statistics.fmean(losses), statistics.pstdev(losses)
    assert band.mean == pytest.approx(mean)
    assert band.deviations(4.0) == pytest.approx((4.0 - mean) / deviation)
    again = LossBand(*band.state())
    assert again.deviations(4.0) == band.deviations(4.0)


def test_nothing_spikes_before_the_band_is_known():
    band = LossBand()
    for _ in range(BAND_STEPS - 1):
        band.add(3.0)
    assert band.deviations(1e9) == 0.0


OPTIONS = dict(
    max_iters=90, eval_interval=30, checkpoint_interval=10, spike_rollback=7.0,
    learning_rate=1e-2,
)  # fmt: skip
SPIKE = 67  # the step whose text is garbage


@pytest.fixture
def garbage(monkeypatch):
    """In the sequences of step SPIKE an id follows everywhere that the text does not have."""
    from gptlab.data.batches import Batches

    whole = Batches.micro_batches

    def micro_batches(self, first):
        for micro in whole(self, first):
            if first == 4 * (SPIKE - 1):
                micro.targets.fill_(self.sequences.parts[0].vocab_size - 1)
            yield micro

    monkeypatch.setattr(Batches, "micro_batches", micro_batches)


def test_a_spike_goes_back_to_the_checkpoint_and_skips_the_sequences_since(
    train, tmp_path, garbage, capsys
):
    outcome = train(quiet=False, **OPTIONS)
    assert (outcome.step, outcome.exit_code) == (90, 0)
    printed = capsys.readouterr().out
    assert f"at step {SPIKE}: going back to the checkpoint of step 60 and skipping" in printed
    assert "the 28 sequences since (240 to 267)" in printed
    records = Run(tmp_path / "run").records()
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == list(range(1, 91))
    seen = {record["step"]: record["sequences_seen"] for record in records if "loss" in record}
    assert (seen[60], seen[61]) == (240, 4 * SPIKE + 4)
    assert next(r for r in records if "rolled_back" in r)["step"] == 60
    assert max(record["loss"] for record in records if "loss" in record) < 4
    assert read_checkpoint(tmp_path / "run" / "ckpt.pt")["sequences_seen"] == 4 * 90 + 28


def test_a_kill_after_a_roll_back_changes_nothing(train, tmp_path, garbage):
    train("whole", **OPTIONS)
    with pytest.raises(ZeroDivisionError):
        train("broken", die_at=66, **OPTIONS)
    with pytest.raises(ZeroDivisionError):  # the 64 after the roll-back: its checkpoint is still 60
        train("broken", resume=True, die_at=65)
    train("broken", resume=True)
    one, other = (read_checkpoint(tmp_path / name / "ckpt.pt") for name in ("whole", "broken"))
    assert one["sequences_seen"] == other["sequences_seen"]
    assert all(torch.equal(w, other["model"][n]) for n, w in one["model"].items())
    losses = [
        [(r["step"], r.get("loss"), r.get("val_loss")) for r in Run(tmp_path / name).records()]
        for name in ("whole", "broken")
    ]
    assert losses[0] == losses[1]


def test_without_the_option_training_goes_on_after_a_spike(train, tmp_path, garbage):
    train(**{**OPTIONS, "spike_rollback": 0.0})
    assert read_checkpoint(tmp_path / "run" / "ckpt.pt")["sequences_seen"] == 4 * 90


def test_without_a_checkpoint_a_spike_is_a_warning_and_training_goes_on(train, garbage, caplog):
    options = {**OPTIONS, "checkpoint_interval": 0, "eval_interval": 90}
    assert train(**options).step == 90
    assert f"at step {SPIKE}, and there is no checkpoint to go back to" in caplog.text


def test_a_run_that_always_spikes_ends_with_a_sentence_that_leads_out(train, tmp_path, monkeypatch):
    leaves_band = stability.leaves_band
    train(**{**OPTIONS, "max_iters": 60})
    monkeypatch.setattr(stability, "leaves_band", lambda state, loss, limit: True)
    with pytest.raises(TrainingError, match="went back to the last checkpoint 10 times") as caught:
        train(resume=True, max_iters=90)
    assert read_checkpoint(tmp_path / "run" / "ckpt.pt")["step"] == 60
    # what the sentence says leads to the end
    monkeypatch.setattr(stability, "leaves_band", leaves_band)
    words = str(caught.value).rstrip(".").split()
    rate, limit = (words[words.index(f"--{n}") + 1] for n in ("learning_rate", "spike_rollback"))
    assert train(resume=True, max_iters=70, learning_rate=float(rate)).step == 70
    monkeypatch.setattr(stability, "leaves_band", lambda state, loss, limit: bool(limit))
    assert train(resume=True, max_iters=80, spike_rollback=float(limit)).step == 80
