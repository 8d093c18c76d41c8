"""Trackers hold what metrics.jsonl holds. Trackio runs in an environment of its own: .ci/run."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from gptlab.runs import Run
from gptlab.training.trackers import _figures

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.trackio
def test_trackio_has_the_records_of_a_run_and_of_its_resume(train, tmp_path, prepared_home):
    def command(*words):
        process = subprocess.run(
            [sys.executable, ROOT / "train.py", *words, "--out_dir", tmp_path / "tracked"],
            env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"),
                 "GPTLAB_HOME": str(prepared_home)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert process.returncode == 0 and process.stderr == "", process.stderr

    sizes = ["--n_layer=1", "--n_head=1", "--n_embd=8", "--block_size=8", "--batch_size=2"]
    begun = ["--dataset=tiny", "--device=cpu", "--dtype=float32", "--compile_model=false"]
    command(*sizes, *begun, "--max_iters=4", "--log_interval=1", "--log_to=trackio")
    command("--resume", "--max_iters=6", "--log_to=trackio")
    with sqlite3.connect(tmp_path / "trackio" / "gptlab.db") as kept:
        rows = kept.execute("select run_name, step, metrics from metrics").fetchall()
    assert {name for name, _, _ in rows} == {"tracked"}
    figures = [(step, json.loads(metrics)) for _, step, metrics in rows]
    kept = {step: each["loss"] for step, each in figures if "loss" in each}
    written = [r for r in Run(tmp_path / "tracked").records() if "loss" in r]
    assert kept == {record["step"]: record["loss"] for record in written}
    assert sorted(kept) == [1, 2, 3, 4, 5, 6]


def test_figures_of_each_process_have_names_of_their_own():
    processes = {"busy": [0.9, 0.5], "slowest": 0}
    record = {"step": 3, "loss": 2.0, "sample": "to be", "time": 9.0, "processes": processes}
    expected = {"loss": 2.0, "processes/busy/0": 0.9, "processes/busy/1": 0.5}
    assert dict(_figures(record)) == expected
