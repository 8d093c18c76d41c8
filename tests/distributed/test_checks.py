"""What holds on two and on four processes: each check of checks_*.py is a test."""

import json

import pytest


def test_on_processes(size, check, results_of):
    found, output = results_of(size)
    if check not in found:
        before = next((f"{name} failed" for name, each in found.items() if each["failures"]), "")
        pytest.fail(f"not run: {before or 'the launch ended'}\n{output[-6000:]}", pytrace=False)
    failures = found[check]["failures"].items()
    if failures:
        text = "\n".join(f"process {rank}: {traceback}" for rank, traceback in failures)
        pytest.fail(text, pytrace=False)


FAILING = """
import torch
import torch.distributed as dist

def check_first(world):
    assert world.size == 0

def check_second(world):
    assert world.rank != 1
    dist.all_reduce(torch.zeros(1))

def check_third(world):
    pass
"""


@pytest.mark.slow
def test_a_check_that_fails_on_one_process_is_named_and_ends_the_launch(launch_checks, tmp_path):
    file, results = tmp_path / "checks_failing.py", tmp_path / "results.json"
    file.write_text(FAILING)
    launch_checks(2, results, [f"{file}:check_{name}" for name in ("first", "second", "third")])
    found = json.loads(results.read_text())
    assert set(found) == {"checks_failing.check_first", "checks_failing.check_second"}
    assert set(found["checks_failing.check_first"]["failures"]) == {"0", "1"}
    assert "world.rank != 1" in found["checks_failing.check_second"]["failures"]["1"]
