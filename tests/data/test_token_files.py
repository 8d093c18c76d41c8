import json
import logging
import pickle

import numpy as np
import pytest

from gptlab.analysis import health
from gptlab.analysis.health import check_dataset
from gptlab.data import token_files
from gptlab.data.batches import Sequences, check_ids
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.token_files import list_datasets, open_dataset
from gptlab.data.tokenizer import char_tokenizer
from gptlab.errors import DataError


@pytest.fixture
def prepared(home):
    """A small prepared dataset named "x"."""
    (home / "x.txt").write_text("hello world, how do you do?\n" * 40, encoding="utf-8")
    return prepare("x.txt").dataset


def change(path, **values):
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(values)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_token_files(folder, train, val=None, dtype="<u2"):
    folder.mkdir(parents=True)
    np.array(train, dtype).tofile(folder / "train.bin")
    if val is not None:
        np.array(val, dtype).tofile(folder / "val.bin")
    return folder


def test_a_dataset_opens_by_name_and_by_path(home, prepared):
    for name_or_path in ("x", "data/x", home / "data" / "x"):
        dataset = open_dataset(name_or_path)
        assert dataset.name == "x"
        assert dataset.fingerprint == prepared.fingerprint
        assert dataset.tokenizer.decode(dataset.train[:5]) == "hello"
        assert isinstance(dataset.train, np.memmap) and dataset.train.dtype == np.dtype("<u2")
        assert len(dataset.train) == dataset.meta["train_tokens"]


def test_a_name_means_the_home_even_where_a_folder_of_that_name_is(home, prepared, monkeypatch):
    (home / "elsewhere" / "x").mkdir(parents=True)
    monkeypatch.chdir(home / "elsewhere")
    assert open_dataset("x").folder == home / "data" / "x"


def test_a_missing_dataset_lists_those_that_exist_and_the_command(home):
    with pytest.raises(DataError, match=r"'nope'.*nothing is prepared yet.*prepare\.py YOUR_TEXT"):
        open_dataset("nope")
    with pytest.raises(DataError, match=r"`python prepare\.py shakespeare` prepares one"):
        open_dataset("shakespeare")
    write_token_files(home / "data" / "first", [1], [2])
    write_token_files(home / "data" / "second", [1], [2])
    with pytest.raises(DataError, match=r"prepared here: first, second\).*--dataset nope"):
        open_dataset("nope")


def test_the_list_leaves_out_what_is_no_dataset(home, prepared):
    (home / "data" / ".hidden").mkdir()
    (home / "data" / "empty").mkdir()
    write_token_files(home / "data" / "bare", [1], [2])
    (home / "data" / "bare" / "meta.json").write_text("broken", encoding="utf-8")
    listed = list_datasets()
    assert [name for name, _ in listed] == ["bare", "x"]
    assert dict(listed)["bare"] is None and dict(listed)["x"]["name"] == "x"


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_token_files_without_meta_open_with_a_given_vocabulary(home, caplog, dtype):
    vocab_size = 65 if dtype == "<u2" else 100_000
    folder = write_token_files(home / "data" / "own", [1, 2, 64] * 50, [3] * 20, dtype)
    with caplog.at_level(logging.WARNING, "gptlab"):
        dataset = open_dataset("own", vocab_size)
    assert dataset.train[:3].tolist() == [1, 2, 64] and len(dataset.val) == 20
    assert dataset.vocab_size == vocab_size and dataset.tokenizer is None
    assert "no meta.json" in caplog.text and f"{vocab_size:,}" in caplog.text
    with pytest.raises(DataError, match=r"train\.py --vocab_size N"):
        open_dataset(folder)


def test_the_characters_of_nanogpts_meta_pkl_are_the_vocabulary(home, caplog):
    folder = write_token_files(home / "char", [0, 1, 2] * 50, [2] * 20)
    ids = {"z": 0, "a": 1, "\n": 2}  # any order of characters
    content = {"vocab_size": 3, "stoi": ids, "itos": {i: c for c, i in ids.items()}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(content))
    with caplog.at_level(logging.WARNING, "gptlab"):
        dataset = open_dataset(folder)
    assert dataset.vocab_size == 3 and dataset.tokenizer.eot_id is None
    assert dataset.tokenizer.decode(dataset.train[:4]) == "za\nz"
    assert "vocabulary of 3 (char, from the file beside them)" in caplog.text
    assert open_dataset(folder, 3).tokenizer.fingerprint == dataset.tokenizer.fingerprint
    with pytest.raises(DataError, match=r"vocabulary of 3 ids, .* vocab_size 2 has no room for"):
        open_dataset(folder, 2)


