"""What the tests of all rooms share."""

import logging
import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "tinyshakespeare.txt"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty home (`data/`, `out/`) that is the working directory too."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny_shakespeare() -> Path:
    """The file of tiny Shakespeare."""
    path = Path(os.environ.get("GPTLAB_TEST_SHAKESPEARE") or _BESIDE)
    if not path.is_file():
        pytest.skip("tiny Shakespeare is not here: name its file in GPTLAB_TEST_SHAKESPEARE")
    return path


@pytest.fixture(autouse=True)
def logging_as_before():
    """A command sets up the package's logger; the next test finds it as it was."""
    logger = logging.getLogger("gptlab")
    handlers, propagate = logger.handlers[:], logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
