import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gptlab.errors import GenerationError
from gptlab.inference.config import SamplingConfig
from gptlab.inference.sampling import (
    apply_repetition_penalty,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    sample,
)

# few different values, so that ties are the rule
TIED = st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0])
ROWS = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(1, 12)), elements=TIED
) | hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 12)),
    elements=st.floats(-8, 8, width=32),
)
SETTINGS = settings(max_examples=100, deadline=None)


def softmax(row):
    e = np.exp(row - row.max())
    return e / e.sum()


def ranked(row):
    """Ids from the likeliest on; of equally likely ones the lower id first."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


def top_k_by_hand(row, k):
    return set(ranked(row)[:k]) if k else set(range(len(row)))


def top_p_by_hand(row, p):
    kept, mass, probabilities = set(), 0.0, softmax(row)
    for i in ranked(row):
        kept.add(i)
        mass += probabilities[i]
        if mass >= p:
            break
    return kept


def min_p_by_hand(row, p):
    probabilities = softmax(row)
    return {i for i in range(len(row)) if probabilities[i] >= p * probabilities.max()}


def kept(logits):
    return [set(np.flatnonzero(np.isfinite(row))) for row in logits.numpy()]


@given(ROWS, st.integers(0, 15))
@SETTINGS
def test_top_k_keeps_what_plain_numpy_keeps(rows, k):
    result = keep_top_k(torch.from_numpy(rows), k)
    assert kept(result) == [top_k_by_hand(row, k) for row in rows]


@given(ROWS, st.floats(0.01, 1.0))
@SETTINGS
def test_top_p_keeps_what_plain_numpy_keeps(rows, p):
    for row in rows:  # leave out sums that rounding decides
        if np.abs(np.cumsum(softmax(row)[ranked(row)]) - p).min() < 1e-9:
            return
    assert kept(keep_top_p(torch.from_numpy(rows), p)) == [top_p_by_hand(row, p) for row in rows]


@given(ROWS, st.floats(0.0, 1.0))
@SETTINGS
def test_min_p_keeps_what_plain_numpy_keeps(rows, p):
    for row in rows:
        if np.abs(softmax(row) - p * softmax(row).max()).min() < 1e-9:
            return
    assert kept(keep_min_p(torch.from_numpy(rows), p)) == [min_p_by_hand(row, p) for row in rows]


@given(ROWS, st.integers(1, 12), st.floats(0.05, 1.0), st.floats(0, 0.5))
@SETTINGS
def test_filters_in_a_row_keep_what_is_kept_unchanged_and_never_everything_away(rows, k, p, min_p):
    result = keep_min_p(keep_top_p(keep_top_k(torch.from_numpy(rows), k), p), min_p).numpy()
    inside = np.isfinite(result)
    assert inside.any(axis=1).all()
    assert (result[inside] == rows[inside]).all()
    assert (inside.sum(axis=1) <= k).all()


@pytest.mark.parametrize("p", [1e-9, 0.5, 0.999999])
def test_top_p_always_keeps_the_likeliest(p):
    logits = torch.tensor([[0.0, 3.0, 1.0], [9.0, -9.0, -9.0]])
    assert all(i in ids for i, ids in zip((1, 0), kept(keep_top_p(logits, p)), strict=True))


def test_top_p_stops_at_the_token_that_reaches_p_exactly():
    half_half = torch.tensor([[0.0, 0.0, -math.inf], [-math.inf, 1.0, 1.0]])
    assert kept(keep_top_p(half_half, 0.5)) == [{0}, {1}]


@given(ROWS, st.floats(0.5, 3.0), st.data())
@SETTINGS
def test_the_repetition_penalty_is_that_of_ctrl(rows, penalty, data):
    seen = data.draw(hnp.arrays(np.bool_, rows.shape))
    expected = rows.copy()
    for index in zip(*np.nonzero(seen), strict=True):
        value = expected[index]
        expected[index] = value / penalty if value > 0 else value * penalty
    result = apply_repetition_penalty(torch.from_numpy(rows), torch.from_numpy(seen), penalty)
    np.testing.assert_allclose(result.numpy(), expected)


@given(ROWS, st.floats(0, 1))
@SETTINGS
def test_a_draw_inverts_the_cumulative_distribution(rows, uniform):
    drawn = draw(torch.from_numpy(rows), torch.full((len(rows),), uniform, dtype=torch.float64))
    for row, token in zip(rows, drawn.tolist(), strict=True):
        cumulative = np.cumsum(softmax(row))
        assert cumulative[token] >= uniform - 1e-9
        assert token == 0 or cumulative[token - 1] <= uniform + 1e-9


@pytest.mark.parametrize("uniform", [0.0, 0.3, 1 - 2**-53, 1.0, 7.0])
def test_no_number_whatsoever_draws_an_excluded_id(uniform):
    off = -math.inf
    logits = torch.tensor(
        [[off, 0.1, off, 0.2, off], [off, off, off, off, 1.0], [0, off, off, off, off]]
    )
    drawn = draw(logits, torch.full((3,), uniform, dtype=torch.float64))
    assert torch.isfinite(logits.gather(1, drawn[:, None])).all()


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    config = SamplingConfig(temperature=0.7, top_k=0, top_p=1.0)
    uniforms = np.random.default_rng(0).random(20_000)
    drawn, _ = sample(logits.expand(20_000, -1), config, uniforms)
    expected = softmax(logits[0].numpy() / 0.7)
    found = np.bincount(drawn.numpy(), minlength=4) / 20_000
    np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-6])
def test_a_tiny_temperature_takes_the_likeliest_and_does_not_overflow(temperature):
    logits = torch.tensor([[1000.0, 3000.0, -2000.0, 2999.0]])
    config = SamplingConfig(temperature=temperature, top_k=0, top_p=1.0)
    for uniform in (0.0, 0.5, 0.999999):
        assert sample(logits, config, [uniform])[0].tolist() == [1]


@pytest.mark.parametrize("greedy", [dict(temperature=0), dict(top_k=1)])
def test_greedy_takes_the_first_of_the_likeliest(greedy):
    logits = torch.tensor([[0.0, 5.0, 5.0], [2.0, 1.0, 2.0]])
    chosen, log_probs = sample(logits, SamplingConfig(**greedy), [0.9, 0.9])
    assert chosen.tolist() == [1, 0]
    expected = [math.log(softmax(row)[i]) for row, i in zip(logits.numpy(), (1, 0), strict=True)]
    assert log_probs.tolist() == pytest.approx(expected)


def test_the_log_probability_is_the_models_own_before_any_filter():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    config = SamplingConfig(temperature=0.1, top_k=2, repetition_penalty=2.0)
    chosen, log_probs = sample(logits, config, [0.5], torch.tensor([[False, False, True]]))
    assert log_probs.item() == pytest.approx(math.log(softmax(logits[0].numpy())[chosen.item()]))


def test_top_k_beyond_the_vocabulary_keeps_all():
    logits = torch.randn(2, 65)
    assert torch.equal(keep_top_k(logits, 200), logits)


@pytest.mark.parametrize("config", [SamplingConfig(), SamplingConfig(temperature=0)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error_and_not_a_token(config, bad):
    logits = torch.zeros(2, 5)
    logits[1, 3] = bad
    with pytest.raises(GenerationError, match="not finite"):
        sample(logits, config, [0.5, 0.5])


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "max_tokens": [0, -1],
        "temperature": [-1, math.nan, math.inf, -math.inf],
        "top_k": [-1],
        "top_p": [0, 1.5, -0.1, math.nan],
        "min_p": [-0.1, 1.1, math.nan],
        "repetition_penalty": [0, -1, math.nan, math.inf],
        "num_samples": [0],
        "beam_width": [0],
        "seed": [-1],
        "stop": [("a", "")],
    }.items(),
)
def test_a_setting_out_of_range_is_one_sentence_that_names_it(name, values):
    for value in values:
        with pytest.raises(GenerationError, match=name) as caught:
            SamplingConfig(**{name: value})
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_more_samples_than_beams_are_refused():
    with pytest.raises(GenerationError, match="beam_width 5"):
        SamplingConfig(beam_width=3, num_samples=5)
    SamplingConfig(beam_width=1, num_samples=5)
