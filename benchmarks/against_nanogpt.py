"""gptlab against nanoGPT on this machine, in the same minutes.

    python benchmarks/against_nanogpt.py --nanogpt ../nanoGPT [--text tinyshakespeare.txt]

1. Time to loss: nanoGPT's documented CPU run (0.8M parameters, 2000 x 12 x 64 tokens) and
   config/speedrun.py, each as a whole process, start-up included. Both models are scored on the
   whole validation split, in windows of 64.
2. Plain training steps, interleaved, of the same size with AdamW in float32: forward, backward,
   clipping, update.
"""

import argparse
import contextlib
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import numpy as np
import report
import torch

from gptlab.inference.evaluate import evaluate_loss, evaluation_windows
from gptlab.model.arithmetic import count_parameters
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.runs import load_checkpoint
from gptlab.training.config import build
from gptlab.training.optimizers import Optimizers
from gptlab.training.precision import clip_grad_norm

NANOGPT_COMMAND = (
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
).split()
BLOCK_SIZE = 64

# name -> (nanoGPT's sizes, batch size)
STEPS = {
    "0.8M": (dict(n_layer=4, n_head=4, n_embd=128, block_size=64), 12),
    "10.7M": (dict(n_layer=6, n_head=6, n_embd=384, block_size=256), 16),
}
# the same sizes as nanoGPT's own architecture, and as ours
OURS = {
    "classic": dict(
        position_encoding="learned",
        use_rms_norm=False,
        use_swiglu=False,
        activation="gelu",
    ),
    "Llama shape": dict(),
}


def load_nanogpt(path: Path):
    """nanoGPT's model.py as a module."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", path / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    with contextlib.redirect_stdout(None):
        spec.loader.exec_module(module)
    return module


def timed_process(command: list[str], folder: Path, environment: dict) -> float:
    """Seconds of a whole process; its output goes to a file, its failure ends the benchmark."""
    begin = time.perf_counter()
    with open(folder / "benchmark.log", "w", encoding="utf-8") as log:
        subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    return time.perf_counter() - begin


class NanoGPTAdapter(torch.nn.Module):
    """nanoGPT's model behind the call that evaluate_loss makes."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, targets, reduction):
        logits, _ = self.model(tokens, targets)
        return None, torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum"
        )


def whole_split_loss(model, val: np.ndarray) -> float:
    windows = evaluation_windows(len(val), BLOCK_SIZE)
    return evaluate_loss(model, val, windows, BLOCK_SIZE, 64, "cpu")


