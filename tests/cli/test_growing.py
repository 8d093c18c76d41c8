"""What the commands say and keep when a text grows."""

import shlex

import pytest

from gptlab.cli.main import main
from gptlab.data.token_files import open_dataset
from gptlab.data.versions import older_versions
from gptlab.runs import load_checkpoint
from gptlab.training.picture import Picture

DIARY = "Monday: rain, and a walk by the river.\n" * 60
TODAY = "Today: coffee for 3 €, naïve\n"
SMALL = "--n_layer 1 --n_head 1 --n_embd 8 --block_size 8 --batch_size 2 --device cpu --quiet"


@pytest.fixture
def command(home, monkeypatch):
    """Run a command line in the home; its exit code."""
    monkeypatch.chdir(home)
    return lambda words: main(shlex.split(words))


def write(home, text):
    (home / "diary.txt").write_text(text, encoding="utf-8")


@pytest.fixture
def trained(home, command, monkeypatch):
    """The dataset `diary`, a finished run on it, and one that was stopped."""
    monkeypatch.setattr(Picture, "draw", lambda *_: None)  # which takes longer than the rest
    write(home, DIARY)
    assert command("prepare diary.txt") == 0
    assert command(f"train --dataset diary --max_iters 2 {SMALL}") == 0
    stop = "--max_iters 9 --max_minutes 1e-9 --eval_interval 1"
    assert command(f"train --dataset diary --out_dir elsewhere/stopped {stop} {SMALL}") == 0
    return open_dataset("diary")


def kept(dataset):
    return [path.name for path in older_versions(dataset.folder)]


def test_an_old_version_stays_for_an_unfinished_run_wherever_it_is(home, command, trained, capsys):
    write(home, DIARY + TODAY)
    assert command("prepare diary.txt") == 0
    out = capsys.readouterr().out
    assert "version 1 (2,340 tokens) for elsewhere/stopped, which --resume may continue" in out
    assert kept(trained) == [trained.fingerprint[:16]]
    for words in ("dataset view diary --top 0 --excerpts 0", "dataset list", "info"):
        assert command(words) == 0
        shown = capsys.readouterr().out
        assert "version 2" in shown or ("version" in shown and "kept: version 1" in shown)
    go_on = "train --out_dir elsewhere/stopped --resume --max_minutes 0 --quiet"
    assert command(f"{go_on} --max_iters 3") == 0
    write(home, DIARY + TODAY * 2)
    assert command("prepare diary.txt") == 0  # it is finished now, and no other needs a version
    assert kept(trained) == [] and "kept" not in capsys.readouterr().out


def test_the_next_command_goes_on_from_the_model_of_the_text_as_it_was(
    home, command, trained, capsys
):
    write(home, DIARY + TODAY)
    assert command("prepare diary.txt") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == (
        "Next: python train.py --dataset diary --init_from out/diary --extend_vocabulary "
        "--out_dir out/diary_2"
    )
    assert command(f"{line.removeprefix('Next: python ').replace('.py', '')} --max_iters 1") == 0
    new = load_checkpoint(home / "out/diary_2")
    assert new.tokenizer.fingerprint == open_dataset("diary").tokenizer.fingerprint
    write(home, DIARY + TODAY + DIARY)  # without a new character
    assert command("prepare diary.txt") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith("--init_from out/diary_2 --out_dir out/diary_3")
    assert command("dataset delete diary --yes") == 0  # with its older versions
    assert not (home / "data/diary").exists()


def test_a_plan_counts_the_rows_that_are_added(home, command, trained, capsys):
    write(home, DIARY + TODAY)
    assert command("prepare diary.txt") == 0
    capsys.readouterr()
    words = "plan --dataset diary --init_from out/diary --max_iters 2 --device cpu"
    for more, size in (("", trained.vocab_size), (" --extend_vocabulary", trained.vocab_size + 6)):
        assert command(words + more) == 0
        assert f"vocabulary {size} (" in capsys.readouterr().out


def test_a_run_on_an_older_version_is_replayed_and_blamed(home, command, trained, capsys):
    write(home, DIARY + TODAY)
    assert command("prepare diary.txt") == 0
    assert command("replay elsewhere/stopped") == 0
    assert command("blame elsewhere/stopped --step 1 --top 1") == 0
