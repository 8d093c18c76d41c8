"""What ends a launch: kills, hangs, errors of one process, signals; and what begins it again."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptlab.checkpoints import read_checkpoint
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.runs import Run
from gptlab.training.trainer import train

HERE = Path(__file__).parent
SETTINGS = dict(
    dataset="tiny", n_layer=1, n_head=2, n_embd=16, block_size=16, dropout=0.0, batch_size=4,
    max_iters=12, eval_interval=4, eval_tokens=256, log_interval=1, device="cpu", dtype="float32",
    compile_model=False, learning_rate=1e-2,
)  # fmt: skip
ENDLESS = SETTINGS | dict(max_iters=100_000, eval_interval=50_000)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with the dataset "tiny"."""
    home = tmp_path_factory.mktemp("home")
    (home / "tiny.txt").write_text("to be or not to be that is the question\n" * 700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_HOME", str(home))
        prepare(str(home / "tiny.txt"), PrepareOptions(tokenizer="char", dataset="tiny"))
    return home


@pytest.fixture
def launch(home, tmp_path):
    """launch(fault, rank=1, step=6, launcher=(), **options): (exit code, stdout, stderr) of two
    processes that train into tmp_path/run; none of them is left."""

    def run(fault, rank=1, step=6, launcher=(), **options):
        options = ENDLESS | {"out_dir": tmp_path / "run"} | options
        words = [f"--{name}={value}" for name, value in options.items()]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *launcher]
        (home / "pids.txt").write_text("")
        ended = subprocess.run(
            [sys.executable, *torchrun, HERE / "failing.py", str(rank), str(step), fault, *words],
            capture_output=True, text=True, timeout=200, start_new_session=True,
            env={
                **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]),
                "GPTLAB_HOME": str(home),
            },
        )  # fmt: skip
        pids, deadline = (home / "pids.txt").read_text().split(), time.monotonic() + 20
        while left := [pid for pid in pids if Path("/proc", pid).exists()]:
            assert time.monotonic() < deadline, f"processes {left} are left"
        return ended.returncode, ended.stdout, ended.stderr

    return run


def sentences(err):
    """The lines that are gptlab's own."""
    return [line for line in err.splitlines() if line.startswith("gptlab: ")]


def losses(folder):
    return {r["step"]: (r["loss"], r["grad_norm"]) for r in Run(folder).records() if "loss" in r}


def test_a_killed_process_is_named_and_torchrun_goes_on_from_the_last_checkpoint(
    launch, home, tmp_path, monkeypatch
):
    code, out, err = launch("SIGKILL", launcher=["--max-restarts=2"], **SETTINGS)
    assert code == 0, err
    (said,) = sentences(err)
    assert re.match(r"gptlab: Process 1 on \S+ ended without a word, .* after step [56]: ", said)
    assert said.endswith("torchrun starts all again from the last checkpoint.")
    assert "Continuing after step 4." in out and out.count("Next: ") == 1
    monkeypatch.setenv("GPTLAB_HOME", str(home))
    train(out_dir=str(tmp_path / "whole"), **SETTINGS, quiet=True)
    expected, found = losses(tmp_path / "whole"), losses(tmp_path / "run")
    assert found.keys() == expected.keys() == set(range(1, 13))
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=1e-5), step


@pytest.mark.slow
def test_a_kill_before_the_first_checkpoint_begins_the_run_again(launch, tmp_path):
    code, out, err = launch("SIGKILL", rank=0, step=2, launcher=["--max-restarts=1"], **SETTINGS)
    assert code == 0, err
    assert len(sentences(err)) == 1 and "Process 0" in err and "Continuing" not in out
    assert losses(tmp_path / "run").keys() == set(range(1, 13))


