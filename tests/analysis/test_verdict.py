"""Verdicts on simulated pairs: rates of error, what is called what, budgets, words."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from gptlab.analysis.statistics import paired_interval
from gptlab.analysis.verdict import (
    Pair,
    as_json,
    judge_in_turn,
    judge_once,
    loss_at,
    plain_sentence,
    verdict_line,
)

# of tiny runs: A beside A from shuffled initial weights, as `compare --noise_floor` trains them
RECORDED = json.loads(Path(__file__).with_name("recorded_differences.json").read_text())["nats"]
STATISTICS = re.compile(
    r"interval|mean|seed|signific|confiden|probab|deviat|varian|sampl|test|error|statist|average|%"
)


def run(loss, tokens=1000, speed=100.0, flops=10.0, curve=None):
    """A line of results.jsonl."""
    if curve is None:
        curve = [[tokens // 2, loss + 0.5], [tokens, loss + 0.01]]
    return dict(
        loss=loss, tokens=tokens, tokens_per_second=speed, flops_per_token=flops, curve=curve
    )


def pairs(differences, windows=None, **b):
    """Pairs whose runs A have the loss 2. windows: losses of A's and B's windows of 4 tokens."""
    sides = [(nats, np.full(len(nats), 4), 4) for nats in windows or ()] or [None, None]
    return [Pair(i, run(2.0), run(2.0 + d, **b), *sides) for i, d in enumerate(differences)]


def simulated(n_comparisons, shift=0.0, seeds=10):
    """Comparisons whose noise is that of the recorded runs, around a true difference."""
    random = np.random.default_rng(7)
    for _ in range(n_comparisons):
        # A beside A has no side: either sign is as likely
        noise = random.choice(RECORDED, seeds, replace=False) * random.choice([-1, 1], seeds)
        yield pairs(list(noise + shift))


def floor():
    """The noise floor of the recorded runs."""
    return float(np.sqrt(np.mean(np.square(RECORDED))))


# Rates of error -----------------------------------------------------------------------------------


def test_a_against_a_is_called_different_in_at_most_5_percent_of_1000_comparisons():
    known = dict(smallest=1e-9)
    looks = sum(judge_in_turn(p, **known).state in "AB" for p in simulated(1000))
    once = sum(judge_once(p[:5], auto=False, **known).state in "AB" for p in simulated(1000))
    assert 20 <= looks <= 50 and 20 <= once <= 50


def test_twice_the_noise_floor_is_found_within_ten_seeds_in_80_percent_of_comparisons():
    found = [judge_in_turn(p, smallest=1e-9) for p in simulated(300, shift=-2 * floor())]
    assert sum(one.state == "B" for one in found) >= 0.95 * 300
    assert np.median([one.interval.n for one in found]) <= 6


# What is called what ------------------------------------------------------------------------------


def test_the_side_with_the_lower_loss_is_better():
    assert judge_once(pairs([-0.05, -0.06, -0.04]), auto=False, smallest=0.01).state == "B"
    assert judge_once(pairs([0.05, 0.06, 0.04]), auto=False, smallest=0.01).state == "A"


def test_an_interval_within_what_matters_is_no_difference_larger_than_its_farther_end():
    found = judge_once(pairs([0.001, -0.001, 0.0005, 0.0]), auto=False, smallest=0.01)
    assert found.state == "equal"
    farthest = paired_interval([0.001, -0.001, 0.0005, 0.0]).farthest
    assert verdict_line(found) == f"no difference larger than {farthest:.4f} nats per token"


def test_an_undecided_comparison_says_how_many_seeds_would_decide():
    found = judge_once(pairs([0.03, -0.01, 0.01]), auto=False, smallest=0.001)
    assert found.state == "undecided" and found.more_seeds > 3
    assert f"about {found.more_seeds - 3} more seeds" in verdict_line(found)


def test_pairs_equal_to_the_bit_are_identical_and_have_no_interval():
    nats = np.arange(6.0)
    found = judge_once(pairs([0.0, 0.0], windows=(nats, nats)), auto=False, smallest=0.01)
    assert found.state == "identical" and found.interval is None
    other = nats + np.array([0, 0, 0, 0, 1e-16, 0]) * 8  # the mean may round to the same
    found = judge_once(pairs([0.0, 0.0], windows=(nats, other)), auto=False, smallest=0.01)
    assert found.state == "equal"


def test_looking_in_turn_never_decides_after_two_pairs_unless_they_are_equal():
    apart = [-0.05, -0.05000001]
    assert judge_once(pairs(apart), auto=True, smallest=0.01).state == "B"
    assert judge_in_turn(pairs(apart), smallest=0.01).state == "undecided"
    assert judge_in_turn(pairs([0.0, 0.0]), smallest=0.01).state == "identical"


def test_looking_in_turn_keeps_the_first_look_that_decides_whatever_comes_later():
    first = [-0.05, -0.051, -0.049]
    assert judge_in_turn(pairs([*first, 9.0, -9.0]), smallest=0.01).interval.n == 3


def test_one_pair_or_a_diverged_run_gives_no_interval():
    assert judge_once(pairs([0.1]), auto=False, smallest=0.01).interval is None
    lost = pairs([0.1, 0.2])
    lost[1] = Pair(1, run(2.0), {"diverged": "loss not finite"})
    found = judge_once(lost, auto=False, smallest=0.01)
    assert (found.state, found.diverged) == ("undecided", {"A": [], "B": [1]})


# Budgets ------------------------------------------------------------------------------------------


def test_a_run_is_read_off_its_curve_and_ends_at_the_loss_of_the_whole_split():
    one = run(1.0, tokens=400, curve=[[200, 2.1], [400, 1.1]])  # the curve is 0.1 too high
    assert loss_at(one, 400) == 1.0
    assert loss_at(one, 300) == pytest.approx(1.5)
    assert loss_at(one, 100) is None


def test_at_equal_time_and_flops_the_dearer_run_is_read_off_earlier():
    """B takes twice A's time and half of its FLOPs a token."""
    halves = pairs([-0.1, -0.11, -0.09], speed=50.0, flops=5.0)
    found = judge_once(halves, auto=False, smallest=0.01)
    assert found.ratios == {"time": 2.0, "FLOPs": 0.5}
    assert found.views["tokens"].mean == pytest.approx(-0.1)
    assert found.views["time"].mean == pytest.approx(-0.1 + 0.49)  # B after 500 of 1,000 tokens
    assert found.views["FLOPs"].mean == pytest.approx(-0.1 - 0.49)  # A after 500


