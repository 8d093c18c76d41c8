"""Dropout's masks: each sequence has its own, and the model applies what it is given."""

import pytest
import torch
import torch.nn.functional as F

from gptlab.model.config import GPTConfig
from gptlab.model.dropout import Dropout, dropout_masks

SIZES = dict(vocab_size=37, n_layer=2, n_head=2, n_embd=32, block_size=16)


def flat(masks):
    """All masks of each sequence in one row: bool [B, ...]."""
    return torch.cat([m.flatten(1) for m in (masks[0], *masks[1], *masks[2])], dim=1)


def masks_of(numbers, seed=1, **settings):
    return dropout_masks(GPTConfig(**(SIZES | settings)), seed, numbers, "cpu")


def test_a_sequence_s_masks_do_not_depend_on_the_others_of_the_batch():
    together = flat(masks_of([7, -1, 8], dropout=0.3))
    for row, number in enumerate((7, -1, 8)):
        assert torch.equal(flat(masks_of([number], dropout=0.3))[0], together[row])
    rows = [*together, flat(masks_of([7], seed=2, dropout=0.3))[0]]
    for i, row in enumerate(rows):  # two that are independent agree in .3^2 + .7^2 of the places
        for other in rows[:i]:
            assert (row == other).float().mean().item() == pytest.approx(0.58, abs=0.02)
    parts = together[0].view(5, -1)
    for i, part in enumerate(parts):
        for other in parts[:i]:
            assert (part == other).float().mean().item() == pytest.approx(0.58, abs=0.09)


@pytest.mark.parametrize(
    ("dropout", "share"), [(0.1, 26 / 256), (0.5, 0.5), (0.0001, 1 / 256), (0.9999, 255 / 256)]
)
def test_dropout_is_the_nearest_n_of_256_and_keeps_the_mean(dropout, share):
    kept = flat(masks_of(range(64), dropout=dropout)).double().mean().item()
    assert kept == pytest.approx(1 - share, abs=0.003)
    layer = Dropout(GPTConfig(**SIZES, dropout=dropout))
    x = torch.ones(1, 256)
    mask = torch.arange(256) >= round(256 * share)
    assert layer(x, mask[None]).mean().item() == pytest.approx(1)


def test_without_dropout_there_are_no_masks():
    assert masks_of([1], dropout=0.0) is None


@pytest.mark.parametrize("settings", [dict(), dict(intermediate_size=0)], ids=str)
def test_masks_act_on_the_embedding_and_each_branch(random_model, monkeypatch, settings):
    """The same masks, put in the place of torch's own draws, give the same logits."""
    settings = SIZES | settings | dict(dropout=0.25)
    model, tokens = random_model(**settings).train(), torch.randint(37, (3, 16))
    masks = dropout_masks(model.config, 0, range(3), "cpu")
    found = model(tokens, masks=masks)[0]
    in_turn = iter([masks[0], *masks[1], *masks[2]])
    monkeypatch.setattr(
        F, "dropout", lambda x, p, training, inplace: x.masked_fill(~next(in_turn), 0) / (1 - p)
    )
    torch.testing.assert_close(found, model(tokens)[0])
    assert next(in_turn, None) is None
    monkeypatch.undo()
    assert not torch.allclose(found, model.eval()(tokens)[0])


def test_checkpointing_recomputes_with_the_same_masks(random_model):
    tokens, found = torch.randint(37, (2, 17)), []
    for is_on in (False, True):
        model = random_model(**SIZES, dropout=0.2, gradient_checkpointing=is_on).train()
        masks = dropout_masks(model.config, 0, range(2), "cpu")
        model(tokens[:, :-1], tokens[:, 1:], masks=masks)[1].backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
