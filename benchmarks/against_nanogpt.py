"""Time to nanoGPT's loss on this machine, whole processes one after the other.

    python benchmarks/against_nanogpt.py --nanogpt ../nanoGPT [--text tinyshakespeare.txt]

First nanoGPT's documented CPU run (0.8M parameters, 2000 x 12 x 64 tokens). Then config/speedrun.py
unchanged; then in windows of 256 characters with as many tokens as nanoGPT, and with as much time.
Start-up is included. Every model is evaluated on the whole validation split, in windows of its own
block_size.
"""

import argparse
import contextlib
import os
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
from training import load_nanogpt

from gptlab.data.windows import evaluation_windows
from gptlab.inference.evaluate import evaluate_loss
from gptlab.runs import load_checkpoint

NANOGPT_COMMAND = (
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
).split()
NANOGPT_BLOCK_SIZE = 64
# longer runs learn more from windows of 256 characters and a lower rate, as in shakespeare_char
LONGER = "--block_size=256 --batch_size=8 --learning_rate=0.007 --eval_interval=5000".split()
LONGER += ["--compile_model=false", "--eval_tokens=8192"]  # compiling anew takes 40 s
QUICK = 10  # with --quick all runs are so many times shorter


def timed_process(command: list[str], folder: Path, environment: dict) -> float:
    """Seconds of a whole process; its output goes to a file, and a failure ends the benchmark."""
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
    """Adapts nanoGPT's model to the interface that evaluate_loss expects."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def features(self, tokens, documents=None):
        logits, _ = self.model(tokens, tokens)  # with targets it returns those of all positions
        return logits

    def unembed(self, logits):
        return logits


def whole_split_loss(model, val: np.ndarray, block_size: int) -> float:
    """Nats per character over the whole split: each character but the first is predicted once."""
    windows = evaluation_windows(len(val), block_size)
    return evaluate_loss(model, val, windows, block_size, 64, "cpu")


def compare(nanogpt: Path, text: str, recipe: str, quick: bool) -> dict:
    """{run: {"seconds", "loss", "tokens"}} of nanoGPT and of the recipe in its three lengths."""
    with tempfile.TemporaryDirectory() as scratch:
        home, peer = Path(scratch) / "home", Path(scratch) / "nanogpt"
        home.mkdir()
        subprocess.run(["git", "clone", "-q", str(nanogpt), str(peer)], check=True)
        data = peer / "data" / "shakespeare_char"
        (data / "input.txt").write_text(Path(text).read_text(encoding="utf-8"), encoding="utf-8")
        timed_process(["prepare.py"], data, {})
        environment = {"GPTLAB_HOME": str(home)}
        prepare = [str(REPOSITORY / "prepare.py"), str(Path(text).resolve())]
        prepare += ["--dataset", "shakespeare", "--tokenizer", "char"]
        timed_process(prepare, home, environment)

        command = list(NANOGPT_COMMAND)
        if quick:
            command += [f"--max_iters={2000 // QUICK}", f"--lr_decay_iters={2000 // QUICK}"]
            command += [f"--eval_interval={2000 // QUICK}"]
        print("Running nanoGPT's documented CPU run ...", flush=True)
        seconds = timed_process(command, peer, {})
        module = load_nanogpt(peer)
        content = torch.load(peer / "out-shakespeare-char" / "ckpt.pt", weights_only=True)
        with contextlib.redirect_stdout(None):
            model = module.GPT(module.GPTConfig(**content["model_args"]))
        model.load_state_dict(content["model"])
        val = np.fromfile(data / "val.bin", dtype="<u2")
        loss = whole_split_loss(NanoGPTAdapter(model), val, NANOGPT_BLOCK_SIZE)
        found = {"nanoGPT": {"seconds": seconds, "loss": loss}}

        def train(options: list[str], out_dir: str) -> float:
            command = [str(REPOSITORY / "train.py"), "--config", recipe, f"--out_dir={out_dir}"]
            cold = {"TORCHINDUCTOR_CACHE_DIR": str(home / f"compiled-{out_dir}")}  # each time anew
            return timed_process([*command, *options], home, environment | cold)

        lengths = {
            "gptlab": ["--max_iters=27", "--eval_interval=27"] if quick else [],
            # nanoGPT reads 2000 x 12 x 64
            "gptlab, as many tokens": [*LONGER, f"--max_iters={75 if quick else 750}"],
            "gptlab, as much time": [
                *LONGER, "--max_iters=50" if quick else f"--minutes={seconds / 60:.3f}"
            ],
        }  # fmt: skip
        val = np.fromfile(home / "data" / "shakespeare" / "val.bin", dtype="<u2")
        for number, (name, options) in enumerate(lengths.items()):
            print(f"Running {name} ...", flush=True)
            seconds = train(options, f"run{number}")
            model = load_checkpoint(home / f"run{number}").model
            loss = whole_split_loss(model, val, model.config.block_size)
            found[name] = {"seconds": seconds, "loss": loss}
        return found


def main() -> None:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument(
        "--text",
        default=str(report.SHAKESPEARE),
        help="a copy of tiny Shakespeare",
    )
    parser.add_argument("--recipe", default=str(REPOSITORY / "config" / "speedrun.py"))
    parser.add_argument("--quick", action="store_true", help=f"runs {QUICK} times shorter")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    found = compare(options.nanogpt, options.text, options.recipe, options.quick)
    base = found["nanoGPT"]["seconds"]
    rows = [
        [name, f"{run['seconds']:.1f} s", f"{run['seconds'] / base:.3f}", f"{run['loss']:.4f}"]
        for name, run in found.items()
    ]
    header = ["whole process", "wall time", "of nanoGPT's", "loss on the whole validation split"]
    print(report.table(header, rows))
    report.finish({"against_nanogpt": found}, options.json)


if __name__ == "__main__":
    main()