def test_windows_of_another_block_size_are_added_up_to_the_same_text():
    a = (np.array([1.0, 1, 1, 1, 1]), np.array([4, 4, 4, 4, 2]), 4)
    b = (np.array([4.0, 4, 2]), np.array([8, 8, 2]), 8)
    both = [Pair(i, run(2.0), run(2.1 + i / 100), a, b) for i in range(3)]
    low, high = judge_once(both, auto=False, smallest=0.01).text
    # of (2, 2, 1) nats a window in 8, 8 and 2 tokens
    assert low == pytest.approx(2 / 8) and high == pytest.approx(1 / 2)
    odd = (np.ones(3), np.array([6, 6, 6]), 6)
    both = [Pair(i, run(2.0), run(2.1 + i / 100), a, odd) for i in range(3)]
    assert judge_once(both, auto=False, smallest=0.01).text is None


def test_the_noise_floor_is_the_deviation_of_a_beside_itself_where_it_was_trained():
    again = pairs([0.01, -0.01, 0.0])
    known = dict(auto=False, smallest=0.01)
    assert judge_once(pairs([0.3, 0.5, 0.4]), **known).floor[0] == pytest.approx(0.1)
    assert judge_once(pairs([0.3, 0.5, 0.4]), **known, floor=again).floor[0] == pytest.approx(0.01)


# Words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "differences",
    [[-0.5, -0.51], [0.5, 0.51], [0.0001, -0.0001], [0.0, 0.0], [0.5, -0.4], [0.2]],
)
def test_the_closing_sentence_has_no_word_of_statistics(differences):
    found = judge_once(pairs(differences, speed=70.0), auto=False, smallest=0.01)
    sentence = plain_sentence(found, "config/a.py", "qk_norm=False")
    assert not STATISTICS.search(sentence.lower()), sentence
    assert sentence.endswith(".") and len(sentence) < 160


def test_the_json_of_a_comparison_is_json_in_every_state():
    for differences in ([0.2], [0.0, 0.0], [0.5, 0.51], [0.5, -0.4]):
        found = judge_once(pairs(differences), auto=False, smallest=0.01)
        content = json.loads(json.dumps(as_json(found, "a", "b"), allow_nan=False))
        assert content["verdict"] == found.state and len(content["pairs"]) == len(differences)
