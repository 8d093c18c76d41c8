"""Preparing in shards: the ids of one file, whatever the processes, and nothing done twice."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gptlab.cli.main import main
from gptlab.data import shard_writing
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.text_store import Split
from gptlab.data.token_files import open_dataset
from gptlab.errors import ConfigError, DataError
from gptlab.files import lock_file

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = "a river ran by the old stone mill where two brothers kept their secrets all winter".split()


def lines(count, seed=0):
    rng = random.Random(seed)
    return "".join(f"story {i}: {' '.join(rng.choices(WORDS, k=30))}\n" for i in range(count))


@pytest.fixture
def text(home, write):
    return str(write("stories.txt", lines(400)))


def prepared(text, name, tokenizer="char", shards="8k", **more):
    made = PrepareOptions(
        dataset=name, tokenizer=tokenizer, shard_tokens=shards, document="line", **more
    )
    return prepare(text, made)


def ids(dataset, split="train"):
    return np.asarray(getattr(dataset, split)).tolist()


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_the_ids_are_those_of_one_file_whatever_the_number_of_processes(text, tokenizer):
    one = prepared(text, "one", tokenizer, shards="100M").dataset
    assert (one.folder / "train.bin").is_file() and "shards" not in one.meta
    size = {"char": "8k", "bpe": "2k"}[tokenizer]
    for workers in (1, 2):
        name = f"with_{workers}"
        many = prepared(text, name, tokenizer, size, workers=workers).dataset
        shards = sorted(path.name for path in many.folder.glob("train_*.bin"))
        assert shards == [f"train_{i:03}.bin" for i in range(len(many.meta["shards"]["train"]))]
        assert len(shards) > 3 and not (many.folder / "train.bin").exists()
        least = 4000 if tokenizer == "char" else 1000
        assert all(least < tokens < 4 * least for tokens in many.meta["shards"]["train"])
        for split in ("train", "val"):
            assert ids(many, split) == ids(one, split)
        assert many.fingerprint == one.fingerprint
        same = ("split", "counts", "baselines", "train_bytes", "val_documents", "characters")
        assert [many.meta[field] for field in same] == [one.meta[field] for field in same]
        assert sorted(path.name for path in many.folder.parent.iterdir())[-1] == name
    assert prepared(text, "with_2", tokenizer, size, workers=1).skipped  # it changes nothing


def test_a_text_of_one_document_is_cut_where_no_token_spans(home, write, monkeypatch):
    monkeypatch.setattr("gptlab.data.text_store.PIECE_BYTES", 3000)
    path = str(write("novel.txt", lines(400).replace("\n", " ")))
    datasets = [
        prepare(path, PrepareOptions(dataset=name, tokenizer="bpe", vocab_size=500, **more)).dataset
        for name, more in (("one", {}), ("many", {"shard_tokens": "2k"}))
    ]
    assert len(datasets[1].meta["shards"]["train"]) > 3
    assert ids(datasets[0]) == ids(datasets[1])


def interrupt_after(monkeypatch, shards):
    write, done = shard_writing.write_tokens, []

    def interrupted(*args, **options):
        if len(done) == shards:
            raise KeyboardInterrupt
        done.append(write(*args, **options))
        return done[-1]

    monkeypatch.setattr(shard_writing, "write_tokens", interrupted)


@pytest.fixture
def interrupted(text, home, monkeypatch):
    """A preparation that Ctrl-C ended after three shards: the folder of what is complete."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            prepared(text, "stories")
    (folder,) = (home / "data").iterdir()  # nothing that a training would take
    assert re.fullmatch(r"\.stories\.[0-9a-f]{16}\.partial", folder.name)
    return folder


def kept(done):
    return [note for note in done.notes if "interrupted preparation" in note]


def test_an_interrupted_preparation_goes_on_with_its_complete_shards(text, home, interrupted):
    before = {path.name: path.stat().st_mtime_ns for path in interrupted.glob("train_*.bin")}
    assert len(before) == 3
    (interrupted / ".train_003.bin.77.tmp").write_bytes(b"half")
    done = prepared(text, "stories", workers=2)
    tokens = sum(done.dataset.meta["shards"]["train"][:3])
    number = len(done.dataset.meta["shards"]["train"]) + 1  # one of validation text
    assert kept(done) == [
        f"Going on with an interrupted preparation: 3 of {number} shards ({tokens:,} tokens) are "
        "kept."
    ]
    for name, when in before.items():
        assert (done.dataset.folder / name).stat().st_mtime_ns == when
    assert ids(done.dataset) == ids(prepared(text, "one", shards="100M").dataset)
    assert sorted(path.name for path in (home / "data").iterdir()) == ["one", "stories"]


