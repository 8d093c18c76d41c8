"""Small models whose next-token distributions are uneven, so that wrong positions show."""

import pytest
import torch

from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT


@pytest.fixture(autouse=True)
def one_thread():
    """Small matrices are fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_model():
    """A function that builds a small random model with decided opinions (large weights)."""

    def make(seed: int = 0, **settings) -> GPT:
        defaults = dict(
            block_size=16, vocab_size=23, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, dropout=0.0
        )
        torch.manual_seed(seed)
        return GPT(GPTConfig(**(defaults | dict(init_std=0.5) | settings))).eval()

    return make
