"""How a model of nanoGPT's is evaluated by gptlab's own loss."""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F


class BigramModel(torch.nn.Module):
    """Called as nanoGPT's model is: with targets it returns the logits of all positions."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size, block_size=8)
        self.logits = torch.nn.Embedding(vocab_size, vocab_size)

    def forward(self, tokens, targets=None):
        logits = self.logits(tokens)
        return (logits if targets is not None else logits[:, -1:]), None


def test_the_loss_of_nanogpts_model_counts_every_character_but_the_first():
    from against_nanogpt import NanoGPTAdapter, whole_split_loss

    torch.manual_seed(0)
    model = BigramModel(5)
    text = torch.randint(5, (100,))
    expected = F.cross_entropy(model.logits(text[:-1]), text[1:])
    found = whole_split_loss(NanoGPTAdapter(model), text.numpy().astype(np.uint16), 8)
    assert abs(found - expected.item()) < 1e-6
