"""Recorded runs that were made bad on purpose, and their diagnosis."""

import itertools
import json
import math
import random
from pathlib import Path

import pytest

from gptlab.analysis.diagnosis import RunRecord, diagnose, read_run, summary
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.errors import RunError, TrainingError
from gptlab.files import out_home
from gptlab.training.config import OPTIONS

RECORDED = json.loads(
    (Path(__file__).parent / "recorded_runs.json").read_text(encoding="utf-8")
)  # of small models on 120 kB of Shakespeare, 200 to 800 steps


def recorded(name, **changes) -> RunRecord:
    """A recorded run as `read_run` would give it; changes: of its settings."""
    recorded = RECORDED[name]
    records = [
        {"step": step, "loss": loss, "learning_rate": rate, "skipped_steps": 0,
         "tokens_per_second": 1000.0, "data_share": 0.01}
        for step, loss, rate in recorded["steps"]
    ] + [{"step": step, "val_loss": loss} for step, loss in recorded["evaluations"]]  # fmt: skip
    if "diverged" in recorded:
        step, loss = recorded["diverged"]
        records.append({"step": step, "loss": loss, "diverged": True})
    levels = changes.pop("levels", recorded["levels"])
    return RunRecord(Path("out") / name, records, recorded["settings"] | changes, levels)


def names(run):
    return [finding.name for finding in diagnose(run)]


@pytest.mark.parametrize(
    ("run", "trouble"),
    [
        ("rate_too_high", "learning rate too high"),
        ("rate_rather_high", "learning rate too high"),
        ("diverged", "learning rate too high"),
        ("overfit", "overfitting"),
        ("twenty_steps", "far too short"),
        ("sixty_steps", "far too short"),
        ("rate_zero", "learning rate zero"),
        ("tiny_rate", "learning rate zero"),
        ("endless_warmup", "learning rate zero"),
        ("small_batch", "batch too small"),
        ("early_floor", "decay too short"),
        ("late_decay", "decay too short"),
        ("rate_too_low", "learning rate too low"),
    ],
)
def test_the_trouble_of_a_recorded_run_is_named_and_nothing_else(run, trouble):
    assert names(recorded(run)) == [trouble]


def test_a_healthy_run_has_no_findings():
    assert diagnose(recorded("healthy")) == []


def test_a_rate_that_never_falls_is_named_even_when_the_run_is_too_short_as_well():
    assert names(recorded("never_decayed")) == ["decay too short", "far too short"]


@pytest.mark.parametrize("run", [name for name in RECORDED if name != "healthy"])
def test_every_finding_has_numbers_and_options_that_exist(run):
    for finding in diagnose(recorded(run)):
        assert any(c.isdigit() for c in finding.sentence) and finding.sentence.endswith(".")
        assert finding.options and set(finding.options) <= set(OPTIONS)


@pytest.mark.parametrize("run", ["rate_too_high", "twenty_steps", "overfit", "rate_zero"])
def test_the_four_bad_runs_are_named_without_the_text_that_they_were_trained_on(run):
    assert names(recorded(run, levels={})) == names(recorded(run))


def test_the_causes_of_a_zero_rate_are_distinguished():
    assert diagnose(recorded("rate_zero"))[0].options == {"lr_decay_iters": 200}
    assert diagnose(recorded("tiny_rate"))[0].options["learning_rate"] == 1e-3
    assert diagnose(recorded("endless_warmup"))[0].options == {"warmup_iters": 10}


def test_overfitting_says_the_step_of_the_turn_and_both_losses():
    finding = diagnose(recorded("overfit"))[0]
    for words in ("since step 350", "2.299", "2.758", "best.pt"):
        assert words in finding.sentence
    assert finding.options == {"dropout": 0.2, "early_stopping": 3}
    more = diagnose(recorded("overfit", dropout=0.3))[0]
    assert more.options["dropout"] == pytest.approx(0.4)


def test_noise_in_the_last_evaluation_is_not_overfitting():
    run = recorded("healthy")
    last = run.evaluations[-1]
    run.records.append({"step": last[0] + 1, "val_loss": last[1] + 0.004})
    assert names(run) == []


def test_losses_that_are_not_finite_are_the_rate_and_float16_may_skip_steps():
    run = recorded("healthy")
    run.records[30]["loss"] = None
    assert names(run) == ["learning rate too high"]
    assert f"first at step {run.records[30]['step']}" in diagnose(run)[0].sentence
    skipping = recorded("healthy", dtype="float16")
    for record in skipping.training:
        record["skipped_steps"] = 3
    assert names(skipping) == []
    skipping.settings["dtype"] = "float32"
    assert names(skipping) == ["learning rate too high"]


