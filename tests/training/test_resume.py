"""A run that was stopped and continued ends exactly where the unbroken run ends."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptlab import hardware
from gptlab.checkpoints import read_checkpoint, write_checkpoint
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.errors import CheckpointError, ConfigError, GPTLabError, RunError
from gptlab.runs import Run
from gptlab.training import loop, trainer
from gptlab.training.config import layer, read_recipe
from gptlab.training.picture import Picture

ROOT = Path(__file__).resolve().parents[2]
TIMING = ("time", "tokens_per_second", "mfu", "data_share")


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


@pytest.mark.parametrize("stop_at", [10, 13])  # where an evaluation is due, and between two
def test_the_evaluation_due_at_the_break_is_made_up_for_and_none_is_recorded_twice(
    train, tmp_path, stop_at
):
    train("whole", eval_interval=5)
    train("broken", eval_interval=5, stop_at=stop_at)
    train("broken", resume=True)
    records = records_of(tmp_path / "broken")
    assert records == records_of(tmp_path / "whole")
    assert [r["step"] for r in records if "val_loss" in r] == [5, 10, 15, 20]
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 21))


def test_what_was_recorded_after_the_newest_checkpoint_is_recorded_once(train, tmp_path):
    train("whole", eval_interval=5)
    with pytest.raises(ZeroDivisionError):  # a death at step 13, three steps after a checkpoint
        train("broken", eval_interval=5, die_at=13)
    assert state_of(tmp_path / "broken")["step"] == 10
    assert records_of(tmp_path / "broken")[-1]["step"] == 13
    train("broken", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_death_during_the_last_evaluation_costs_the_evaluation_only(train, tmp_path, monkeypatch):
    train("whole")
    with monkeypatch.context() as patch:
        evaluate = loop.evaluate

        def dying(setup, state, metrics):
            if state.is_finished:
                raise ZeroDivisionError
            evaluate(setup, state, metrics)

        patch.setattr(loop, "evaluate", dying)
        with pytest.raises(ZeroDivisionError):
            train("broken")
    assert state_of(tmp_path / "broken")["step"] == 20
    assert train("broken", resume=True).step == 20
    assert records_of(tmp_path / "broken") == records_of(tmp_path / "whole")
    assert state_of(tmp_path / "broken", "best.pt")["step"] == 20


def test_a_finished_run_says_so_and_names_the_option(train, tmp_path, capsys):
    train()
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    outcome = train(resume=True, quiet=False)
    assert (outcome.step, outcome.exit_code) == (20, 0)
    assert "finished: all 20 steps" in capsys.readouterr().out
    assert train(resume=True, max_iters=10).step == 20
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def rates_of(folder):
    return [r["learning_rate"] for r in records_of(folder) if "learning_rate" in r]


def test_a_kill_during_the_last_picture_leaves_nothing_behind(train, tmp_path, pictures):
    train()
    (tmp_path / "run" / "loss.png").unlink()
    (tmp_path / "run" / ".loss.png.123.tmp").write_bytes(b"half of it")
    assert train(resume=True).step == 20
    assert list((tmp_path / "run").glob(".*.tmp")) == []
    assert (tmp_path / "run" / "loss.png").exists()


def test_max_iters_is_the_total_and_the_schedule_follows_it(train, tmp_path):
    train(max_iters=10, warmup_iters=2)
    assert rates_of(tmp_path / "run")[9] < 2e-4
    assert train(resume=True, max_iters=20).step == 20
    state = state_of(tmp_path / "run")
    assert state["step"] == 20 and state["sequences_seen"] == 80
    resolved = state["train_config"]["resolved"]
    assert (resolved["lr_decay_iters"], resolved["warmup_iters"]) == (20, 2)
    assert rates_of(tmp_path / "run")[11] > 4e-4


def test_what_may_change_at_a_resume_changes_and_is_listed_old_to_new(train, tmp_path, capsys):
    train(max_iters=10)
    train(
        resume=True, max_iters=20, quiet=False, learning_rate=5e-4, batch_size=8, eval_interval=4,
        dropout=0.2,
    )  # fmt: skip
    out = capsys.readouterr().out
    for change in (
        "max_iters 10 -> 20", "learning_rate 0.001 -> 0.0005", "batch_size 4 -> 8",
        "eval_interval 1 -> 4", "dropout 0.0 -> 0.2",
    ):  # fmt: skip
        assert change in out
    state = state_of(tmp_path / "run")
    assert state["sequences_seen"] == 10 * 4 + 10 * 8
    assert state["train_config"]["resolved"]["learning_rate"] == 5e-4
    evaluated = [r["step"] for r in records_of(tmp_path / "run") if "val_loss" in r]
    assert evaluated == [*range(1, 11), 12, 16, 20]


@pytest.mark.parametrize(
    "change",
    [
        {"n_layer": 3},
        {"block_size": 8},
        {"n_embd": 32},
        {"bias": True},
        {"model_preset": "tiny"},
        {"optimizer": "muon"},
        {"minutes": 5.0},
        {"epochs": 5.0},
        {"seed": 2},
        {"init_from": "elsewhere"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_option_that_would_make_it_another_run_is_refused_by_name(train, tmp_path, change):
    train(max_iters=4)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(GPTLabError, match=next(iter(change))):
        train(resume=True, max_iters=8, **change)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_run_in_epochs_goes_on_to_the_end_that_its_first_start_decided(train, tmp_path):
    began = train("cut", max_iters=None, epochs=0.1, batch_size=8, stop_at=5)
    assert began.step == 5
    whole = train("whole", max_iters=None, epochs=0.1, batch_size=8)
    assert train("cut", resume=True, epochs=0.1).step == whole.step > 10
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    longer = whole.step + 2
    assert train("cut", resume=True, max_iters=longer).step == longer


def test_other_data_is_refused_at_a_resume(train, tmp_path, prepared_home):
    train(max_iters=4)
    (prepared_home / "other.txt").write_text("another text, " * 500, encoding="utf-8")
    prepare(str(prepared_home / "other.txt"), PrepareOptions(tokenizer="char"))
    with pytest.raises(RunError, match="trained on other data"):
        train(resume=True, max_iters=8, dataset="other")


def test_the_same_data_under_another_name_is_the_same_data(train, tmp_path, prepared_home):
    train(max_iters=4)
    shutil.copytree(prepared_home / "data" / "tiny", tmp_path / "moved")
    assert train(resume=True, max_iters=8, dataset=str(tmp_path / "moved")).step == 8


def test_a_longer_resume_that_gets_worse_leaves_best_pt_alone(train, tmp_path):
    train(max_iters=10, eval_interval=4, learning_rate=1e-2, warmup_iters=0)
    best = state_of(tmp_path / "run", "best.pt")
    outcome = train(resume=True, max_iters=12, learning_rate=0.5)
    assert records_of(tmp_path / "run")[-1]["val_loss"] > best["val_loss"]
    assert differing(best["model"], state_of(tmp_path / "run", "best.pt")["model"]) == []
    assert (outcome.best_step, outcome.best_val_loss) == (10, best["val_loss"])


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(train, tmp_path, caplog):
    train("whole", eval_interval=5)
    train("broken", eval_interval=5, stop_at=15)
    checkpoint = tmp_path / "broken" / "ckpt.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    train("broken", resume=True)
    assert "ckpt.pt is damaged" in caplog.text and "at step 10 instead" in caplog.text
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_resume_keeps_the_decisions_of_the_first_start(train, tmp_path, monkeypatch):
    choose = hardware.choose

    def let_auto_be(precision):
        def chosen(report, device, dtype):
            return choose(report, device, precision if dtype == "auto" else dtype)

        monkeypatch.setattr(hardware, "choose", chosen)

    let_auto_be("float32")
    train(max_iters=10, device="auto", dtype="auto")
    state = state_of(tmp_path / "run")
    assert state["decided"]["max_iters"] == 10 and state["decided"]["dtype"] == "float32"
    let_auto_be("bfloat16")  # a machine whose own choice is now another one
    train(resume=True, max_iters=12)
    assert state_of(tmp_path / "run")["train_config"]["resolved"]["dtype"] == "float32"


RECIPE = "dataset = 'tiny'\nn_layer = 1\nn_head = 2\nn_embd = 16\nblock_size = 16\nbatch_size = 2\n"


def test_a_repeated_recipe_must_be_the_one_that_the_run_began_with(tmp_path, monkeypatch):
    recipe = tmp_path / "own.py"
    recipe.write_text(RECIPE, encoding="utf-8")

    def start(**command_line):
        command_line = dict(out_dir=str(tmp_path / "run"), quiet=True, device="cpu", **command_line)
        overrides = layer(read_recipe(recipe), command_line, "own.py")
        return trainer.train(overrides, recipe_name="own")

    monkeypatch.setattr(Picture, "draw", lambda *_: None)
    start(max_iters=4, batch_size=3)  # the command line's word lies over the recipe's
    assert start(resume=True, max_iters=6).step == 6
    recipe.write_text(RECIPE.replace("n_embd = 16", "n_embd = 32"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"n_embd = 32, but the run began with 16.*--config"):
        start(resume=True, max_iters=8)


def test_options_of_one_start_do_not_return_at_the_next(train, tmp_path, capsys):
    train(max_iters=4, overwrite=True)
    capsys.readouterr()
    assert train(resume=True, max_iters=6, quiet=False).step == 6
    assert "Continuing after step 4" in capsys.readouterr().out
    (tmp_path / "run").rename(tmp_path / "moved")
    assert train("moved", resume=True, max_iters=8).folder == tmp_path / "moved"
    assert not (tmp_path / "run").exists()
    assert "out_dir" not in (tmp_path / "moved" / "config.py").read_text(encoding="utf-8")


def test_a_run_with_a_time_budget_resumes_to_the_steps_decided_at_its_start(train, tmp_path):
    train("run", stop_at=3, max_iters=None, minutes=1.0)
    decided = state_of(tmp_path / "run")["decided"]["max_iters"]
    assert train("run", resume=True, stop_at=5).step == 5
    assert state_of(tmp_path / "run")["decided"]["max_iters"] == decided > 5


def test_a_killed_process_loses_nothing_that_a_checkpoint_had(train, tmp_path, mixed):
    settings = dict(
        dataset=mixed, n_layer=2, n_head=2, n_embd=16, block_size=16, dropout=0.1, batch_size=4,
        max_iters=60, eval_tokens=256, log_interval=1, device="cpu", dtype="float32",
        compile_model=False, eval_interval=5, out_dir=tmp_path / "broken",
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *(f"--{n}={v}" for n, v in settings.items())],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert any(line.startswith("step 10: validation") for line in process.stdout)
    process.kill()  # somewhere between two checkpoints, or within one
    process.communicate()
    del settings["out_dir"]
    train("whole", **settings)
    assert train("broken", resume=True).step == 60
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert list((tmp_path / "broken").glob(".*.tmp")) == []


@pytest.mark.parametrize("part", ["scaler", "decided", "train_config", "dataset", "sequences_seen"])
def test_a_state_that_lacks_a_part_is_a_sentence(train, tmp_path, part):
    train(max_iters=2)
    state = state_of(tmp_path / "run")
    del state[part]
    write_checkpoint(state, tmp_path / "run" / "ckpt.pt")
    with pytest.raises(CheckpointError, match=rf"ckpt\.pt cannot be continued: it has no .*{part}"):
        train(resume=True)
