"""A run that is killed at any instant ends, bit for bit, as the run that was left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptlab import hardware
from gptlab.data.prepare import PrepareOptions, prepare

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the attempts are forks")
TINY = dict(
    dataset="words", n_layer=2, n_head=2, n_embd=16, block_size=16, batch_size=4, dropout=0.1,
    max_iters=60, eval_interval=12, checkpoint_interval=5, keep_checkpoints=2, log_interval=1,
    eval_tokens=256, ema_decay=0.9, gradient_accumulation_steps=2, learning_rate=0.01,
    device="cpu", dtype="float32", compile_model=False, quiet=True,
)  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    words = "to be or not that is the question whether tis nobler in mind".split()
    text = " ".join(words[(i * i + i // 7) % len(words)] for i in range(4000))
    (tmp_path / "words.txt").write_text(text, encoding="utf-8")
    prepare(str(tmp_path / "words.txt"), PrepareOptions(tokenizer="char"))
    return tmp_path


def torture(home, kills, world_size=1, seed=0, **options):
    plan = dict(
        out=str(home), kills=kills, seed=seed, world_size=world_size, options={**TINY, **options}
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("torture.py"), json.dumps(plan)],
        capture_output=True, text=True, encoding="utf-8", env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["differences"] == []
    assert found["kills"] >= kills
    return found


def test_a_run_killed_three_times_ends_as_the_run_that_was_left_alone(home):
    torture(home, 3, optimizer="muon", schedule="wsd", max_iters=24)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "seed"), [("adamw", 1), ("muon", 2), ("muon", 3)])
def test_thirty_kills(home, optimizer, seed):
    torture(home, 30, optimizer=optimizer, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_thirty_kills_of_two_processes(home, optimizer):
    torture(home, 30, world_size=2, optimizer=optimizer, seed=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "parallelism", "kills"), [(2, "fsdp", 30), (4, "fsdp", 15), (4, "hsdp", 15)]
)
def test_kills_of_any_process_of_a_sharded_run(home, world_size, parallelism, kills):
    shared = dict(world_size=world_size, parallelism=parallelism, max_iters=36)
    torture(home, kills, optimizer="muon", seed=7, **shared)


@pytest.mark.slow
@pytest.mark.skipif(not hardware.detect().device("cpu").compile.available, reason="no compiler")
def test_kills_of_a_compiled_run(home):
    torture(home, 6, optimizer="muon", compile_model=True, seed=5)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="bfloat16 is slow here")
def test_kills_in_bfloat16(home):
    torture(home, 10, optimizer="muon", dtype="bfloat16", seed=6)