@pytest.mark.slow
def test_a_restart_neither_takes_a_foreign_run_nor_deletes_the_own(launch, home, tmp_path):
    launch("SIGKILL", step=-1, **SETTINGS | dict(max_iters=4))
    before = read_checkpoint(tmp_path / "run" / "ckpt.pt")["sha256"]
    code, _, err = launch("SIGKILL", launcher=["--max-restarts=1"], **SETTINGS)
    assert code == 1 and err.count("holds a run already") == 2  # at both starts
    assert read_checkpoint(tmp_path / "run" / "ckpt.pt")["sha256"] == before
    again = dict(launcher=["--max-restarts=1"], overwrite=True)
    code, out, err = launch("SIGKILL", **again, **SETTINGS)
    assert code == 0 and "Continuing after step 4." in out, err


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_ends_all_within_the_timeout(launch, rank):
    code, _, err = launch("SIGSTOP", rank=rank, collective_timeout=4)
    (said,) = sentences(err)
    assert code != 0
    assert re.match(rf"gptlab: Process {rank} on \S+ gave no sign of life for 4 s", said)
    assert re.search(r"after step \d: go on from the last checkpoint with --resume", said)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_takes_no_step_ends_all_within_the_timeout(launch, rank):
    code, _, err = launch("stuck", rank=rank, collective_timeout=4)
    (said,) = sentences(err)
    assert code != 0
    assert re.match(rf"gptlab: Process {rank} on \S+ got no further for 4 s", said)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_process_is_everyones(launch, rank):
    code, _, err = launch("error", rank=rank)
    (said,) = sentences(err)
    assert code != 0
    assert f"Process {rank} on " in said and "failed after step 5" in said
    assert err.count("ZeroDivisionError: one divided by nothing") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("launcher:SIGTERM", "SIGTERM"),
        ("launcher:SIGHUP", "SIGHUP"),
        ("launcher:SIGINT", "SIGINT"),
        ("launcher:SIGUSR1", "the end of torchrun"),
        ("launcher:SIGKILL", "the end of torchrun"),
        ("both:SIGTERM", "SIGTERM"),
        ("both:SIGINT", "SIGINT"),
        ("both:SIGUSR1", "SIGUSR1"),
        ("SIGTERM", "SIGTERM"),
        ("SIGUSR1", "SIGUSR1"),
        ("SIGHUP", "SIGHUP"),
    ],
)
def test_a_signal_saves_once_ends_all_and_prints_the_command_that_continues(
    launch, tmp_path, fault, cause
):
    code, out, err = launch(fault, rank=0, launcher=["--max-restarts=3"])
    assert (code == 0) == (":" not in fault), err  # a launcher that got it says so
    step = read_checkpoint(tmp_path / "run" / "ckpt.pt")["step"]
    assert out.count("Stopped by ") == 1
    assert f"Stopped by {cause} after step {step}, saved. Continue with:" in out
    command = "torchrun --standalone --nproc_per_node 2 --max-restarts 3 train.py --out_dir"
    assert command in out and "Traceback" not in out
    assert sentences(err) == [] and max(losses(tmp_path / "run")) == step
    assert not (tmp_path / "run" / "ckpt.prev.pt").exists()  # once


HOME_2 = "start:os.environ.update(GPTLAB_HOME=os.environ['GPTLAB_HOME'] + '/none')"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (HOME_2, "Process 1 on HOST: No prepared dataset 'tiny'"),
        (
            "start:sys.argv.append('--weight_decay=0.5')",
            "Process 1 on HOST was started with weight_decay 0.5, and the first process with no "
            "weight_decay: start all of them with the same command",
        ),
        ("start:sys.argv.append('--dropuot=0.5')", "Process 1 on HOST: Unknown option --dropuot"),
        (
            "start:import gptlab; gptlab.__version__ = '0.0.1'",
            "Process 1 on HOST has gptlab 0.0.1, and the first process has ",
        ),
    ],
)
def test_processes_that_differ_end_with_one_sentence_that_names_one(
    launch, tmp_path, fault, expected
):
    code, _, err = launch(fault)
    (said,) = sentences(err)
    assert code != 0
    assert re.sub(r" on [^\s:]+", " on HOST", said, count=1).startswith(f"gptlab: {expected}")
    assert set(re.findall(r"exitcode +: (-?\d+)", err)) == {"2"}
    assert not (tmp_path / "run").exists()
