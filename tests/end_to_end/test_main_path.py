"""The main job through the commands, as a person types them: prepare, train, resume, sample."""

import random
import shutil
from pathlib import Path

import pytest

from gptlab.cli.main import main, run_command
from gptlab.runs import Run

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = "--n_layer 1 --n_head 2 --n_embd 32 --block_size 32 --batch_size 4 --dropout 0".split()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory and home of its own, with a text of another language in it."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = "über den Wäldern schläft der Fluß, und niemand weiß — 森の上 — warum 🌲".split()
    rng = random.Random(0)
    lines = [" ".join(rng.choices(words, k=9)).capitalize() + "." for _ in range(400)]
    Path("wald.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_a_text_becomes_a_model_that_writes_in_its_letters(here, capsys, tokenizer):
    bpe = ["--vocab_size", "300"] if tokenizer == "bpe" else []
    assert run_command("prepare", ["wald.txt", "--tokenizer", tokenizer, *bpe]) == 0
    train = ["--dataset", "wald", "--out_dir", "out/a", *SMALL]
    assert run_command("train", [*train, "--max_iters", "20"]) == 0
    assert run_command("train", ["--out_dir", "out/a", "--max_iters", "40", "--resume"]) == 0
    records = Run(here / "out/a").records()
    losses = [record["val_loss"] for record in records if "val_loss" in record]
    assert losses[-1] < losses[0]
    steps = [record["step"] for record in records if "loss" in record]
    assert steps == sorted(set(steps)) and steps[-1] == 40

    shutil.rmtree(here / "data")  # the tokenizer travels with the model
    capsys.readouterr()
    sample = ["--prompt", "Über", "--max_tokens", "60", "--seed", "3"]
    assert run_command("sample", sample) == 0
    first = capsys.readouterr()
    assert first.out.startswith("Über") and len(first.out) > 20
    assert "out/a/best.pt" in first.err and "validation loss" in first.err
    assert run_command("sample", [*sample, "--out_dir", "out/a"]) == 0
    assert capsys.readouterr().out == first.out


def test_every_command_of_the_menu_has_help_that_opens_with_an_example(capsys):
    assert main([]) == 0
    menu = capsys.readouterr().out
    assert menu.startswith("python gpt.py")
    rows = menu.partition("\n\n")[2].splitlines()  # a group's name, or its place, comes first
    names = [line[9:].split()[0] for line in rows]
    assert {"train", "generate", "dataset", "lens"} <= set(names)
    for name in names:
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert "python " in "".join(capsys.readouterr().out.splitlines()[:2])


def test_an_unknown_command_is_answered_with_the_nearest(capsys):
    assert main(["trian"]) == 2
    assert "train" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["gpt.py", "train.py", "sample.py", "prepare.py"])
def test_root_scripts_only_hand_over(script):
    lines = (REPOSITORY / script).read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) < 10
