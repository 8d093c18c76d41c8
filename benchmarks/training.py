"""Training steps compared with nanoGPT's on this machine: eager and compiled, speed and memory.

    python benchmarks/training.py --nanogpt ../nanoGPT [--size 10.7M] [--quick] [--json FILE]

Forward, backward, clipping and update in float32, with the same size, batch and text length. The
first row is a lower bound for every step: the time of its largest matrix products alone. Each
variant runs in its own process; the rounds are interleaved, and a figure is the median of the
rounds. Then the parts of a gptlab step: Muon's share with 8,192 tokens, and the operations.
"""

import argparse
import contextlib
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import processes
import report
import torch

from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.training.building import settle_torch
from gptlab.training.config import build
from gptlab.training.optimizers.combined import Optimizers
from gptlab.training.optimizers.muon import Muon
from gptlab.training.parallel import compile_blocks
from gptlab.training.precision import clip_grad_norm

# name -> (nanoGPT's sizes, batch size)
SIZES = {
    "0.8M": (dict(n_layer=4, n_head=4, n_embd=128, block_size=64), 12),
    "10.7M": (dict(n_layer=6, n_head=6, n_embd=384, block_size=256), 16),
}
SHAPES = {
    "classic": dict(
        position_encoding="learned", use_rms_norm=False, use_swiglu=False, activation="gelu"
    ),
    "Llama": dict(),
    "ReLU2": dict(use_swiglu=False, activation="relu2"),
}  # fmt: skip
FLOOR = "linear layers' products, alone"
VARIANTS = [
    FLOOR,
    *(
        f"{who}, {how}"
        for who in ("nanoGPT", *(f"gptlab {shape}" for shape in SHAPES))
        for how in ("eager", "compiled")
    ),
]


