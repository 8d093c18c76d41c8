"""What an earlier gptlab wrote is read as it was; what a later one wrote is refused by its version.

version_1/ was made once and is never made anew: 20 steps with Muon and averaged weights on 2,301
characters, the checkpoints from before they carried a hash. shards_1/ has the checkpoint of 20
steps of two processes on the same text.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from gptlab.checkpoints import read_checkpoint
from gptlab.data.token_files import open_dataset
from gptlab.errors import CheckpointError, DataError, RunError
from gptlab.files import FORMAT_VERSIONS
from gptlab.inference.config import SamplingConfig
from gptlab.inference.generator import Generator
from gptlab.runs import Run, load_checkpoint
from gptlab.training.trainer import train

OLD = Path(__file__).parent / "version_1"
SHARDS = Path(__file__).parent / "shards_1"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A home with the old dataset as data/hamlet and the old run as out/hamlet."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    shutil.copytree(OLD / "dataset", tmp_path / "data" / "hamlet")
    shutil.copytree(OLD / "run", tmp_path / "out" / "hamlet")
    return tmp_path


def test_a_model_of_version_1_writes_what_it_wrote():
    found = load_checkpoint(OLD / "run")
    assert (found.step, round(found.val_loss, 4)) == (20, 2.7390)
    assert found.model.config.n_kv_head == 1
    written = Generator(found.model, found.tokenizer).generate(
        "to be", SamplingConfig(temperature=0.0, max_tokens=10)
    )
    assert written[0].text == "e" * 10


def test_a_dataset_of_version_1_is_the_text_it_was(old):
    dataset = open_dataset("hamlet")
    assert (len(dataset.train), len(dataset.val), dataset.vocab_size) == (2070, 231, 16)
    assert dataset.tokenizer.decode(dataset.val[-20:].tolist()).split(" ")[-1].strip(" .\n") in (
        "to be or not that is the question".split()
    )


def test_a_run_of_version_1_goes_on_and_is_of_this_version_then(old):
    records = Run(old / "out" / "hamlet").records()
    assert [r["step"] for r in records] == [1, 5, 10, 10, 15, 20, 20]
    outcome = train(out_dir=str(old / "out" / "hamlet"), resume=True, max_iters=25, quiet=True)
    assert outcome.step == 25
    state = read_checkpoint(old / "out" / "hamlet" / "ckpt.pt")
    assert state["format_version"] == FORMAT_VERSIONS["checkpoint"]
    assert [r["step"] for r in Run(old / "out" / "hamlet").records()] == [
        1, 5, 10, 10, 15, 20, 20, 25, 25,
    ]  # fmt: skip


def test_a_run_of_version_1_goes_on_with_the_dropout_that_it_had(old):
    """The losses are those of gptlab as it was when it wrote no version of its draws."""
    folder = old / "out" / "hamlet"
    changes = dict(dropout=0.2, batch_size=2, gradient_accumulation_steps=2, log_interval=1)
    for end in (23, 26):  # the second time from a checkpoint of today
        train(out_dir=str(folder), resume=True, max_iters=end, quiet=True, **changes)
    records = Run(folder).records()
    losses = [record["loss"] for record in records if "loss" in record][-6:]
    expected = [2.7430267, 2.7466125, 2.7405677, 2.7447398, 2.7493610, 2.7340975]
    assert losses == pytest.approx(expected, abs=1e-5)


def test_shards_of_version_1_write_what_they_wrote_and_go_on(old):
    shutil.rmtree(old / "out" / "hamlet")
    shutil.copytree(SHARDS, old / "out" / "hamlet")
    found = load_checkpoint(SHARDS / "ckpt")
    written = Generator(found.model, found.tokenizer).generate(
        "to be", SamplingConfig(temperature=0.0, max_tokens=10)
    )
    assert (found.step, written[0].text) == (20, "e" * 10)
    train(out_dir=str(old / "out" / "hamlet"), resume=True, max_iters=23, quiet=True)
    losses = [r["loss"] for r in Run(old / "out" / "hamlet").records() if "loss" in r]
    assert losses == pytest.approx([2.4257321, 2.4332013, 2.4193954], abs=1e-5)


def test_a_later_version_of_each_format_is_refused_by_its_number(old):
    run = Run(old / "out" / "hamlet")
    state = torch.load(run.checkpoint, weights_only=True)
    torch.save(state | {"format_version": 99}, run.checkpoint)
    with pytest.raises(CheckpointError, match=r"ckpt\.pt is a checkpoint of format version 99"):
        read_checkpoint(run.checkpoint)
    run.metrics.write_text('{"format_version": 99}\n{"step": 1}\n', encoding="utf-8")
    with pytest.raises(RunError, match=r"metrics\.jsonl is a metrics of format version 99"):
        run.records()
    meta = old / "data" / "hamlet" / "meta.json"
    content = json.loads(meta.read_text(encoding="utf-8"))
    meta.write_text(json.dumps(content | {"format_version": 99}), encoding="utf-8")
    with pytest.raises(DataError, match=r"meta\.json is a dataset of format version 99"):
        open_dataset("hamlet")


def test_a_checkpoint_of_today_without_its_hash_is_damaged(tmp_path):
    state = torch.load(OLD / "run" / "best.pt", weights_only=True)
    torch.save(state | {"format_version": 2}, tmp_path / "best.pt")
    with pytest.raises(CheckpointError, match=r"best\.pt is damaged"):
        read_checkpoint(tmp_path / "best.pt")
