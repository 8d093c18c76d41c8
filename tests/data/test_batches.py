"""The order of the data: a pure function of the sequence's number that visits each window once."""

import mmap
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlab.data.batches import (
    Batches,
    MixedSequences,
    Sequences,
    check_length,
    interleave,
    mix,
    permute,
    sequence_starts,
    sequences_of_each,
    windows_per_epoch,
)
from gptlab.errors import DataError

SIZES = st.one_of(st.integers(1, 300), st.integers(1, 20_000))
KEYS = st.integers(0, 2**64 - 1)


@given(SIZES, KEYS)
def test_a_permutation_meets_every_index_once(size, key):
    order = permute(np.arange(size), size, key)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(size))


@given(SIZES, KEYS, st.data())
def test_a_permutation_is_a_function_of_index_size_and_key_alone(size, key, data):
    indices = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    whole = permute(np.arange(size), size, key)
    assert np.array_equal(permute(indices, size, key), whole[indices])


def test_a_permutation_of_billions_stays_in_range_and_does_not_repeat():
    size = 3_000_000_019
    order = permute(np.arange(10_000) * 299_993, size, 7)
    assert order.min() >= 0 and order.max() < size and len(np.unique(order)) == 10_000


def test_orders_look_random():
    size, orders = 1000, np.stack([permute(np.arange(1000), 1000, key) for key in range(200)])
    # of random orders, neighbours differ by a third of the size on average, and each index visits
    # each tenth of the range equally often
    assert abs(np.abs(np.diff(orders, axis=1)).mean() - size / 3) < 5
    counts = np.stack([np.bincount(orders[:, i] * 10 // size, minlength=10) for i in (0, 1, 999)])
    assert counts.min() > 5 and counts.max() < 45
    assert abs(np.corrcoef(orders[:50])[np.triu_indices(50, 1)]).mean() < 0.05


def test_mixing_depends_on_every_number_and_on_their_order():
    values = [mix(), mix(0), mix(1), mix(1, 2), mix(2, 1), mix(1, 2, 0), mix(-1)]
    assert len(set(values)) == len(values)
    assert all(0 <= value < 2**64 for value in values)
    # reference values of splitmix64's first output for these seeds
    assert mix(0) == 0xE220A8397B1DCDAF and mix(1234567) == 6457827717110365317


CASES = st.tuples(st.integers(1, 12), st.integers(2, 400)).filter(lambda c: c[1] > c[0])


@given(CASES, st.integers(0, 10**6), st.integers(0, 50))
def test_an_epoch_visits_all_its_windows_once_inside_the_file(case, seed, epoch):
    block_size, n_tokens = case
    per_epoch = windows_per_epoch(n_tokens, block_size)
    numbers = np.arange(epoch * per_epoch, (epoch + 1) * per_epoch)
    starts = np.sort(sequence_starts(numbers, n_tokens, block_size, seed))
    assert starts[0] >= 0 and starts[-1] + block_size + 1 <= n_tokens
    assert np.all(np.diff(starts) == block_size)  # so they tile the file from the epoch's offset


def test_epochs_begin_at_different_offsets_so_that_windows_are_cut_anew():
    per_epoch = windows_per_epoch(1000, 10)
    offsets = {
        int(sequence_starts(np.arange(e * per_epoch, (e + 1) * per_epoch), 1000, 10, 1).min())
        for e in range(200)
    }
    assert offsets == set(range(0, 1000 - 1 - per_epoch * 10 + 1))


def test_seeds_and_epochs_give_other_orders():
    n = windows_per_epoch(1000, 10)
    orders = [sequence_starts(np.arange(n) + e * n, 1000, 10, s) for s in (1, 2) for e in (0, 1)]
    orders = [tuple(order // 10) for order in orders]
    assert len(set(orders)) == 4


@given(CASES, st.integers(1, 9), st.integers(0, 100), st.integers(0, 9))
def test_a_start_is_the_same_alone_and_among_others(case, count, first, seed):
    block_size, n_tokens = case
    numbers = np.arange(first, first + count)
    together = sequence_starts(numbers, n_tokens, block_size, seed)
    alone = [sequence_starts(np.array([n]), n_tokens, block_size, seed)[0] for n in numbers]
    assert together.tolist() == alone


TOKENS = np.arange(5000, dtype=np.uint16)


def batches(**changes):
    settings = dict(vocab_size=5000, block_size=10, batch_size=4, sequences_per_step=8, seed=3)
    settings |= changes
    own = {n: settings.pop(n) for n in ("vocab_size", "block_size", "seed")}
    loss_mask = settings.pop("loss_mask", None)
    return Batches(Sequences(TOKENS, loss_mask, **own), **settings)


def step_rows(first, **changes):
    """Tokens of all sequences of a step, in order."""
    micros = batches(**changes).micro_batches(first)
    return [row for m in micros for row in m.tokens.numpy()[m.numbers >= 0].tolist()]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 100])
def test_micro_batches_are_slices_of_the_step(batch_size):
    assert step_rows(16, batch_size=batch_size) == step_rows(16, batch_size=8)


@pytest.mark.parametrize("world_size", [2, 3, 5, 11])
def test_ranks_share_a_step_without_overlap_and_almost_equally(world_size):
    parts = [step_rows(16, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [row for part in parts for row in part] == step_rows(16)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world_size", [2, 3, 5, 11])
def test_ranks_take_equally_many_passes_of_equal_shapes_and_empty_rows_have_no_target(world_size):
    ranks = [
        list(batches(batch_size=2, rank=rank, world_size=world_size).micro_batches(16))
        for rank in range(world_size)
    ]
    assert len({tuple(m.tokens.shape for m in micros) for micros in ranks}) == 1
    numbers = [number for micros in ranks for m in micros for number in m.numbers.tolist()]
    assert [n for n in numbers if n >= 0] == list(range(16, 24))
    for m in (m for micros in ranks for m in micros):
        assert ((m.targets.numpy() == -1).all(1) == (m.numbers < 0)).all()


def test_places_that_were_computed_ahead_are_those_of_each_sequence_alone():
    feed = batches(sequences_per_step=7)
    source = feed.sequences
    for first in (0, 7, 4090, 4095, 9000, 3, 12_345):  # over the edge of a block, far on, and back
        numbers = feed.rows(first)
        starts = sequence_starts(numbers, len(source.tokens), source.block_size, source.seed)
        expected = [source.tokens[start : start + source.block_size] for start in starts]
        assert np.array_equal(source.windows(numbers)[0], expected)
    scattered = np.array([5, 100_000, 17])
    starts = sequence_starts(scattered, len(source.tokens), source.block_size, source.seed)
    assert np.array_equal(source.windows(scattered)[0][:, 0], source.tokens[starts])


WEIGHTS = st.lists(st.integers(1, 10**6), min_size=1, max_size=6)


@given(WEIGHTS, st.integers(1, 400), st.integers(0, 10**9))
def test_a_mix_has_the_proportions_of_its_weights_at_every_prefix(weights, count, later):
    which, within = interleave(np.arange(count), weights)
    for end in (1, count // 2, count):
        for k, weight in enumerate(weights):
            assert abs((which[:end] == k).sum() - end * weight / sum(weights)) < len(weights)
    for k in range(len(weights)):  # none is left out or repeated
        assert within[which == k].tolist() == list(range((which == k).sum()))
    seen = sequences_of_each(later, weights)
    assert sum(seen) == later
    after = [int(own[which == k][0]) if (which == k).any() else None for k in range(len(weights))
             for which, own in [interleave(np.arange(later, later + 50), weights)]]  # fmt: skip
    assert all(first in (None, n) for first, n in zip(after, seen, strict=True))


def test_a_mix_of_halves_is_exact_to_one_sequence_for_ever():
    which, _ = interleave(np.arange(10**11, 10**11 + 1000), [1, 1])
    assert np.bincount(which).tolist() == [500, 500]
    which, _ = interleave(np.arange(1000), [700_000, 200_000, 100_000])
    assert np.bincount(which).tolist() == [700, 200, 100]


def test_sequences_of_a_mix_are_those_of_its_parts_in_their_own_order():
    loss_mask = np.arange(300) % 3 == 0
    own = dict(vocab_size=5000, block_size=10, seed=3)
    parts = [Sequences(TOKENS, **own), Sequences(TOKENS[4000:4300], loss_mask, **own)]
    mixed = MixedSequences(parts, [3, 1])
    numbers = np.arange(40, 60)
    tokens, targets = mixed.windows(numbers)
    which, within = interleave(numbers, [3, 1])
    for row, (k, n) in enumerate(zip(which, within, strict=True)):
        alone = parts[k].windows(np.array([n]))
        assert tokens[row].tolist() == alone[0][0].tolist()
        assert targets[row].tolist() == alone[1][0].tolist()
    assert sorted(which) == [0] * 15 + [1] * 5
    assert mixed.count_targets(numbers) == (targets != -1).sum() < targets.size
    for (k, start), first in zip(mixed.origins(numbers), tokens[:, 0], strict=True):
        assert first == start + 4000 * k


def test_a_growing_batch_neither_repeats_nor_skips():
    seen, first = [], 0
    for sequences in (2, 2, 4, 8, 16):
        seen += step_rows(first, sequences_per_step=sequences)
        first += sequences
    assert seen == step_rows(0, sequences_per_step=first)


def test_targets_are_the_tokens_one_further_and_the_last_micro_batch_says_so():
    micros = list(batches(batch_size=3).micro_batches(0))
    assert [(m.index, m.is_last, len(m.tokens)) for m in micros] == [
        (0, False, 3),
        (1, False, 3),
        (2, True, 2),
    ]
    for micro in micros:
        assert str(micro.tokens.dtype) == "torch.int64"
        assert (micro.targets == micro.tokens + 1).all()


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_unsigned_token_files_become_int64_before_torch_sees_them(tmp_path, dtype):
    path = tmp_path / "train.bin"
    (np.arange(100) * (1 if dtype == "<u2" else 1000)).astype(dtype).tofile(path)
    tokens = np.memmap(path, dtype, mode="r")
    sequences = Sequences(tokens, vocab_size=10**6, block_size=9, seed=1)
    micro = next(iter(Batches(sequences, batch_size=2, sequences_per_step=2).micro_batches(0)))
    assert str(micro.tokens.dtype) == "torch.int64"
    assert {int(d) for d in (micro.targets - micro.tokens).unique()} <= {1, 1000}


def test_masked_targets_are_minus_one_and_the_count_is_of_the_whole_step():
    loss_mask = np.zeros(len(TOKENS), dtype=bool)
    loss_mask[::3] = True
    whole = batches(loss_mask=loss_mask)
    parts = [batches(loss_mask=loss_mask, rank=rank, world_size=2) for rank in (0, 1)]
    targets = [m.targets for part in parts for m in part.micro_batches(8)]
    expected = sum(int((t != -1).sum()) for t in targets)
    assert (
        whole.count_targets(8)
        == parts[0].count_targets(8)
        == parts[1].count_targets(8)
        == expected
        > 0
    )
    assert batches().count_targets(8) == 80
    for micro in whole.micro_batches(8):
        kept = micro.targets != -1
        assert (micro.targets[kept] == (micro.tokens + 1)[kept]).all()
        assert (((micro.tokens + 1) % 3 == 0) == kept).all()


def test_a_step_without_any_unmasked_target_can_be_divided_by_its_count():
    assert batches(loss_mask=np.zeros(len(TOKENS), dtype=bool)).count_targets(0) == 1


def test_an_id_outside_the_vocabulary_is_named_with_its_place(tmp_path):
    tokens = TOKENS.copy()
    tokens[4321] = 9000
    with pytest.raises(DataError, match=r"train\.bin holds the id 9000 at position 4,321"):
        Sequences(tokens, vocab_size=5000, block_size=10, seed=1).windows(np.arange(600))


def test_one_window_and_its_target_are_the_shortest_text():
    check_length(257, 256, "train", "x")
    assert sequence_starts(np.arange(5), 257, 256, seed=1).tolist() == [0] * 5
    with pytest.raises(DataError, match=r"val part of x has 256 tokens.*block_size 256 needs 257.*"
                       "--block_size 255"):  # fmt: skip
        check_length(256, 256, "val", "x")
    with pytest.raises(DataError, match="has 10 tokens"):
        Sequences(TOKENS[:10], vocab_size=9, block_size=10, seed=1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_part_of_the_file_that_was_read(tmp_path):
    path = tmp_path / "train.bin"
    np.zeros(20_000_000, dtype="<u2").tofile(path)  # 40 MB
    tokens = np.memmap(path, "<u2", mode="r")
    sequences = Sequences(tokens, vocab_size=9, block_size=256, seed=1)
    feed = Batches(sequences, batch_size=32, sequences_per_step=32)

    def mapped_megabytes():
        with open("/proc/self/statm", encoding="utf-8") as file:
            return int(file.read().split()[2]) * mmap.PAGESIZE / 1e6

    list(feed.micro_batches(0))  # loads torch
    before = mapped_megabytes()
    for first in range(0, 32 * 40, 32):
        list(feed.micro_batches(first))
    assert mapped_megabytes() - before < 8