def load_nanogpt(path: Path):
    """nanoGPT's model.py as a module."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    with contextlib.redirect_stdout(None):
        spec.loader.exec_module(module)
    return module


def nanogpt_step(path: Path, sizes: dict, tokens, compiled: bool):
    """A function that takes one step of nanoGPT."""
    module = load_nanogpt(path)
    with contextlib.redirect_stdout(None):
        model = module.GPT(module.GPTConfig(**sizes, vocab_size=65, dropout=0.0, bias=False))
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    forward = torch.compile(model) if compiled else model

    def step():
        _, loss = forward(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step(sizes: dict, tokens, compiled: bool, shape: str, optimizer: str = "adamw"):
    """A function that takes one gptlab step, and the optimizers that it steps."""
    model = GPT(GPTConfig(**sizes, **SHAPES[shape], vocab_size=65, dropout=0.0))
    settle_torch("cpu")
    options = build({"learning_rate": 1e-3, "beta2": 0.99, "optimizer": optimizer})
    optimizers = Optimizers(model, options, fast_dtype=torch.float32)
    nothing_skipped = torch.zeros(())

    def step():
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        _, loss = model(inputs, targets, reduction="sum")
        (loss / targets.numel()).backward()
        clip_grad_norm(model, 1.0)
        optimizers.step(nothing_skipped)
        optimizers.zero_grad()

    if compiled and (reason := compile_blocks(model, step)):
        raise RuntimeError(reason)
    return step, optimizers


def products_alone(sizes: dict, batch_size: int):
    """A function that does only the matrix products of one step of the classic shape."""
    model = GPT(GPTConfig(**sizes, **SHAPES["classic"], vocab_size=65))
    rows = batch_size * sizes["block_size"]
    triples = []
    for weight in (p.detach() for p in model.blocks.parameters() if p.dim() == 2):
        ins, outs = torch.randn(rows, weight.size(1)), torch.randn(rows, weight.size(0))
        triples.append((ins, weight, outs))

    def step():
        for ins, weight, outs in triples:  # forward, and the gradients of input and weight
            ins @ weight.T, outs @ weight, outs.T @ ins

    return step


def serve(variant: str, size: str, nanogpt: str) -> None:
    """Take a step for each line of input, and answer with its seconds and the peak memory."""
    sizes, batch_size = SIZES[size]
    torch.manual_seed(1)
    tokens = torch.randint(65, (batch_size, sizes["block_size"] + 1))
    who, how = variant.split(", ")
    if variant == FLOOR:
        settle_torch("cpu")
        step = products_alone(sizes, batch_size)
    elif who == "nanoGPT":
        step = nanogpt_step(Path(nanogpt), sizes, tokens, how == "compiled")
    else:
        step, _ = our_step(sizes, tokens, how == "compiled", who.split()[1])
    step()  # with the compilation
    step()
    processes.forget_peak()
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        step()
        seconds = time.perf_counter() - begin
        print(json.dumps({"seconds": seconds, "peak": processes.own_peak()}), flush=True)


def compare(nanogpt: str, size: str, rounds: int, variants: list[str]) -> dict:
    """Seconds per step and peak memory of every variant, with interleaved rounds."""
    children = {}
    found = {variant: [] for variant in variants}
    try:
        for variant in variants:
            print(f"  starting {variant} ...", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--serve", variant]
            children[variant] = subprocess.Popen(
                [*command, "--size", size, "--nanogpt", nanogpt],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            children[variant].stdout.readline()
        for _ in range(rounds):
            for variant, child in children.items():
                child.stdin.write("step\n")
                child.stdin.flush()
                found[variant].append(json.loads(child.stdout.readline()))
    finally:
        for child in children.values():
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()
    sizes, batch_size = SIZES[size]
    tokens = batch_size * sizes["block_size"]
    best = min(
        statistics.median(a["seconds"] for a in answers)
        for variant, answers in found.items() if variant.startswith("nanoGPT")
    )  # fmt: skip
    return {
        variant: {
            "seconds": report.spread([a["seconds"] for a in answers]),
            "tokens_per_second": tokens / statistics.median(a["seconds"] for a in answers),
            "peak": max(a["peak"] for a in answers),
            "speed": best / statistics.median(a["seconds"] for a in answers),
        }
        for variant, answers in found.items()
    }


def parts(size: str, rounds: int) -> dict:
    """Muon's share of a step of 8,192 tokens, and the operations of a step by their time."""
    sizes, _ = SIZES[size]
    tokens = torch.randint(65, (8192 // sizes["block_size"], sizes["block_size"] + 1))
    step, optimizers = our_step(sizes, tokens, False, "Llama", "muon")
    spent = {"muon": 0.0}
    (muon,) = (o for o in optimizers.optimizers if isinstance(o, Muon))
    update = muon.step

    def timed(found_inf):
        begin = time.perf_counter()
        update(found_inf)
        spent["muon"] += time.perf_counter() - begin

    muon.step = timed
    step()
    shares = []
    for _ in range(rounds):
        spent["muon"] = 0.0
        begin = time.perf_counter()
        step()
        shares.append(spent["muon"] / (time.perf_counter() - begin))
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    events = [e for e in profiled.key_averages() if e.self_cpu_time_total > 0]
    total = sum(e.self_cpu_time_total for e in events)
    events.sort(key=lambda e: -e.self_cpu_time_total)
    return {
        "muon_share": report.spread(shares),
        "operations": {e.key: e.self_cpu_time_total / total for e in events[:12]},
    }


def main() -> None:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nanogpt", required=True, help="a clone of nanoGPT")
    parser.add_argument("--size", choices=list(SIZES), default="10.7M")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="eager only, three rounds")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.size, options.nanogpt)
        return
    rounds = 3 if options.quick else options.rounds
    variants = [v for v in VARIANTS if not (options.quick and "compiled" in v)]
    found = compare(options.nanogpt, options.size, rounds, variants)
    rows = [
        [
            variant, f"{row['tokens_per_second']:,.0f}",
            " / ".join(f"{1e3 * row['seconds'][k]:.0f}" for k in ("min", "median", "max")),
            f"{row['peak'] / 1e6:,.0f} MB", f"{row['speed']:.2f}",
        ]
        for variant, row in found.items()
    ]  # fmt: skip
    header = ["step", "tokens/s", "ms min / median / max", "peak memory", "of nanoGPT's best speed"]
    print(report.table(header, rows))
    inside = parts(options.size, 2 if options.quick else 3)
    print(
        f"\nMuon's share of a step of 8,192 tokens: {100 * inside['muon_share']['median']:.1f}%\n"
    )
    rows = [[name, f"{100 * share:.1f}%"] for name, share in inside["operations"].items()]
    print(report.table(["operation", "of a step's time"], rows))
    report.finish({"training": found, "parts": inside}, options.json)


if __name__ == "__main__":
    main()
