"""Decoding and prefill on this CPU, compared with llama.cpp and transformers at the same time.

    python gpt.py import smollm2-135m
    python benchmarks/decode.py [--run out/smollm2-135m] [--text FILE] [--json FILE]

All programs run the same model, exported as float32, bfloat16 and int8 (llama.cpp's Q8_0), greedily
and interleaved. Decoding is the time after the first token of a short prompt. Prefill is the time
until the first token after a long prompt, next to torch's best matrix product here. Finally, the
change of the loss of a text with int8 weights. Needs `pip install transformers xllamacpp`.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import report
import torch

from gptlab import hardware
from gptlab.inference.decoding import Decoder
from gptlab.inference.native import MOST_TOKENS, NativeDecoder
from gptlab.interop.write.export import export
from gptlab.model.arithmetic import flops_per_token
from gptlab.model.kv_cache import KVCache
from gptlab.model.quantization import round_weights
from gptlab.runs import load_checkpoint

PROMPT = "Once upon a time there was a small town by the sea, and in it"
LONG = 512  # tokens of a long prompt
GGUF_KINDS = {"float32": "f32", "bfloat16": "bf16", "int8": "q8_0"}
LOSS_TARGET = 0.005  # largest relative increase of the loss by int8
LOSS_WINDOW = 512

# What each program offers: (prompt's ids, tokens to write) -> (seconds until the first of them,
# seconds of the others)
Write = Callable[[list[int], int], tuple[float, float]]


def ours(model, dtype: str, rows: int = 1, use_native: bool = True) -> Write:
    """A function that writes `rows` equal texts. model: with weights already rounded to dtype."""
    native = NativeDecoder.of(model, dtype) if use_native else None

    def write(prompt: list[int], tokens: int) -> tuple[float, float]:
        begin = time.perf_counter()
        decoder = Decoder(model, [prompt] * rows, native)
        chosen = decoder.logits.argmax(-1).tolist()
        first = time.perf_counter()
        for _ in range(tokens - 1):
            decoder.append(chosen)
            chosen = decoder.logits.argmax(-1).tolist()
        return first - begin, time.perf_counter() - first

    return write


def transformers_write(folder: Path) -> Write:
    """The same with transformers in float32."""
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    class Clock(BaseStreamer):
        def __init__(self):
            self.times = []

        def put(self, value):  # first the prompt, then each token
            self.times.append(time.perf_counter())

        def end(self):
            pass

    @torch.inference_mode()
    def write(prompt: list[int], tokens: int) -> tuple[float, float]:
        clock = Clock()
        begin = time.perf_counter()
        model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens,
            pad_token_id=0, streamer=clock,
        )  # fmt: skip
        return clock.times[1] - begin, clock.times[-1] - clock.times[1]

    return write


def llama_cpp_write(path: Path) -> Write:
    """The same with llama.cpp, timed by its own clock."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.n_parallel, parameters.n_gpu_layers = 1024, 1, 0
    parameters.warmup, parameters.fit_params = True, False
    threads = torch.get_num_threads()
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(parameters)

    def write(prompt: list[int], tokens: int) -> tuple[float, float]:
        answer = server.handle_completions({
            "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
            "cache_prompt": False,
        })  # fmt: skip
        timings = answer["timings"]
        assert (timings["prompt_n"], timings["predicted_n"]) == (len(prompt), tokens)
        # the first token costs no step: its logits come with the prompt
        return timings["prompt_ms"] / 1e3, timings["predicted_ms"] / 1e3

    return write


@torch.inference_mode()
def int8_loss(run: Path, text: Path, most: int) -> dict:
    """The loss in nats of the start of a text in native.cpp, with float32 and with int8 weights."""
    checkpoint = load_checkpoint(run)
    with open(text, encoding="utf-8") as file:
        ids = checkpoint.tokenizer.encode(file.read(8 * most))[: most + 1]
    found, tokens = {}, torch.tensor(ids)
    for dtype in ("float32", "int8"):
        round_weights(checkpoint.model, dtype)
        native, losses = NativeDecoder.of(checkpoint.model, dtype), []
        for start in range(0, len(ids) - 1, LOSS_WINDOW):
            window = tokens[start : start + LOSS_WINDOW + 1]
            cache = KVCache(checkpoint.model.config, 1)
            steps = window[None, :-1].split(MOST_TOKENS, dim=1)
            logits = torch.cat([native.step(step, cache)[0] for step in steps])
            losses.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
        found[dtype] = torch.cat(losses).mean().item()
    return {**found, "tokens": len(ids) - 1}


