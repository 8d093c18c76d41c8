"""The loop from outside: what it writes, when it stops, what it says and what it refuses."""

import json
import math
import signal
import sys

import numpy as np
import pytest
import torch

from gptlab.checkpoints import read_checkpoint
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.token_files import open_dataset
from gptlab.data.windows import evaluation_windows
from gptlab.errors import CheckpointError, ConfigError, DataError, HardwareError
from gptlab.files import quoted
from gptlab.inference.evaluate import evaluate_loss
from gptlab.runs import Run, load_checkpoint
from gptlab.training import evaluation, loop, picture, trainer
from gptlab.training.interruption import Interruption
from gptlab.training.picture import Picture


def records_of(folder, key="loss"):
    return [record for record in Run(folder).records() if key in record]


# What a run leaves --------------------------------------------------------------------------------


def test_a_run_leaves_its_files_and_nothing_half_written(pictures, train, tmp_path):
    train(max_iters=4)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "ckpt.pt", "ckpt.prev.pt", "best.pt", "metrics.jsonl", "config.py", "loss.png", ".lock",
        "provenance.json", "source.zip", "trace.jsonl",
    }  # fmt: skip
    assert (tmp_path / "run" / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_at_every_interval_and_at_the_end_it_saves_then_evaluates_then_draws(
    train, tmp_path, monkeypatch
):
    calls = []
    for name, work in (("save", loop.save), ("evaluate", loop.evaluate)):

        def watched(setup, state, watching, name=name, work=work):
            calls.append((name, state.step))
            work(setup, state, watching)

        monkeypatch.setattr(loop, name, watched)
    # the picture is drawn behind each evaluation, and once more at the end
    monkeypatch.setattr(Picture, "draw", lambda picture, setup: calls.append("draw"))
    train(max_iters=13, eval_interval=5)
    expected = []
    for step in (5, 10, 13):
        expected += [("save", step), ("evaluate", step), "draw"]
    assert calls == [*expected, "draw"]


def test_best_pt_has_the_loss_that_it_records(train, tmp_path):
    outcome = train(max_iters=12, eval_interval=4, eval_tokens=10**6, ema_decay=0.8)
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    data = open_dataset("tiny")
    windows = evaluation_windows(len(data.val), 16)
    loss = evaluate_loss(best.model, data.val, windows, 16, 7, "cpu")
    assert loss == pytest.approx(best.val_loss, abs=1e-6)
    assert (outcome.best_step, outcome.best_val_loss) == (best.step, best.val_loss)
    evaluated = records_of(tmp_path / "run", "val_loss")
    assert best.val_loss == min(min(r["val_loss"], r["ema_val_loss"]) for r in evaluated)
    assert best.tokenizer.fingerprint == data.tokenizer.fingerprint


@pytest.mark.parametrize("ema_decay", [0.0, 0.8])
def test_the_loss_without_text_of_the_training_part_is_recorded_and_said(
    train, tmp_path, capsys, ema_decay
):
    letters = np.random.default_rng(0).choice(list("abcdefgh "), 20_000)
    text = "".join(letters)
    (tmp_path / "leaky.txt").write_text(text + text[500:1000], encoding="utf-8")
    prepare(tmp_path / "leaky.txt", PrepareOptions(dataset="leaky", overwrite=True))
    options = dict(max_iters=4, eval_interval=2, eval_tokens=10**6, ema_decay=ema_decay)
    outcome = train(dataset="leaky", quiet=False, **options)
    best, data = load_checkpoint(tmp_path / "run" / "best.pt"), open_dataset("leaky")
    leaked = {i for a, b in data.val_leaks.tolist() for i in range(a, b)}
    assert 480 < len(leaked) <= 500
    windows = [
        w for w in evaluation_windows(len(data.val), 16) if not leaked & set(range(w + 1, w + 17))
    ]
    clean = evaluate_loss(best.model, data.val, windows, 16, 7, "cpu")
    record = records_of(tmp_path / "run", "val_loss")[-1]
    assert record["step"] == outcome.best_step
    assert record["clean_val_loss"] == pytest.approx(clean, abs=1e-6) != best.val_loss
    assert f"over the windows without them it is {clean:.4f}" in capsys.readouterr().out


def with_validation_losses(monkeypatch, *losses):
    """Let the evaluations of a run find these losses, whatever the weights are."""
    found = iter(losses)

    def losses(*_):
        loss = next(found)
        return [(loss, loss)]

    monkeypatch.setattr(evaluation, "validation_losses", losses)


def test_the_better_of_raw_and_averaged_weights_becomes_best_pt(train, tmp_path, monkeypatch):
    settings = dict(max_iters=2, eval_interval=2, ema_decay=0.5, learning_rate=1e-2)
    chosen = {}
    for raw, averaged in ((3.0, 2.5), (2.0, 2.2)):
        with_validation_losses(monkeypatch, raw, averaged)
        train(f"{raw}", **settings)
        best = read_checkpoint(tmp_path / f"{raw}" / "best.pt")
        chosen[best["weights"]] = best["model"]
        assert best["val_loss"] == min(raw, averaged)
    state = read_checkpoint(tmp_path / "2.0" / "ckpt.pt")
    for name in state["ema"]:
        assert torch.equal(chosen["averaged"][name], state["ema"][name])
        assert torch.equal(chosen["raw"][name], state["model"][name])
    assert not torch.equal(state["ema"][name], state["model"][name])


def test_only_a_lower_loss_replaces_best_pt_and_nan_never_does(train, tmp_path, monkeypatch):
    with_validation_losses(monkeypatch, 3.0, math.nan, 2.0, 2.0, 2.5)
    outcome = train(max_iters=5, eval_interval=1)
    assert (outcome.best_step, outcome.best_val_loss) == (3, 2.0)
    assert read_checkpoint(tmp_path / "run" / "best.pt")["step"] == 3
    assert [r["val_loss"] for r in records_of(tmp_path / "run", "val_loss")][1] is None


def test_a_resumed_run_remembers_its_best_loss(train, tmp_path, monkeypatch):
    with_validation_losses(monkeypatch, 2.0, 3.0, 2.5, 2.6)
    train(max_iters=20, eval_interval=5, stop_at=12)
    outcome = train(resume=True)
    assert (outcome.step, outcome.best_step, outcome.best_val_loss) == (20, 5, 2.0)
    assert read_checkpoint(tmp_path / "run" / "best.pt")["step"] == 5


def test_dropout_is_the_same_however_a_step_is_cut_into_micro_batches(train, tmp_path):
    losses = {}
    for cut in ((8, 1), (4, 2), (1, 8)):
        options = dict(batch_size=cut[0], gradient_accumulation_steps=cut[1])
        train(str(cut), **options, max_iters=6, dropout=0.3)
        records = Run(tmp_path / str(cut)).records()
        losses[cut] = [record["loss"] for record in records if "loss" in record]
    for other in losses.values():
        np.testing.assert_allclose(other, losses[8, 1], rtol=2e-6)
    train("without", batch_size=8, max_iters=6)
    without = [r["loss"] for r in Run(tmp_path / "without").records() if "loss" in r]
    assert abs(np.subtract(without, losses[8, 1])).min() > 1e-4


def test_early_stopping_waits_for_its_evaluations_and_explains_itself(
    train, tmp_path, monkeypatch, capsys
):
    with_validation_losses(monkeypatch, 3.0, 2.0, 2.1, 1.9, 2.2, 2.3, 2.4, 2.5)
    outcome = train(max_iters=50, eval_interval=2, early_stopping=3, quiet=False)
    assert (outcome.step, outcome.best_step, outcome.exit_code) == (14, 8, 0)
    out = capsys.readouterr().out
    assert "Stopping early: 3 evaluations since step 8" in out
    assert "After step 8 the model overfitted" in out


def test_a_run_that_ends_above_its_minimum_says_so_and_what_to_try(train, monkeypatch, capsys):
    with_validation_losses(monkeypatch, 2.0, 2.1, 2.2)
    train(max_iters=6, eval_interval=2, quiet=False)
    out = capsys.readouterr().out
    assert "Lowest validation loss 2.0000" in out and "at step 2" in out
    assert "best.pt is from step 2" in out and "dropout" in out


def test_one_batch_is_learned_by_heart(train, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for name in ("train.bin", "val.bin"):  # a nanoGPT-style folder, one window long
        np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2], "<u2").tofile(folder / name)
    train(dataset=str(folder), vocab_size=10, max_iters=150, learning_rate=1e-2, n_embd=32)
    assert records_of(tmp_path / "run")[-1]["loss"] < 0.05


