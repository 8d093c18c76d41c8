"""How well the recipes of tasks learn them: the records behind a section of docs/experiments.md.

    python train.py --config config/calculator.py --out_dir out/calculator
    python benchmarks/tasks.py calculator out/calculator      keeps its curve as a record

`benchmarks/experiments.py` writes the section from benchmarks/tasks/*.json.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import report

RECORDS = REPOSITORY / "benchmarks" / "tasks"
NAMES = {
    "addition": "sums of up to 3 digits",
    "lengths": "sums of up to 3 digits, tested to 6",
    "calculator": "+ - * / of 2 digits, with steps",
    "calculator_longer": "the same, continued by --resume --max_iters 2000",
    "calculator_plain": "+ - * / of 2 digits, without steps",
    "grokking": "sums modulo 59, half of them to learn",
}
SECTION = """\
## Tasks with an answer

How much of the answers to problems that no training meets is exactly right, after one training
(`benchmarks/tasks.py` keeps its curve; one seed, no interval). Tokens count those of the rows, with
the prompts and the padding; the two calculators have equally many.

{table}
"""
LONGER = """
Trained on sums of up to 3 digits and tested on longer ones, by the digits of the larger number
(`--dataset task:addition:digits=5:test_digits=8` asks the same from 5 to 8):

{table}
"""
GROKKING = """
Grokking: the problems of the training are known by heart long before the others are understood.

{table}
"""


def keep(name: str, folder: str) -> None:
    """Write the record of a finished run."""
    from gptlab.files import write_json
    from gptlab.reports.run_view import view_run

    view = view_run(folder)
    config = view.config
    write_json(
        RECORDS / f"{name}.json",
        {
            "task": config.run.dataset,
            "parameters": view.parameters,
            "steps": view.record.step,
            "tokens": view.record.step * config.tokens_per_step,
            "curve": [
                [r["step"], r["accuracy"], r.get("train_accuracy")]
                for r in view.record.records
                if r.get("accuracy") is not None
            ],
            "by_length": [r for r in view.record.records if r.get("accuracy_by_length")][-1][
                "accuracy_by_length"
            ],
            "date": datetime.date.today().isoformat(),
            "machine": report.machine(),
        },
    )


def first_step(curve: list, least: float) -> str:
    """The first evaluation at which so many answers to unseen problems were right."""
    return next((f"{step:,}" for step, accuracy, _ in curve if accuracy >= least), "")


def section() -> str:
    """The section of docs/experiments.md; "" without records."""
    found = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name in NAMES
        if (path := RECORDS / f"{name}.json").exists()
    }
    if not found:
        return ""
    head = [
        "problems",
        "dataset",
        "parameters",
        "steps",
        "tokens",
        "50% at",
        "90% at",
        "at the end",
    ]
    rows = [
        [
            words,
            f"`{found[name]['task']}`",
            f"{found[name]['parameters'] / 1e6:.2f}M",
            f"{found[name]['steps']:,}",
            f"{found[name]['tokens'] / 1e6:.1f}M",
            first_step(found[name]["curve"], 0.5),
            first_step(found[name]["curve"], 0.9),
            f"{found[name]['curve'][-1][1]:.1%}",
        ]
        if name in found
        else [words, *[""] * 6, "Not measured yet."]
        for name, words in NAMES.items()
    ]
    parts = [SECTION.format(table=report.table(head, rows))]
    if "lengths" in found:
        lengths = found["lengths"]["by_length"]
        shares = [f"{right / total:.0%}" for right, total in lengths.values()]
        table = report.table(["digits", *lengths], [["right", *shares]])
        parts.append(LONGER.format(table=table))
    if "grokking" in found:
        parts.append(GROKKING.format(table=_both_curves(found["grokking"]["curve"])))
    return "".join(parts)


def _both_curves(curve: list) -> str:
    """The accuracies of grokking at some of its evaluations, as a table."""
    shown = [row for row in curve if row[0] in (50, 100, 200, 500) or row[0] % 1000 == 0]
    return report.table(
        ["step", *(f"{step:,}" for step, _, _ in shown)],
        [
            ["trained on", *(f"{train:.1%}" for _, _, train in shown)],
            ["unseen", *(f"{unseen:.1%}" for _, unseen, _ in shown)],
        ],
    )


def main() -> None:
    """Keep the record of a run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=list(NAMES))
    parser.add_argument("run", help="the directory of its finished run")
    options = parser.parse_args()
    RECORDS.mkdir(exist_ok=True)
    keep(options.name, options.run)
    print(f"Wrote {RECORDS / options.name}.json")


if __name__ == "__main__":
    main()
