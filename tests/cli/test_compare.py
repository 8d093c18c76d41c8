"""`python gpt.py compare`: what is compared, what is refused, and what is printed and written."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptlab.cli.main import main
from gptlab.training import trainer
from gptlab.training.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = ("seconds", "tokens_per_second")


def compare(*words):
    return main(["compare", *words])


def more(here, line):
    """The text of the recipe with another line."""
    return (here / "a.py").read_text(encoding="utf-8") + line


def lines_of(folder):
    return (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "needs something to compare"),
        (["a.py"], "a.py is alone"),
        (["a.py", "a.py", "a.py"], "takes two recipes or runs, not 3"),
        (["a.py", "a.py", "--set", "n_layer=2"], "B is named already"),
        (["a.py", "--set", "n_layer=2", "--seeds", "1"], "one pair of runs does not show"),
        (["a.py", "--set", "n_layer"], "write it as name=value"),
        (["a.py", "--set", "n_lyaer=2"], "did you mean n_layer?"),
        (["a.py", "--set", "n_layer=two"], "it takes a whole number"),
        (["a.py", "--set", "n_layer=2", "--set", "n_layer=3"], "say it once"),
        (["a.py", "--set", "n_layer=2", "--both", "n_layer=3"], "say it once"),
        (["a.py", "--set", "seed=2"], "use --seeds"),
        (["a.py", "--set", "out_dir=x"], "set by compare itself"),
        (["a.py", "--set", "minutes=1"], "use --both max_iters=N"),
        (["a.py", "--set", "dataset=other"], "ask for --bits_per_byte"),
        (["a.py", "--set", "dataset=none"], "No prepared dataset"),
        (["a.py", "--against", "no-such-revision"], "There is no git revision"),
        (["a.py", "--against", "HEAD", "--noise_floor"], "in a comparison without --against"),
        (["a.py", "--set", "n_layer=2", "--smallest", "0"], "must be above 0"),
        (["nothing.py", "--set", "n_layer=2"], "no recipe nothing.py"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(here, capsys, words, sentence):
    assert compare(*words) == 2
    assert sentence in capsys.readouterr().err
    assert not (here / "out").exists()


def test_a_mix_of_datasets_is_refused_for_it_has_no_one_validation_text(here, capsys):
    shutil.copytree(here / "data/tiny", here / "again")
    assert compare("a.py", "--set", "n_layer=2", "--both", "dataset=tiny,./again") == 2
    assert "trains on 2 datasets" in capsys.readouterr().err
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    "words", [["compare", "--set", "n_layer=2"], ["sweep", "--n_layer", "1,2"]]
)
def test_data_without_validation_text_are_refused_before_anything_is_written(here, capsys, words):
    (here / "ids").mkdir()
    for name in ("train.bin", "tokenizer.json"):
        shutil.copy(here / "data" / "tiny" / name, here / "ids" / name)
    (here / "ids" / "val.bin").write_bytes(b"")
    (here / "a.py").write_text(more(here, "dataset = './ids'\n"), encoding="utf-8")
    assert main([words[0], "a.py", *words[1:]]) == 2
    assert "The val part of ids has 0 tokens" in (err := capsys.readouterr().err)
    assert err.rstrip().endswith(": give it more text.")
    assert not (here / "out").exists()


# What is printed ----------------------------------------------------------------------------------


def test_two_recipes_are_compared_and_the_page_and_the_table_say_so(here, capsys):
    (here / "b.py").write_text(more(here, "learning_rate = 1e-6\n"), encoding="utf-8")
    assert compare("a.py", "b.py", "--seeds", "3", "--smallest", "0.001") == 0
    out, err = capsys.readouterr()
    assert "B differs from A in learning_rate 0.01 -> 1e-06" in out
    assert "Verdict: A is better, by " in out
    assert "Keep A (a.py): B predicts new text worse" in out
    assert "Next: python train.py --config a.py" in out
    assert err.count("Training ") == 6
    folder = here / "out" / "compare" / "a-b"
    assert len(lines_of(folder)) == 6 + 1  # and that it was judged at 3
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "A is better" in page and page.count("<svg") >= 4 and "<script" not in page
    # more seeds are a further look, which is said
    assert compare("a.py", "b.py", "--seeds", "4") == 0
    assert "judged before, at 3 seeds" in capsys.readouterr().out
    assert len(lines_of(folder)) == 7 + 2 + 1


def test_a_recipe_beside_itself_is_identical_after_two_pairs(here, capsys):
    assert compare("a.py", "a.py") == 0
    out, err = capsys.readouterr()
    assert "Verdict: identical: all 2 pairs are equal to the bit." in out
    assert "95% interval" not in out and err.count("Training ") == 4


def test_a_run_is_compared_by_its_recipe(here, capsys):
    main_train = dict(max_iters=2, quiet=True, dataset="tiny", n_layer=1, n_head=1, n_embd=8)
    trainer.train(**main_train, block_size=8, batch_size=2, out_dir="out/mine", device="cpu")
    assert compare("mine", "--set", "learning_rate=0.1", "--seeds", "2", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["a"], content["b"]) == ("out/mine", "learning_rate=0.1")
    assert len(content["pairs"]) == 2 and content["difference"]["tokens"]["seeds"] == 2
    assert Path(content["folder"], "report.html").is_file()


def test_other_data_are_compared_in_bits_per_byte_when_asked(here, capsys):
    words = ["a.py", "--set", "dataset=other", "--bits_per_byte", "--seeds", "2", "--json"]
    assert compare(*words) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["unit"] == "bits per byte" and content["text_interval"] is None


def test_the_noise_floor_is_that_of_a_beside_itself_when_asked(here, capsys):
    words = ["a.py", "--set", "n_layer=2", "--seeds", "2", "--noise_floor", "--json"]
    assert compare(*words) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["noise_floor"]["from"] == "A against A, 2 pairs"
    assert "initial tensors of B are copies of A's; " in err and err.count("Training A2") == 2


def test_a_changed_recipe_begins_another_comparison_and_the_same_one_goes_on(here, capsys):
    words = ["a.py", "--set", "n_layer=2", "--seeds", "2"]
    compare(*words)
    compare(*words)  # nothing is left to train
    assert capsys.readouterr().err.count("Training ") == 4
    (here / "a.py").write_text(more(here, "n_embd = 8\n"), encoding="utf-8")
    compare(*words)
    assert {p.name for p in (here / "out" / "compare").iterdir()} == {
        "a-n_layer=2",
        "a-n_layer=2-2",
    }
    assert compare(*words, "--out_dir", "out/compare/a-n_layer=2") == 2
    assert "holds another comparison" in capsys.readouterr().err


# Stopped ------------------------------------------------------------------------------------------


def test_ctrl_c_loses_nothing_and_names_the_command_that_continues(here, capsys, monkeypatch):
    recorded = Metrics.step

    def step(metrics, state, *rest):
        recorded(metrics, state, *rest)
        if state.step == 2 and metrics.config.model.n_layer == 2:
            signal.raise_signal(signal.SIGINT)

    words = ["a.py", "--set", "n_layer=2", "--seeds", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "step", step)
        assert compare(*words) == 130
    err = capsys.readouterr().err
    assert "python gpt.py compare a.py --set n_layer=2 --seeds 2 continues" in err
    assert compare(*words) == 0
    assert capsys.readouterr().err.count("Training ") == 3
    assert len(lines_of(here / "out" / "compare" / "a-n_layer=2")) == 4 + 1


def test_kills_anywhere_lose_nothing_and_count_nothing_twice(here, killed):
    words = ["a.py", "--set", "n_layer=2", "--seeds", "2"]
    assert compare(*words, "--out_dir", "quiet") == 0
    assert killed(["compare", *words, "--out_dir", "often"]) >= 3
    quiet, often = (
        [json.loads(line) for line in lines_of(here / name)] for name in ("quiet", "often")
    )
    runs = [(line["arm"], line["seed"]) for line in often if "arm" in line]
    assert runs == [("A", 1337), ("B", 1337), ("A", 1338), ("B", 1338)]
    for one, other in zip(quiet, often, strict=True):
        assert {n: v for n, v in one.items() if n not in CLOCKS} == {
            n: v for n, v in other.items() if n not in CLOCKS
        }
    for folder in (here / "often").iterdir():
        assert not folder.is_dir() or not list(folder.glob(".*.tmp"))


def test_time_that_is_up_gives_what_is_known_and_how_to_go_on(here, capsys):
    words = ["a.py", "--set", "n_layer=2"]
    assert compare(*words, "--max_minutes", "1e-9") == 0
    out = capsys.readouterr().out
    assert "Time was up after 0 of 10 seeds" in out and "Verdict: undecided" in out
    assert "Next: python gpt.py compare a.py --set n_layer=2 --max_minutes 1e-9" in out


def test_a_clock_that_jumps_changes_no_result(here, capsys, monkeypatch):
    words = ["a.py", "--set", "n_layer=2", "--seeds", "2", "--json"]
    assert compare(*words, "--out_dir", "calm") == 0
    calm = json.loads(capsys.readouterr().out)
    jumps, now = itertools.cycle([-4e5, 9e5, 0.0, -9e8]), time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + next(jumps))
        assert compare(*words, "--out_dir", "jumping") == 0
    jumping = json.loads(capsys.readouterr().out)
    speeds = [json.loads(line).get("tokens_per_second", 1) for line in lines_of(here / "jumping")]
    assert all(1 <= speed < 1e8 for speed in speeds) and jumping["difference"]["time"]
    assert jumping["difference"]["tokens"] == calm["difference"]["tokens"]
    assert jumping["pairs"] == calm["pairs"]


# The code of a revision ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_code_of_the_last_commit_is_identical_and_an_edit_is_seen(here):
    """In a clone of this code, as it is; then its initialisation is edited and not committed."""
    clone = here / "clone"
    clone.mkdir()
    for name in ("gptlab", "gpt.py", "train.py", "config"):
        (clone / name).symlink_to(ROOT / name)
    subprocess.run(["cp", "-rL", str(ROOT / "gptlab"), str(clone / "code")], check=True)
    (clone / "gptlab").unlink()
    (clone / "code").rename(clone / "gptlab")
    who = ["git", "-C", str(clone), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "gptlab"], ["commit", "-qm", "code"]):
        subprocess.run([*who, *words], check=True, capture_output=True)

    def run(*more):
        words = [sys.executable, str(clone / "gptlab" / "cli" / "main.py"), "compare", "a.py"]
        environment = os.environ | {"PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*words, "--against", "HEAD", "--json", *more],
            cwd=here, env=environment, capture_output=True, encoding="utf-8",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    assert run()["verdict"] == "identical"
    page = clone / "gptlab" / "training" / "schedules.py"
    page.write_text(
        page.read_text(encoding="utf-8").replace("highest * (step + 1)", "0 * (step + 1)"),
        encoding="utf-8",
    )
    assert "return 0 * (step + 1)" in page.read_text(encoding="utf-8")
    edited = run("--seeds", "2", "--both", "warmup_iters=6")
    assert edited["verdict"] != "identical" and edited["difference"]["tokens"]["mean"] > 0