# What goes wrong beside the training --------------------------------------------------------------


def test_a_picture_that_cannot_be_drawn_is_a_warning(pictures, train, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(picture, "plot_loss", fail)
    assert train(max_iters=4).step == 4
    assert "loss.png was not drawn (no fonts)" in caplog.text


def test_a_tracker_that_is_not_installed_is_a_warning_with_the_command(train, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train(max_iters=4, log_to="wandb").step == 4
    assert "pip install wandb" in caplog.text


def test_a_tracker_that_breaks_is_a_warning(train, caplog, monkeypatch):
    def send(record):
        raise ConnectionError("gone")

    monkeypatch.setattr(trainer, "make_tracker", lambda config, folder: send)
    assert train(max_iters=4).step == 4
    assert caplog.text.count("Logging to the tracker stopped (gone)") == 1


def test_a_profile_has_the_operations_of_its_steps_and_changes_none(train, tmp_path, capsys):
    train("plain", max_iters=6, log_interval=1)
    train("traced", max_iters=6, log_interval=1, profile_steps="3:5", quiet=False)
    assert "traced" in (line := capsys.readouterr().out.split("Wrote ")[1]) and "perfetto" in line
    events = json.loads((tmp_path / "traced" / "profile.json").read_text())["traceEvents"]
    updates = [e for e in events if "fused_adamw" in e["name"]]
    groups = 2  # matrices, and vectors
    assert len(updates) == 2 * groups  # of two steps
    losses = [[r["loss"] for r in records_of(tmp_path / name)] for name in ("traced", "plain")]
    assert losses[0] == losses[1]
    assert not (tmp_path / "plain" / "profile.json").exists()


def test_a_profile_of_a_run_that_stops_has_the_steps_that_were_taken(train, tmp_path):
    train("run", stop_at=4, max_iters=9, profile_steps="3:8")
    events = json.loads((tmp_path / "run" / "profile.json").read_text())["traceEvents"]
    assert len([e for e in events if "fused_adamw" in e["name"]]) == 2 * 2
    train("run", resume=True, max_iters=5)  # a profile belongs to one start
    assert Run(tmp_path / "run").profile.exists()


def test_a_profile_that_fails_is_a_warning(train, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", lambda self, path: 1 / 0)
    assert train("run", max_iters=5, profile_steps="3:5").step == 5
    assert "there is no trace (division by zero)" in caplog.text
    assert not list((tmp_path / "run").glob("*profile*"))


@pytest.mark.parametrize("steps", ["20", "5:5", "0:3", "a:b", "-1:4", "3:5:7", ":"])
def test_steps_of_a_profile_that_are_no_range_are_refused(train, steps):
    with pytest.raises(ConfigError, match=r"such as 20:25"):
        train(profile_steps=steps)


# Signals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_remembered_and_the_second_leaves_at_once(number, code):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        assert (interruption.received, interruption.exit_code) == ("", 0)
        signal.raise_signal(number)
        assert interruption.received == signal.Signals(number).name
        assert interruption.exit_code == code
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_stopped_run_prints_the_command_that_continues_it(train, tmp_path, capsys):
    outcome = train("a run", stop_at=7, eval_interval=1000, quiet=False)
    assert (outcome.step, outcome.exit_code) == (7, 130)
    out = capsys.readouterr().out
    assert "Stopped by SIGINT after step 7, saved" in out
    assert f"--out_dir {quoted(str(tmp_path / 'a run'))} --resume" in out


def test_a_signal_during_the_last_evaluation_comes_too_late_to_stop_anything(
    train, monkeypatch, capsys
):
    measured = evaluation.validation_losses

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return measured(*arguments)

    monkeypatch.setattr(evaluation, "validation_losses", interrupted)
    outcome = train(max_iters=4, eval_interval=4, quiet=False)
    assert (outcome.step, outcome.exit_code) == (4, 0)
    out = capsys.readouterr().out
    assert "Lowest validation loss" in out and "Stopped" not in out


# What is refused ----------------------------------------------------------------------------------


def test_a_missing_dataset_names_those_that_exist_and_the_command(train):
    with pytest.raises(DataError, match=r"No prepared dataset 'nope'.*tiny.*prepare\.py"):
        train(dataset="nope")


def test_a_text_shorter_than_a_window_names_the_numbers_and_the_largest_that_fits(train, tmp_path):
    folder = tmp_path / "short"
    folder.mkdir()
    for name, size in (("train.bin", 900), ("val.bin", 90)):
        np.zeros(size, "<u2").tofile(folder / name)
    with pytest.raises(DataError, match=r"val part of short has 90 tokens.*block_size 256 needs "
                       r"257.*--block_size 89"):  # fmt: skip
        train(dataset=str(folder), vocab_size=10, block_size=256)
    assert train(dataset=str(folder), vocab_size=10, block_size=89, max_iters=1).step == 1


def test_an_id_outside_the_vocabulary_is_named_at_the_start(train, tmp_path):
    folder = tmp_path / "foreign"
    folder.mkdir()
    for name in ("train.bin", "val.bin"):
        np.array([1, 2, 70] * 500, "<u2").tofile(folder / name)
    with pytest.raises(DataError, match=r"train\.bin holds the id 70 at position 2.*65 ids"):
        train(dataset=str(folder), vocab_size=65)
    with pytest.raises(DataError, match="--vocab_size"):
        train(dataset=str(folder))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("device", ["cuda", "cuda:3", "gpu", "mps", "tpu"])
def test_a_device_that_is_not_here_is_a_sentence(train, device):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("there is an accelerator here")
    with pytest.raises(HardwareError, match=f"no device '{device}' here: this machine has cpu"):
        train(device=device)


def test_a_precision_that_the_processor_cannot_train_in_is_a_sentence(train):
    with pytest.raises(HardwareError, match="cpu cannot train in float16"):
        train(dtype="float16")


def test_a_dry_run_takes_a_step_and_writes_nothing(train, tmp_path, capsys):
    assert train(dry_run=True, quiet=False).step == 1
    assert "one step works (loss 3." in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


# Starting from other weights ----------------------------------------------------------------------


def test_a_run_can_start_from_another_with_its_architecture_and_a_shorter_window(train, tmp_path):
    train("first", max_iters=6, learning_rate=1e-2, position_encoding="learned")
    started = dict(
        init_from=str(tmp_path / "first"), dropout=0.2, max_iters=1, learning_rate=1e-9,
        weight_decay=0.0,
    )  # fmt: skip
    train("second", **started, block_size=8)
    first = read_checkpoint(tmp_path / "first" / "best.pt")
    second = read_checkpoint(tmp_path / "second" / "ckpt.pt")
    assert second["model_config"] == first["model_config"] | {"block_size": 8, "dropout": 0.2}
    assert second["step"] == 1
    for name, weight in second["model"].items():
        expected = first["model"][name][: len(weight)]
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=0)
    with pytest.raises(CheckpointError, match="block_size 16, and 17 is longer"):
        train("third", **started, block_size=17)


def test_another_architecture_than_that_of_init_from_is_refused_by_name(train, tmp_path):
    train("first", max_iters=1)
    with pytest.raises(ConfigError, match=r"n_layer 5 differs from 2, which init_from .* has"):
        train("second", init_from=str(tmp_path / "first"), n_layer=5)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train("second", init_from=str(tmp_path / "nothing.pt"))


def test_weights_of_another_tokenizer_are_refused(train, tmp_path, prepared_home):
    train("first", max_iters=1)
    (prepared_home / "digits.txt").write_text("0123456789" * 500, encoding="utf-8")
    prepare(str(prepared_home / "digits.txt"), PrepareOptions(tokenizer="char"))
    with pytest.raises(ConfigError, match="another tokenizer than digits"):
        train("second", init_from=str(tmp_path / "first"), dataset="digits", max_iters=1)
