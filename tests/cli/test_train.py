"""`python train.py`: spellings, refusals in one sentence, quiet pipes, full disks and signals."""

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gptlab.checkpoints import read_checkpoint
from gptlab.cli.main import run_command
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.tokenizer import char_tokenizer
from gptlab.files import quoted
from gptlab.runs import Run
from gptlab.training import trainer
from gptlab.training.picture import Picture

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--dataset=tiny", "--n_layer=1", "--n_head=2", "--n_embd=16", "--block_size=16",
    "--batch_size=4", "--max_iters=4", "--eval_tokens=64", "--device=cpu", "--dtype=float32",
    "--out_dir=run",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A home with the dataset "tiny"."""
    home = tmp_path_factory.mktemp("home")
    (home / "tiny.txt").write_text("to be or not to be, " * 300, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_HOME", str(home))
        prepare(str(home / "tiny.txt"), PrepareOptions(tokenizer="char"))
    return home


@pytest.fixture(autouse=True)
def surroundings(data, tmp_path, monkeypatch):
    """That home, an empty working directory, no pictures."""
    monkeypatch.setenv("GPTLAB_HOME", str(data))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Picture, "draw", lambda *_: None)


def small_with(*words):
    """The words of SMALL without those that others replace, and these others."""
    given = {word.split("=")[0].replace("-", "_") for word in words}
    return [w for w in SMALL if w.split("=")[0].replace("-", "_") not in given] + list(words)


def command(*words):
    return run_command("train", small_with(*words))


# Spellings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--batch-size", "8"], "batch_size", 8),
        (["--batch_size=8"], "batch_size", 8),
        (["--batch-size=8"], "batch_size", 8),
        (["--learning_rate", "1e-3"], "learning_rate", 1e-3),
        (["--max_iters", "1e3"], "max_iters", 1000),
        (["--dropout", "0"], "dropout", 0.0),
        (["--bias", "false"], "bias", False),
        (["--bias=True"], "bias", True),
        (["--bias"], "bias", True),
        (["--compile_model", "auto"], "compile_model", "auto"),
        (["--minutes", "10"], "minutes", 10.0),
        (["--resume", "False"], "resume", False),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_usual_spelling_means_the_same(monkeypatch, words, name, value):
    layered = []
    outcome = trainer.Outcome(Path("run"), 0, 0, 0.0)
    monkeypatch.setattr(trainer, "train", lambda layers, **_: layered.append(layers) or outcome)
    assert run_command("train", words) == 0
    found = layered[0].values[name]
    assert found == value and type(found) is type(value)
    assert layered[0].sources[name] == "command line"


def test_the_command_line_overrides_the_recipe_which_names_the_run(tmp_path):
    recipe = "\n".join(word.lstrip("-") for word in SMALL if "out_dir" not in word)
    for name in ("dataset", "device", "dtype"):
        value = next(w.split("=")[1] for w in SMALL if w.startswith(f"--{name}="))
        recipe = recipe.replace(f"{name}={value}", f"{name}={value!r}")
    (tmp_path / "mine.py").write_text(recipe, encoding="utf-8")
    assert run_command("train", ["--config", "mine.py", "--max_iters", "2", "--quiet"]) == 0
    folder = Path(os.environ["GPTLAB_HOME"]) / "out" / "mine"
    assert read_checkpoint(folder / "ckpt.pt")["step"] == 2
    words = (folder / "config.py").read_text(encoding="utf-8")
    assert "batch_size = 4  # mine.py" in words and "max_iters = 2  # command line" in words


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--batchsize", "8"], ["--batchsize", "did you mean batch_size?"]),
        (["--lerning-rate", "8"], ["did you mean learning_rate?"]),
        (["--batch_size", "many"], ["batch_size cannot be 'many': it takes a whole number"]),
        (["--dropout", "1"], ["dropout 1.0 must be at least 0 and below 1"]),
        (["--n_head", "3"], ["n_embd 16 does not divide into n_head 3 heads"]),
        (["--dataset", "nope"], ["No prepared dataset 'nope'", "tiny", "prepare.py"]),
        (["--block_size", "1000"], ["val part of tiny", "block_size 1000 needs 1,001"]),
        (["--vocab_size", "99"], ["vocab_size 99 does not fit the dataset"]),
        (["--config", "none.py"], ["no recipe none.py"]),
        (["--init_from", "nowhere.pt"], ["no checkpoint nowhere.pt"]),
        (["--resume"], ["no run to resume in run"]),
        (["--dtype", "float16"], ["cpu cannot train in float16"]),
        (["--model_preset", "huge"], ["no preset 'huge'", "tiny, small"]),
        (["--json"], ["--json belongs to --show-hardware"]),
        (["--minutes", "1"], ["both max_iters and minutes"]),
        (["word"], ["'word' is not an option"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_a_mistake_is_one_sentence_with_exit_code_2_and_leaves_nothing(
    tmp_path, capsys, words, parts
):
    assert command(*words) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and err.startswith("gptlab: ") and "Traceback" not in out + err
    assert [part for part in parts if part not in err] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card here")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "gpu"])
def test_a_device_that_is_not_here_is_one_sentence_with_what_is(capsys, device):
    assert command("--device", device) == 2
    assert f"no device '{device}' here: this machine has cpu" in capsys.readouterr().err


def test_a_training_that_goes_wrong_has_exit_code_1_and_one_sentence(capsys):
    assert command("--max_iters=200", "--learning_rate=1e4", "--grad_clip=0", "--quiet") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "at step" in err and "--learning_rate" in err


def test_of_several_processes_only_the_first_complains(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert command("--dataset", "nope") == 2
    assert capsys.readouterr() == ("", "")


def test_a_second_start_is_refused_with_the_three_ways_out(tmp_path, capsys):
    assert command("--quiet") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert command() == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(way in err for way in ("run holds a run", "--resume", "--out_dir", "--overwrite"))
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert command("--overwrite", "--max_iters=2", "--quiet") == 0
    assert read_checkpoint(tmp_path / "run" / "ckpt.pt")["step"] == 2
    assert max(record["step"] for record in Run(tmp_path / "run").records()) == 2
    resumed = ["--out_dir=run", "--resume", "--max_iters=3", "--quiet"]
    assert run_command("train", resumed) == 0
    assert read_checkpoint(tmp_path / "run" / "ckpt.pt")["step"] == 3


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit of file sizes here")
def test_a_full_disk_is_one_sentence_and_complete_files_survive(tmp_path, capsys):
    assert command("--max_iters=2", "--quiet") == 0
    before = (tmp_path / "run" / "ckpt.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # as `ulimit -f`
    try:
        words = ["--out_dir=run", "--resume", "--max_iters=4", "--quiet", "--eval_interval=4"]
        code = run_command("train", words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1
    assert "The disk is full while writing run/" in err and "--out_dir" in err
    assert (tmp_path / "run" / "ckpt.pt").read_bytes() == before
    assert list((tmp_path / "run").glob(".*.tmp")) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_is_a_sentence(tmp_path, capsys):
    tmp_path.chmod(0o500)
    try:
        assert command() == 2
    finally:
        tmp_path.chmod(0o700)
    assert "No permission for" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_run_directory_is_a_sentence(tmp_path, capsys):
    (tmp_path / "run").write_text("a file", encoding="utf-8")
    assert command() == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "run" in err and "Traceback" not in err


# What it says -------------------------------------------------------------------------------------


def test_it_says_what_it_does_before_it_does_it_and_nothing_but_plain_lines(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS")
    assert command("--max_iters=12", "--log_interval=1") == 0
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out and "\r" not in out
    lines = out.splitlines()
    assert lines[0].startswith("Model: ") and "parameters (1 layers, 2 heads, width 16" in lines[0]
    assert lines[1].startswith("Data: tiny, ") and "training" in lines[1]
    assert lines[2].startswith("Run: 12 steps of 64 tokens") and "on cpu in float32" in lines[2]
    assert lines[3].startswith("Losses are in nats per token") and "5-gram" in lines[3]
    assert lines[4].startswith("step 1/12: loss ")
    evaluated = [line for line in lines if "validation loss" in line and line.startswith("step")]
    assert len(evaluated) == 6 and not any("5-gram" in line for line in evaluated)
    assert lines[-1] == "Next: python sample.py --out_dir run"
    assert any(line.startswith("Lowest validation loss") for line in lines)


def test_quiet_says_nothing(capsys):
    assert command("--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_a_dry_run_says_what_would_happen_and_writes_nothing(tmp_path, capsys):
    assert command("--dry_run") == 0
    out = capsys.readouterr().out
    assert "Run: 4 steps of 64 tokens" in out and "one step works" in out
    assert list(tmp_path.iterdir()) == []


def test_the_hardware_is_shown_as_text_and_as_json(capsys):
    assert run_command("train", ["--show-hardware"]) == 0
    assert "cpu" in capsys.readouterr().out
    assert run_command("train", ["--show-hardware", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"][-1]["kind"] == "cpu"


def test_one_command_starts_a_run_continues_it_and_is_content_when_it_is_finished(capsys, tmp_path):
    stops = (*SMALL, "--resume", "auto", "--max_minutes=1e-6")
    for step in (1, 2):  # a job that is cut short and put back in the queue
        assert run_command("train", stops) == 0
        assert read_checkpoint(tmp_path / "run" / "ckpt.pt")["step"] == step
    for words in (("--resume=auto",), ("--resume", "auto")):
        assert command(*words, "--quiet", "--max_minutes=0") == 0
        assert read_checkpoint(tmp_path / "run" / "ckpt.pt")["step"] == 4
    assert command("--resume", "auto") == 0
    assert "This run is finished" in capsys.readouterr().out
    assert run_command("train", ["--out_dir=other", "--resume"]) == 2  # this keeps its meaning
    assert "There is no run to resume in other" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("my diary's.txt", ("is text", "prepare it first", "python prepare.py {}")),
        ("tiny", ("is a prepared dataset", "python train.py --dataset tiny")),
        ("quick_test", ("is a recipe", "python train.py --config quick_test")),
        ("nothing", ("'nothing' is not an option",)),
    ],
)
def test_a_word_without_an_option_is_answered_with_the_command(tmp_path, capsys, word, parts):
    (tmp_path / "my diary's.txt").write_text("text", encoding="utf-8")
    assert run_command("train", [word]) == 2
    said = capsys.readouterr().err
    for part in parts:
        assert part.format(quoted("my diary's.txt")) in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my diary's.txt"]


def test_a_text_named_as_a_dataset_is_answered_with_the_command_that_prepares_it(tmp_path, capsys):
    (tmp_path / "a b.txt").write_text("text", encoding="utf-8")
    assert command("--dataset", "a b.txt") == 2
    assert f"prepare it first: `python prepare.py {quoted('a b.txt')}`" in capsys.readouterr().err


def test_a_run_below_out_is_continued_by_its_name_alone(tmp_path, data, monkeypatch):
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    shutil.copytree(data / "data", tmp_path / "data")
    assert command("--quiet", "--out_dir=out/lab", "--max_minutes=1e-6") == 0
    assert run_command("train", ["--out_dir=lab", "--resume", "--max_minutes=0", "--quiet"]) == 0
    assert read_checkpoint(tmp_path / "out" / "lab" / "ckpt.pt")["step"] == 4
    assert not (tmp_path / "lab").exists()


def test_a_shipped_recipe_is_found_by_its_name(tmp_path, capsys):
    for word in ("quick_test", "config/quick_test.py"):
        assert command("--config", word, "--dry_run", "--quiet") == 0
    assert command("--config", "quick") == 2
    assert "name one of " in (said := capsys.readouterr().err) and "quick_test" in said


def test_a_recipe_may_start_or_continue(tmp_path, capsys):
    words = [word for word in SMALL if "out_dir" not in word]
    recipe = tmp_path / "job.py"
    recipe.write_text('resume = "auto"\nout_dir = "run"\nmax_minutes = 1e-6\n', encoding="utf-8")
    for step in (1, 2, 3):
        assert run_command("train", [f"--config={recipe}", *words, "--quiet"]) == 0
        assert read_checkpoint(tmp_path / "run" / "ckpt.pt")["step"] == step


# Processes ----------------------------------------------------------------------------------------


def start(*words, **kwargs):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words], text=True, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, **kwargs,
    )  # fmt: skip


def read_until(process, words):
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(process.stderr.read())


def test_help_opens_with_an_example_and_does_not_load_torch():
    code = (
        "import sys; sys.argv = ['train.py', '--help']\n"
        "from gptlab.cli.main import run_command\n"
        "try:\n    run_command('train', ['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'datasets', 'matplotlib', 'tokenizers', 'tiktoken', 'rich'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], text=True, encoding="utf-8", capture_output=True, cwd=ROOT
    )
    assert done.stdout.startswith("python train.py --config config/shakespeare_char.py\n")
    for words in ("--batch_size", "sequences per micro-batch", "[32]", "Learning-rate schedule"):
        assert words in done.stdout
    assert done.stderr == "set()\n" and done.returncode == 0


def test_a_signal_of_a_scheduler_finishes_the_step_saves_and_prints_the_command(tmp_path):
    words = small_with("--max_iters=1000000", "--log_interval=1", "--eval_interval=100000")
    process = start(*words)
    read_until(process, "step 1/1000000")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (143, "")
    state = read_checkpoint(tmp_path / "run" / "ckpt.pt")
    assert f"Stopped by SIGTERM after step {state['step']}, saved" in out
    assert out.splitlines()[-1].strip() == f"python {ROOT / 'train.py'} --out_dir run --resume"
    assert Run(tmp_path / "run").records()[-1]["step"] == state["step"]


@pytest.mark.skipif(os.name == "nt", reason="pseudo-terminals of POSIX")
def test_a_closed_terminal_finishes_the_step_and_saves(tmp_path):
    import fcntl
    import pty
    import struct
    import termios

    ours, terminal = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    words = small_with("--max_iters=1000000", "--log_interval=1", "--eval_interval=100000")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # it hears of the terminal's end
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while b"loss" not in shown:
        shown += os.read(ours, 1 << 16)
    os.close(ours)
    assert process.wait(timeout=300) == 129
    state = read_checkpoint(tmp_path / "run" / "ckpt.pt")
    assert state["step"] >= 1 and Run(tmp_path / "run").records()[-1]["step"] == state["step"]


def test_a_second_ctrl_c_leaves_at_once_and_the_checkpoint_is_whole(tmp_path):
    assert command("--quiet") == 0
    before = (tmp_path / "run" / "ckpt.pt").read_bytes()
    # a step of minutes, so that the first signal alone would not end it for long
    process = start(
        "--out_dir=run", "--resume", "--max_iters=8", "--gradient_accumulation_steps=20000"
    )
    read_until(process, "step 4: validation")
    for _ in range(20):
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=3)
            break
        except subprocess.TimeoutExpired:
            pass
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "gptlab: Interrupted.\n"
    assert (tmp_path / "run" / "ckpt.pt").read_bytes() == before


# Folders of nanoGPT -------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", ["meta.pkl", "tokenizer.json", None])
def test_a_folder_of_nanogpt_trains_and_is_sampled_or_says_that_it_cannot_be(beside, capsys):
    """The last line of a training is followed: it writes text, or there is no such line."""
    folder = Path("shakespeare_char")
    folder.mkdir()
    for name in ("train.bin", "val.bin"):
        np.array([0, 1, 2, 1] * 200, "<u2").tofile(folder / name)
    if beside == "meta.pkl":
        content = {"vocab_size": 3, "stoi": {"a": 0, "b": 1, "c": 2}, "itos": {}}
        (folder / "meta.pkl").write_bytes(pickle.dumps(content))
    elif beside:
        char_tokenizer("ab").save(folder / "tokenizer.json")
    size = [] if beside else ["--vocab_size=3"]
    assert command("--dataset=shakespeare_char/", *size) == 0
    captured = capsys.readouterr()
    last = captured.out.splitlines()[-1]
    if beside is None:
        assert "no text can be sampled" in captured.err and "sample.py" not in captured.out
        return
    assert last == "Next: python sample.py --out_dir run"
    argv = ["--out_dir", "run", "--prompt", "ab", "--max_tokens", "9", "--device", "cpu"]
    assert run_command("sample", argv) == 0
    written = capsys.readouterr().out.strip()
    assert written.startswith("ab") and set(written) <= set("abc")
