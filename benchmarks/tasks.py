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
    "calculator_plain": "+ - * / of 2 digits, without steps",
    "grokking": "sums modulo 59, half of them to learn",
}
SECTION = """\
## Tasks with an answer

How much of the answers to problems that no training meets is exactly right, after one training
(`benchmarks/tasks.py` keeps its curve; no seeds, no interval). Tokens count those of the rows, with
the prompts and the padding; the two calculators have equally many.

{table}

Trained on sums of up to 3 digits and tested on longer ones, by the digits of the larger number
(`--dataset task:addition:digits=5:test_digits=8` asks the same from 5 to 8):

{lengths}

Grokking: the problems of the training are known by heart long before the others are understood.

{grokking}
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


def first_step(curve: list, place: int, least: float) -> str:
    """The first evaluation at which an accuracy reached a level."""
    found = [step for step, *accuracies in curve if (accuracies[place] or 0) >= least]
    return f"{found[0]:,}" if found else ""


def section() -> str:
    """The section of docs/experiments.md; "" without records."""
    found = {
        name: json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))
        for name in NAMES
        if (RECORDS / f"{name}.json").exists()
    }
    if len(found) < len(NAMES):
        return ""
    rows = [
        [
            NAMES[name],
            f"`{record['task']}`",
            f"{record['parameters'] / 1e6:.2f}M",
            f"{record['steps']:,}",
            f"{record['tokens'] / 1e6:.1f}M",
            first_step(record["curve"], 0, 0.5),
            first_step(record["curve"], 0, 0.9),
            f"{record['curve'][-1][1]:.1%}",
        ]
        for name, record in found.items()
    ]
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
    lengths = found["lengths"]["by_length"]
    shares = [f"{right / total:.0%}" for right, total in lengths.values()]
    curve = found["grokking"]["curve"]
    steps = [step for step, *_ in curve]
    shown = [
        place for place, step in enumerate(steps) if step in (50, 100, 200, 500) or step % 1000 == 0
    ]
    return SECTION.format(
        table=report.table(head, rows),
        lengths=report.table(["digits", *lengths], [["right", *shares]]),
        grokking=report.table(
            ["step", *(f"{steps[place]:,}" for place in shown)],
            [
                ["trained on", *(f"{curve[place][2]:.1%}" for place in shown)],
                ["unseen", *(f"{curve[place][1]:.1%}" for place in shown)],
            ],
        ),
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
