"""Ways to stop a run and to go on with it: signals, a time limit, anneal, kept checkpoints."""

import os
import signal

import pytest

from gptlab.checkpoints import read_checkpoint
from gptlab.errors import ConfigError, RunError
from gptlab.model.arithmetic import count_parameters
from gptlab.model.memory import TIGHT
from gptlab.runs import Run
from gptlab.training import clock, disk_space, memory
from gptlab.training.config import build
from gptlab.training.interruption import Interruption
from gptlab.training.metrics import Metrics
from gptlab.training.schedules import learning_rate


def rates_of(folder):
    return {r["step"]: r["learning_rate"] for r in Run(folder).records() if "loss" in r}


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no SIGUSR1")
@pytest.mark.parametrize(
    "name, code",
    [
        ("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 138), ("SIGUSR2", 140),
        ("SIGXCPU", 152),
    ],
)  # fmt: skip
def test_a_signal_finishes_the_step_saves_and_shows_how_to_continue(
    train, tmp_path, monkeypatch, capsys, name, code
):
    recorded = Metrics.step

    def step(metrics, state, *rest):
        recorded(metrics, state, *rest)
        if state.step == 7:
            os.kill(os.getpid(), getattr(signal, name))

    monkeypatch.setattr(Metrics, "step", step)
    outcome = train(quiet=False)
    assert (outcome.step, outcome.exit_code) == (7, code)
    assert read_checkpoint(tmp_path / "run" / "ckpt.pt")["step"] == 7
    printed = capsys.readouterr().out
    assert f"Stopped by {name} after step 7, saved." in printed and "--resume" in printed


@pytest.mark.skipif(not hasattr(signal, "SIGXCPU"), reason="this system has no such signals")
@pytest.mark.parametrize(
    "names",
    [
        ("SIGHUP", "SIGHUP"),  # a closed terminal: one from the system, one from the shell
        ("SIGXCPU", "SIGXCPU", "SIGXCPU"),  # one for each second over the limit
        ("SIGUSR2", "SIGINT", "SIGTERM"),  # LSF, one after the other
        ("SIGINT", "SIGHUP"),
    ],
)
def test_what_is_sent_more_than_once_leaves_time_to_save(names):
    with Interruption() as interruption:
        for name in names:
            signal.raise_signal(getattr(signal, name))
    assert interruption.received == names[0]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_under_nohup_a_closed_terminal_stops_nothing():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGHUP)
        assert interruption.received == ""
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_time_limit_stops_and_saves_and_a_resume_has_its_own(train, tmp_path, capsys):
    train("whole", max_iters=40)
    outcome = train("cut", max_iters=40, max_minutes=1e-6, quiet=False)
    assert (outcome.step, outcome.exit_code) == (1, 0)
    assert "Stopped by max_minutes 1e-06 after step 1, saved." in capsys.readouterr().out
    assert train("cut", resume=True).step == 2
    assert train("cut", resume=True, max_minutes=0.0).step == 40
    one, other = (read_checkpoint(tmp_path / name / "ckpt.pt") for name in ("whole", "cut"))
    assert all(one["model"][n].equal(w) for n, w in other["model"].items())


WSD = dict(schedule="wsd", max_iters=100, decay_fraction=0.2, warmup_iters=5, min_lr=0.0)


def test_an_interrupted_wsd_run_offers_to_end_as_a_finished_model(train, tmp_path, capsys):
    train(stop_at=40, quiet=False, **WSD)
    assert "--resume --anneal 8" in capsys.readouterr().out
    outcome = train(resume=True, anneal=8)
    assert outcome.step == 48
    rates = rates_of(tmp_path / "run")
    assert rates[40] == rates[41] == 1e-3  # constant up to the step, then N steps down to the end
    steps = [rates[step] for step in range(41, 49)]
    assert steps == pytest.approx([1e-3 * left / 8 for left in range(8, 0, -1)])


def test_an_interrupted_anneal_continues_unchanged(train, tmp_path):
    for name in ("whole", "cut"):
        train(name, stop_at=40, **WSD)
    train("whole", resume=True, anneal=10)
    train("cut", resume=True, anneal=10, stop_at=44)
    assert train("cut", resume=True).step == 50
    assert rates_of(tmp_path / "whole") == rates_of(tmp_path / "cut")


@pytest.mark.parametrize(
    ("stop_at", "options", "again", "sentence"),
    [
        (10, dict(schedule="cosine"), dict(anneal=5), "this one has cosine"),
        (90, WSD, dict(anneal=5), "is already decaying at step 90"),
        (3, WSD, dict(anneal=5), "is warming up at step 3"),
        (40, WSD, dict(anneal=5, max_iters=60), "both set where the run ends"),
    ],
)
def test_an_anneal_that_makes_no_sense_is_a_sentence(train, stop_at, options, again, sentence):
    train(stop_at=stop_at, **options)
    with pytest.raises(ConfigError, match=sentence):
        train(resume=True, **again)


def test_anneal_needs_resume(train):
    with pytest.raises(ConfigError, match="add --resume"):
        train(anneal=5)


