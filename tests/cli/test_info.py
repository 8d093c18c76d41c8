"""`gpt.py info`: one screen, the states of runs, renaming and deleting."""

import io
import json
import os
import time

import pytest

from gptlab.cli.commands import info as command
from gptlab.cli.main import main
from gptlab.cli.ui import questions
from gptlab.hardware import Choice
from gptlab.runs import Run
from gptlab.training.config import layer
from gptlab.training.resolving import Situation, resolve
from gptlab.training.run_recipe import as_recipe

CPU = Choice("cpu", "float32", False, "cpu")


@pytest.fixture
def make_run(home):
    """A run below out/ as its files show it; the weights are 1,000 bytes of nothing."""

    def make(name, steps=100, max_iters=100, age=0.0, **options):
        overrides = layer(options, {"max_iters": max_iters}, "a recipe")
        resolved = resolve(overrides, Situation(CPU, 66, 9999, 999))
        run = Run(home / "out" / name)
        run.folder.mkdir(parents=True)
        run.recipe.write_text(as_recipe(overrides, resolved), encoding="utf-8")
        for step in range(10, steps + 1, 10):
            run.append({"step": step, "loss": 3.0, "learning_rate": 1e-3})
            run.append({"step": step, "val_loss": 4.0 - step / 100})
        run.checkpoint.write_bytes(b"x" * 1000)
        os.link(run.checkpoint, run.previous)
        run.best.write_bytes(b"x" * 500)
        then = time.time() - age
        for path in run.folder.iterdir():
            os.utime(path, (then, then))
        return run

    return make


@pytest.fixture
def at_terminal(monkeypatch):
    def at_terminal(*lines):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr(questions, "at_terminal", lambda: True)

    return at_terminal


def row(shown, name):
    return next(line for line in shown.splitlines() if line.split()[:1] == [name])


def test_an_empty_home_says_how_to_begin(home, capsys):
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "gptlab 0.1.0" in shown and str(home) in shown and "GPTLAB_HOME" in shown
    assert "prepare.py shakespeare" in shown and "gpt.py train" in shown


def test_one_screen_shows_environment_datasets_and_runs_plainly_in_a_pipe(make_run, home, capsys):
    folder = home / "data" / "plays"
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(b"")
    meta = {"format_version": 1, "dtype": "uint16", "vocab_size": 66, "train_tokens": 900,
            "val_tokens": 100, "train_bytes": 900_000, "val_bytes": 100_000,
            "tokenizer": {"kind": "char"}}  # fmt: skip
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    for number in range(12):
        make_run(f"run_{number}", age=number * 60)
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "plays" in shown and "1.0 MB, 1,000 tokens (char)" in shown
    assert len(shown.splitlines()) <= 24 and "\x1b" not in shown
    assert "The 10 newest of 12; all: python" in " ".join(shown.split())
    assert [f"run_{n} " in shown for n in range(12)] == [True] * 10 + [False] * 2


@pytest.mark.parametrize("width", [60, 80])
def test_it_fits_a_narrow_window_and_cuts_no_number(make_run, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    make_run("a_run_with_quite_a_long_name_of_its_own", steps=40)
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[2:])) <= width and not any("…" in line for line in lines)
    assert any("interrupted" in line and "3.6000" in line for line in lines)


def test_a_run_shows_state_step_loss_size_and_age(make_run, capsys):
    make_run("done", age=3 * 3600)
    make_run("broken_off", steps=40, age=90)
    make_run("turned", steps=80, max_iters=5000, early_stopping=2, eval_interval=10)
    run = make_run("turned_back", steps=50, max_iters=5000, early_stopping=2, eval_interval=10)
    for step in (60, 70):
        run.append({"step": step, "val_loss": 9.0})
    assert main(["info", "--runs"]) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if "kB" in line]
    table = {row[1]: row for row in rows if row[0].isdigit()}
    assert table["done"][2:5] == ["finished", "100", "3.0000"] and table["done"][-2:] == ["3", "h"]
    assert table["broken_off"][2:5] == ["interrupted", "40", "3.6000"]
    assert table["turned"][2] == "interrupted" and table["turned_back"][2] == "finished"


def test_a_run_that_a_living_process_holds_is_running_and_stays_so(make_run, capsys):
    fcntl = pytest.importorskip("fcntl")
    run = make_run("alive", steps=40)
    with open(run.folder / ".lock", "a", encoding="utf-8") as lock:
        assert not run.is_running()  # a lock file alone means nothing
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        main(["info"])
        assert "running" in row(capsys.readouterr().out, "alive")
        assert main(["info", "--delete", "alive", "--yes"]) == 2
        assert main(["info", "--rename", "alive", "--to", "dead"]) == 2
        assert "being trained right now" in capsys.readouterr().err
    assert run.checkpoint.exists() and not run.is_running()


def test_checking_whether_a_run_is_alive_takes_no_lock(make_run):
    run = make_run("quiet")
    assert not run.is_running()
    assert not (run.folder / ".lock").exists()
    run.begin(resume=True)  # would fail if the look had kept a lock
    assert run.is_running()
    run.end()
    assert not run.is_running()


def test_two_names_of_one_file_take_its_disk_once(make_run):
    run = make_run("sized")
    others = sum(path.stat().st_size for path in (run.recipe, run.metrics, run.best))
    assert command.disk_use(run.folder) == 1000 + others


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0 s"), (0, "0 s"), (59, "59 s"), (61, "1 min"), (7100, "118 min"), (7300, "2 h"),
     (86400 * 3, "3 d")],
)  # fmt: skip
def test_an_age_is_shown_in_one_unit(seconds, words):
    assert command.age(seconds) == words


# Rename and delete


def test_a_run_gets_another_name(make_run, home, capsys):
    make_run("old")
    assert main(["info", "--rename", "old", "--to", "new"]) == 0
    assert not (home / "out" / "old").exists() and (home / "out" / "new" / "best.pt").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--rename", "old", "--to", "other"], "exists already"),
        (["--rename", "old", "--to", "../up"], "letters, digits"),
        (["--rename", "old", "--to", ""], "letters, digits"),
        (["--rename", "nope", "--to", "new"], "There is no run"),
        (["--rename", "old"], "belong together"),
        (["--delete", "nope", "--yes"], "There is no run"),
        (["--delete", "old"], "--yes"),
        (["--yes"], "--delete"),
        (["--delet", "old"], "did you mean delete"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_changes_nothing(make_run, home, capsys, argv, words):
    make_run("old")
    make_run("other")
    assert main(["info", *argv]) == 2
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in (home / "out").iterdir()) == ["old", "other"]


@pytest.mark.parametrize(("line", "stays"), [("", True), ("no", True), ("yes", False)])
def test_a_run_is_deleted_only_after_a_yes(make_run, home, at_terminal, capsys, line, stays):
    make_run("old")
    at_terminal(line)
    assert main(["info", "--delete", "old"]) == int(stays)
    assert (home / "out" / "old").exists() is stays
    assert "validation loss 3.0000" in " ".join(capsys.readouterr().out.split())
    assert stays or list((home / "out").iterdir()) == []


def test_the_questions_rename_and_delete_and_survive_wrong_answers(
    make_run, home, at_terminal, capsys
):
    make_run("first", age=60)
    make_run("second")
    at_terminal(
        "rename", "2", "second", "a/b", "third",  # the name is taken, then impossible, then good
        "delete", "9", "b",  # no such number, and back
        "delete", "second", "y", "leave",
    )  # fmt: skip
    assert main(["info", "--runs"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "exists already" in shown and "letters, digits" in shown
    assert [path.name for path in (home / "out").iterdir()] == ["third"]
