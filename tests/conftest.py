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


@pytest.fixture
def random_model():
    """Builds a small model whose weights are all random: no norm is 1, no bias is 0."""
    import torch

    from gptlab.model.config import GPTConfig
    from gptlab.model.transformer import GPT

    def build(seed=0, noise=0.1, **settings):
        torch.manual_seed(seed)
        small = dict(block_size=16, vocab_size=37, n_layer=2, n_head=4, n_embd=32, dropout=0.0)
        model = GPT(GPTConfig(**(small | settings)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * noise)
        return model.eval()

    return build


@pytest.fixture(autouse=True)
def logging_as_before():
    """A command sets up the package's logger; the next test finds it as it was."""
    logger = logging.getLogger("gptlab")
    handlers, propagate = logger.handlers[:], logger.propagate
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
