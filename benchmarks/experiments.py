"""docs/experiments.md: what the choices that people argue about are worth, by paired trainings.

    python benchmarks/experiments.py                          write the page from the records
    python benchmarks/experiments.py --measure [NAME ...]     train what has no record yet

Each question changes one thing in config/speedrun.py. It is trained and judged as `gpt.py compare
--seeds 3` does; the runs of A are those of all questions that change nothing else. A change that is
no option is a patch in benchmarks/variants/, applied to a checkout of HEAD. A finished question
becomes benchmarks/experiments/NAME.json. Ctrl-C loses nothing: the same command continues.
"""

import argparse
import contextlib
import dataclasses
import datetime
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import report
import tasks

RECORDS = REPOSITORY / "benchmarks" / "experiments"
VARIANTS = REPOSITORY / "benchmarks" / "variants"
DECODING = REPOSITORY / "benchmarks" / "kv_heads.json"
PAGE = REPOSITORY / "docs" / "experiments.md"
RECIPE = "config/speedrun.py"
SEEDS = 3
SMALLEST = 0.01  # the difference in nats per token that matters

SMALL_TEXT = ("dataset=small",)
FOUR_HEADS = ("n_head=4",)
SCALED = ("init_projection=scaled",)  # what tied weights need


@dataclass(frozen=True)
class Question:
    """One change. a, b: the choice of the recipe and the other, in words.

    set: options of B. both: options of A and B. patch: B is the code with benchmarks/variants/
    NAME.patch.
    """

    name: str
    a: str
    b: str
    set: tuple[str, ...] = ()
    both: tuple[str, ...] = ()
    patch: bool = False

    @property
    def commands(self) -> list[str]:
        """What a reader types to ask the question again."""
        words = ["python", "gpt.py", "compare", RECIPE]
        for option, values in (("--set", self.set), ("--both", self.both)):
            words += [word for value in values for word in (option, value)]
        words += ["--against", "HEAD"] if self.patch else []
        compare = " ".join([*words, "--seeds", str(SEEDS)])
        return [f"git apply benchmarks/variants/{self.name}.patch"] * self.patch + [compare]

    @property
    def record(self) -> Path:
        """The file of its result."""
        return RECORDS / f"{self.name}.json"


def setting(name: str, a: str, b: str, *options: str, both: tuple[str, ...] = ()) -> Question:
    """A question that options ask."""
    return Question(name, a, b, options, both)


def variant(name: str, a: str, b: str) -> Question:
    """A question that a patch asks."""
    return Question(name, a, b, patch=True)


# fmt: off
QUESTIONS = {
    "Positions": (
        setting("learned_positions", "rotary", "learned", "position_encoding=learned"),
        setting("sinusoidal_positions", "rotary", "sinusoidal", "position_encoding=sinusoidal"),
        variant("no_positions", "rotary", "no positions"),
    ),
    "Attention": (
        setting("no_qk_norm", "QK-norm", "no QK-norm", "qk_norm=False"),
        setting("mqa", "MHA, two heads", "MQA", "n_kv_head=1"),
        setting("four_heads", "two heads of 64 channels", "four heads of 32", "n_head=4"),
        setting("gqa_of_four", "MHA, four heads", "GQA", "n_kv_head=2", both=FOUR_HEADS),
        setting("mqa_of_four", "MHA, four heads", "MQA", "n_kv_head=1", both=FOUR_HEADS),
    ),
    "Norms and shape": (
        variant("post_norm", "pre-norm", "post-norm"),
        setting("layer_norm", "RMSNorm", "LayerNorm", "use_rms_norm=False"),
        setting("gelu", "SwiGLU", "GELU", "use_swiglu=False"),
        setting("relu2", "SwiGLU", "ReLU²", "use_swiglu=False", "activation=relu2"),
        setting("tied", "untied head", "tied head", "tie_weights=True", both=SCALED),
        setting("scaled_init", "zero projections", "scaled ones", "init_projection=scaled"),
    ),
    "Optimizer and schedule": (
        setting("adamw", "Muon", "AdamW at 0.003", "optimizer=adamw", "learning_rate=3e-3"),
        variant("normuon", "Muon", "NorMuon"),
        setting("cosine", "linear decay", "cosine", "schedule=cosine"),
        setting("wsd", "linear decay", "WSD, its last fifth decays", "decay_fraction=0.2"),
        setting("no_warmup", "10 steps of warm-up", "no warm-up", "warmup_iters=0"),
        setting("long_warmup", "10 steps of warm-up", "40 steps", "warmup_iters=40"),
        setting("batch_32", "batches of 16", "batches of 32", "batch_size=32", "max_iters=95"),
        setting("batch_8", "batches of 16", "batches of 8", "batch_size=8", "max_iters=380"),
    ),
    "Loss and regularisation": (
        variant("label_smoothing", "plain cross-entropy", "label smoothing of 0.1"),
        variant("z_loss", "plain cross-entropy", "z-loss of 1e-4"),
        setting("weight_decay", "no weight decay", "weight decay of 0.1", "weight_decay=0.1"),
        setting("small_dropout", "no dropout", "dropout of 0.1", "dropout=0.1", both=SMALL_TEXT),
        setting("small_decay", "no decay", "weight decay", "weight_decay=0.1", both=SMALL_TEXT),
    ),
}
# fmt: on
ALL = {question.name: question for group in QUESTIONS.values() for question in group}


