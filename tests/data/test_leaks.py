"""Validation text that stands in the training text, against plain Python on small texts."""

import json
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptlab.data import leaks
from gptlab.data.leaks import are_clean, find_leaks, leak_remark, window_hashes
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.token_files import open_dataset
from gptlab.errors import DataError


def brute_force(train, val, length):
    """The leaked positions of val: those of its windows, an eighth apart, that train holds."""
    there = {tuple(train[i : i + length]) for i in range(len(train) - length + 1)}
    found = set()
    for start in range(0, len(val) - length + 1, max(1, length // 8)):
        window = tuple(val[start : start + length])
        if window in there and len(set(window)) >= min(6, length):
            found.update(range(start, start + length))
    return found


def positions(found):
    return {i for start, stop in found.ranges.tolist() for i in range(start, stop)}


@given(
    st.lists(st.integers(0, 9), max_size=80),
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 40)), max_size=4),
    st.lists(st.integers(0, 9), max_size=30),
    st.sampled_from([4, 8, 16]),
    st.sampled_from(["<u2", "<u4"]),
)
@example(list(range(10)) * 3, [(0, 8), (2, 8)], [], 4, "<u2")  # two passages, a token between
def test_leaks_equal_the_brute_force(train, copied, own, length, dtype):
    val = own + [token for start, size in copied for token in [*train[start : start + size], 9]]
    found = find_leaks(np.array(train, dtype), np.array(val, dtype), length)
    assert positions(found) == brute_force(train, val, length)
    assert found.tokens == len(positions(found))
    assert all(a < b for a, b in found.ranges.tolist())
    assert (found.ranges[1:, 0] > found.ranges[:-1, 1]).all()


def test_pieces_of_any_size_give_the_same(monkeypatch):
    source = np.random.default_rng(3)
    train, val = (source.integers(0, 1000, n).astype("<u2") for n in (9000, 3000))
    val[1001:1400] = train[777 : 777 + 399]
    val[2000:2071] = train[-71:]
    whole = find_leaks(train, val, 64)
    for size in (64, 101, 1000):
        monkeypatch.setattr(leaks, "_PIECE", size)
        assert np.array_equal(find_leaks(train, val, 64).ranges, whole.ranges)
    assert positions(whole) == brute_force(train.tolist(), val.tolist(), 64)


def test_every_planted_passage_of_71_characters_is_found_and_none_of_63(tiny_shakespeare):
    text = tiny_shakespeare.read_bytes()
    train, val, random_ = text[:900_000], bytearray(text[900_000:1_000_000]), random.Random(0)
    planted = {}
    for number in range(60):
        size = (71, 63, 500)[number % 3]
        at, start = 1000 + 1600 * number + number % 11, random_.randrange(len(train) - size)
        # another character on both sides, so that the passage is no longer than planned
        val[at - 1 : at + size + 1] = b"#" + train[start : start + size] + b"#"
        planted[at] = size
    ids = [np.frombuffer(bytes(part), np.uint8).astype("<u2") for part in (train, val)]
    found = find_leaks(*ids, 64)
    assert len(found.ranges) == 40
    for at, size in planted.items():
        inside = len(positions(found) & set(range(at, at + size)))
        assert inside == 0 if size < 64 else size - 14 <= inside <= size


def test_tiny_shakespeare_leaks_nothing_by_chance(tiny_shakespeare):
    ids = np.frombuffer(tiny_shakespeare.read_bytes(), np.uint8).astype("<u2")
    cut = int(0.9 * len(ids))
    assert find_leaks(ids[:cut], ids[cut:], 64).tokens == 0
    assert find_leaks(ids[:cut], ids[cut:], 16).tokens > 1000  # of phrases, so it does look


def test_rulers_and_empty_lines_are_no_leak():
    assert find_leaks(np.full(500, 7, "<u2"), np.full(200, 7, "<u2"), 64).tokens == 0


def test_a_text_shorter_than_a_passage_leaks_nothing():
    assert find_leaks(np.array([1, 2, 3], "<u2"), np.array([1, 2], "<u2"), 64).tokens == 0


