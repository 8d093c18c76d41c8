"""Training steps on one and on two processes of one thread each, beside DDP of a bare GPT.

    python benchmarks/scaling.py [--rounds 5] [--quick]

The batch is the same on one process and on two, so two would halve a step at best: the efficiency
is that share. The bare model is nanoGPT's shape in as few lines as it takes, with torch's own DDP
and fused AdamW; gptlab trains the same shape with its own step. All ways take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import numpy as np
import report
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from gptlab.data.batches import Batches, Sequences
from gptlab.training.building import new_state, return_freed_memory, settle_torch
from gptlab.training.config import build
from gptlab.training.loop import train_step
from gptlab.training.pace import peak_memory
from gptlab.training.parallel import Parallel
from gptlab.training.resolving import Resolved
from gptlab.training.setup import Setup
from gptlab.training.sharding import make_mesh, trained_model

LAYERS, HEADS, WIDTH, WINDOW, VOCABULARY = 6, 6, 384, 256, 65  # nanoGPT's characters, 10.7M
SEQUENCES = 8  # of a step, over all processes
WAYS = [("bare", 1), ("bare", 2), ("gptlab ddp", 1), ("gptlab ddp", 2), ("gptlab fsdp", 2)]


# A bare GPT --------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Attention and an MLP, each behind a norm."""

    def __init__(self, width: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        rows, length, width = x.shape
        q, k, v = (
            part.view(rows, length, HEADS, width // HEADS).transpose(1, 2)
            for part in self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(F.gelu(self.up(self.norms[1](x)), approximate="tanh"))


class Bare(nn.Module):
    """GPT-2's shape with a tied head; returns the mean loss."""

    def __init__(self, layers: int, width: int):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(WINDOW, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens, targets):
        x = self.tokens(tokens) + self.places.weight[: tokens.size(1)]
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def bare_step(parallel: Parallel, layers: int, width: int):
    """A function that takes a step of the bare model."""
    torch.manual_seed(0)
    model = Bare(layers, width)
    call = nn.parallel.DistributedDataParallel(model) if parallel.world_size > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    draw = torch.Generator().manual_seed(parallel.rank)

    def step():
        own = SEQUENCES // parallel.world_size
        rows = torch.randint(VOCABULARY, (own, WINDOW + 1), generator=draw)
        call(rows[:, :-1], rows[:, 1:]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


# The same by gptlab ------------------------------------------------------------------------------


def gptlab_step(parallel: Parallel, parallelism: str, layers: int, width: int):
    """A function that takes a step of gptlab's training."""
    config = build(dict(
        n_layer=layers, n_head=HEADS, n_embd=width, block_size=WINDOW, vocab_size=VOCABULARY,
        position_encoding="learned", use_rms_norm=False, use_swiglu=False, bias=True, dropout=0.0,
        activation="gelu_tanh", batch_size=SEQUENCES, max_iters=1000, warmup_iters=10, min_lr=1e-4,
        lr_decay_iters=1000, device="cpu", dtype="float32", parallelism=parallelism,
    ))  # fmt: skip
    make_mesh(parallelism, parallel)
    if parallel.is_sharded:
        return_freed_memory()
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=100_000)
    batches = Batches(
        Sequences(tokens, vocab_size=VOCABULARY, block_size=WINDOW, seed=0),
        batch_size=SEQUENCES, sequences_per_step=SEQUENCES, rank=parallel.rank,
        world_size=parallel.world_size,
    )  # fmt: skip
    setup = Setup(Resolved(config, {}), parallel, batches)
    state = new_state(trained_model(config, parallel), config, False)
    return lambda: train_step(setup, state)


# Measuring ---------------------------------------------------------------------------------------


def serve(way: str, steps: int, layers: int, width: int) -> None:
    """Take steps in this process, one of a group; the first prints their seconds as JSON."""
    parallel = Parallel()
    settle_torch("cpu")
    parallel.begin("cpu")
    torch.set_num_threads(1)
    kind = way.rpartition(" ")[2]
    step = (
        bare_step(parallel, layers, width)
        if way == "bare"
        else gptlab_step(parallel, kind, layers, width)
    )
    step(), step()  # warm up
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        if parallel.world_size > 1:
            dist.barrier()
        seconds.append(time.perf_counter() - begin)
    memory = parallel.gather(lambda: peak_memory("cpu"))
    if parallel.is_first:
        print(json.dumps({"seconds": seconds, "memory": memory}), flush=True)
    parallel.end()


def measure(way: str, count: int, words: list[str]) -> dict:
    """What `serve` prints, of `count` processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command = [sys.executable, *(launcher if count > 1 else []), __file__, "--serve", way, *words]
    # nothing watches them meanwhile: there are no more cores than processes
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    """Measure all ways in turn and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="of each way in a round")
    parser.add_argument("--quick", action="store_true", help="a small model, one round")
    parser.add_argument("--json")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=2, default=(LAYERS, WIDTH), help="layers, width")
    options = parser.parse_args()
    layers, width = options.size
    if options.serve:
        serve(options.serve, options.steps, layers, width)
        return
    if options.quick:
        options.rounds, options.steps, layers, width = 1, 4, 3, 192
    words = ["--steps", str(options.steps), "--size", str(layers), str(width)]
    found = {each: [] for each in WAYS}
    for _ in range(options.rounds):
        for way, count in WAYS:
            found[way, count].append(measure(way, count, words))
    # of each round, so that a slow hour of the machine is on both sides of a ratio
    medians = {
        each: [statistics.median(run["seconds"]) for run in runs] for each, runs in found.items()
    }
    rows, results = [], []
    for way, count in WAYS:
        base = medians[("bare" if way == "bare" else "gptlab ddp"), 1]
        pairs = zip(base, medians[way, count], strict=True)
        efficiency = [one / count / own for one, own in pairs]
        beside = [b / o for b, o in zip(medians["bare", count], medians[way, count], strict=True)]
        memory = max(held for run in found[way, count] for held in run["memory"])
        figures = report.spread(medians[way, count])
        rows.append([
            way, count, f"{figures['median'] * 1000:,.0f}",
            f"{figures['min'] * 1000:,.0f} to {figures['max'] * 1000:,.0f}",
            "" if count == 1 else f"{statistics.median(efficiency):.2f}",
            "" if way == "bare" else f"{statistics.median(beside):.2f}",
            f"{memory / 1e6:,.0f} MB",
        ])  # fmt: skip
        results.append({
            "way": way, "processes": count, "seconds": figures, "efficiency": efficiency,
            "ratio to bare": beside, "memory": memory,
        })  # fmt: skip
    header = ["way", "processes", "ms a step", "rounds", "efficiency", "speed beside bare", "peak"]
    print(report.table(header, rows))
    report.finish({"steps": results, "rounds": options.rounds}, options.json)


if __name__ == "__main__":
    main()
