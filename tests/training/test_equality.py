"""A step is one sum over the whole batch: however it is cut, the numbers are the same."""

import numpy as np
import pytest
import torch

from gptlab.checkpoints import read_checkpoint
from gptlab.data import token_files
from gptlab.data.batches import Sequences, sequence_starts
from gptlab.data.token_files import open_dataset
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.runs import Run

SETTINGS = dict(max_iters=12, learning_rate=1e-2, warmup_iters=2, min_lr=1e-3, eval_interval=12)


def losses(folder):
    return [r["loss"] for r in Run(folder).records() if "loss" in r]


def reference_losses(n_steps, sequences, loss_mask=None):
    """The same training as a plain loop: no micro-batches, torch's own loss and optimizer."""
    data = open_dataset("tiny")
    torch.manual_seed(1337)
    model = GPT(GPTConfig(
        vocab_size=data.vocab_size, n_layer=2, n_head=2, n_embd=16, block_size=16, dropout=0.0
    ))  # fmt: skip
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    found = []
    for step in range(n_steps):
        numbers = np.arange(step * sequences, (step + 1) * sequences)
        starts = sequence_starts(numbers, len(data.train), 16, seed=1337)
        rows = np.stack([data.train[s : s + 17] for s in starts]).astype(np.int64)
        targets = torch.from_numpy(rows[:, 1:].copy())
        if loss_mask is not None:
            kept = np.stack([loss_mask[s + 1 : s + 17] for s in starts])
            targets[~torch.from_numpy(kept)] = -1
        logits, _ = model(torch.from_numpy(rows[:, :-1].copy()))
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        progress = (step - 2) / 10
        rate = 1e-2 * (step + 1) / 3
        if step >= 2:
            rate = 1e-3 + 9e-3 * 0.5 * (1 + np.cos(np.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("masked", [False, True])
def test_1x16_4x4_and_16x1_give_the_losses_of_a_plain_loop(train, tmp_path, monkeypatch, masked):
    loss_mask = None
    if masked:  # very unevenly, so that a mean of means would be another number
        loss_mask = np.random.default_rng(0).random(len(open_dataset("tiny").train)) < 0.4
        loss_mask[::2] = False
        loss_mask[: len(loss_mask) // 2] &= np.arange(len(loss_mask) // 2) % 7 == 0
        monkeypatch.setattr(
            token_files,
            "Sequences",
            lambda tokens, _, **named: Sequences(tokens, loss_mask, **named),
        )
    expected = reference_losses(12, 16, loss_mask)
    for batch_size, steps in ((1, 16), (4, 4), (16, 1), (5, 2)):
        name = f"{batch_size}x{steps}"
        train(name, **SETTINGS, batch_size=batch_size, gradient_accumulation_steps=steps)
        if batch_size * steps == 16:
            np.testing.assert_allclose(losses(tmp_path / name), expected, atol=1e-5, err_msg=name)
    assert expected[-1] < expected[0] - 0.1  # something was learned


def test_gradient_checkpointing_changes_memory_and_not_the_numbers(train, tmp_path):
    train("plain", **SETTINGS, dropout=0.1)
    train("saving", **SETTINGS, dropout=0.1, gradient_checkpointing=True)
    np.testing.assert_allclose(losses(tmp_path / "plain"), losses(tmp_path / "saving"), atol=1e-5)


def test_the_same_seed_repeats_bitwise_and_another_seed_does_not(train, tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        train(name, **SETTINGS, dropout=0.1, seed=seed)
        torch.manual_seed(5)  # the process's own generator has no say
    assert losses(tmp_path / "one") == losses(tmp_path / "again") != losses(tmp_path / "other")
    first, second = (read_checkpoint(tmp_path / n / "ckpt.pt")["model"] for n in ("one", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