def test_passages_without_a_target_do_not_count():
    train = np.arange(200, dtype="<u2")
    val = np.concatenate([train[:64], np.arange(500, 604, dtype="<u2"), train[100:164]])
    loss_mask = np.ones(len(val), bool)
    loss_mask[:64] = False  # such as the system's words, which all conversations begin with
    found = find_leaks(train, val.astype("<u2"), 64, loss_mask)
    assert found.ranges.tolist() == [[168, 232]]
    assert found.share == 64 / 168
    assert find_leaks(train, val.astype("<u2"), 64).ranges.tolist() == [[0, 64], [168, 232]]


def test_hashes_are_equal_exactly_where_windows_are():
    ids = np.random.default_rng(0).integers(0, 3, 400).astype("<u2")
    hashes = window_hashes(ids, 4)
    windows = [tuple(ids[i : i + 4].tolist()) for i in range(397)]
    assert len(set(zip(hashes.tolist(), windows, strict=True))) == len(set(windows))
    assert len(set(hashes.tolist())) == len(set(windows)) == 81


def test_memory_does_not_grow_with_the_training_text():
    source, peaks = np.random.default_rng(0), []
    val = source.integers(0, 60000, 200_000).astype("<u2")
    for n in (400_000, 3_200_000):
        train = source.integers(0, 60000, n).astype("<u2")
        tracemalloc.start()
        find_leaks(train, val, 64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 8_000_000


@given(
    st.lists(st.integers(0, 60), max_size=6),
    st.lists(st.integers(0, 70), min_size=1, max_size=6),
    st.integers(1, 9),
)
def test_a_window_is_clean_if_none_of_its_targets_is_leaked(ends, starts, block_size):
    ends = sorted(set(ends))
    ranges = np.array(list(zip(ends[::2], ends[1::2], strict=False)), np.int64).reshape(-1, 2)
    leaked = {i for a, b in ranges.tolist() for i in range(a, b)}
    expected = [not leaked & set(range(w + 1, w + block_size + 1)) for w in starts]
    assert are_clean(ranges, np.array(starts), block_size).tolist() == expected


def text_with_a_copy():
    words = random.Random(1)
    text = " ".join("".join(words.choices("abcdefgh", k=5)) for _ in range(3000))
    return text[:17_000] + text[1000:1300]


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_preparing_says_and_records_what_leaks(write, tokenizer):
    write("t.txt", text_with_a_copy())
    done = prepare("t.txt", PrepareOptions(tokenizer=tokenizer))
    split, dataset = done.dataset.meta["split"], open_dataset("t")
    found = "".join(dataset.tokenizer.decode(dataset.val[a:b]) for a, b in dataset.val_leaks)
    assert found in text_with_a_copy()[1000:1300] and len(found) > 250
    assert split["leaked_tokens"] == sum(b - a for a, b in dataset.val_leaks)
    assert split["leaked_share"] == split["leaked_tokens"] / len(dataset.val) > 0.1
    assert any(leak_remark(split)[1:] in note for note in done.notes)


def test_little_that_leaks_is_recorded_but_not_said(write):
    text = text_with_a_copy()
    write("t.txt", text[:-200] + text[:17_000].upper()[:5000])
    done = prepare("t.txt", PrepareOptions(val_fraction=0.49))
    assert 0 < done.dataset.meta["split"]["leaked_share"] < 0.01
    assert done.dataset.val_leaks is None and not any("stand in" in note for note in done.notes)


def test_datasets_without_the_record_open_and_a_damaged_one_is_named(write):
    write("t.txt", text_with_a_copy())
    folder = prepare("t.txt").dataset.folder
    (folder / leaks.FILE).write_bytes(b"no array")
    with pytest.raises(DataError, match=r"val\.leaks\.npy is damaged; prepare it again"):
        _ = open_dataset("t").val_leaks
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    del meta["split"]["leaked_share"], meta["split"]["leaked_tokens"]
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    assert open_dataset("t").val_leaks is None
