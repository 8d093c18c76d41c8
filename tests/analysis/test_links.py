"""The links between processes: which are measured when, which is the slowest, what a step costs."""

import itertools

import pytest

from gptlab.analysis.links import Link, Links, StepShare, rounds


@pytest.mark.parametrize("processes", [2, 3, 4, 5, 8])
def test_each_pair_is_measured_once_and_no_process_twice_in_a_round(processes):
    played = list(rounds(processes))
    pairs = [pair for pairs in played for pair in pairs]
    assert sorted(pairs) == list(itertools.combinations(range(processes), 2))
    for pairs in played:
        players = [player for pair in pairs for player in pair]
        assert len(players) == len(set(players))


def test_the_slowest_link_and_the_process_behind_slow_links_are_named():
    def bandwidth(pair):
        return 1e9 if 2 in pair else 9e9

    pairs = list(itertools.combinations(range(4), 2))
    links = tuple(Link(pair, 1e-5, bandwidth(pair) + sum(pair)) for pair in pairs)
    found = Links(("a", "a", "b", "b"), 1e-4, 5e9, links)
    assert found.slowest.processes == (0, 2)
    assert found.slowest_process == 2


def test_the_share_of_communication_counts_the_slowest_process():
    assert StepShare((0.2, 0.3), 0.1, 1e6).share == pytest.approx(0.25)