@pytest.mark.parametrize("content", [pickle.dumps({"stoi": {"the": 0}}), b"damaged", b""])
def test_a_meta_pkl_without_characters_needs_the_size_of_the_vocabulary(home, content):
    folder = write_token_files(home / "own", [0, 1, 2] * 50, [2] * 20)
    (folder / "meta.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"meta.pkl .*train.py --vocab_size N"):
        open_dataset(folder)
    assert open_dataset(folder, 3).tokenizer is None


def test_a_tokenizer_beside_token_files_is_theirs(home):
    folder = write_token_files(home / "own", [0, 1, 2] * 50, [2] * 20)
    char_tokenizer("ab").save(folder / "tokenizer.json")
    dataset = open_dataset(folder)
    assert dataset.vocab_size == 3 and dataset.tokenizer.decode(dataset.train[:2]) == "ab"


def test_an_id_outside_the_vocabulary_is_named_with_file_and_position(home):
    write_token_files(home / "data" / "y", [1, 2, 70] * 5000, [1])
    with pytest.raises(
        DataError, match=r"train\.bin holds the id 70 at position 2, outside .* 65 ids"
    ):
        open_dataset("y", 65)
    far = np.ones(9_000_000, "<u2")
    far[5_000_000] = 70
    write_token_files(home / "data" / "z", [1], far)
    with pytest.raises(DataError, match=r"val\.bin holds the id 70 at position 5,000,000,"):
        open_dataset("z", 65)


def test_meta_without_digests_does_not_hide_an_id_outside_the_vocabulary(home):
    folder = write_token_files(home / "data" / "y", [1, 2, 70] * 50, [1])
    meta = {"format_version": 1, "vocab_size": 65, "dtype": "uint16"}
    meta |= {"train_tokens": 150, "val_tokens": 1}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(DataError, match=r"the id 70 at position 2,"):
        open_dataset("y")


def test_the_position_counts_from_the_start_of_the_file():
    ids = np.array([5, 6, 7, 99, 98], np.uint16)
    check_ids(ids, 100, "train.bin")
    with pytest.raises(DataError, match=r"id 99 at position 1,003,"):
        check_ids(ids, 99, "train.bin", offset=1000)


def test_changed_token_files_are_noticed(prepared):
    path = prepared.folder / "val.bin"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"val\.bin has changed since it was prepared"):
        open_dataset("x")
    path.write_bytes(content[:-2])
    with pytest.raises(DataError, match=r"val\.bin has \d+ bytes where its meta\.json says"):
        open_dataset("x")
    path.unlink()
    with pytest.raises(DataError, match=r"val\.bin is missing"):
        open_dataset("x")


def test_a_changed_tokenizer_is_noticed(prepared):
    path = prepared.folder / "tokenizer.json"
    swapped = path.read_text(encoding="utf-8").replace('"h"', '"H"')
    path.write_text(swapped, encoding="utf-8")
    with pytest.raises(DataError, match="not the tokenizer that its token files were made with"):
        open_dataset("x")


def test_a_changed_text_is_a_warning(home, prepared, caplog):
    with caplog.at_level(logging.WARNING, "gptlab"):
        open_dataset("x")
        (home / "x.txt").touch()  # the same content
        open_dataset("x")
        assert not caplog.records
        (home / "x.txt").write_text("Hello world, how do you do?\n" * 40, encoding="utf-8")
        open_dataset("x")
    assert "x.txt has changed since x was prepared from it" in caplog.text
    (home / "x.txt").unlink()
    caplog.clear()
    open_dataset("x")
    assert not caplog.records


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"format_version": 3}, "format version 3 and this gptlab reads up to 2"),
        ({"format_version": None}, "is not a dataset of gptlab"),
        ({"vocab_size": "many"}, r"meta\.json is damaged .*\$\.vocab_size.*; prepare it again"),
        ({"vocab_size": None}, r"meta\.json is damaged .*`vocab_size`.*; prepare it again"),
        ({"train_tokens": True}, r"meta\.json is damaged .*\$\.train_tokens"),
        ({"dtype": "float32"}, "unknown dtype 'float32'"),
    ],
)
def test_a_foreign_meta_is_refused(prepared, values, sentence):
    change(prepared.folder / "meta.json", **values)
    with pytest.raises(DataError, match=sentence):
        open_dataset("x")


