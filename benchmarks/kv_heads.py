"""How fast a model decodes with fewer key-value heads: MHA, GQA and MQA at the same time.

    python benchmarks/kv_heads.py [--rounds N]

Random weights of two shapes, float32, one text, one thread, native.cpp where it applies. The
variants take turns of a few tokens, and seconds of the processor are counted, so other work slows
all alike.
Writes benchmarks/kv_heads.json, which benchmarks/experiments.py shows.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import report
import torch

from gptlab.inference.decoding import Decoder
from gptlab.inference.native import NativeDecoder
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT

FIGURES = REPOSITORY / "benchmarks" / "kv_heads.json"
TURN = 4  # tokens
# the recipe of docs/experiments.md with four heads, and a model with a long window
SHAPES = {
    "0.8M": dict(n_layer=4, n_head=4, n_embd=128, block_size=256, vocab_size=66),
    "25M": dict(n_layer=8, n_head=8, n_embd=512, block_size=2048, vocab_size=66),
}
KV_HEADS = {"MHA": {4: 4, 8: 8}, "GQA": {4: 2, 8: 2}, "MQA": {4: 1, 8: 1}}  # of so many heads


@torch.inference_mode()
def speeds(shape: dict, rounds: int) -> dict[str, dict]:
    """Of each variant: its tokens per second beside MHA's in the same round, and its cache."""
    decoders, seconds = {}, {}
    half = [i % shape["vocab_size"] for i in range(shape["block_size"] // 2)]
    for name, of in KV_HEADS.items():
        torch.manual_seed(0)
        heads = of[shape["n_head"]]
        model = GPT(GPTConfig(**shape, n_kv_head=heads, qk_norm=True, dropout=0.0)).eval()
        decoders[name] = model, heads, Decoder(model, [half], NativeDecoder.of(model, "float32"))
        seconds[name] = []
    for _ in range(rounds + 1):
        for name, (_, _, decoder) in decoders.items():
            begin = time.process_time()
            for _ in range(TURN):
                decoder.append(decoder.logits.argmax(-1).tolist())
            seconds[name].append(time.process_time() - begin)
    found = {}
    for name, (model, heads, _) in decoders.items():
        pairs = zip(seconds["MHA"][1:], seconds[name][1:], strict=True)  # the first round warms up
        ratios = sorted(mha / own for mha, own in pairs)
        config = model.config
        found[name] = {
            "heads": shape["n_head"],
            "kv_heads": heads,
            "tokens_before": shape["block_size"] // 2,
            "speed": statistics.median(ratios),
            "quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
            "cache_bytes": 2 * 4 * config.n_layer * heads * config.head_dim,  # of a token
            "parameters": sum(weight.numel() for weight in model.parameters()),
        }
    return found


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {name: speeds(shape, options.rounds) for name, shape in SHAPES.items()}
    content = {"machine": report.machine(), "rounds": options.rounds, "shapes": figures}
    FIGURES.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"Wrote {FIGURES.relative_to(REPOSITORY)}; python benchmarks/experiments.py shows it.")


if __name__ == "__main__":
    main()