# Measuring ----------------------------------------------------------------------------------------


def patch_of(question: Question) -> Path:
    """The file of a variant."""
    return VARIANTS / f"{question.name}.patch"


def apply_patch(question: Question, tree: Path) -> None:
    """Apply a variant to a folder of the code. Raises CalledProcessError if it does not fit."""
    subprocess.run(["git", "apply", str(patch_of(question))], cwd=tree, check=True)


def arms_of(questions: list[Question]) -> list:
    """A of questions that set the same options in A, and B of each. Raises a GPTLabError."""
    from gptlab.analysis.paired_runs import make_arm
    from gptlab.analysis.revisions import commit_of
    from gptlab.options import coerce
    from gptlab.training.config import OPTIONS
    from gptlab.training.named_config import open_config

    def arm(name: str, words: tuple[str, ...], commit: str = ""):
        pairs = [word.split("=") for word in words]
        values = {option: coerce(OPTIONS[option], value) for option, value in pairs}
        made = make_arm(name, name, open_config(str(REPOSITORY / RECIPE), values).overrides, commit)
        # its results are found again as long as nothing that decides them has changed
        return dataclasses.replace(made, name=f"{name}-{_digest(made.identity())}")

    made = [arm("A", questions[0].both)]
    for question in questions:
        commit = ""
        if question.patch:
            commit = f"{commit_of('HEAD')} {_digest(patch_of(question).read_text('utf-8'))}"
        made.append(arm(question.name, (*question.both, *question.set), commit))
    return made


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def measure(wanted: list[Question]) -> bool:
    """Train what is missing and write a record of each question; False: a signal stopped it.

    Several processes may share the work. Raises a GPTLabError.
    """
    from gptlab.analysis.paired_runs import PairedRuns
    from gptlab.analysis.revisions import checkout
    from gptlab.errors import RunError
    from gptlab.files import out_home

    for question in wanted:
        alike = [other for other in ALL.values() if other.both == question.both]
        a, *others = arms_of(alike)
        b = others[alike.index(question)]
        with contextlib.ExitStack() as stack:
            trees = {}
            if question.patch:
                command = ["git", "diff", "--quiet", "HEAD", "--", "gptlab"]
                if subprocess.run(command, cwd=REPOSITORY).returncode:
                    raise RunError("The code differs from HEAD, which a patch is applied to")
                trees[b.commit] = stack.enter_context(checkout("HEAD"))
                apply_patch(question, trees[b.commit])
            runs = PairedRuns(out_home() / "experiments", [a, *others], trees)
            runs.folder.mkdir(parents=True, exist_ok=True)
            for seed in _seeds(a):
                if not runs.train(seed, _announce, arms=[a, b]):
                    return False
        _write_record(question, runs, b)
    return True


def _seeds(a) -> list[int]:
    return [a.config.run.seed + i for i in range(SEEDS)]


def _announce(arm, seed: int) -> None:
    print(f"Training {arm.name} with seed {seed}", file=sys.stderr, flush=True)


def _write_record(question: Question, runs, b) -> None:
    """What the page needs, and what a reader needs to doubt it."""
    from gptlab.analysis.paired_runs import code_now
    from gptlab.analysis.verdict import as_json, judge_once, pairs_of
    from gptlab.files import write_json

    pairs = pairs_of(runs, _seeds(runs.arms[0]), b)
    found = as_json(judge_once(pairs, auto=False, smallest=SMALLEST), question.a, question.b)
    lines = {"a": pairs[0].a, "b": pairs[0].b}
    RECORDS.mkdir(exist_ok=True)
    budget = ("steps", "tokens", "parameters", "flops_per_token")
    write_json(
        question.record,
        {
            "commands": question.commands,
            "verdict": found["verdict"],
            "difference": found["difference"].get("tokens"),
            "text_interval": found["text_interval"],
            "seeds_to_decide": found["seeds_to_decide"],
            "diverged": found["diverged"],
            "pairs": found["pairs"],
            "budget": {arm: {n: line.get(n) for n in budget} for arm, line in lines.items()},
            "validation_tokens": len(runs.arms[0].dataset.val),
            "code": code_now(),
            "date": datetime.date.today().isoformat(),
            "machine": report.machine(),
        },
    )
    print(f"{question.name}: {found['in_words']}; wrote {question.record}", flush=True)


