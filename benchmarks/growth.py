"""How time and memory grow with the model, the context, the vocabulary, the batch and the text.

    python benchmarks/growth.py [--only size] [--quick] [--json FILE]

Each row is a separate process that takes a few training steps on a CPU in float32. Its memory is
the peak beyond the imported libraries, compared with the prediction of `python gpt.py plan`. The
last series is the loss alone, whose memory must not grow with the text.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import loss_memory
import processes
import report

SMALL = dict(n_layer=4, n_head=4, n_embd=128, vocab_size=1024)
LOSS_VOCAB, LOSS_CHANNELS = 50257, 256

# name -> (shape, sequences of a step); tokens of a row are block_size times sequences
SIZES = {
    "1M": SMALL,
    "3M": dict(n_layer=6, n_head=6, n_embd=192, vocab_size=2048),
    "10M": dict(n_layer=6, n_head=6, n_embd=384, vocab_size=2048),
    "30M": dict(n_layer=8, n_head=8, n_embd=512, vocab_size=8192),
    "124M": dict(n_layer=12, n_head=12, n_embd=768, vocab_size=50257),
}


def points(quick: bool) -> dict[str, dict[str, dict]]:
    """{series: {row: arguments of `measure`, or of the loss}}, small ones with `quick`."""
    tokens = 2048 if quick else 8192
    of_sizes = ("1M", "10M", "124M") if quick else tuple(SIZES)
    contexts = (128, 512, 2048) if quick else (128, 256, 512, 1024, 2048, 4096)
    vocabularies = (65, 8192, 50257) if quick else (65, 1024, 8192, 32768, 50257)
    batches = (1, 4, 16) if quick else (1, 2, 4, 8, 16, 32)
    lengths = (1024, 4096) if quick else (1024, 4096, 16384)
    few = 64 if quick else 256
    return {
        "size": {
            name: dict(shape={**SIZES[name], "block_size": few}, batch_size=1) for name in of_sizes
        },
        "context": {
            f"{length}": dict(shape={**SMALL, "block_size": length}, batch_size=tokens // length)
            for length in contexts
        },
        "vocabulary": {
            f"{ids}": dict(
                shape={**SMALL, "vocab_size": ids, "block_size": 256}, batch_size=tokens // 1024
            )
            for ids in vocabularies
        },
        "batch": {
            f"{rows}": dict(shape={**SIZES["3M"], "block_size": 128}, batch_size=rows)
            for rows in batches
        },
        "loss": {f"{length}": dict(tokens=length) for length in lengths},
    }


def measure(shape: dict, batch_size: int, steps: int) -> dict:
    """A few steps in this process: parameters, seconds of each, bytes at the peak and as planned.

    shape: fields of GPTConfig. The first step warms up; its seconds are left out.
    """
    import torch

    from gptlab.model.arithmetic import count_parameters
    from gptlab.model.transformer import GPT
    from gptlab.training.building import settle_torch
    from gptlab.training.config import build
    from gptlab.training.memory import step_memory
    from gptlab.training.optimizers.combined import Optimizers
    from gptlab.training.precision import clip_grad_norm

    settle_torch("cpu")
    config = build({
        **shape, "dropout": 0.0, "batch_size": batch_size, "gradient_accumulation_steps": 1,
        "optimizer": "adamw", "device": "cpu", "dtype": "float32",
    })  # fmt: skip
    size = config.model.block_size
    tokens = torch.randint(config.model.vocab_size, (batch_size, size + 1))
    processes.forget_peak()
    before = processes.own_peak()
    model = GPT(config.model)
    optimizers = Optimizers(model, config, torch.float32)
    nothing_skipped = torch.zeros(())
    seconds = []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        _, loss = model(tokens[:, :-1], tokens[:, 1:], reduction="sum")
        (loss / (batch_size * size)).backward()
        clip_grad_norm(model, 1.0)
        optimizers.step(nothing_skipped)
        optimizers.zero_grad()
        seconds.append(time.perf_counter() - begin)
    return {
        "parameters": count_parameters(config.model),
        "tokens": batch_size * size,
        "flops_per_token": config.flops_per_token,
        "seconds": seconds[1:],
        "peak_bytes": processes.own_peak() - before,
        "planned_bytes": sum(step_memory(config, "cpu").values()),
    }


def series_of_steps(name: str, rows: dict[str, dict], steps: int) -> dict:
    """Measure a series and print its table."""
    found = {}
    for label, arguments in rows.items():
        answer = processes.in_a_process_of_its_own(
            __file__, ["--point", json.dumps({**arguments, "steps": steps})]
        )
        seconds = statistics.median(answer["seconds"])
        answer["seconds"] = report.spread(answer["seconds"])
        answer["tokens_per_second"] = answer["tokens"] / seconds
        answer["flops"] = answer["tokens_per_second"] * answer["flops_per_token"]
        found[label] = answer
    first = next(iter(found.values()))
    print(report.table(
        [name, "parameters", "tokens", "tokens/s", "GFLOP/s", "peak MB", "of the first",
         "planned MB", "planned / measured"],
        [[
            label,
            f"{row['parameters'] / 1e6:.2f}M",
            f"{row['tokens']:,}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['flops'] / 1e9:.1f}",
            f"{row['peak_bytes'] / 1e6:,.0f}",
            f"{row['peak_bytes'] / first['peak_bytes']:.2f}",
            f"{row['planned_bytes'] / 1e6:,.0f}",
            f"{row['planned_bytes'] / row['peak_bytes']:.2f}",
        ] for label, row in found.items()],
    ), end="\n\n")  # fmt: skip
    return found


def series_of_losses(rows: dict[str, dict]) -> dict:
    """Measure the loss alone over lengths, gptlab's and the plain one; print the table."""
    found = {
        label: {
            way: processes.in_a_process_of_its_own(
                __file__, ["--point", json.dumps({**arguments, "way": way})]
            )
            for way in ("plain", "gptlab")
        }
        for label, arguments in rows.items()
    }
    print(report.table(
        [f"loss over {LOSS_VOCAB:,} ids, tokens", "plain MB", "gptlab MB", "memory, plain = 1",
         "time, plain = 1"],
        [[
            label,
            f"{row['plain']['megabytes']:,.0f}",
            f"{row['gptlab']['megabytes']:,.0f}",
            f"{row['gptlab']['megabytes'] / row['plain']['megabytes']:.3f}",
            f"{row['gptlab']['seconds'] / row['plain']['seconds']:.2f}",
        ] for label, row in found.items()],
    ), end="\n\n")  # fmt: skip
    return found


def main() -> None:
    """Run, print tables, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=points(quick=True), help="one of the series")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller: two minutes")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)  # for the child process
    options = parser.parse_args()
    if options.point:
        if "way" in options.point:
            sizes = (options.point["tokens"], LOSS_VOCAB, LOSS_CHANNELS)
            print(json.dumps(loss_memory.measure(options.point["way"], *sizes)))
        else:
            print(json.dumps(measure(**options.point)))
        return
    results = {}
    for name, rows in points(options.quick).items():
        if options.only not in (None, name):
            continue
        if name == "loss":
            results[name] = series_of_losses(rows)
        else:
            results[name] = series_of_steps(name, rows, steps=2 if options.quick else 5)
    report.finish(results, options.json)


if __name__ == "__main__":
    main()
