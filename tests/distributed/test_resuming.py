"""A run goes on under any parallelism and number of processes: a table of all pairs."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptlab.data.prepare import PrepareOptions, prepare

ROOT = Path(__file__).resolve().parents[2]
WAYS = [("one", 1), ("ddp", 2), ("ddp", 4), ("fsdp", 2), ("fsdp", 4), ("hsdp", 4)]
OPTIONS = dict(
    dataset="tiny", n_layer=2, n_head=2, n_embd=20, block_size=16, dropout=0.2, batch_size=6,
    gradient_accumulation_steps=2, eval_interval=5, eval_tokens=256, log_interval=1, device="cpu",
    dtype="float32", compile_model=False, learning_rate=1e-2, optimizer="muon", ema_decay=0.9,
    lr_decay_iters=10,
)  # fmt: skip


def train(way, home, **options):
    """Train as a user does: python for one process, torchrun for more."""
    parallelism, size = way
    start = [sys.executable]
    if size > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
        options["parallelism"] = parallelism
    words = [f"--{name}={value}" for name, value in options.items()]
    environment = {**os.environ, "GPTLAB_HOME": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, str(ROOT / "train.py"), *words, "--quiet"],
        capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def numbers(folder):
    """{(step, field): number} of a run's losses and norms."""
    fields = ("loss", "grad_norm", "val_loss", "averaged_val_loss")
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {(r["step"], f): r[f] for r in lines if "step" in r for f in fields if f in r}


@pytest.mark.slow
def test_a_run_goes_on_in_any_other_way_as_if_it_had_been_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    (tmp_path / "tiny.txt").write_text("to be or not to be that is the question\n" * 700)
    prepare(str(tmp_path / "tiny.txt"), PrepareOptions(tokenizer="char", dataset="tiny"))
    train(("one", 1), tmp_path, out_dir=tmp_path / "whole", max_iters=10, **OPTIONS)
    expected = numbers(tmp_path / "whole")
    for way in WAYS:
        train(way, tmp_path, out_dir=tmp_path / f"{way}", max_iters=5, **OPTIONS)
    apart = {}
    for before, after in itertools.product(WAYS, WAYS):
        folder = shutil.copytree(tmp_path / f"{before}", tmp_path / f"{before}-{after}")
        train(after, tmp_path, out_dir=folder, max_iters=10, resume=True)
        found = numbers(folder)
        assert found.keys() == expected.keys(), (before, after)
        differences = [abs(found[key] - value) / abs(value) for key, value in expected.items()]
        apart[before, after] = max(differences)
    print(
        *(f"{before} -> {after}: {apart[before, after]:.1e}" for before, after in apart), sep="\n"
    )
    assert max(apart.values()) < 1e-5, apart
