"""`gpt.py doctor` finds each fault, says how to mend it, and ends with 1; else with 0."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gptlab import hardware
from gptlab.checkpoints import model_content
from gptlab.cli.main import main
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.hardware.probe import probe
from gptlab.model.config import GPTConfig
from gptlab.options import parse_command_line
from gptlab.runs import Run
from gptlab.training.config import GROUPS, PresetOption

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def facts():
    """This machine, asked once."""
    return probe()


@pytest.fixture(autouse=True)
def machine(facts, monkeypatch):
    """The doctor sees this machine; what it is told may be changed."""

    changes = {"cpp_compiler": "/usr/bin/g++", "python_headers": True}

    def detect(only=None):
        return hardware.judge(dataclasses.replace(facts, **changes))

    monkeypatch.setattr(hardware, "detect", detect)
    return changes


@pytest.fixture
def words(home):
    """A home with the prepared text "words"."""
    text = "".join(f"line {n * n} of a small text\n" for n in range(300))
    (home / "words.txt").write_text(text, encoding="utf-8")
    prepare("words.txt", PrepareOptions(tokenizer="char"))
    return home


def failures(shown):
    """name -> what is to be done, of each failed check."""
    flat = " ".join(shown.split())
    return dict(re.findall(r"FAIL (.+?): .+? to do: (.+?)(?= (?:ok |FAIL |\d+ checks? ))", flat))


def test_where_everything_works_it_says_so_and_ends_with_0(words, capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for name in ("packages", "out_dir", "data", "device cpu", "attention", "torch.compile",
                 "disk space", "dataset words"):  # fmt: skip
        assert re.search(rf"^ok +{re.escape(name)}:", shown, re.M), name
    assert "Everything works here" in shown and "\x1b" not in shown
    assert not (words / "out").exists()  # looking leaves nothing behind


def test_an_empty_home_has_nothing_to_train_on(home, capsys):
    assert main(["doctor"]) == 1
    assert "prepare.py shakespeare" in failures(capsys.readouterr().out)["dataset"]


def test_a_truncated_train_bin_is_found(words, capsys):
    path = words / "data" / "words" / "train.bin"
    path.write_bytes(path.read_bytes()[:-7])
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "prepare it again" in failures(shown)["dataset words"] and "train.bin" in shown


def test_a_place_that_cannot_be_written_is_found(words, capsys):
    (words / "out").write_text("a file in the way", encoding="utf-8")
    assert main(["doctor"]) == 1
    assert "--out_dir" in failures(capsys.readouterr().out)["out_dir"]


def test_a_missing_compiler_is_found_unless_compiling_is_off(words, machine, capsys):
    machine["cpp_compiler"] = ""
    assert main(["doctor"]) == 1
    found = failures(capsys.readouterr().out)
    assert set(found) == {"torch.compile"} and "g++" in found["torch.compile"]
    assert main(["doctor", "--dataset", "words", "--compile_model", "false"]) == 0


def test_a_corrupt_checkpoint_is_found(words, capsys):
    import torch

    from gptlab.model.transformer import GPT

    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=20, block_size=8))
    run = Run(words / "out" / "mine")
    run.folder.mkdir(parents=True)
    run.save(model_content(model, None, step=3, optimizer={}))
    run.save_best(model_content(model, None, step=3))
    assert main(["doctor"]) == 0
    assert "mine/best.pt" in capsys.readouterr().out
    run.best.write_bytes(run.best.read_bytes()[:-50])
    assert main(["doctor"]) == 1
    assert "delete" in failures(capsys.readouterr().out)["mine/best.pt"]


def test_the_plan_of_these_options_is_checked(words, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000_000))
    assert main(["doctor", "--dataset", "words", "--model_preset", "tiny"]) == 0
    capsys.readouterr()
    assert main(["doctor", "--dataset", "words", "--model_preset", "gpt2"]) == 1
    assert "disk space" in failures(capsys.readouterr().out)


def test_what_this_machine_cannot_do_is_found(words, capsys):
    assert main(["doctor", "--dataset", "words", "--device", "cuda:7"]) == 1
    shown = capsys.readouterr().out
    assert failures(shown)["options"].split()[1] == "--device"
    assert "FAIL  options: There is no device 'cuda:7' here: this machine has" in shown


def test_an_accelerator_that_torch_does_not_use_is_found_with_the_build_that_does(
    words, machine, facts, capsys
):
    machine.update(driver="NVIDIA", devices=tuple(d for d in facts.devices if d.kind == "cpu"))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert failures(shown)["accelerator"].startswith("install the build of torch for it from https")
    assert re.search(r"^FAIL +accelerator: .* NVIDIA device that torch", shown, re.M)


@pytest.mark.parametrize(
    ("argv", "words_of_it"),
    [
        (["nope"], "There is no run 'nope'"),
        (["--datset", "words"], "did you mean dataset"),
        (["--config", "nope.py"], "nope.py"),
        (["--learning_rate", "fast"], "learning_rate"),
    ],
)
def test_a_wrong_word_is_a_sentence(words, capsys, argv, words_of_it):
    assert main(["doctor", *argv]) == 2
    assert words_of_it in capsys.readouterr().err


def test_a_missing_torch_is_found_and_the_rest_is_left(words, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    assert main(["doctor"]) == 1
    assert "pip install" in failures(capsys.readouterr().out)["torch"]


def test_a_missing_package_is_a_sentence_with_the_command_that_brings_it():
    code = "import sys; sys.modules['numpy'] = None; from gptlab.cli.main import main; "
    ended = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(main(['doctor']))"], capture_output=True,
        encoding="utf-8", cwd=REPOSITORY, check=False,
    )  # fmt: skip
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr == (
        "gptlab: The package numpy is missing: pip install -r requirements.txt.\n"
    )


# A run --------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(home):
    """A run with records as given, and a config.py."""

    def make(name, losses, evaluations=(), rate=1e-3, max_iters=100):
        run = Run(home / "out" / name)
        run.folder.mkdir(parents=True)
        run.recipe.write_text(
            f"dataset = 'gone'  # command line\nmax_iters = {max_iters}  # command line\n"
            f"learning_rate = {rate}  # command line\n"
            "# batch_size = 8  (default)\n# block_size = 64  (default)\n"
            f"# lr_decay_iters = {max_iters}  (max_iters)\n# eval_interval = 10  (ten)\n",
            encoding="utf-8",
        )
        for number, loss in enumerate(losses):
            run.append({"step": 10 * number or 1, "loss": loss, "learning_rate": rate})
        for step, loss in evaluations:
            run.append({"step": step, "val_loss": loss})
        return run

    return make


def test_a_run_in_trouble_is_named_with_its_command_and_ends_with_1(recorded, home, capsys):
    falling = [3.0 - 0.2 * n for n in range(11)]
    recorded("learned_by_heart", falling, [(20, 2.5), (40, 2.2), (70, 2.4), (100, 2.9)])
    for name in ("learned_by_heart", "out/learned_by_heart"):
        assert main(["doctor", name]) == 1
        shown = capsys.readouterr().out
        assert "Overfitting" in shown and "since step 40" in " ".join(shown.split())
    command = next(line for line in shown.splitlines() if "train.py" in line).split()
    assert "out/learned_by_heart/config.py" in command
    assert command[command.index("--out_dir") + 1] == "out/learned_by_heart_2"
    assert command[command.index("--dropout") + 1] == "0.2"
    options = command[2:]
    options = options[options.index("--out_dir") :]
    overrides = parse_command_line(
        options, [PresetOption, *GROUPS.values()], prog="x", summary="", example=""
    )
    assert overrides["early_stopping"] == 3


def test_a_run_that_was_too_short_is_continued(recorded, capsys):
    run = recorded("short", [4.1, 3.2, 2.9], [(20, 3.0)], max_iters=20)
    assert main(["doctor", "short"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "Far too short" in shown and "--max_iters 200" in shown
    assert "--resume" not in shown  # without a checkpoint it begins again
    run.checkpoint.touch()
    assert main(["doctor", "short"]) == 1
    assert "--max_iters 200 --resume" in " ".join(capsys.readouterr().out.split())


def test_a_run_without_trouble_ends_with_0(recorded, capsys):
    losses = [3.0, 2.0, 1.7, 1.6, 1.56, 1.53, 1.51, 1.5, 1.49, 1.485, 1.48]
    run = recorded("calm", losses, [(50, 1.6), (100, 1.55)])
    falling = [
        {**r, "learning_rate": 1e-3 * (1 - 0.095 * n)} if "loss" in r else r
        for n, r in enumerate(run.records())
    ]
    run.metrics.unlink()
    for record in falling:
        run.append(record)
    assert main(["doctor", "calm"]) == 0
    shown = capsys.readouterr().out
    assert "no problem" in shown and "1.5500 at step 100" in shown


def test_a_folder_without_records_is_a_sentence(home, capsys):
    (home / "out" / "empty").mkdir(parents=True)
    assert main(["doctor", "empty"]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err


def test_help_is_an_example_first(capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert capsys.readouterr().out.startswith("python gpt.py doctor")
