"""The benchmarks are scripts that find each other beside themselves; the tests find them there."""

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
