"""All measurements on an accelerator in under ten minutes: training, decoding, Muon, memory.

    python benchmarks/gpu.py [--nanogpt ../nanoGPT] [--json FILE]
    python benchmarks/gpu.py --tiny     the same code on a CPU in seconds; its figures mean nothing

Training is GPT-2 124M, compiled, in the precision that is fast on this device, with AdamW and with
Muon. nanoGPT's model.py runs on the same device like in its bench.py, with the clipping of its
train.py; all programs take their steps in turn. Every clock is read after the device has finished.
Compiling and the first steps are not timed. MFU uses one formula for the FLOPs of all programs
(model/arithmetic.py). Decoding is measured with one text and with 16; the bytes that its steps must
read are compared with the speed of a plain copy. A device with too little memory gets half the
batch. The last line on stdout is the JSON.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import report
import torch
from training import load_nanogpt

from gptlab import hardware
from gptlab.inference.decoding import Decoder, evaluating
from gptlab.model.arithmetic import count_parameters, flops_per_token
from gptlab.model.config import GPTConfig, preset
from gptlab.model.memory import training_memory
from gptlab.model.transformer import GPT
from gptlab.training.building import settle_torch
from gptlab.training.config import build
from gptlab.training.optimizers.combined import Optimizers
from gptlab.training.parallel import compile_blocks
from gptlab.training.precision import MixedPrecision, clip_grad_norm


@dataclass(frozen=True)
class Sizes:
    """How much is measured. rounds of steps, of which the median counts; after warm-up steps."""

    shape: dict
    batch_size: int = 12  # sequences, as nanoGPT's bench.py
    warmup: int = 5
    rounds: int = 5
    steps: int = 10  # of a round, between two readings of the clock
    copy_bytes: int = 1 << 30
    prompt: int = 512
    tokens: int = 128  # that are decoded in a round
    texts: int = 16
    compiled: bool = True


# nanoGPT's bench.py: GPT-2 without biases and with a table of 50,304 ids
GPT2 = {**preset("gpt2"), "bias": False, "vocab_size": 50304, "activation": "gelu"}
FULL = Sizes(GPT2)
TINY = Sizes(
    {**GPT2, "n_layer": 2, "n_head": 2, "n_embd": 32, "vocab_size": 64, "block_size": 32},
    batch_size=2, warmup=1, rounds=2, steps=1, copy_bytes=1 << 22, prompt=8, tokens=4, texts=2,
    compiled=False,
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Where it runs, and how: a torch device, a precision, a scaler for float16."""

    device: str
    dtype: str
    use_scaler: bool

    def timed(self, work) -> float:
        """Seconds of `work()`, from an idle device to an idle device."""
        hardware.synchronize(self.device)
        begin = time.perf_counter()
        work()
        hardware.synchronize(self.device)
        return time.perf_counter() - begin

    def precision(self) -> MixedPrecision:
        """The precision settings of a gptlab run."""
        return MixedPrecision(self.device, self.dtype, self.use_scaler)

    @property
    def _module(self):
        if self.device == "cpu":
            return None
        module = torch.get_device_module(self.device)
        return module if hasattr(module, "max_memory_allocated") else None

    def forget(self) -> None:
        """Free unused memory and restart `peak`."""
        gc.collect()
        if self._module:
            self._module.empty_cache()
            self._module.reset_peak_memory_stats(self.device)

    def peak(self) -> int | None:
        """Peak bytes of tensors on the device since `forget`; None if torch does not count them."""
        return self._module.max_memory_allocated(self.device) if self._module else None


def say(text: str) -> None:
    """Progress goes to stderr: stdout is for the tables and the JSON."""
    print(text, file=sys.stderr, flush=True)


def copy_speed(machine: Machine, size: int) -> float:
    """Bytes per second that a copy reads plus writes, the best of ten."""
    source = torch.ones(size // 4, device=machine.device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * size / min(machine.timed(lambda: target.copy_(source)) for _ in range(10))


class OurStep:
    """A training step as `training/trainer.py` takes it."""

    def __init__(self, machine: Machine, sizes: Sizes, optimizer: str, tokens, **settings):
        config = build({
            **sizes.shape, **settings, "dropout": 0.0, "optimizer": optimizer,
            "learning_rate": 1e-4, "weight_decay": 0.01, "batch_size": sizes.batch_size,
            "gradient_accumulation_steps": 1, "device": machine.device, "dtype": machine.dtype,
        })  # fmt: skip
        torch.manual_seed(0)
        self.model = GPT(config.model).to(machine.device)
        self.precision = machine.precision()
        self.optimizers = Optimizers(self.model, config, getattr(torch, machine.dtype))
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        self.not_compiled = ""
        if sizes.compiled:
            self.not_compiled = compile_blocks(self.model, self)

    def gradients(self):
        """Forward, backward, clipping; returns the gradient norm."""
        with self.precision.autocast():
            _, loss = self.model(self.inputs, self.targets, reduction="sum")
        self.precision.backward(loss / self.targets.numel())
        self.precision.unscale(self.optimizers)
        return clip_grad_norm(self.model, 1.0)

    def __call__(self) -> None:
        self.precision.step(self.optimizers, self.gradients())
        self.optimizers.zero_grad()


class NanoGPTStep:
    """A step of nanoGPT's own model and optimizer, as its bench.py and train.py take it."""

    def __init__(self, machine: Machine, sizes: Sizes, path: Path, tokens):
        module = load_nanogpt(path)
        names = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
        kind = torch.device(machine.device).type
        torch.manual_seed(0)
        with contextlib.redirect_stdout(None):
            shape = {name: sizes.shape[name] for name in names}
            self.model = module.GPT(module.GPTConfig(**shape, dropout=0.0, bias=False))
            self.model.to(machine.device)
            self.optimizer = self.model.configure_optimizers(1e-2, 1e-4, (0.9, 0.95), kind)
        self.run = torch.compile(self.model) if sizes.compiled else self.model
        self.context = machine.precision().autocast
        self.scaler = torch.amp.GradScaler(kind, enabled=machine.use_scaler)
        self.inputs, self.targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def __call__(self) -> None:
        with self.context():
            _, loss = self.run(self.inputs, self.targets)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)


