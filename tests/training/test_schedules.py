"""The learning rate of a step: values worked out by hand, and min_lr at the end."""

import itertools

import pytest

from gptlab.training.config import build
from gptlab.training.schedules import learning_rate


def rates(steps, **settings):
    defaults = dict(
        learning_rate=1.0, min_lr=0.1, warmup_iters=4, lr_decay_iters=104, max_iters=104
    )
    config = build(defaults | settings)
    return [learning_rate(config, step) for step in steps]


def test_warm_up_rises_in_equal_steps_to_the_highest_rate():
    for schedule in ("cosine", "wsd"):
        assert rates(range(5), schedule=schedule) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_is_half_way_in_the_middle_and_at_min_lr_at_the_end():
    quarter = 0.1 + 0.9 * 0.8535533906  # (1 + cos(45 degrees)) / 2
    assert rates([29, 54, 104, 1000]) == pytest.approx([quarter, 0.55, 0.1, 0.1])


def test_wsd_is_flat_and_then_falls_in_a_line():
    settings = dict(schedule="wsd", decay_fraction=0.25, warmup_iters=4, lr_decay_iters=100)
    steps = [4, 50, 75, 80, 90, 99, 100, 101]
    expected = [1.0, 1.0, 1.0, 0.82, 0.46, 0.136, 0.1, 0.1]
    assert rates(steps, **settings) == pytest.approx(expected)


def test_wsd_with_all_of_the_run_decaying_falls_from_the_end_of_the_warm_up():
    settings = dict(schedule="wsd", decay_fraction=1.0, min_lr=0.0, lr_decay_iters=104)
    assert rates([4, 54, 104], **settings) == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_the_rate_never_leaves_its_bounds_and_never_rises_after_the_warm_up(schedule, warmup):
    settings = dict(schedule=schedule, warmup_iters=warmup, lr_decay_iters=50)
    values = rates(range(warmup, 80), **settings)
    assert values[0] == 1.0 and values[-1] == 0.1
    assert all(0.1 <= later <= earlier <= 1.0 for earlier, later in itertools.pairwise(values))


def test_a_run_too_short_for_its_decay_still_has_a_rate():
    for schedule in ("cosine", "wsd"):
        values = rates(range(5), schedule=schedule, warmup_iters=0, lr_decay_iters=1)
        assert values == pytest.approx([1.0, 0.1, 0.1, 0.1, 0.1])
        values = rates(range(8), schedule=schedule, warmup_iters=6, lr_decay_iters=3)
        assert max(values) <= 1.0 and values[-1] == 0.1
