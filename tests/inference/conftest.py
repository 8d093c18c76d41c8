"""Small models: random ones with decided opinions, and one that recites a given text."""

import pytest
import torch

from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT


@pytest.fixture
def make_model():
    """A function that builds a small random model, uneven enough for wrong positions to show."""

    def make(seed: int = 0, **settings) -> GPT:
        defaults = dict(
            block_size=16, vocab_size=23, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, dropout=0.0
        )
        torch.manual_seed(seed)
        return GPT(GPTConfig(**(defaults | dict(init_std=0.5) | settings))).eval()

    return make


@pytest.fixture
def reciting():
    """A function that builds a model which continues each of these ids by the one after it.

    The ids must differ. After the last one comes the first again.
    """

    def make(ids: list[int], vocab_size: int, block_size: int = 64, certainty: float = 50.0) -> GPT:
        assert len(set(ids)) == len(ids)
        config = GPTConfig(
            block_size=block_size,
            vocab_size=vocab_size,
            n_layer=1,
            n_head=1,
            n_embd=2 * ((vocab_size + 1) // 2),
            tie_weights=False,
            init_projection="zero",  # so a token's logits depend on itself alone
            dropout=0.0,
        )
        model = GPT(config).eval()
        with torch.no_grad():
            model.token_embedding.weight.copy_(torch.eye(vocab_size, config.n_embd))
            model.lm_head.weight.zero_()
            for token, following in zip(ids, ids[1:] + ids[:1], strict=True):
                model.lm_head.weight[following, token] = certainty
        return model

    return make
