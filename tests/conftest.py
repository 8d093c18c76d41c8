"""Fixtures that several folders of tests share."""

import logging
import math
import os
import sys
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # tensors are small: a second thread is only waited for
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COLUMNS", None)  # which pytest-xdist sets
_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "tinyshakespeare.txt"
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


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty home (`data/`, `out/`) that is the working directory too."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_shakespeare() -> Path:
    """The file of tiny Shakespeare."""
    path = Path(os.environ.get("GPTLAB_TEST_SHAKESPEARE") or _BESIDE)
    if not path.is_file():
        pytest.skip("tiny Shakespeare is not here: name its file in GPTLAB_TEST_SHAKESPEARE")
    return path


@pytest.fixture
def random_model():
    """Builds a small model whose weights are all random: no norm is 1, no bias is 0."""
    import torch

    from gptlab.model.config import GPTConfig
    from gptlab.model.transformer import GPT

    def build(seed=0, noise=0.1, **settings):
        torch.manual_seed(seed)
        small = dict(block_size=16, vocab_size=37, n_layer=2, n_head=4, n_embd=32, dropout=0.0)
        model = GPT(GPTConfig(**(small | settings)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * noise)
        return model.eval()

    return build


@pytest.fixture
def make_run(home):
    """Write out/NAME as a calm training leaves it, without weights: config.py and metrics.jsonl.

    done: the last step. tokens_per_byte: of its tokenizer. Other arguments are options of the
    recipe; those in `typed` come from the command line. The dataset "plays" is its meta.json alone.
    """
    from gptlab.files import write_json
    from gptlab.hardware import Choice
    from gptlab.runs import Run
    from gptlab.training.config import layer
    from gptlab.training.resolving import Situation, resolve
    from gptlab.training.run_recipe import as_recipe

    cpu = Choice("cpu", "float32", False, "cpu, because there is no accelerator")
    dataset = home / "data" / "plays"
    dataset.mkdir(parents=True)
    (dataset / "train.bin").write_bytes(b"")
    write_json(dataset / "meta.json", META)

    def make(
        name="run",
        done=None,
        typed=None,
        tokens_per_byte=1.0,
        sample="to be {step}",
        recipe_name="config/own.py",
        asked="command line",
        **options,
    ):
        recipe = {
            "dataset": "plays", "max_iters": 400, "block_size": 64, "batch_size": 8, "n_layer": 2,
            "n_head": 2, "n_embd": 64, "eval_interval": 100, **options,
        }  # fmt: skip
        overrides = layer(recipe, typed, recipe_name, asked)
        resolved = resolve(overrides, Situation(cpu, 66, 1_003_854, 111_540))
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


@pytest.fixture(autouse=True)
def logging_as_before():
    """A command sets up the package's logger; the next test finds it as it was."""
    logger = logging.getLogger("gptlab")
    handlers, propagate = logger.handlers[:], logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate


@pytest.fixture(autouse=True)
def torch_as_before():
    """The next test finds one thread and free choice of algorithms, whatever a training set."""
    yield
    if torch := sys.modules.get("torch"):
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
        if torch.get_deterministic_debug_mode():
            torch.set_deterministic_debug_mode(0)
