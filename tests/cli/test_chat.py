"""From conversations to a talk: prepare.py, train.py, sample.py --chat."""

import io
import json
import sys

import numpy as np
import pytest
import torch

from gptlab.checkpoints import read_checkpoint
from gptlab.cli.main import main, run_command
from gptlab.cli.ui import questions
from gptlab.data.batches import Sequences
from gptlab.data.token_files import open_dataset
from gptlab.data.tokenizer import char_tokenizer
from gptlab.errors import DataError
from gptlab.runs import Run, load_checkpoint
from gptlab.training import trainer
from gptlab.training.picture import Picture

ALPHABET = "\n :?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    monkeypatch.setattr(Picture, "draw", lambda *_: None)


@pytest.fixture
def dataset(home):
    """data/talk: forty conversations in which every answer is "yes"."""
    rows = [
        {"messages": [
            {"role": "user", "content": f"is {letter} a letter?"},
            {"role": "assistant", "content": "yes"},
        ]}
        for letter in ALPHABET[4:44]
    ]  # fmt: skip
    (home / "talk.jsonl").write_text("\n".join(map(json.dumps, rows)))
    char_tokenizer(ALPHABET).save(home / "tokenizer.json")
    assert run_command("prepare", ["talk.jsonl", "--tokenizer", "tokenizer.json"]) == 0
    return open_dataset("talk")


def test_nul_in_a_message_is_removed_and_counted(dataset, home, capsys):
    talk = (home / "talk.jsonl").read_text().replace("is a a", "is \\u0000a a")
    (home / "nul.jsonl").write_text(talk)
    assert run_command("prepare", ["nul.jsonl", "--tokenizer", "tokenizer.json"]) == 0
    assert "NUL characters removed: " in capsys.readouterr().err
    tokens = [open_dataset(name).train.tolist() for name in ("talk", "nul")]
    assert tokens[0] == tokens[1]


def test_the_files_of_a_chat_dataset_are_known_when_it_is_deleted(dataset, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    monkeypatch.setattr(questions, "at_terminal", lambda: True)
    assert run_command("dataset", ["delete", "talk"]) == 1
    assert "which gptlab did not write" not in capsys.readouterr().out


def train(**options):
    small = dict(
        dataset="talk", n_layer=1, n_head=2, n_embd=32, block_size=48, dropout=0.0, batch_size=8,
        max_iters=3, eval_tokens=10**6, log_interval=1, quiet=True, device="cpu", dtype="float32",
        compile_model=False, out_dir="out/talk",
    )  # fmt: skip
    return trainer.train(**small | options)


def say(monkeypatch, capsys, *words, typed=""):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode()), "utf-8"))
    capsys.readouterr()
    code = run_command("sample", ["--out_dir", "out/talk", "--device", "cpu", *words])
    return (code, *capsys.readouterr())


def test_the_loss_of_training_and_of_validation_is_that_of_the_answers(dataset):
    train(max_iters=1, eval_interval=1, learning_rate=1e-9, warmup_iters=0)
    model = load_checkpoint("out/talk").model
    sequences = Sequences(
        dataset.train, dataset.train_loss_mask, vocab_size=dataset.vocab_size, block_size=48,
        seed=1337,
    )  # fmt: skip
    windows = [sequences.windows(np.arange(8))]
    starts = range(0, len(dataset.val) - 1, 48)
    pairs = [(np.array(d[s : s + 49]), c[s : s + 49]) for d, c in
             [(dataset.val, dataset.val_loss_mask)] for s in starts]  # fmt: skip
    val = [
        (ids[None, :-1].astype(int), np.where(mask[1:], ids[1:].astype(int), -1)[None])
        for ids, mask in pairs
    ]
    record = {key: r[key] for r in Run("out/talk").records() for key in r}
    for name, parts in (("loss", windows), ("val_loss", val)):
        total = count = 0
        for tokens, targets in parts:
            logits = model(torch.from_numpy(tokens))[0].detach().log_softmax(-1).numpy()
            for row, wanted in zip(logits.reshape(-1, logits.shape[-1]), targets.flat, strict=True):
                if wanted != -1:
                    total, count = total - row[wanted], count + 1
        assert record[name] == pytest.approx(total / count, abs=1e-4), name


def test_an_evaluation_without_an_assistant_turn_is_refused_before_training(dataset):
    with pytest.raises(DataError, match="use a larger --eval_tokens"):
        train(block_size=4, eval_tokens=4)
    assert not Run("out/talk").exists()


def test_a_model_learns_to_answer_and_to_stop(dataset, monkeypatch, capsys):
    train(max_iters=60, learning_rate=1e-2, eval_interval=60)
    code, out, _ = say(
        monkeypatch,
        capsys,
        "--chat",
        "--prompt",
        "is Q a letter?",
        "--temperature",
        "0",
        "--max_tokens",
        "8",
    )
    assert (code, out) == (0, "yes\n")
    code, out, _ = say(
        monkeypatch, capsys, "--chat", "--interactive", "--temperature", "0", "--max_tokens", "8",
        typed="is R a letter?\nis S a letter?\n",
    )  # fmt: skip
    assert (code, out) == (0, "yes\nyes\n")
    assert main(["evaluate", "out/talk", "--dataset", "talk", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] < 0.5 and found["tokens"] <= int(dataset.val_loss_mask.sum())


def test_the_template_travels_in_both_checkpoints_and_through_a_resume(dataset):
    train(max_iters=2)
    trainer.train(out_dir="out/talk", resume=True, max_iters=3, quiet=True)
    template = dataset.meta["chat_template"]
    for name in ("best.pt", "ckpt.pt"):
        assert read_checkpoint(f"out/talk/{name}")["chat_template"] == template


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--chat", "--num_samples", "2"], "leave --num_samples out"),
        (["--system", "Be brief."], "add --chat"),
        (["--chat", "--prompt", "a" * 100], "shorten it"),
    ],
)
def test_input_that_is_not_a_conversation_is_one_sentence(
    dataset, monkeypatch, capsys, words, sentence
):
    train(max_iters=1)
    code, out, err = say(monkeypatch, capsys, *words)
    assert code == 2 and sentence in err and not out