def test_a_model_that_is_too_small_for_the_vocabulary_is_refused(prepared):
    size = prepared.vocab_size
    assert open_dataset("x", size).vocab_size == size
    assert open_dataset("x", size + 10).vocab_size == size  # a padded model
    with pytest.raises(DataError, match=f"vocabulary of {size} ids"):
        open_dataset("x", size - 1)


def test_the_fingerprint_is_that_of_tokens_and_tokenizer(home, prepared):
    again = prepare("x.txt", PrepareOptions(dataset="y")).dataset
    assert again.fingerprint == prepared.fingerprint
    bpe = prepare("x.txt", PrepareOptions(dataset="z", tokenizer="bpe")).dataset
    assert bpe.fingerprint != prepared.fingerprint
    (home / "w.txt").write_text("hello world, how do you do?\n" * 41, encoding="utf-8")
    assert prepare("w.txt").dataset.fingerprint != prepared.fingerprint


def test_a_path_with_train_bin_alone_says_what_a_dataset_is(home):
    write_token_files(home / "data" / "y", [1, 2])
    with pytest.raises(DataError, match=r"has no val\.bin"):
        open_dataset("y", 65)


def test_half_an_id_is_noticed(home):
    folder = write_token_files(home / "data" / "y", [1, 2], [1])
    (folder / "val.bin").write_bytes(b"\x01\x00\x02")
    with pytest.raises(DataError, match="3 bytes, which is not a whole number of uint16 ids"):
        open_dataset("y", 65)


@pytest.fixture
def large(home, monkeypatch):
    """A dataset that is treated as too large to be read at each start: 28,000 bytes, with blocks of
    100 bytes every 439."""
    for reader in (token_files, health):
        monkeypatch.setattr(reader, "VERIFY_BYTES", 1000)
    monkeypatch.setattr(token_files, "SAMPLED_BLOCK_BYTES", 100)
    (home / "x.txt").write_text("hello world, how do you do?\n" * 560, encoding="utf-8")
    return prepare("x.txt", PrepareOptions(tokenizer="char")).dataset.folder


def overwrite(path, place, content):
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(content)


@pytest.mark.parametrize("place", [0, 50, -2])
def test_of_a_large_file_blocks_from_its_first_to_its_last_byte_are_compared(large, place):
    path = large / "train.bin"
    open_dataset("x")
    before = path.read_bytes()
    place %= len(before)
    overwrite(path, place, bytes([before[place] ^ 1]))
    with pytest.raises(DataError, match=r"train\.bin has changed since it was prepared"):
        open_dataset("x")


def test_a_large_file_is_not_read_as_a_whole_at_a_start_but_by_doctor(large):
    path = large / "train.bin"
    other = b"\x02\x00" if path.read_bytes()[200] != 2 else b"\x03\x00"
    overwrite(path, 200, other)  # between two blocks
    open_dataset("x")
    check = check_dataset("x")
    assert not check.ok and "train.bin has changed" in check.detail


def test_a_large_dataset_of_before_the_sampling_opens_by_its_size(large):
    meta = large / "meta.json"
    assert set(json.loads(meta.read_text(encoding="utf-8"))["sampled_sha256"]) == {
        "train.bin", "val.bin",
    }  # fmt: skip
    change(meta, sampled_sha256=None)
    assert open_dataset("x").vocab_size > 2
    with open(large / "val.bin", "ab") as file:
        file.write(b"\0\0")
    with pytest.raises(DataError, match=r"val\.bin has .* bytes where its meta\.json says"):
        open_dataset("x")


def test_an_id_outside_the_vocabulary_is_named_where_it_is_read(large, home):
    path = large / "train.bin"
    overwrite(path, 2 * 5100, b"\xff\x00")  # in the part that no start compares
    change(large / "meta.json", sampled_sha256=None)
    dataset = open_dataset("x")
    sequences = Sequences(
        dataset.train, vocab_size=dataset.vocab_size, block_size=50, seed=1, path=str(path)
    )
    with pytest.raises(DataError, match=r"train\.bin holds the id 255 at position 5,100"):
        sequences.windows(np.arange(320))


def test_a_small_dataset_keeps_no_hash_of_samples(prepared):
    assert "sampled_sha256" not in prepared.meta


def test_what_no_source_has_is_null_and_what_is_of_another_type_is_named(large):
    meta = large / "meta.json"
    source = json.loads(meta.read_text(encoding="utf-8"))["source"]
    change(meta, source=source | {"bytes": None})  # of a dataset of the hub
    assert open_dataset("x").vocab_size > 2
    change(meta, source=source | {"bytes": "many"})
    with pytest.raises(DataError, match=r"meta\.json is damaged .*\$\.source\.bytes"):
        open_dataset("x")
