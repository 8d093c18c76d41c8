import pytest
import torch

from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    yield
    torch.set_num_threads(before)


@pytest.fixture
def random_model():
    """Builds a small model whose weights are all random: no norm is 1, no bias is 0."""

    def build(seed=0, noise=0.1, **settings):
        torch.manual_seed(seed)
        small = dict(block_size=16, vocab_size=37, n_layer=2, n_head=4, n_embd=32, dropout=0.0)
        model = GPT(GPTConfig(**(small | settings)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * noise)
        return model.eval()

    return build
