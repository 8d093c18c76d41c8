"""Start-up times: whole processes, compared with `import torch` and with a target.

    python benchmarks/startup.py [--runs 7] [--quick] [--json FILE]

All are started in turn. The first turn fills the file system's cache and does not count. Sampling
ends with its first token on stdout, training with the line of its first step (uncompiled).
"""

import argparse
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import processes
import report

PROMPT = "KING:"
PEER = "import torch"
# targets: seconds at most
TARGETS = {
    "gpt.py --help": 0.3,
    "sample.py, first token": 5.0,
    "train.py, first step": 6.0,
}
TEXT = "KING:\nGood night, good night! A thousand times good night, my lord.\n\n"
SHAPE = "--n_layer 4 --n_head 4 --n_embd 128 --block_size 64 --batch_size 12 --compile_model false"


def main() -> None:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, help="that count [7; 3 with --quick]")
    parser.add_argument("--quick", action="store_true", help="three runs: a minute")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    runs = options.runs or (3 if options.quick else 7)
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        home = {"GPTLAB_HOME": folder}

        def script(name: str, *words) -> list:
            return [python, REPOSITORY / name, *words]

        def whole(command):
            return lambda: processes.run(command, folder, home).seconds

        def until(done, command):
            return lambda: processes.seconds_until(done, command, folder, home)

        text = Path(folder) / "text.txt"
        text.write_text(TEXT * 1000, encoding="utf-8")
        whole(script("prepare.py", text, "--tokenizer", "char"))()
        train = script("train.py", "--dataset", "text", *SHAPE.split())
        whole([*train, "--max_iters", "2", "--out_dir", "small"])()
        sample = script("sample.py", "--out_dir", "small", "--prompt", PROMPT, "--seed", "1")
        ways = {
            PEER: whole([python, "-c", "import torch"]),
            "gpt.py --help": whole(script("gpt.py", "--help")),
            "train.py --help": whole(script("train.py", "--help")),
            "sample.py, first token": until(lambda seen: len(seen) > len(PROMPT), sample),
            "train.py, first step": until(
                lambda seen: b"step 1/" in seen, [*train, "--out_dir", "new", "--overwrite"]
            ),
        }
        seconds = {name: [] for name in ways}
        for number in range(runs + 1):
            for name, measure in ways.items():
                taken = measure()
                if number:
                    seconds[name].append(taken)
    found = {name: report.spread(values) for name, values in seconds.items()}
    base = found[PEER]["median"]
    rows = []
    for name, row in found.items():
        target = TARGETS.get(name)
        row |= {"target": target, "ratio": row["median"] / base}
        rows.append([
            name,
            f"{row['median']:.2f}",
            f"{row['min']:.2f} to {row['max']:.2f}",
            f"below {target:g}" if target else "",
            f"{row['ratio']:.2f}",
        ])  # fmt: skip
    print(report.table(["process", "seconds", "runs", "target", f"{PEER} = 1"], rows))
    report.finish({"startup": found}, options.json)


if __name__ == "__main__":
    main()