def decoding_table(found: dict[str, dict]) -> str:
    """Tokens per second of every program, and its ratio to its peers."""
    lines = []
    for name, figures in found.items():
        single = name.partition(",")[0]
        peer = found.get(name.replace("gptlab", "llama.cpp")) if name.startswith("gptlab") else None
        lines.append([
            name, f"{figures['median']:.1f}", f"{figures['min']:.1f} to {figures['max']:.1f}",
            f"{figures['median'] / found['transformers float32']['median']:.2f}",
            f"{figures['median'] / peer['median']:.2f}" if peer else "",
            f"{figures['median'] / found[single]['median']:.2f}" if "texts" in name else "",
        ])  # fmt: skip
    header = ["decoding", "tokens/s", "runs", "of transformers", "of llama.cpp", "of one text"]
    return report.table(header, lines)


def main() -> None:
    """Run, print tables, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=REPOSITORY / "out" / "smollm2-135m")
    parser.add_argument("--text", type=Path, default=report.SHAKESPEARE, help="for int8's loss")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="12 tokens, one round")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.rounds = 12, 1
    checkpoint = load_checkpoint(options.run)
    prompt = checkpoint.tokenizer.encode(PROMPT)
    long_prompt = (prompt * LONG)[:LONG]
    writers, many = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        hf = export(checkpoint, "hf", Path(folder) / "hf")
        writers["transformers float32"] = transformers_write(hf)
        writers["gptlab float32, torch only"] = ours(checkpoint.model, "float32", use_native=False)
        for dtype, kind in GGUF_KINDS.items():
            gguf = export(checkpoint, "gguf", Path(folder) / f"{kind}.gguf", quantize=kind)
            writers[f"llama.cpp {dtype}"] = llama_cpp_write(gguf)
            model = load_checkpoint(options.run).model
            round_weights(model, dtype)
            writers[f"gptlab {dtype}"] = ours(model, dtype)
            many[f"gptlab {dtype}, 16 texts"] = ours(model, dtype, rows=16)
        decoding, prefill, peaks = {}, {}, []
        for _ in range(options.rounds):
            for name, write in {**writers, **many}.items():
                rows, tokens = (16 if name in many else 1), options.tokens
                seconds = write(prompt, tokens + 1)[1]
                decoding.setdefault(name, []).append(rows * tokens / seconds)
            peaks.append(hardware.peak_flops("cpu", "float32").value)  # now: the speed varies
            for name, write in writers.items():
                prefill.setdefault(name, []).append(LONG / write(long_prompt, 1)[0])
    decoding = {name: report.spread(values) for name, values in decoding.items()}
    prefill = {name: report.spread(values) for name, values in prefill.items()}
    peak = report.spread(peaks)["median"]
    results = {"decoding": decoding, "prefill": prefill, "peak_flops": peak}
    print(decoding_table(decoding), end="\n\n")
    config = checkpoint.model.config
    # forward only: a third of a step's; and the head sees the last token alone
    flops = flops_per_token(config, LONG) / 3 - 2 * config.vocab_size * config.n_embd
    print(report.table(
        [f"prompt of {LONG} tokens", "tokens/s", "runs", "of transformers", "GFLOP/s",
         f"of the {peak / 1e9:.0f} GFLOP/s of a product"],
        [[
            name, f"{row['median']:.0f}", f"{row['min']:.0f} to {row['max']:.0f}",
            f"{row['median'] / prefill['transformers float32']['median']:.2f}",
            f"{flops * row['median'] / 1e9:.0f}", f"{flops * row['median'] / peak:.2f}",
        ] for name, row in prefill.items()],
    ), end="\n\n")  # fmt: skip
    if options.text.is_file():
        loss = results["loss"] = int8_loss(
            options.run, options.text, 1024 if options.quick else 8192
        )
        print(report.table(
            [f"loss over {loss['tokens']:,} tokens", "float32", "int8", "more", "target"],
            [[
                options.text.name, f"{loss['float32']:.4f}", f"{loss['int8']:.4f}",
                f"{loss['int8'] / loss['float32'] - 1:+.2%}", f"below {LOSS_TARGET:.1%}",
            ]],
        ))  # fmt: skip
    report.finish(results, options.json)


if __name__ == "__main__":
    main()