# The page -----------------------------------------------------------------------------------------

PAGE_TEXT = """\
# Experiments

<!-- python benchmarks/experiments.py writes this page from benchmarks/experiments/*.json -->

What the choices that people argue about are worth in a small model: {questions} questions,
{decided} of them decided, {undecided} undecided, {unmeasured} not measured yet.

Each question changes one thing in `config/speedrun.py` ({parameters:.1f}M parameters,
{steps} steps of {step_tokens:,} tokens, tiny Shakespeare by characters). A and B train with
the seeds {named_seeds}; each seed gives both the same data order and, where they fit, the same
initial tensors. The difference is the loss of B minus that of A on all validation tokens, in nats
per token: below 0, B is better. Its interval covers the true mean over seeds in 95% of such
comparisons (paired t-test, judged once). A row is decided when the interval excludes 0, or when it
holds no difference above {smallest}. By chance, one in twenty comparisons of equals is called
different.

A verdict is about this budget: a longer training or a larger model may answer otherwise. Nothing is
tuned again for B, so a close race says little about what B could do.

To ask a question again, take the options of its row:

```bash
python prepare.py shakespeare
python gpt.py compare {recipe} --set qk_norm=False --seeds {seeds}
```

A change that is no option is a patch of the code in `benchmarks/variants/`, here compared with the
commit:

```bash
git apply benchmarks/variants/z_loss.patch
python gpt.py compare {recipe} --against HEAD --seeds {seeds}
git apply -R benchmarks/variants/z_loss.patch
```

`python benchmarks/experiments.py --measure` trains what has no record yet.
"""
SMALL_TEXT_NOTE = """
`dataset=small` has 19,500 characters of training text, which a run reads ten times:

```bash
python prepare.py shakespeare --dataset small --max_bytes 130000 --val_fraction 0.85
```
"""
DECODING_NOTE = """
How fast they decode: random weights in float32, one text, one thread, the variants taking turns
(`python benchmarks/kv_heads.py`). The cache is what each token before costs in memory, and is read
for every new one.

"""
MIXTURE_NOTE = """## A mixture of experts and its dense twin

`config/moe.py` (2.4M parameters, 0.8M of them active) is A; B is the same with one MLP in place of
eight experts, of as many active parameters. 100 steps of 4,096 tokens instead of 500, tiny
Shakespeare by characters, losses on all validation tokens:

```bash
python gpt.py compare config/moe.py --set n_expert=0 --seeds 3 --both max_iters=100 \\
    --both eval_interval=100
```

| seed | A | B | B - A |
| --- | --- | --- | --- |
| 1337 | 1.8428 | 1.8487 | +0.0059 |
| 1338 | 1.8358 | 1.8353 | -0.0004 |
| 1339 | 1.8514 | 1.8560 | +0.0045 |

At equal tokens the difference is +0.003 (95% interval -0.005 to +0.012): undecided. At equal time B
is ahead by 0.075 (0.060 to 0.091), since a token of A took 1.35 times as long, in bfloat16 on two
busy cores, before experts' rows were rounded up. In so short a run three times the parameters have
seen too little text to pay.

CPU time of a step beside the twin's, one thread, the two taking turns: 1.26 in float32 and 1.31 in
bfloat16. With half as many tokens a step, in float32: 1.44 with Muon, whose work grows with all
experts, and 1.09 with AdamW.
"""
HEADER = ["A", "B", "options of B", "difference", "95% interval", "seeds", "parameters", "verdict"]


def read_records() -> dict[str, dict]:
    """The record of each question that has one."""
    return {
        name: json.loads(question.record.read_text(encoding="utf-8"))
        for name, question in ALL.items()
        if question.record.exists()
    }


def verdict(question: Question, record: dict) -> str:
    """A sentence for somebody who chooses between A and B."""
    found = record["difference"]
    lost = [f"{arm} diverged with seed {s}." for arm, at in record["diverged"].items() for s in at]
    if record["verdict"] == "B":
        said = f"**B is better**: take {question.b}."
    elif record["verdict"] == "A":
        said = f"**B is worse**: keep {question.a}."
    elif record["verdict"] == "equal":
        farthest = max(abs(found["low"]), abs(found["high"]))
        said = f"**No difference** larger than {farthest:.3f}: take either."
    elif record["verdict"] == "identical":
        said = "**Nothing changes**, to the bit."
    else:
        seeds = record["seeds_to_decide"]
        said = f"Undecided: {f'about {seeds} seeds' if seeds else 'far more seeds'} would decide."
    return " ".join([said, *lost])