def time_to_loss(nanogpt: Path, text: str, recipe: str) -> dict:
    """Wall time and whole-split loss of nanoGPT's documented run and of a recipe."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        theirs = Path(scratch) / "nanogpt"
        subprocess.run(["git", "clone", "-q", str(nanogpt), str(theirs)], check=True)
        data = theirs / "data" / "shakespeare_char"
        characters = Path(text).read_text(encoding="utf-8")
        (data / "input.txt").write_text(characters, encoding="utf-8")
        timed_process(["prepare.py"], data, {})
        environment = {"GPTLAB_HOME": str(home)}
        prepare = [str(REPOSITORY / "prepare.py"), str(Path(text).resolve())]
        home.mkdir()
        timed_process(
            [*prepare, "--dataset", "shakespeare", "--tokenizer", "char"], home, environment
        )
        print("Running nanoGPT's documented CPU run ...", flush=True)
        their_seconds = timed_process(NANOGPT_COMMAND, theirs, {})
        print(f"  {their_seconds:.1f} s\nRunning {recipe} ...", flush=True)
        train = [str(REPOSITORY / "train.py"), "--config", recipe]
        our_seconds = timed_process([*train, "--out_dir", "run"], home, environment)
        print(f"  {our_seconds:.1f} s", flush=True)

        module = load_nanogpt(theirs)
        content = torch.load(theirs / "out-shakespeare-char" / "ckpt.pt", weights_only=True)
        with contextlib.redirect_stdout(None):
            their_model = module.GPT(module.GPTConfig(**content["model_args"]))
        their_model.load_state_dict(content["model"])
        their_val = np.fromfile(data / "val.bin", dtype="<u2")
        our_val = np.fromfile(home / "data" / "shakespeare" / "val.bin", dtype="<u2")
        ours = load_checkpoint(home / "run")
        return {
            "nanogpt_seconds": their_seconds,
            "nanogpt_loss": whole_split_loss(NanoGPTAdapter(their_model), their_val),
            "gptlab_seconds": our_seconds,
            "gptlab_loss": whole_split_loss(ours.model, our_val),
            "ratio": our_seconds / their_seconds,
        }


def step_times(nanogpt: Path, name: str, runs: int) -> dict:
    """Seconds of a training step of nanoGPT and of our shapes, interleaved."""
    module = load_nanogpt(nanogpt)
    sizes, batch_size = STEPS[name]
    tokens = torch.randint(65, (batch_size, sizes["block_size"] + 1))
    steps = {}
    with contextlib.redirect_stdout(None):
        theirs = module.GPT(module.GPTConfig(**sizes, vocab_size=65, dropout=0.0, bias=False))
        their_optimizer = theirs.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")

    def their_step():
        _, loss = theirs(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        their_optimizer.step()
        their_optimizer.zero_grad(set_to_none=True)

    steps["nanoGPT"] = (their_step, sum(p.numel() for p in theirs.parameters()))
    for label, settings in OURS.items():
        config = GPTConfig(**sizes, **settings, vocab_size=65, dropout=0.0)
        model = GPT(config)
        options = build({"learning_rate": 1e-3, "beta2": 0.99})
        optimizers = Optimizers(model, options, ns_dtype=torch.float32)
        nothing_skipped = torch.zeros(())

        def our_step(model=model, optimizers=optimizers, nothing_skipped=nothing_skipped):
            inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
            _, loss = model(inputs, targets, reduction="sum")
            (loss / targets.numel()).backward()
            clip_grad_norm(model, 1.0)
            optimizers.step(nothing_skipped)
            optimizers.zero_grad()

        steps[label] = (our_step, count_parameters(config))
    seconds = {label: [] for label in steps}
    for run in range(runs + 1):
        for label, (step, _) in steps.items():
            begin = time.perf_counter()
            step()
            if run:  # the first warms up
                seconds[label].append(time.perf_counter() - begin)
    base = statistics.median(seconds["nanoGPT"])
    return {
        label: {
            "parameters": steps[label][1],
            "seconds": report.spread(values),
            "tokens_per_second": batch_size * sizes["block_size"] / statistics.median(values),
            "ratio": statistics.median(values) / base,
        }
        for label, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument(
        "--text",
        default=str(REPOSITORY.parent / "shared" / "data" / "tinyshakespeare.txt"),
        help="a copy of tiny Shakespeare",
    )
    parser.add_argument("--recipe", default=str(REPOSITORY / "config" / "speedrun.py"))
    parser.add_argument("--only", choices=["loss", "steps"], help="one of the two parts")
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    results = {}
    if arguments.only != "steps":
        figures = time_to_loss(arguments.nanogpt, arguments.text, arguments.recipe)
        results["time_to_loss"] = figures
        rows = [
            [who, f"{figures[f'{who}_seconds']:.1f} s", f"{figures[f'{who}_loss']:.4f}"]
            for who in ("nanogpt", "gptlab")
        ]
        rows.append(["ratio of times", f"{figures['ratio']:.3f}", ""])
        print(
            report.table(["whole process", "wall time", "loss on the whole validation split"], rows)
        )
    if arguments.only != "loss":
        for name, runs in (("0.8M", 60), ("10.7M", 5)):
            figures = step_times(arguments.nanogpt, name, runs)
            results[f"steps_{name}"] = figures
            rows = [
                [
                    label,
                    f"{row['parameters'] / 1e6:.2f}M",
                    f"{row['tokens_per_second']:,.0f}",
                    " / ".join(
                        f"{1e3 * row['seconds'][key]:.1f}" for key in ("min", "median", "max")
                    ),
                    f"{row['ratio']:.3f}",
                ]
                for label, row in figures.items()
            ]
            header = [
                "step",
                "parameters",
                "tokens/s",
                "ms min / median / max",
                "time, nanoGPT = 1",
            ]
            print(report.table(header, rows))
    report.finish(results, arguments.json)


if __name__ == "__main__":
    main()
