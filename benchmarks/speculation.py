"""Decoding with draft tokens from the text (prompt lookup) compared with decoding without.

    python gpt.py import smollm2-135m
    python benchmarks/speculation.py [--run out/smollm2-135m] [--quick] [--json FILE]

Each text is written once without draft tokens, and then again in both ways, alternating every eight
tokens, so that other work on the machine affects both. Greedy tokens must agree everywhere.
"accepted": draft tokens that the model would have chosen. Figures are tokens per second without the
prompt.
"""

import argparse
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import report

from gptlab.inference.config import SamplingConfig
from gptlab.inference.decoding import Decoder
from gptlab.inference.generator import Generator
from gptlab.inference.native import NativeDecoder
from gptlab.model.quantization import round_weights
from gptlab.runs import load_checkpoint

CODE = '''def read_table(path, separator=","):
    """Read a table whose first line holds the names of its columns."""
    with open(path, encoding="utf-8") as file:
        names = file.readline().strip().split(separator)
        rows = []
        for line in file:
            values = line.strip().split(separator)
            if len(values) != len(names):
                raise ValueError(f"{path}: {len(values)} values for {len(names)} columns")
            rows.append(dict(zip(names, values)))
    return rows
'''
STORY = "Once upon a time there was a small town by the sea, and in it"
TEXTS = {  # the prompt, and how its continuation is chosen
    "copies code of its prompt": (f"{CODE}\n\n# the same function once more\n\n{CODE[:40]}", 0.0),
    "the likeliest story": (STORY, 0.0),
    "a drawn story, no repetition": (STORY, 1.0),
}
TURN = 8


def compare(model, native, prompt: list[int], text: list[int], most: int) -> dict:
    """The seconds of both ways for one text, and how many draft tokens were accepted."""
    decoders = {"plain": Decoder(model, [prompt], native), "guessing": None}
    decoders["guessing"] = Decoder(model, [prompt], native, most)
    passes, step = [], decoders["guessing"]._step

    def counted(tokens):
        passes.append(len(tokens[0]))
        return step(tokens)

    decoders["guessing"]._step = counted
    seconds = dict.fromkeys(decoders, 0.0)
    likeliest = {name: [] for name in decoders}
    for turn, start in enumerate(range(0, len(text), TURN)):
        for name in list(decoders)[:: 1 if turn % 2 else -1]:
            begin = time.perf_counter()
            for token in text[start : start + TURN]:
                decoders[name].append([token])
                likeliest[name].append(decoders[name].logits.argmax(-1).item())
            seconds[name] += time.perf_counter() - begin
    if likeliest["plain"] != likeliest["guessing"]:
        raise SystemExit("The two ways disagree about the likeliest token.")
    return {
        "seconds": seconds,
        "drafted": sum(passes) - len(passes),
        "accepted": len(text) - len(passes),
        "passes": len(passes),
    }


def main() -> None:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", default=str(REPOSITORY / "out" / "smollm2-135m"))
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt_lookup", type=int, default=SamplingConfig.prompt_lookup)
    parser.add_argument("--quick", action="store_true", help="float32 and int8, once, 96 tokens")
    parser.add_argument("--torch", action="store_true", help="torch's operations, float32, as well")
    parser.add_argument("--json")
    options = parser.parse_args()
    tokens, rounds = (96, 1) if options.quick else (options.tokens, options.rounds)
    kinds = ["float32", "int8"] if options.quick else ["float32", "bfloat16", "int8"]
    lines, results = [], {}
    for kind in [*kinds, *["torch"] * options.torch]:
        checkpoint = load_checkpoint(options.run)
        model, native = checkpoint.model, None
        if kind != "torch":
            round_weights(model, kind)
            native = NativeDecoder.of(model, kind)
        generator = Generator(model, checkpoint.tokenizer, native)
        generator.end_ids = set()
        for name, (prompt, temperature) in TEXTS.items():
            config = SamplingConfig(
                max_tokens=tokens, temperature=temperature, top_k=0, top_p=1.0, seed=1,
                prompt_lookup=0,
            )  # fmt: skip
            text = generator.generate(prompt, config)[0].token_ids
            prompt = generator.prompt_ids(prompt)
            runs = [
                compare(model, native, prompt, text, options.prompt_lookup) for _ in range(rounds)
            ]
            speeds = {
                way: report.spread([len(text) / run["seconds"][way] for run in runs])
                for way in ("plain", "guessing")
            }
            ratio = report.spread([
                run["seconds"]["plain"] / run["seconds"]["guessing"] for run in runs
            ])  # fmt: skip
            last = runs[-1]
            results[f"{kind}, {name}"] = {**speeds, "ratio": ratio, **last}
            lines.append([
                kind, name, *(f"{speeds[way]['median']:.1f}" for way in speeds),
                f"{ratio['median']:.2f}", f"{ratio['min']:.2f} to {ratio['max']:.2f}",
                f"{last['accepted']} of {last['drafted']}", f"{len(text) / last['passes']:.2f}",
            ])  # fmt: skip
    print(report.table(
        ["weights", "text", "plain tokens/s", "guessing", "ratio", "runs", "accepted",
         "tokens a pass"], lines,
    ))  # fmt: skip
    report.finish({"speculation": results}, options.json)


if __name__ == "__main__":
    main()