def test_checkpoints_by_step_and_by_clock_and_the_last_few_are_kept(train, tmp_path):
    train("steps", eval_interval=20, checkpoint_interval=6, keep_checkpoints=3)
    kept = Run(tmp_path / "steps").kept_checkpoints()
    assert [read_checkpoint(path)["step"] for path in kept] == [12, 18, 20]
    train("clock", eval_interval=20, checkpoint_minutes=1e-9, log_interval=5, keep_checkpoints=9)
    kept = Run(tmp_path / "clock").kept_checkpoints()
    assert [read_checkpoint(path)["step"] for path in kept] == [5, 10, 15, 20]


def test_a_checkpoint_between_evaluations_resumes_to_the_same_run(train, tmp_path):
    options = dict(eval_interval=10, checkpoint_interval=3, ema_decay=0.9)
    train("whole", **options)
    with pytest.raises(ZeroDivisionError):
        train("broken", die_at=14, **options)
    assert read_checkpoint(tmp_path / "broken" / "ckpt.pt")["step"] == 12
    train("broken", resume=True)
    names = ("loss", "val_loss", "ema_val_loss", "learning_rate", "sequences_seen")
    one, other = (
        [{n: r.get(n) for n in ("step", *names)} for r in Run(tmp_path / name).records()]
        for name in ("whole", "broken")
    )
    assert one == other


def test_a_step_slower_than_torchruns_grace_is_a_warning_once(caplog, monkeypatch):
    def steps(world_size, *seconds):
        watched = clock.Clock(build(dict(max_iters=9)), 0.0, world_size)
        for took in seconds:
            times = iter((0.0, took))
            monkeypatch.setattr(clock.time, "perf_counter", lambda times=times: next(times))
            with watched.timing_a_step():
                pass
            monkeypatch.undo()

    steps(1, 31.0, 40.0)
    steps(2, 1.0, 29.0)
    assert caplog.text == ""  # one process has no launcher
    steps(2, 1.0, 31.0, 40.0)
    assert caplog.text.count("torchrun kills its processes 30 s after a signal") == 1


# Disk space ---------------------------------------------------------------------------------------


def test_a_disk_too_small_for_the_checkpoints_is_refused_before_the_run(
    train, tmp_path, monkeypatch
):
    usage = disk_space.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    with pytest.raises(RunError, match="has 10 kB free, but the checkpoints of this run take"):
        train()
    assert not (tmp_path / "run").exists()


def test_a_run_on_a_disk_that_holds_its_files_already_needs_only_the_rest(train, tmp_path):
    train(stop_at=5)
    config = build(dict(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=22, max_iters=9))
    held = sum(path.stat().st_size for path in (tmp_path / "run").glob("*.pt"))
    assert disk_space.checkpoint_bytes(config) == 4 * count_parameters(config.model) * 10
    assert held > 4 * count_parameters(config.model)
    disk_space.refuse_full_disk(config, tmp_path / "run")


def sizes_tried(sequences, fits, world_size=1, runs=lambda size: True):
    import torch

    tried = []

    def attempt(size):
        tried.append(size)
        if not runs(size):
            raise torch.OutOfMemoryError("out of memory")

    config = build(dict(batch_size=sequences, max_iters=1, vocab_size=50, n_embd=48))
    free = int(sum(memory.step_memory(config.replace(
        batch_size=fits, gradient_accumulation_steps=sequences // fits
    ), "cpu").values()) / TIGHT) + 1  # fmt: skip
    return memory.fitting_batch_size(config, "cpu", free, world_size, attempt), tried


def test_the_micro_batch_that_fits_is_the_largest_divisor_by_formula_and_trial():
    assert sizes_tried(24, fits=24) == (24, [24])
    assert sizes_tried(24, fits=8) == (8, [8])
    assert sizes_tried(24, fits=24, world_size=2) == (12, [12])
    assert sizes_tried(24, fits=24, runs=lambda size: size < 7) == (6, [24, 12, 8, 6])
    assert sizes_tried(24, fits=24, runs=lambda size: False)[0] == 1


def test_an_automatic_batch_size_trains_on_the_same_text_as_any_other(train, tmp_path, monkeypatch):
    train("plain", batch_size=32, max_iters=5)
    train("auto", batch_size="auto", max_iters=5)
    monkeypatch.setattr("gptlab.training.starting.fit_micro_batch", lambda *args: 8)
    train("small", batch_size="auto", max_iters=5)
    state = read_checkpoint(tmp_path / "small" / "ckpt.pt")
    found = state["train_config"]["resolved"]
    assert (found["batch_size"], found["gradient_accumulation_steps"]) == (8, 4)
    losses = {
        name: [r["loss"] for r in Run(tmp_path / name).records() if "loss" in r]
        for name in ("plain", "auto", "small")
    }
    assert losses["auto"] == losses["plain"]
    assert losses["small"] == pytest.approx(losses["plain"], rel=1e-5)
    assert state["sequences_seen"] == 5 * 32


def test_the_rate_of_a_wsd_run_that_never_anneals_is_as_it_was():
    config = build(dict(max_iters=10, warmup_iters=2, lr_decay_iters=10, min_lr=0.0,
                        schedule="wsd", decay_fraction=0.5, learning_rate=1.0))  # fmt: skip
    assert [round(learning_rate(config, step), 3) for step in range(11)] == [
        0.333, 0.667, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0,
    ]  # fmt: skip
