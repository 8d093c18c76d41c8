"""Runs as training leaves them behind, made in milliseconds: their files, without the weights."""

import math

import pytest

from gptlab.files import write_json
from gptlab.hardware import Choice
from gptlab.runs import Run
from gptlab.training.config import layer
from gptlab.training.resolving import Situation, resolve
from gptlab.training.run_recipe import as_recipe

CPU = Choice("cpu", "float32", False, "cpu, because there is no accelerator")
META = {
    "format_version": 1, "name": "plays", "dtype": "uint16", "vocab_size": 66,
    "characters": 1_115_394, "documents": 1, "train_tokens": 1_003_854, "val_tokens": 111_540,
    "train_bytes": 1_003_854, "val_bytes": 111_540, "train_documents": 1, "val_documents": 1,
    "sha256": {}, "tokenizer": {"kind": "char", "fingerprint": "0"},
    "source": {"identity": "shakespeare", "label": "the plays, 1.1 MB", "bytes": 1_115_394},
    "options": {"tokenizer": "char", "val_fraction": 0.1}, "counts": {"CR LF as LF": 3},
    "split": {"how": "the tail"}, "baselines": {"lzma": 2.7, "unigram": 4.8, "5gram": 2.2},
    "fingerprint": "f" * 64,
}  # fmt: skip

GARBAGE = "".join(chr(33 + (i * i * 7919 + i * 104729) % 94) for i in range(400))
BOOKS = {
    f"b{i}.txt": [f"the {i} and the {n} are what the book of line {n} is about" for n in range(9)]
    for i in range(12)
} | {"garbage.txt": [GARBAGE]}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with the dataset "plays", as meta.json alone."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    folder = tmp_path / "data" / "plays"
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(b"")
    write_json(folder / "meta.json", META)
    return tmp_path


@pytest.fixture
def make_run(home):
    """Write out/NAME: config.py of what was said, and metrics.jsonl of a calm training.

    done: steps that it came to. tokens_per_byte: of its tokenizer. Other words are options of the
    recipe; those in `typed` were typed.
    """

    def make(
        name="run", done=None, typed=None, tokens_per_byte=1.0, sample="to be {step}", **options
    ):
        recipe = {
            "dataset": "plays", "max_iters": 400, "block_size": 64, "batch_size": 8, "n_layer": 2,
            "n_head": 2, "n_embd": 64, "eval_interval": 100, **options,
        }  # fmt: skip
        overrides = layer(recipe, typed, "config/own.py")
        resolved = resolve(overrides, Situation(CPU, 66, 1_003_854, 111_540))
        run = Run(home / "out" / name)
        run.folder.mkdir(parents=True)
        run.recipe.write_text(as_recipe(overrides, resolved, "a machine"), encoding="utf-8")
        config, last = resolved.config, done or resolved.config.batch.max_iters
        bits = tokens_per_byte / math.log(2)
        for step in [1, *range(10, last + 1, 10)]:
            loss = 1.5 + 2.7 * math.exp(-step / 90) + 0.05 * math.sin(step)
            run.append(
                {
                    "step": step, "loss": loss, "grad_norm": 0.5 + 1 / step,
                    "learning_rate": 1e-3 * step / last,
                    "sequences_seen": step * config.sequences_per_step,
                    "tokens_per_second": 10_000.0 + step, "time": 1e9 + step, "mfu": 0.3,
                }
            )  # fmt: skip
            if step % config.evaluation.eval_interval == 0:
                record = {"step": step, "val_loss": loss + 0.1}
                record["val_bits_per_byte"] = record["val_loss"] * bits
                if sample:
                    record["sample"] = sample.format(step=step)
                run.append(record)
        return run

    return make


@pytest.fixture
def train(tmp_path, monkeypatch):
    """`gptlab.train` as it is, for runs of a second; out_dir is a name under out/ of the home.

    The home has a folder of texts, prepared as "books" by characters.
    """
    import torch

    from gptlab.data.prepare import PrepareOptions, prepare
    from gptlab.training import trainer
    from gptlab.training.picture import Picture

    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Picture, "draw", lambda *_: None)
    for name, lines in BOOKS.items():
        path = tmp_path / "books" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    prepare("books", PrepareOptions(tokenizer="char", split="document"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(out_dir="run", **options):
        small = dict(
            dataset="books", n_layer=1, n_head=2, n_embd=16, block_size=32, dropout=0.0,
            batch_size=4, max_iters=12, eval_tokens=64, log_interval=1, quiet=True,
            learning_rate=1e-2, device="cpu", dtype="float32", compile_model=False,
        )  # fmt: skip
        if options.get("resume"):
            small = dict(quiet=True)
        folder = tmp_path / "out" / out_dir
        trainer.train(**{**small, **options, "out_dir": str(folder)})
        return folder

    yield run
    torch.set_num_threads(threads)
