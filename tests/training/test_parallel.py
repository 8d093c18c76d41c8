"""Several processes train the one model: same order, same numbers, one voice."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gptlab.checkpoints import read_checkpoint
from gptlab.data.prepare_options import PrepareOptions
from gptlab.data.task_files import prepare_task
from gptlab.data.token_files import open_dataset
from gptlab.data.windows import evaluation_windows
from gptlab.inference.evaluate import evaluate_loss
from gptlab.runs import Run, load_checkpoint
from gptlab.training.parallel import choose_backend

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = dict(
    dataset="tiny", n_layer=2, n_head=2, n_embd=16, block_size=16, dropout=0.0, batch_size=4,
    eval_tokens=256, log_interval=1, device="cpu", dtype="float32", compile_model=False,
    learning_rate=1e-2, max_iters=23, eval_interval=10, warmup_iters=2,
)  # fmt: skip


def torchrun(**options):
    """`torchrun --nproc_per_node 2 train.py --name value ...` as a process."""
    words = [f"--{name}={value}" for name, value in options.items()]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "train.py"), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def losses(folder):
    return [r["loss"] for r in Run(folder).records() if "loss" in r]


def test_two_processes_give_the_losses_of_one_and_end_well_between_evaluations(train, tmp_path):
    # 12 sequences: 6 each, as 4 and 2
    settings = dict(SETTINGS, gradient_accumulation_steps=3, lens_interval=20)
    process = torchrun(**settings, out_dir=tmp_path / "two")
    train("one", **settings)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err == ""  # no warning, no group left open
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-5)
    evaluated = [
        line.split(":")[0]
        for line in out.splitlines()
        if line.startswith("step") and "validation" in line
    ]
    assert evaluated == ["step 10", "step 20", "step 23"]  # said once each
    looks = [r["step"] for r in Run(tmp_path / "two").records() if "inside" in r]
    assert looks == [20, 23]  # one of them looks
    assert "2 processes (ddp)" in out and out.count("Next: ") == 1
    assert (
        "each takes 6 of a step's 12 sequences (batch_size 4 x gradient_accumulation_steps 3, for "
        "all processes together)" in out[: out.index("step 1/23")]
    )
    assert read_checkpoint(tmp_path / "two" / "ckpt.pt")["step"] == 23
    assert not any("module." in n for n in read_checkpoint(tmp_path / "two" / "best.pt")["model"])
    # they share the evaluation, and find to the bit what one process finds with their weights
    last = [r for r in Run(tmp_path / "two").records() if "val_loss" in r][-1]
    model = load_checkpoint(tmp_path / "two" / "ckpt.pt").model
    data = open_dataset("tiny")
    windows = evaluation_windows(len(data.val), 16, SETTINGS["eval_tokens"])
    assert last["val_loss"] == evaluate_loss(model, data.val, windows, 16, 4, "cpu")


def test_a_run_on_a_mix_with_a_task_goes_from_one_process_to_two_and_back(
    train, tmp_path, mixed, prepared_home
):
    # batch 1 x 1 for a while: one of the two processes then has no sequence of its own
    rows = [{"prompt": f"{a} {b} ", "answer": b} for a in ("to", "be", "or") for b in "enorstu"]
    (prepared_home / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = PrepareOptions(tokenizer=str(prepared_home / "data" / "tiny"))
    prepare_task(f"task:{prepared_home / 'pairs.jsonl'}:share=0.5", words)
    settings = SETTINGS | dict(max_iters=10, dataset=f"{mixed},pairs-share-0.5:0.5")
    train("whole", **settings, ema_decay=0.9)
    train("whole", resume=True, max_iters=16, batch_size=1)
    train("whole", resume=True, max_iters=23, batch_size=4)

    train("moving", **settings, ema_decay=0.9)
    process = torchrun(out_dir=tmp_path / "moving", resume="auto", max_iters=16, batch_size=1)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Continuing after step 10" in out
    idle = "1 of the 2 processes has nothing to do: a step has 1 sequence"
    assert out.index(idle) < out.index("step 16: validation")
    train("moving", resume=True, max_iters=23, batch_size=4)

    np.testing.assert_allclose(losses(tmp_path / "moving"), losses(tmp_path / "whole"), atol=1e-5)
    states = [read_checkpoint(tmp_path / name / "ckpt.pt") for name in ("whole", "moving")]
    assert states[0]["sequences_seen"] == states[1]["sequences_seen"] == 10 * 4 + 6 + 7 * 4
    shares = {"tiny": 35, "more": 15, "pairs-share-0.5": 24}  # of 74
    assert states[1]["dataset"]["sequences_seen"] == shares
    right = [
        [r["accuracy_by_length"] for r in Run(tmp_path / name).records() if "accuracy" in r]
        for name in ("whole", "moving")
    ]
    assert right[0] == right[1] and len(right[0]) == 4


def test_one_ctrl_c_stops_all_processes_after_the_step_and_prints_how_to_continue(tmp_path):
    process = torchrun(**SETTINGS | dict(max_iters=100000), out_dir=tmp_path / "run")
    for line in process.stdout:
        if "validation loss" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert "--resume" in out, err
    assert process.returncode != 0
    state = read_checkpoint(tmp_path / "run" / "ckpt.pt")
    assert f"after step {state['step']}, saved" in out
    assert len(losses(tmp_path / "run")) == state["step"]


@pytest.mark.parametrize(
    ("device", "windows", "backend"),
    [
        ("cpu", False, "gloo"),
        ("cpu", True, "gloo"),
        ("cuda:1", False, "nccl"),
        ("cuda:1", True, "gloo"),
        ("xpu:0", False, "xccl"),
        ("mps", False, "gloo"),
    ],
)
def test_the_backend_follows_from_device_and_system(device, windows, backend):
    assert choose_backend(device, windows) == backend


def test_a_folder_that_is_taken_ends_all_processes_with_one_sentence(train, tmp_path):
    holder = Run(tmp_path / "run")
    holder.begin()  # as a training in another process would
    process = torchrun(**SETTINGS, out_dir=tmp_path / "run")
    _, err = process.communicate(timeout=300)
    holder.end()
    assert process.returncode != 0
    assert err.count("Another process is training in") == 1
    assert re.search(r"exitcode\s*: 2\b", err)  # they ended by themselves: none was killed