def batch_of(machine: Machine, sizes: Sizes) -> torch.Tensor:
    """Random tokens of one step, int64 [batch_size, block_size + 1], on the device."""
    shape = (sizes.batch_size, sizes.shape["block_size"] + 1)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(sizes.shape["vocab_size"], shape, generator=generator)
    return tokens.to(machine.device)


def repeated(work, times: int):
    """A function that calls `work` this many times."""

    def many():
        for _ in range(times):
            work()

    return many


def training(machine: Machine, sizes: Sizes, nanogpt: Path | None) -> dict:
    """Seconds of a step, tokens/s, MFU of each program; the optimizer's share of ours with Muon."""
    tokens = batch_of(machine, sizes)
    steps = {}
    for optimizer in ("adamw", "muon"):
        say(f"Building and compiling the model, {optimizer} ...")
        steps[f"gptlab {optimizer}"] = OurStep(machine, sizes, optimizer, tokens)
    if nanogpt:
        say("Building and compiling nanoGPT's ...")
        steps["nanoGPT"] = NanoGPTStep(machine, sizes, nanogpt, tokens)
    seconds = {name: [] for name in steps}
    for step in steps.values():
        repeated(step, sizes.warmup)()
    for _ in range(sizes.rounds):
        for name, step in steps.items():
            taken = machine.timed(repeated(step, sizes.steps))
            seconds[name].append(taken / sizes.steps)
    config = GPTConfig(**sizes.shape)
    loss_mask = sizes.batch_size * config.block_size
    peak = hardware.peak_flops(machine.device, machine.dtype)
    programs = {}
    for name, values in seconds.items():
        speed = loss_mask / statistics.median(values)
        programs[name] = {
            "step_seconds": report.spread(values),
            "tokens_per_second": speed,
            "mfu": speed * flops_per_token(config) / peak.value,
            "not_compiled": getattr(steps[name], "not_compiled", ""),
        }
    muon = steps["gptlab muon"]
    muon.gradients()  # which stay while the update alone is repeated
    nothing_skipped = torch.zeros((), device=machine.device)
    update_only = repeated(lambda: muon.optimizers.step(nothing_skipped), sizes.steps)
    updates = [machine.timed(update_only) / sizes.steps for _ in range(sizes.rounds)]
    update = statistics.median(updates)
    return {
        "parameters": count_parameters(config),
        "tokens_per_step": loss_mask,
        "peak_flops": peak.value,
        "peak_flops_source": peak.source,
        "programs": programs,
        "muon_update_seconds": report.spread(updates),
        "muon_share_of_step": update / programs["gptlab muon"]["step_seconds"]["median"],
    }


def decoding(machine: Machine, sizes: Sizes, bandwidth: float) -> dict:
    """Tokens/s of prefill and decoding, and the share of the bandwidth that decoding uses."""
    torch.manual_seed(0)
    dtype = getattr(torch, machine.dtype)
    model = GPT(GPTConfig(**sizes.shape)).to(machine.device, dtype)
    config = model.config
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(config.vocab_size, (sizes.prompt,), generator=generator).tolist()
    bytes_per_value = torch.finfo(dtype).bits // 8
    # what a step reads: every weight once (a table of positions: a row), and the cache of each text
    rows_read = config.block_size if config.position_encoding == "learned" else 0
    weights = (count_parameters(config) - rows_read * config.n_embd) * bytes_per_value
    length = sizes.prompt + sizes.tokens / 2
    cache = 2 * config.n_layer * config.n_kv_head * config.head_dim * length * bytes_per_value
    found = {}
    with evaluating(model):
        for texts in (1, sizes.texts):

            def prefill(texts=texts):
                return Decoder(model, [prompt] * texts)

            def write(decoder):
                for _ in range(sizes.tokens):
                    decoder.append(decoder.logits.argmax(-1).tolist())

            write(prefill())
            prefills, writes = [], []
            for _ in range(sizes.rounds):
                prefills.append(machine.timed(prefill))
                decoder = prefill()
                writes.append(machine.timed(lambda decoder=decoder: write(decoder)))
            speed = texts * sizes.tokens / statistics.median(writes)
            read = (weights + texts * cache) * speed / texts
            found[f"{texts} texts" if texts > 1 else "1 text"] = {
                "decode_seconds_per_token": report.spread([s / sizes.tokens for s in writes]),
                "decode_tokens_per_second": speed,
                "bytes_per_second": read,
                "share_of_bandwidth": read / bandwidth,
                "prefill_tokens_per_second": texts * sizes.prompt / statistics.median(prefills),
            }
    return found


