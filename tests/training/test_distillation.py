"""Learning from teachers: what a step learns and reports, exact resumes, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gptlab.checkpoints import Checkpoint, read_checkpoint
from gptlab.data.batches import MicroBatch
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.errors import CheckpointError, ConfigError, RunError
from gptlab.model import transformer
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.runs import Run, load_checkpoint
from gptlab.training.distillation import Teacher
from gptlab.training.parallel import Parallel

TIMING = ("time", "tokens_per_second", "mfu", "data_share")


def model(seed, **settings):
    torch.manual_seed(seed)
    small = dict(
        vocab_size=29, block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=0.0, init_std=0.3
    )
    return GPT(GPTConfig(**(small | settings)))


def teacher_of(models, share, vocab_size=29):
    found = [Checkpoint(each.eval(), None, Path("x"), 0, None, {}) for each in models]
    return Teacher(["x"] * len(models), found, share, vocab_size, Parallel.alone("cpu"))


@pytest.mark.parametrize("rows_at_once", [1, 5, 1000])
@pytest.mark.parametrize("share", [0.7, 1.0])
def test_a_step_learns_from_text_and_teachers_and_reports_the_text(
    monkeypatch, rows_at_once, share
):
    monkeypatch.setattr(transformer, "loss_chunk_rows", lambda *_: rows_at_once)
    student = model(0)
    # unlike models, one with a longer window and with rows beyond the tokenizer's ids
    teachers = [model(1, n_layer=1), model(2, n_embd=24, block_size=16, vocab_size=32)]
    tokens, targets = torch.randint(29, (3, 8)), torch.randint(29, (3, 8))
    targets[0, 2:5] = targets[2] = -1
    micro = MicroBatch(tokens, targets, np.arange(3), 0, True)
    teacher = teacher_of(teachers, share)
    criterion = teacher.criterion(micro, step=0)
    _, loss = student(tokens, targets, reduction="sum", criterion=criterion)
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in student.named_parameters()}
    student.zero_grad()

    log_probs = F.log_softmax(student(tokens)[0], -1)  # [B, T, V]
    with torch.no_grad():
        taught = sum(F.softmax(each(tokens)[0][..., :29], -1) for each in teachers) / 2
    text = F.nll_loss(log_probs.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")
    apart = F.kl_div(log_probs, taught, reduction="none").sum(-1)[targets != -1].sum()
    ((1 - share) * text + share * apart).backward()
    torch.testing.assert_close(loss, text)
    assert teacher.beside(1)["distill_loss"] == pytest.approx(apart.item() / 13, rel=1e-5)
    assert teacher.beside(2)["distill_loss"] == 0  # of a step without a sequence here
    for name, weight in student.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-5)
    assert all(weight.grad is None for each in teachers for weight in each.parameters())


@pytest.fixture
def teachers(train, tmp_path):
    """The option that names two short runs of unlike models."""
    train("a", max_iters=6, seed=1)
    train("b", max_iters=6, seed=2, n_embd=24, block_size=32)
    return f"{tmp_path / 'a'},{tmp_path / 'b'}"


def records(folder):
    return [
        {name: value for name, value in record.items() if name not in TIMING}
        for record in Run(folder).records()
    ]


def weights(folder):
    return read_checkpoint(folder / "ckpt.pt")["model"]


def test_a_distilled_run_resumes_exactly_and_its_student_is_an_ordinary_model(
    train, teachers, tmp_path
):
    options = dict(teacher=teachers, batch_size=2, gradient_accumulation_steps=2, dropout=0.1)
    train("whole", **options)
    train("broken", stop_at=7, **options)
    train("broken", resume=True)
    one, other = tmp_path / "whole", tmp_path / "broken"
    assert records(one) == records(other)
    assert all("distill_loss" in record for record in records(one) if "loss" in record)
    for name, weight in weights(one).items():
        assert torch.equal(weight, weights(other)[name])
    train("plain", **{**options, "teacher": None})
    plain, taught = records(tmp_path / "plain"), records(one)
    assert plain[0]["loss"] == taught[0]["loss"]  # of the text, with the same initial weights
    assert plain[1]["loss"] != taught[1]["loss"]
    student = load_checkpoint(one)
    assert set(student.model.state_dict()) == set(
        load_checkpoint(tmp_path / "a").model.state_dict()
    )
    assert [each["model"] for each in student.content["teachers"]] == teachers.split(",")


def test_micro_batches_learn_what_one_batch_does(train, teachers, tmp_path):
    train("one", teacher=teachers, batch_size=4)
    train("four", teacher=teachers, batch_size=1, gradient_accumulation_steps=4)
    for first, second in zip(*(records(tmp_path / name) for name in ("one", "four")), strict=True):
        for name in {"loss", "distill_loss", "val_loss"} & first.keys():
            assert first[name] == pytest.approx(second[name], rel=1e-4)


def test_a_resume_refuses_other_teachers_and_takes_the_same_ones_from_another_place(
    train, teachers, tmp_path
):
    train("s", stop_at=3, teacher=teachers)
    moved = (tmp_path / "a").rename(tmp_path / "moved")
    with pytest.raises(RunError, match=r"cannot be read.*--teacher"):
        train("s", resume=True)
    with pytest.raises(RunError, match="not what this run has learned from"):
        train("s", resume=True, teacher=f"{tmp_path / 'b'},{tmp_path / 'b'}")
    with pytest.raises(ConfigError, match="distill cannot change at a resume"):
        train("s", resume=True, distill=0.5)
    assert train("s", resume=True, teacher=f"{moved},{tmp_path / 'b'}").step == 20
    train("plain", stop_at=3)
    with pytest.raises(ConfigError, match="teacher cannot change at a resume"):
        train("plain", resume=True, teacher=teachers)


def test_teachers_of_other_tokens_or_shorter_windows_are_refused(
    train, teachers, prepared_home, tmp_path
):
    if not (prepared_home / "data" / "other").exists():
        (prepared_home / "other.txt").write_text("some other letters, quite a few: xyz\n" * 50)
        prepare(str(prepared_home / "other.txt"), PrepareOptions(tokenizer="char"))
    refusals = {
        "another tokenizer than other was prepared with": dict(dataset="other"),
        "sees 16 tokens, and block_size is 24: use --block_size 16": dict(block_size=24),
        "above 0 and at most 1": dict(distill=0.0),
        "between two commas": dict(teacher=f"{teachers},"),
    }
    for sentence, options in refusals.items():
        with pytest.raises(ConfigError, match=sentence):
            train("refused", **{"teacher": teachers, **options})
    with pytest.raises(CheckpointError, match="teacher 'nowhere' names no model"):
        train("refused", teacher="nowhere")
    with pytest.raises(ConfigError, match="--distill has no effect: there is no teacher"):
        train("refused", distill=0.5)
    assert not (tmp_path / "refused").exists()
