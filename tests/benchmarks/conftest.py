"""The benchmarks are scripts that import each other from their folder; so do the tests."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch) -> Path:
    """The folder of the benchmarks, importable."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "path", sys.path[:])  # a script puts its own folders in front
    return BENCHMARKS