def test_a_damaged_shard_is_made_again_and_a_torn_journal_read_up_to_there(text, interrupted):
    with open(interrupted / "train_001.bin", "r+b") as file:
        file.write(b"\xff\xff")
    with open(interrupted / "journal.jsonl", "a") as file:
        file.write('{"name": "train_00')
    done = prepared(text, "stories")
    assert ": 2 of " in kept(done)[0]
    assert ids(done.dataset) == ids(prepared(text, "one", shards="100M").dataset)


@pytest.mark.parametrize("what", ["text", "option"])
def test_shards_of_another_text_or_of_other_options_are_not_taken(
    text, home, write, interrupted, what
):
    if what == "text":
        write("stories.txt", lines(400, seed=1))
    done = prepared(
        text, "stories", **({"seed": 5, "split": "document"} if what == "option" else {})
    )
    assert not kept(done)
    assert sorted(path.name for path in (home / "data").iterdir()) == ["stories"]


def test_two_preparations_of_one_dataset_do_not_disturb_each_other(text, interrupted):
    with open(interrupted / "lock", "a") as file:
        lock_file(file)
        with pytest.raises(DataError, match="Another process is preparing stories"):
            prepared(text, "stories")
    assert kept(prepared(text, "stories"))


def test_a_worker_that_is_killed_ends_the_preparation_with_a_sentence(text, home, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Split, "__reduce__", lambda split: (os._exit, (9,)), raising=False)
        with pytest.raises(DataError, match=r"was killed.*: prepare it again, with fewer"):
            prepared(text, "stories", workers=2)
    assert list((home / "data").iterdir()) == []
    assert prepared(text, "stories", workers=1).dataset.name == "stories"


def test_a_damaged_or_missing_shard_of_a_dataset_is_named(text):
    folder = prepared(text, "stories").dataset.folder
    content = (folder / "train_002.bin").read_bytes()
    (folder / "train_002.bin").write_bytes(b"\0\0" + content[2:])
    with pytest.raises(DataError, match=r"train_002\.bin has changed since .*--shard_tokens 8k"):
        open_dataset("stories")
    (folder / "train_002.bin").unlink()
    with pytest.raises(DataError, match=r"train_002\.bin is missing"):
        open_dataset("stories")


def test_other_shards_of_the_same_text_are_the_same_version(text):
    before = prepared(text, "stories", tokenizer="bpe", shards="1k").dataset
    after = prepared(text, "stories", tokenizer="bpe", shards="2k")
    assert any("shard_tokens 1k -> 2k" in note for note in after.notes)
    assert len(after.dataset.meta["shards"]["train"]) < len(before.meta["shards"]["train"])
    assert after.dataset.fingerprint == before.fingerprint
    assert after.dataset.meta["version"] == before.meta["version"] == 1


def test_a_text_that_grew_is_a_new_version_in_shards_and_the_old_one_stays(text, write):
    before = prepared(text, "stories").dataset
    old = ids(before)
    write("stories.txt", lines(400) + lines(200, seed=2))
    after = prepared(text, "stories").dataset
    assert after.meta["version"] == 2 and len(after.train) > len(old)
    kept = open_dataset("stories", fingerprint=before.fingerprint)
    assert kept.folder.parent.name == "versions" and ids(kept) == old
    assert len(kept.train.files) == len(before.meta["shards"]["train"])


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"shard_tokens": "10"}, "shard_tokens cannot be '10'"),
        ({"shard_tokens": "nan"}, "shard_tokens cannot be 'nan'"),
        ({"workers": 0}, "workers cannot be 0"),
    ],
)
def test_what_cannot_be_a_size_or_a_number_of_processes_is_refused(text, option, sentence):
    with pytest.raises(ConfigError, match=sentence):
        prepare(text, PrepareOptions(**option))


@pytest.mark.slow
def test_a_preparation_that_is_killed_goes_on_and_leaves_no_process(home, write):
    """SIGKILL of the parent, in the middle of the shards of two workers."""
    write("stories.txt", lines(15_000))
    words = ["stories.txt", "--tokenizer", "bpe", "--document", "line", "--shard_tokens", "20k"]
    command = [sys.executable, str(REPOSITORY / "prepare.py"), *words, "--workers", "2"]
    environment = os.environ | {"GPTLAB_HOME": str(home)}
    process = subprocess.Popen(command, cwd=home, env=environment, stderr=subprocess.DEVNULL)

    def journal():
        return [
            line for path in (home / "data").glob(".*.partial/journal.jsonl")
            for line in path.read_text().splitlines()
        ]  # fmt: skip

    while len(journal()) < 6:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    workers = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2 and not any((home / "data").glob("[!.]*"))
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
    complete = {json.loads(line)["name"] for line in journal()[1:]}
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = re.search(r"interrupted preparation: (\d+) of (\d+) shards", done.stderr)
    assert int(said[1]) == len(complete) < int(said[2])
    assert main(["prepare", *words[:-2], "--dataset", "one"]) == 0
    for split in ("train", "val"):
        assert ids(open_dataset("stories"), split) == ids(open_dataset("one"), split)


def children_of(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
