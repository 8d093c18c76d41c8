import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.windows import evaluation_windows
from gptlab.errors import DataError
from gptlab.inference.evaluate import bits_per_byte, evaluate_loss, window_losses


def loss_by_hand(model, data, starts, block_size) -> float:
    """One window at a time, in float64, with torch's own cross-entropy."""
    total, count = 0.0, 0
    for start in starts:
        window = torch.from_numpy(data[start : start + block_size + 1].astype(np.int64))
        logits = model(window[None, :-1])[0][0].double()
        total += F.cross_entropy(logits, window[1:], reduction="sum").item()
        count += len(window) - 1
    return total / count


@pytest.fixture
def data():
    return np.random.default_rng(0).integers(0, 23, 203).astype(np.uint16)


@given(
    n_tokens=st.integers(2, 500),
    block_size=st.integers(1, 40),
    max_tokens=st.one_of(st.none(), st.integers(1, 600)),
)
@settings(max_examples=150, deadline=None)
def test_windows_lie_inside_the_split_and_never_overlap(n_tokens, block_size, max_tokens):
    windows = evaluation_windows(n_tokens, block_size, max_tokens)
    assert windows.dtype == np.int64 and len(windows) >= 1
    targets = [t for w in windows for t in range(w + 1, min(w + block_size, n_tokens - 1) + 1)]
    assert len(set(targets)) == len(targets) and max(targets) <= n_tokens - 1
    if max_tokens is None or max_tokens >= n_tokens - 1 + block_size:
        assert sorted(targets) == list(range(1, n_tokens))
    else:
        assert len(targets) <= max(max_tokens, block_size)


def test_a_limited_evaluation_reaches_from_the_first_token_to_the_last():
    windows = evaluation_windows(10_001, 100, max_tokens=1_000)
    assert len(windows) == 10
    assert windows[0] == 0 and windows[-1] == 10_000 - 100
    assert np.ptp(np.diff(windows)) <= 1


def test_a_split_without_a_target_is_refused():
    with pytest.raises(DataError, match="at least 2 tokens"):
        evaluation_windows(1, 16)


@pytest.mark.parametrize("max_tokens", [None, 64])
def test_the_loss_equals_one_computed_window_by_window(make_model, data, max_tokens):
    model = make_model()
    windows = evaluation_windows(len(data), 16, max_tokens)
    expected = loss_by_hand(model, data, windows, 16)
    loss = evaluate_loss(model, data, windows, 16, 3, "cpu")
    assert loss == pytest.approx(expected, rel=1e-6)


def test_the_loss_repeats_bitwise_and_hardly_depends_on_the_batch_size(make_model, data):
    model = make_model()
    windows = evaluation_windows(len(data), 16)
    losses = [evaluate_loss(model, data, windows, 16, size, "cpu") for size in (4, 4, 1, 5, 64)]
    assert losses[0] == losses[1]
    assert max(losses) - min(losses) < 1e-5


@pytest.mark.parametrize("world_size", [2, 3, 50])
def test_processes_that_share_an_evaluation_find_each_window_s_loss_to_the_bit(
    make_model, data, world_size
):
    model, windows = make_model(), evaluation_windows(len(data), 16)
    alone = window_losses(model, data, windows, 16, 4, "cpu")
    shares = [
        window_losses(model, data, windows, 16, 4, "cpu", share=(rank, world_size))
        for rank in range(world_size)
    ]
    for whole, parts in zip(alone, zip(*shares, strict=True), strict=True):
        assert np.array_equal(whole, sum(parts))
        assert (np.count_nonzero(parts, axis=0) == 1).all()  # each window is one process's


def test_dropout_is_off_and_the_mode_is_left_as_it_was(make_model, data):
    model = make_model(dropout=0.5).train()
    windows = evaluation_windows(len(data), 16)
    first, second = (evaluate_loss(model, data, windows, 16, 4, "cpu") for _ in range(2))
    assert first == second and model.training
    assert first == pytest.approx(loss_by_hand(model.eval(), data, windows, 16), rel=1e-6)


def test_progress_counts_every_window(make_model, data):
    windows = evaluation_windows(len(data), 16)
    seen = []
    evaluate_loss(make_model(), data, windows, 16, 5, "cpu", progress=seen.append)
    assert sum(seen) == len(windows) and len(seen) == math.ceil(len(windows) / 5)


def test_bits_per_byte_of_one_token_per_byte_is_the_loss_in_bits():
    assert bits_per_byte(math.log(2), 100, 100) == pytest.approx(1.0)
    assert bits_per_byte(math.log(256), 50, 200) == pytest.approx(2.0)