def row(question: Question, record: dict | None) -> list[str]:
    """The cells of a question."""
    options = f"[{question.name}.patch](../benchmarks/variants/{question.name}.patch)"
    if not question.patch:
        named = (("--set", question.set), ("--both", question.both))
        options = f"`{' '.join(f'{option} {v}' for option, values in named for v in values)}`"
    cells = [question.a, question.b, options]
    if record is None:
        return [*cells, "", "", "", "", "Not measured yet."]
    found, measured = record["difference"], ["", "", str(len(record["pairs"]))]
    if found:
        interval = f"{found['low']:+.3f} to {found['high']:+.3f}"
        measured = [f"{found['mean']:+.3f}", interval, str(found["seeds"])]
    parameters = f"{record['budget']['b']['parameters'] / 1e6:.2f}M"
    return [*cells, *measured, parameters, verdict(question, record)]


def decoding_table() -> str:
    """What benchmarks/kv_heads.py measured."""
    content = json.loads(DECODING.read_text(encoding="utf-8"))
    rows = [
        [
            name, row["heads"], row["kv_heads"], f"{row['parameters'] / 1e6:.2f}M",
            f"{row['tokens_before']:,}", f"{row['cache_bytes'] / 1024:.0f} KiB",
            f"{row['speed']:.2f}", " to ".join(f"{q:.2f}" for q in row["quartiles"]),
        ]
        for rows in content["shapes"].values()
        for name, row in rows.items()
    ]  # fmt: skip
    header = ["", "heads", "of keys and values", "parameters", "tokens before", "cache a token",
              "speed beside MHA", "middle half of the turns"]  # fmt: skip
    return report.table(header, rows)


def page(records: dict[str, dict]) -> str:
    """The whole of docs/experiments.md."""
    used = sorted({pair["seed"] for record in records.values() for pair in record["pairs"]})
    undecided = sum(record["verdict"] == "undecided" for record in records.values())
    budget = next(record for name, record in records.items() if not ALL[name].both)["budget"]["a"]
    lines = [
        PAGE_TEXT.format(
            questions=len(ALL),
            decided=len(records) - undecided,
            undecided=undecided,
            unmeasured=len(ALL) - len(records),
            parameters=budget["parameters"] / 1e6,
            steps=budget["steps"],
            step_tokens=budget["tokens"] // budget["steps"],
            seeds=SEEDS,
            named_seeds=f"{used[0]} to {used[-1]}",
            smallest=SMALLEST,
            recipe=RECIPE,
        )
    ]
    for group, questions in QUESTIONS.items():
        rows = [row(question, records.get(question.name)) for question in questions]
        lines.append(f"## {group}\n\n{report.table(HEADER, rows)}\n")
        if group == "Attention" and DECODING.exists():
            lines[-1] += f"{DECODING_NOTE}{decoding_table()}\n"
        if any(question.both == SMALL_TEXT for question in questions):
            lines[-1] += SMALL_TEXT_NOTE
    lines.append(MIXTURE_NOTE)
    machines = sorted(
        {
            f"{m['cpu']}, {m['threads']} of {m['cores']} cores, torch {m['torch']}"
            for m in (record["machine"] for record in records.values())
        }
    )
    dates = sorted(record["date"] for record in records.values())
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    lines.append(f"Measured {when} on: {'; '.join(machines)}.\n")
    if answers := tasks.section():
        lines.append(answers)
    return "\n".join(lines)


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--measure", nargs="*", metavar="NAME", help="train what has no record")
    options = parser.parse_args()
    if options.measure is not None:
        from gptlab.errors import GPTLabError

        for name in options.measure:
            if name not in ALL:
                parser.error(f"there is no question {name!r}: choose from {', '.join(ALL)}")
        wanted = [ALL[name] for name in options.measure or ALL]
        try:
            if not measure([question for question in wanted if not question.record.exists()]):
                sys.exit("Stopped; nothing is lost. The same command continues.")
        except GPTLabError as error:
            parser.error(str(error))
    records = read_records()
    if not records:
        parser.error("there are no records yet: measure a question first")
    PAGE.write_text(page(records), encoding="utf-8", newline="\n")
    print(f"Wrote {PAGE.relative_to(REPOSITORY)} from {len(records)} records")


if __name__ == "__main__":
    main()