def checkpointing(machine: Machine, sizes: Sizes) -> dict:
    """Peak bytes and seconds of an uncompiled step, without and with gradient checkpointing."""
    tokens = batch_of(machine, sizes)
    eager = dataclasses.replace(sizes, compiled=False)
    bytes_per_value = 4 if machine.dtype == "float32" else 2
    found = {}
    for name, on in (("without", False), ("with", True)):
        machine.forget()
        step = OurStep(machine, eager, "adamw", tokens, gradient_checkpointing=on)
        step()
        seconds = [machine.timed(step) for _ in range(sizes.rounds)]
        planned = training_memory(
            step.model.config, sizes.batch_size, bytes_per_activation=bytes_per_value
        )
        found[name] = {
            "peak_bytes": machine.peak(),
            "planned_bytes": planned.total,
            "step_seconds": report.spread(seconds),
        }
        del step
    return found


def show(results: dict) -> None:
    """The tables."""
    programs = results["training"]["programs"]
    base = programs.get("nanoGPT", programs["gptlab adamw"])["step_seconds"]["median"]
    print(report.table(
        ["training", "tokens/s", "ms min / median / max", "MFU",
         f"time, {'nanoGPT' if 'nanoGPT' in programs else 'adamw'} = 1"],
        [[
            name,
            f"{row['tokens_per_second']:,.0f}",
            " / ".join(f"{1e3 * row['step_seconds'][k]:.1f}" for k in ("min", "median", "max")),
            f"{row['mfu']:.1%}",
            f"{row['step_seconds']['median'] / base:.3f}",
        ] for name, row in programs.items()],
    ))  # fmt: skip
    print(f"Muon's update takes {results['training']['muon_share_of_step']:.1%} of its step.\n")
    print(report.table(
        ["generation", "tokens/s", "of the copy's bandwidth", "prefill tokens/s"],
        [[
            name,
            f"{row['decode_tokens_per_second']:,.1f}",
            f"{row['share_of_bandwidth']:.1%}",
            f"{row['prefill_tokens_per_second']:,.0f}",
        ] for name, row in results["decoding"].items()],
    ))  # fmt: skip
    print(f"A copy moves {results['bandwidth'] / 1e9:,.0f} GB/s.\n")
    print(report.table(
        ["gradient checkpointing", "peak MB", "planned MB", "ms of an eager step"],
        [[
            name,
            "not counted here" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{row['planned_bytes'] / 1e6:,.0f}",
            f"{1e3 * row['step_seconds']['median']:.1f}",
        ] for name, row in results["checkpointing"].items()],
    ))  # fmt: skip


def measure(machine: Machine, sizes: Sizes, nanogpt: Path | None) -> dict:
    """All figures of one device, as plain types."""
    settle_torch(machine.device)
    say("Copying ...")
    bandwidth = copy_speed(machine, sizes.copy_bytes)
    results = {"device": dataclasses.asdict(machine), "bandwidth": bandwidth}
    results["training"] = training(machine, sizes, nanogpt)
    machine.forget()
    say("Decoding ...")
    results["decoding"] = decoding(machine, sizes, bandwidth)
    say("Gradient checkpointing ...")
    results["checkpointing"] = checkpointing(machine, sizes)
    return results


def main(argv: list[str]) -> int:
    """Run, print tables and JSON, write JSON; exit code 2 without an accelerator."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT to compare with")
    parser.add_argument("--device", default="auto", help="as in train.py [auto]")
    parser.add_argument("--tiny", action="store_true", help="a test on a CPU, in seconds")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args(argv)
    if options.tiny:
        machine, sizes = Machine("cpu", "float32", False), TINY
    else:
        choice = hardware.choose(hardware.detect(), options.device)
        if choice.device == "cpu":
            print("There is no accelerator here: --tiny runs this script on a CPU.",
                  file=sys.stderr)  # fmt: skip
            return 2
        machine, sizes = Machine(choice.device, choice.dtype, choice.use_scaler), FULL
    results = None
    while results is None:
        try:
            results = measure(machine, sizes, options.nanogpt)
        except torch.OutOfMemoryError:
            if sizes.batch_size == 1:
                raise
            sizes = dataclasses.replace(sizes, batch_size=sizes.batch_size // 2)
            say(f"Too little memory: trying {sizes.batch_size} sequences.")
    show(results)
    report.finish(results, options.json)
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
