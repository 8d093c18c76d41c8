"""`python gpt.py sweep`: spaces, halving, kills, the fresh comparison and the winning recipe."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gptlab.analysis import sweep as module
from gptlab.analysis.sweep import Axis, read_axis
from gptlab.cli.main import main
from gptlab.errors import ConfigError
from gptlab.runs import Run
from gptlab.training.config import read_recipe
from gptlab.training.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
GRID = ["a.py", "--learning_rate", "1e-6,1e-2", "--n_layer", "1..2", "--seeds", "2", "--best", "1"]


@pytest.fixture(autouse=True)
def short_rungs(here, monkeypatch):
    """Rungs of 2 and 6 steps."""
    monkeypatch.setattr(module, "FEWEST_STEPS", 2)


def sweep(*words):
    return main(["sweep", *words])


def trials(here, name="a"):
    path = here / "out" / "sweep" / name / "trials.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Spaces -------------------------------------------------------------------------------------------


def test_values_are_lists_whole_numbers_or_any_number_of_a_range():
    assert read_axis("n_layer", "3..6") == Axis("n_layer", (3, 4, 5, 6))
    assert read_axis("learning_rate", "3e-3,7e-3") == Axis("learning_rate", (3e-3, 7e-3))
    assert read_axis("learning_rate", "1e-4..1e-2") == Axis("learning_rate", (), 1e-4, 1e-2)
    assert read_axis("qk_norm", "true,false") == Axis("qk_norm", (True, False))
    assert read_axis("activation", "gelu,relu2").choices == ("gelu", "relu2")
    for name, text in (
        ("n_layer", "6..3"), ("n_layer", "3"), ("n_layer", "a,b"), ("max_iters", "1,2"),
        ("weight_decay", "0..1"), ("seed", "1,2"), ("dataset", "a,b"), ("n_embd", "1..1e9"),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            read_axis(name, text)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "one recipe or run, not 0"),
        (["a.py"], "needs an option to vary"),
        (["a.py", "--n_layer"], "has no values"),
        (["a.py", "--n_layer", "1,2", "--n_layer", "3,4"], "all its values in one list"),
        (["a.py", "--n_lyaer", "1,2"], "did you mean n_layer?"),
        (["a.py", "--n_layer", "1,2", "--trials", "1"], "must be at least 2"),
        (["a.py", "--n_layer", "1,2", "--trials", "4", "--hours", "1"], "use one of the two"),
        (["a.py", "--learning_rate", "1e-3..1e-2", "--sampler", "grid"], "use --sampler random"),
        (["none.py", "--n_layer", "1,2"], "no recipe none.py"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_a_sentence(here, capsys, words, sentence):
    assert sweep(*words) == 2
    assert sentence in capsys.readouterr().err
    assert not (here / "out").exists()


# The grid -----------------------------------------------------------------------------------------


def test_a_grid_is_halved_and_the_best_is_measured_with_fresh_seeds(here, capsys):
    assert sweep(*GRID) == 0
    out, err = capsys.readouterr()
    lines = trials(here)
    points = {(n["values"]["learning_rate"], n["values"]["n_layer"]) for n in lines[:4]}
    assert points == {(1e-6, 1), (1e-6, 2), (1e-2, 1), (1e-2, 2)}
    assert [(n["rung"], n["steps"]) for n in lines] == [(0, 2)] * 4 + [(1, 6)]
    best = min(lines[:4], key=lambda line: line["loss"])
    assert lines[4]["trial"] == best["trial"] and best["values"]["learning_rate"] == 1e-2
    # every trial is an ordinary run, trained with the recipe's seed; the fresh ones with others
    folder = here / "out" / "sweep" / "a"
    assert Run(folder / f"trial.{best['trial']}").load()["step"] == 6
    (results,) = folder.glob("fresh/*/results.jsonl")
    fresh = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["seed"] for line in fresh] == [1338, 1338, 1339, 1339]
    loss = sum(line["loss"] for line in fresh if line["arm"] != "A") / 2
    assert f"loss {loss:.4f} with 2 fresh seeds" in out and err.count("fresh seed") == 4
    # the winner is a recipe that says what was tried
    text = (folder / "best.py").read_text(encoding="utf-8")
    assert "# The best of 4 trials of a.py (grid)." in text
    assert "# Tried: learning_rate 1e-06, 0.01; n_layer 1, 2." in text
    recipe = read_recipe(folder / "best.py")
    assert recipe | best["values"] == recipe and recipe["max_iters"] == 6
    # nothing is left to do
    assert sweep(*GRID) == 0
    assert len(trials(here)) == 5 and "Trial" not in capsys.readouterr().err


def test_a_trial_of_several_rungs_ends_as_one_that_was_never_stopped(here, monkeypatch):
    words = ["a.py", "--learning_rate", "1e-6,1e-2", "--seeds", "2", "--best", "1"]
    sweep(*words, "--halving", "2")
    halved = trials(here)
    sweep(*words, "--halving", "1")
    straight = trials(here, "a-2")
    assert [line["steps"] for line in halved] == [3, 3, 6]
    assert [line["steps"] for line in straight] == [6, 6]
    (same,) = [n for n in straight if n["trial"] == halved[-1]["trial"]]
    assert same["loss"] == halved[-1]["loss"]


def test_another_batch_size_trains_for_as_many_tokens(here):
    assert sweep("a.py", "--batch_size", "2,8", "--halving", "1", "--seeds", "2") == 0
    assert {(n["values"]["batch_size"], n["steps"]) for n in trials(here)} == {(2, 12), (8, 3)}


def test_settings_that_contradict_each_other_are_a_result_and_the_sweep_goes_on(here, capsys):
    assert sweep("a.py", "--n_head", "1,3", "--seeds", "2", "--halving", "1") == 0
    lines = {n["values"]["n_head"]: n for n in trials(here)}
    assert "refused" in lines[3] and "loss" in lines[1]


# Kills --------------------------------------------------------------------------------------------


def test_ctrl_c_loses_nothing_and_the_same_command_ends_the_same(here, capsys, monkeypatch):
    assert sweep(*GRID, "--out_dir", "whole") == 0
    recorded, stopped = Metrics.step, []

    def step(metrics, state, *rest):
        recorded(metrics, state, *rest)
        if state.step == 4 and not stopped:
            stopped.append(state.step)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "step", step)
        assert sweep(*GRID) == 130
    assert "--best 1 continues" in capsys.readouterr().err and len(trials(here)) == 4
    assert sweep(*GRID) == 0
    whole = (here / "whole" / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    assert [n["loss"] for n in trials(here)] == [json.loads(line)["loss"] for line in whole]


def test_kills_anywhere_try_no_setting_twice_and_end_the_same(here, killed):
    few = ["a.py", "--learning_rate", "1e-6,2e-2", "--seeds", "2", "--best", "1"]
    assert sweep(*few, "--out_dir", "quiet") == 0
    assert killed(["sweep", *few, "--out_dir", "often"]) >= 3
    quiet, often = (
        [json.loads(line) for line in (here / name / "trials.jsonl").read_text().splitlines()]
        for name in ("quiet", "often")
    )
    names = ("trial", "rung", "steps", "values", "loss")
    assert [[n[name] for name in names] for n in often] == [
        [n[name] for name in names] for n in quiet
    ]
    found = [
        [(n["arm"], n["seed"], n["loss"]) for n in map(json.loads, path.read_text().splitlines())]
        for folder in ("quiet", "often")
        for path in (here / folder).glob("fresh/*/results.jsonl")
    ]
    assert found[0] == found[1] and len(found) == 2
    assert (here / "quiet" / "best.py").read_text() == (here / "often" / "best.py").read_text()


# Other samplers -----------------------------------------------------------------------------------


def test_random_settings_are_a_function_of_the_seed_and_no_point_is_tried_twice(here):
    words = ["a.py", "--learning_rate", "1e-4..1e-2", "--halving", "1", "--seeds", "2"]
    for folder in ("one", "two"):
        sweep(*words, "--trials", "3", "--best", "1", "--out_dir", folder)
    one, two = (
        [json.loads(n)["values"] for n in (here / f / "trials.jsonl").read_text().splitlines()]
        for f in ("one", "two")
    )
    assert one == two and len({n["learning_rate"] for n in one}) == 3
    assert all(1e-4 <= n["learning_rate"] <= 1e-2 for n in one)
    words = ["a.py", "--n_layer", "1,2", "--sampler", "random", "--trials", "9", "--halving", "1"]
    sweep(*words, "--seeds", "2", "--best", "1", "--out_dir", "three")
    assert len((here / "three" / "trials.jsonl").read_text().splitlines()) == 2


def test_optunas_study_goes_on_after_a_kill_and_knows_every_trial(here, monkeypatch):
    optuna = pytest.importorskip("optuna")
    words = ["a.py", "--learning_rate", "1e-5..1e-2", "--sampler", "tpe", "--halving", "1"]
    words += ["--seeds", "2", "--best", "1", "--out_dir", "o"]
    recorded, steps = Metrics.step, []

    def step(metrics, state, *rest):
        recorded(metrics, state, *rest)
        steps.append(state.step)
        if len(steps) == 8:  # in the second trial
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "step", step)
        with pytest.raises(ZeroDivisionError):
            sweep(*words, "--trials", "3")
    assert sweep(*words, "--trials", "3") == 0
    lines = [json.loads(n) for n in (here / "o" / "trials.jsonl").read_text().splitlines()]
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{here / 'o' / 'study.db'}")
    assert [t.value for t in study.trials] == [n["loss"] for n in lines]
    assert [t.params for t in study.trials] == [n["values"] for n in lines] and len(lines) == 3


def test_hours_decide_how_many_settings_are_tried(here, capsys):
    words = ["a.py", "--learning_rate", "1e-4..1e-2", "--halving", "1", "--seeds", "2"]
    assert sweep(*words, "--hours", "1e-6", "--best", "2") == 0
    assert "2 trials of a.py" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_two_processes_share_the_trials(here, sampler):
    words = [sys.executable, "-m", "gptlab.cli.main", "sweep", "a.py", "--out_dir", "s"]
    words += ["--learning_rate", "1e-4..1e-2", "--sampler", sampler, "--trials", "6"]
    words += ["--halving", "1", "--seeds", "2", "--best", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    lines = (here / "s" / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    numbers = [json.loads(line)["trial"] for line in lines]
    assert set(numbers) == set(range(6))
    assert all(text.count("Trial ") >= 1 for text in said)
