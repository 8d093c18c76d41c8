import itertools
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from gptlab.data import hub, streaming
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.token_files import open_dataset
from gptlab.data.tokenizer import train_bpe
from gptlab.errors import ConfigError, DataError

WORDS = "a river ran by the old stone mill where two brothers kept their secrets all winter".split()


def stories(count, seed=0):
    rng = random.Random(seed)
    return [f"story {i}: {' '.join(rng.choices(WORDS, k=30))}\n" for i in range(count)]


TEXTS = stories(400)


@pytest.fixture
def words(tmp_path, monkeypatch):
    """An hf: name whose rows come from two parquet files through the library that streams them;
    the tokenizer to prepare it with."""
    import datasets

    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    files = []
    for number, part in enumerate((TEXTS[:250], TEXTS[250:])):
        files.append(str(tmp_path / f"{number}.parquet"))
        pa.parquet.write_table(pa.table({"text": part}), files[-1], row_group_size=40)
    monkeypatch.setattr(hub, "why_unreachable", lambda: "")
    monkeypatch.setattr(hub, "newest_revision", lambda repository: "b" * 40)
    monkeypatch.setattr(
        hub,
        "open_stream",
        lambda name, revision: datasets.load_dataset(
            "parquet", data_files=files, split=name.split, streaming=True
        ),
    )
    train_bpe(TEXTS, 400).save(tmp_path / "tokenizer.json")
    return str(tmp_path / "tokenizer.json")


def options(tokenizer, **more):
    return PrepareOptions(tokenizer=tokenizer, streaming=True, shard_tokens="2000", **more)


def documents_in(dataset, split):
    ids = np.asarray(getattr(dataset, split))
    ends = np.flatnonzero(ids == dataset.tokenizer.eot_id)
    return [dataset.tokenizer.decode(part) for part in np.split(ids, ends + 1)[:-1]]


def test_rows_go_straight_into_shards_each_once_and_to_one_side(words, tmp_path):
    dataset = prepare("hf:me/stories", options(words)).dataset
    train, val = (documents_in(dataset, split) for split in ("train", "val"))
    assert train == [text for text in TEXTS if text in set(train)]  # in the order of the rows
    assert sorted(train + val) == sorted(TEXTS) and 20 < len(val) < 70
    assert len(dataset.meta["shards"]["train"]) > 4 and len(dataset.train.files) > 4
    assert sum(dataset.meta["shards"]["train"]) == len(dataset.train)
    assert not list((tmp_path / "data").glob(".stories*")), "the hidden shards are gone"
    assert prepare("hf:me/stories", options(words)).skipped


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_stream_goes_on_where_its_last_shard_ends(words, monkeypatch, after):
    whole = prepare("hf:me/stories", options(words, dataset="whole")).dataset
    encode, begun = streaming.Stream._encode, itertools.count()

    def interrupted(stream, *args):
        if stream.count == after and next(begun):
            raise KeyboardInterrupt
        encode(stream, *args)

    with monkeypatch.context() as patch:
        patch.setattr(streaming.Stream, "_encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare("hf:me/stories", options(words, dataset="part"))
    early = open_dataset("part")  # what a training may begin with
    assert len(early.meta["shards"]["train"]) == 1
    read = []
    monkeypatch.setattr(
        streaming.Stream,
        "_encode",
        lambda s, batch, pool: (read.extend(batch), encode(s, batch, pool)),
    )
    done = prepare("hf:me/stories", options(words, dataset="part"))
    assert any(f"{after} shards" in note for note in done.notes)
    assert 0 < len(read) < len(TEXTS) - 40 * after
    for split in ("train", "val"):
        assert (np.asarray(getattr(done.dataset, split)) == np.asarray(getattr(whole, split))).all()
    assert done.dataset.meta["counts"] == whole.meta["counts"]
    assert done.dataset.fingerprint == whole.fingerprint
    assert done.dataset.meta["version"] == 2
    # a run that began with the first shard finds it again, as it was
    old = open_dataset("part", fingerprint=early.fingerprint)
    assert (np.asarray(old.train) == np.asarray(early.train)).all()
    assert (np.asarray(early.train) == np.asarray(whole.train)[: len(early.train)]).all()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"dedup": True}, "--dedup does not go with --streaming"),
        ({"separator": ("x",)}, "--separator does not go"),
        ({"tokenizer": "char"}, "needs a tokenizer that exists"),
        ({"shard_tokens": "many"}, "shard_tokens cannot be 'many'"),
    ],
)
def test_what_a_stream_cannot_have_is_refused(words, tmp_path, more, sentence):
    given = {"tokenizer": words, "streaming": True} | more
    with pytest.raises(ConfigError, match=sentence):
        prepare("hf:me/stories", PrepareOptions(**given))
    assert not (tmp_path / "data").exists()


def test_a_text_of_this_machine_is_not_streamed(words, tmp_path):
    (tmp_path / "text.txt").write_text("some text\n")
    with pytest.raises(ConfigError, match="is for datasets of the hub"):
        prepare(str(tmp_path / "text.txt"), options(words))


def test_a_stream_without_validation_text_is_refused(words, tmp_path):
    with pytest.raises(DataError, match="left nothing for the val part"):
        prepare("hf:me/stories", options(words, val_fraction=1e-9))
    assert not (tmp_path / "data" / "stories").exists()
