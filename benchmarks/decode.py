"""Decoding on this CPU beside llama.cpp and transformers, in the same minutes.

    python gpt.py import smollm2-135m
    python benchmarks/decode.py [--run out/smollm2-135m] [--json FILE]

One model in all programs: exported as float32, bfloat16 and int8 (llama.cpp's Q8_0). The runs are
interleaved. A figure is the median of tokens per second between two lengths of one greedy text, so
that loading and reading the prompt do not count. Needs `pip install transformers xllamacpp`.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import report
import torch

from gptlab.inference.decoding import Decoder
from gptlab.inference.native import NativeDecoder
from gptlab.interop.export import export
from gptlab.model.quantization import round_weights
from gptlab.runs import load_checkpoint

PROMPT = "Once upon a time there was a small town by the sea, and in it"
SHORT = 8
GGUF_KINDS = {"float32": "f32", "bfloat16": "bf16", "int8": "q8_0"}


def ours(path: Path, dtype: str, rows: int = 1, use_native: bool = True):
    """A function that writes so many tokens in each of `rows` texts."""
    checkpoint = load_checkpoint(path)
    model = checkpoint.model
    round_weights(model, dtype)
    native = NativeDecoder.of(model, dtype) if use_native else None
    prompt = checkpoint.tokenizer.encode(PROMPT)

    def write(tokens: int) -> None:
        decoder = Decoder(model, [prompt] * rows, native)
        for _ in range(tokens):
            decoder.append(decoder.logits.argmax(-1).tolist())

    return write


def transformers_writes(folder: Path):
    """The same with transformers in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")

    @torch.inference_mode()
    def write(tokens: int) -> None:
        model.generate(
            **inputs, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0
        )

    return write


def llama_cpp_writes(path: Path):
    """The same with llama.cpp."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = 512, 1, 0
    parameters.warmup, parameters.fit_params = True, False
    threads = torch.get_num_threads()
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)

    def write(tokens: int) -> None:
        answer = server.handle_completions(
            {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        )
        assert answer["usage"]["completion_tokens"] == tokens

    return write


def main() -> None:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", default=str(REPOSITORY / "out" / "smollm2-135m"))
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="16 tokens, one round")
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.rounds = 16, 1
    run = Path(options.run)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = load_checkpoint(run)
        writers, rows = {}, {}
        hf = export(checkpoint, "hf", Path(folder) / "hf")
        writers["transformers float32"] = transformers_writes(hf)
        writers["gptlab float32, torch only"] = ours(run, "float32", use_native=False)
        for dtype, kind in GGUF_KINDS.items():
            gguf = export(checkpoint, "gguf", Path(folder) / f"{kind}.gguf", quantize=kind)
            writers[f"llama.cpp {dtype}"] = llama_cpp_writes(gguf)
            writers[f"gptlab {dtype}"] = ours(run, dtype)
            rows[f"gptlab {dtype}, 16 texts"] = 16
            writers[f"gptlab {dtype}, 16 texts"] = ours(run, dtype, rows=16)
        speeds = {name: [] for name in writers}
        for _ in range(options.rounds):
            for name, write in writers.items():
                times = []
                for tokens in (SHORT, SHORT + options.tokens):
                    begin = time.perf_counter()
                    write(tokens)
                    times.append(time.perf_counter() - begin)
                speed = options.tokens / (times[1] - times[0])
                speeds[name].append(rows.get(name, 1) * speed)
    found = {name: report.spread(values) for name, values in speeds.items()}
    base = found["transformers float32"]["median"]
    lines = []
    for name, figures in found.items():
        peer = found.get(name.replace("gptlab", "llama.cpp").replace(", 16 texts", ""))
        single = found.get(name.replace(", 16 texts", ""))
        lines.append([
            name, f"{figures['median']:.1f}", f"{figures['min']:.1f} to {figures['max']:.1f}",
            f"{figures['median'] / base:.2f}",
            f"{figures['median'] / peer['median']:.2f}" if peer else "",
            f"{figures['median'] / single['median']:.2f}" if "16" in name else "",
        ])  # fmt: skip
    print(report.table(
        ["program", "tokens/s", "runs", "of transformers", "of llama.cpp", "of one text"], lines
    ))  # fmt: skip
    report.finish({"decode": found}, options.json)


if __name__ == "__main__":
    main()
