import pytest
import torch

from gptlab.model.config import GPTConfig
from gptlab.model.documents import document_mask
from gptlab.model.transformer import GPT

END = 0  # the angles of RoPE are float32, so positions are relative to about 1e-6
CONFIG = GPTConfig(vocab_size=50, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, block_size=24)
# two rows of several documents: one goes on from the row before, one is empty
ROWS = [
    [7, 8, 9, END, 5, 6, END, END, 4, 3, 2, 1, 9, 9, END, 8, 8, 7, 6, 5, 4, 3, 2, 1],
    [END, *range(20, 35), END, *range(5, 12)],
]


def documents_of(row):
    starts = [0] + [i for i, token in enumerate(row) if token == END and i]
    return [row[a:b] for a, b in zip(starts, [*starts[1:], len(row)], strict=True)]


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True, "n_kv_head": 4}])
def test_hidden_states_under_the_mask_are_those_of_a_pass_for_each_document(changes):
    torch.manual_seed(3)
    config = CONFIG.to_dict() | {"init_std": 0.3} | changes
    model = GPT(GPTConfig(**config)).double().eval()
    tokens = torch.tensor(ROWS)
    hidden = model.features(tokens, documents=document_mask(tokens, END))
    unmasked = model.features(tokens)
    for row, found, without in zip(ROWS, hidden, unmasked, strict=True):
        alone = [model.features(torch.tensor([own]))[0] for own in documents_of(row)]
        assert len(alone) == row.count(END) + (row[0] != END)
        torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-5)
        assert (without - found).abs().max() > 0.01


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_under_the_mask_are_the_sum_of_those_of_each_document(checkpointing):
    torch.manual_seed(4)
    config = CONFIG.to_dict() | {"dropout": 0.0, "gradient_checkpointing": checkpointing}
    model = GPT(GPTConfig(**config)).double().train()
    tokens = torch.tensor(ROWS)
    targets = torch.roll(tokens, -1, 1)
    model(tokens, targets, reduction="sum", documents=document_mask(tokens, END))[1].backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for row, wanted in zip(ROWS, targets, strict=True):
        at = 0
        for own in documents_of(row):
            part = wanted[None, at : at + len(own)]
            model(torch.tensor([own]), part, reduction="sum")[1].backward()
            at += len(own)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-8)


def test_a_token_sees_itself_and_those_before_it_in_its_document():
    mask = document_mask(torch.tensor([[5, 6, END, 7]]), END)
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert mask.int().tolist() == [[expected]]
    assert document_mask(torch.tensor([[5, END]]), None) is None