def test_a_training_loss_that_climbs_and_stays_up_is_the_rate():
    run = recorded("healthy")
    for record in run.training[len(run.training) // 3 :]:
        record["loss"] = 3.0
    finding = diagnose(run)[0]
    assert finding.name == "learning rate too high" and "stayed there" in finding.sentence


def test_waiting_for_data_is_measured():
    run = recorded("healthy")
    for record in run.training[1:]:
        record["data_share"] = 0.4
    assert names(run) == ["waiting for data"]
    assert "40% of the time" in diagnose(run)[0].sentence


def test_a_model_that_only_counts_tokens_is_stuck():
    run = recorded("healthy", learning_rate=2e-3)
    level = run.levels["unigram"]
    for record in run.records:
        if "val_loss" in record:
            record["val_loss"] = level - 0.01
        elif record["step"] > 20:
            record["loss"] = level
    assert names(run) == ["stuck at the unigram level"]
    assert f"{level:.3f}" in diagnose(run)[0].sentence


def test_a_hundred_steps_that_end_above_the_5_gram_are_far_too_short():
    run = recorded("healthy", max_iters=100)
    levels = run.levels
    for record in run.records[:]:
        if record["step"] > 100:
            run.records.remove(record)
    run.records.append({"step": 100, "val_loss": (levels["unigram"] + levels["5-gram"]) / 2})
    found = diagnose(run)
    assert [f.name for f in found if f.name == "far too short"] and found[-1].continues
    assert (
        found[-1].options["max_iters"] >= 1000 and f"{levels['5-gram']:.3f}" in found[-1].sentence
    )


@pytest.mark.parametrize("steps", [40, 100, 200])
@pytest.mark.parametrize("rate", [1e-6, 1e-5])
def test_a_rate_that_is_off_by_orders_is_mended_by_orders(steps, rate):
    """The loss stays where it began; ten times a millionth would not help."""
    run = recorded("healthy", max_iters=steps, learning_rate=rate)
    records = [{**r, "learning_rate": rate} for r in run.training if r["step"] <= steps]
    for record in records:
        record["loss"] = records[0]["loss"] - 1e-4 * record["step"]
    run.records[:] = [*records, {"step": steps, "val_loss": records[-1]["loss"]}]
    (finding,) = [f for f in diagnose(run) if "rate" in f.name]
    assert finding.name == "learning rate too low"
    assert finding.options == {"learning_rate": 1e-3}


def test_a_run_that_was_interrupted_is_not_called_too_short():
    run = recorded("twenty_steps", max_iters=1000)
    assert run.state == "interrupted" and names(run) != ["far too short"]


def test_the_state_of_a_run_follows_from_its_records():
    assert recorded("healthy").state == "finished"
    assert recorded("healthy", max_iters=10_000).state == "interrupted"
    assert recorded("overfit", max_iters=10_000, early_stopping=3).state == "finished"


def test_a_folder_without_records_is_refused_with_its_name(tmp_path):
    with pytest.raises(RunError, match="nothing_here"):
        read_run(tmp_path / "nothing_here")


def test_a_config_that_somebody_edited_does_not_stop_the_reading(make_run):
    folder = make_run("edited").folder
    (folder / "config.py").write_text("import os\nmax_iters = 3 +\n", encoding="utf-8")
    run = read_run(folder)
    assert run.settings == {} and run.step > 0 and diagnose(run) == []


def test_the_summary_says_state_losses_and_baselines():
    text = "\n".join(summary(recorded("healthy")))
    for words in ("Finished after step 800", "Lowest validation loss", "unigram", "tokens/s"):
        assert words in text


# Two real runs ------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Train a model of a few thousand weights on generated words; the run's record."""

    from gptlab import hardware
    from gptlab.training import trainer
    from gptlab.training.picture import Picture

    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.setattr(Picture, "draw", lambda *_: None)
    report = hardware.detect("cpu")
    monkeypatch.setattr(hardware, "detect", lambda only=None: report)
    source, words = random.Random(5), "to be or not that is the question whether".split()
    text = " ".join(words[int(source.random() * len(words))] for _ in range(4000))
    (tmp_path / "words.txt").write_text(text, encoding="utf-8")
    prepare(str(tmp_path / "words.txt"), PrepareOptions(tokenizer="char"))

    def train(**options):
        small = dict(
            dataset="words", n_layer=1, n_head=2, n_embd=16, block_size=16, dropout=0.0,
            batch_size=4, max_iters=20, eval_tokens=256, quiet=True, device="cpu",
            dtype="float32", compile_model=False,
        )  # fmt: skip
        trainer.train(**small, **options, out_dir=str(tmp_path / "out" / "run"))
        return read_run(tmp_path / "out" / "run")

    return train


def test_a_real_run_without_a_rate_is_recognised_from_its_files(trained):
    run = trained(warmup_iters=0, lr_decay_iters=1, min_lr=0.0)
    assert names(run) == ["learning rate zero"] and run.state == "finished"
    assert {"unigram", "5-gram", "lzma"} == set(run.levels)


def test_a_real_run_of_twenty_steps_is_too_short_and_a_diverged_one_says_where(trained):
    assert names(trained()) == ["far too short"]
    with pytest.raises(TrainingError) as error:
        trained(learning_rate=1e4, grad_clip=0.0, overwrite=True)
    run = read_run(out_home() / "run")
    finding = diagnose(run)[0]
    assert finding.name == "learning rate too high"
    step = next(r["step"] for r in run.records if r.get("diverged"))
    assert f"step {step}" in finding.sentence and f"step {step}" in str(error.value)


def test_noise_is_measured_without_the_trend():
    run = recorded("healthy", batch_size=1)
    half = [loss for step, loss in run.losses if step > run.step / 2]
    scatter = math.sqrt(sum((b - a) ** 2 for a, b in itertools.pairwise(half)) / len(half) / 2)
    assert scatter / half[-1] < 0.06  # or the record itself would be a noisy one
    for number, record in enumerate(run.training):
        record["loss"] += 0.3 * (-1) ** number
    assert "batch too small" in names(run)
