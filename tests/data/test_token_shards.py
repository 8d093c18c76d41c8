"""Token files in shards are one file to whoever reads them."""

import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlab.data.batches import Sequences
from gptlab.data.token_files import open_dataset
from gptlab.data.token_shards import TokenShards, find_token_files, give_pages_back, map_files
from gptlab.errors import DataError

IDS = np.arange(1, 41, dtype="<u2")


@pytest.fixture
def folder(tmp_path):
    """A folder of shards with a vocabulary of 50 ids, as others write them."""
    for number, part in enumerate(np.split(IDS, [7, 7, 30])):  # one of them is empty
        part.tofile(tmp_path / f"train_{number:03}.bin")
    for number, part in enumerate(np.split(IDS, [20])):
        part.tofile(tmp_path / f"val_{number:03}.bin")
    return tmp_path


places = st.integers(-45, 45) | st.none()


@given(cuts=st.lists(st.integers(0, 40), max_size=5), start=places, stop=places, step=st.data())
def test_shards_are_indexed_as_one_array(cuts, start, stop, step):
    shards = TokenShards(np.split(IDS, sorted(cuts)))
    by = step.draw(st.sampled_from([None, 1, 2, -1]))
    assert shards[start:stop:by].tolist() == IDS[start:stop:by].tolist()
    assert (len(shards), shards.shape, shards.size) == (40, (40,), 40)
    assert (shards.dtype, shards.itemsize) == (IDS.dtype, 2)
    rows = step.draw(st.lists(st.lists(st.integers(-40, 39), min_size=3, max_size=3), max_size=4))
    rows = np.array(rows, np.int64).reshape(-1, 3)
    assert shards[rows].tolist() == IDS[rows].tolist() and shards[rows].dtype == IDS.dtype
    assert [shards[i] for i in (-40, -1, 0, 39)] == [1, 40, 1, 40]
    assert shards[IDS > 30].tolist() == IDS[IDS > 30].tolist()
    assert np.bincount(shards).tolist() == np.bincount(IDS).tolist()
    assert list(shards) == IDS.tolist()


def test_a_position_outside_of_the_shards_is_an_index_error():
    shards = TokenShards(np.split(IDS, [9]))
    for wrong in (40, -41, [0, 40]):
        with pytest.raises(IndexError):
            shards[wrong]


def test_sequences_cross_the_borders_of_shards_and_an_epoch_reads_each_window_once(folder):
    shards = map_files(find_token_files(folder, "train"), np.dtype("<u2"))
    how = dict(vocab_size=50, block_size=4, seed=3)
    one, many = Sequences(IDS, **how), Sequences(shards, **how)
    numbers = np.arange(40)
    for mine, other in zip(many.windows(numbers), one.windows(numbers), strict=True):
        assert mine.tolist() == other.tolist()
    per_epoch = (len(IDS) - 1) // 4 - 1
    read = np.sort(many.windows(np.arange(per_epoch))[0].ravel())
    assert len(set(read.tolist())) == len(read) == 4 * per_epoch  # nothing twice
    assert any({7, 8} <= set(row) for row in many.windows(numbers)[0].tolist())


def test_pages_of_shards_are_given_back_and_read_again(folder):
    shards = map_files(find_token_files(folder, "train"), np.dtype("<u2"))
    assert np.asarray(shards).tolist() == IDS.tolist()
    give_pages_back(shards)
    assert np.asarray(shards).tolist() == IDS.tolist()


def test_a_folder_of_shards_is_a_dataset_as_it_is(folder):
    dataset = open_dataset(folder, vocab_size=50)
    assert dataset.train[:].tolist() == dataset.val[:].tolist() == IDS.tolist()
    whole = folder.parent / "whole"
    whole.mkdir(exist_ok=True)
    for split in ("train", "val"):
        IDS.tofile(whole / f"{split}.bin")
    assert open_dataset(whole, vocab_size=50).fingerprint == dataset.fingerprint
    shutil.rmtree(whole)


def test_names_of_others_are_known_and_ordered_by_number(folder):
    shown = {}
    for number in (9, 10, 8):  # by name 10 would come first
        path = folder / f"fineweb_train_{number}.bin"
        (folder / "train_000.bin").replace(path) if number == 8 else IDS[:number].tofile(path)
    for number in (1, 2, 3):
        (folder / f"train_{number:03}.bin").unlink()
    shown = [path.name for path in find_token_files(folder, "train")]
    assert shown == [f"fineweb_train_{number}.bin" for number in (8, 9, 10)]
    assert len(open_dataset(folder, vocab_size=50).train) == 7 + 9 + 10


def refused(folder, sentence):
    with pytest.raises(DataError, match=re.escape(sentence)) as error:
        open_dataset(folder, vocab_size=50)
    assert error.value.fix or ";" in str(error.value) or str(error.value).endswith(".")


def test_shards_that_do_not_belong_together_are_refused(folder):
    (folder / "train_001.bin").rename(folder / "gone")
    refused(folder, "train_002.bin after train_000.bin, where the next number is missing")
    (folder / "gone").rename(folder / "train_001.bin")
    IDS.tofile(folder / "other_train_004.bin")
    refused(folder, "holds shards of several texts")
    (folder / "other_train_004.bin").rename(folder / "train.bin")
    refused(folder, "holds both train.bin and shards of it such as train_000.bin")
    (folder / "train.bin").unlink()
    IDS[:1].view("u1")[:1].tofile(folder / "val_001.bin")
    refused(folder, "val_001.bin has 1 bytes")
    (folder / "val_001.bin").unlink()
    (folder / "val_000.bin").unlink()
    refused(folder, "has no val.bin")


def test_files_with_the_header_of_llm_c_are_refused_with_what_to_do(folder):
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(IDS)
    (folder / "train_002.bin").write_bytes(header.tobytes() + IDS.tobytes())
    refused(folder, "train_002.bin begins with the header of llm.c")
    body = (folder / "train_002.bin").read_bytes()[1024:]  # as the message's tail does
    (folder / "train_002.bin").write_bytes(body)
    assert open_dataset(folder, vocab_size=50).train[-1] == 40


def test_an_id_outside_of_the_vocabulary_is_found_in_any_shard(folder):
    np.array([3, 50], "<u2").tofile(folder / "train_003.bin")
    refused(folder, "train_003.bin holds the id 50 at position 1")
