"""The text behind a step: what the model was trained on, and its losses, hardest first."""

import math
import random
import shutil

import numpy as np
import pytest
import torch

from gptlab.analysis.blame import Window, blame, level, pieces, sequences_of, token_losses
from gptlab.checkpoints import read_checkpoint
from gptlab.data.batches import Batches
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.tokenizer import Tokenizer
from gptlab.data.versions import forget_versions
from gptlab.errors import CheckpointError, ConfigError, DataError, RunError
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.runs import Run

GARBAGE_LENGTH = 400


@pytest.fixture
def met(monkeypatch):
    """{step: rows of tokens and targets} that the training really read, in its order."""
    rows, original = [], Batches.micro_batches

    def recording(batches, first):
        rows.append([])
        for micro in original(batches, first):
            both = torch.cat((micro.tokens, micro.targets[:, -1:]), dim=1)
            rows[-1] += both.tolist()
            yield micro

    monkeypatch.setattr(Batches, "micro_batches", recording)
    return rows  # of step s at s - 1


def test_it_shows_what_the_training_read_also_after_the_batch_changed_at_a_resume(train, met):
    folder = train(max_iters=17, log_interval=5, gradient_accumulation_steps=2)
    train(resume=True, max_iters=30, batch_size=3)  # between the records of steps 15 and 20
    assert len(met) == 30
    for step in (1, 2, 7, 15, 16, 17, 18, 19, 20, 21, 29, 30):
        found = blame(folder, step, top=100)
        assert found.count == (8 if step <= 17 else 6)
        assert sorted(w.tokens for w in found.windows) == sorted(met[step - 1])
        in_order = [w.tokens for w in sorted(found.windows, key=lambda w: w.sequence)]
        assert in_order == met[step - 1]


def test_it_shows_what_the_training_read_also_after_a_roll_back(train, met, monkeypatch):
    recording, spike = Batches.micro_batches, 107

    def spiking(batches, first):
        for micro in recording(batches, first):
            if first == 4 * (spike - 1):
                micro.targets.fill_(batches.sequences.parts[0].vocab_size - 1)
            yield micro

    monkeypatch.setattr(Batches, "micro_batches", spiking)
    folder = train(max_iters=120, eval_interval=120, checkpoint_interval=10, spike_rollback=4.0)
    assert len(met) == 120 + 7  # steps 101 to 107 were taken twice
    del met[100:107]
    for interval in (1, 15):  # and as if only these steps had been logged
        run = Run(folder)
        kept = [r for r in run.records() if r["step"] % interval == 0 or "rolled_back" in r]
        run.metrics.unlink()
        for record in kept:
            run.append(record)
        for step in (99, 100, 101, 102, 119, 120):
            found = blame(folder, step, top=100)
            in_order = [w.tokens for w in sorted(found.windows, key=lambda w: w.sequence)]
            assert in_order == met[step - 1]


def test_a_garbage_document_comes_first_at_the_steps_that_met_it(train, met):
    folder = train(max_iters=70)
    tokenizer = Tokenizer.from_json(read_checkpoint(folder / "best.pt")["tokenizer"]["json"])
    with open("books/garbage.txt", encoding="utf-8") as file:
        garbage = file.read().strip()
    assert len(garbage) == GARBAGE_LENGTH
    steps = [
        step
        for step, rows in enumerate(met, start=1)
        if any(tokenizer.decode(row) in garbage for row in rows)
    ]
    assert steps  # the slow way: every window of every step, decoded
    for step in steps[:4]:
        hardest = blame(folder, step, top=2).windows[0]
        assert tokenizer.decode(hardest.tokens) in garbage
        assert str(hardest.places[0]) == "books/garbage.txt:1"
        assert hardest.loss > 1.3 * np.mean([w.loss for w in blame(folder, 1).windows[1:]])


def test_the_losses_are_those_of_the_plain_formula_and_sorted(train):
    folder = train()
    found = blame(folder, 3)
    model = found.checkpoint.model
    for window in found.windows:
        logits = model(torch.tensor([window.tokens[:-1]]))[0][0].double()
        logs = logits - logits.exp().sum(-1, keepdim=True).log()
        expected = [-logs[i, token].item() for i, token in enumerate(window.tokens[1:])]
        assert window.losses == pytest.approx(expected, abs=1e-4)
        assert window.loss == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    losses = [window.loss for window in found.windows]
    assert losses == sorted(losses, reverse=True)
    assert found.loss == pytest.approx(np.mean(losses), abs=1e-4)
    assert found.uniform_loss == pytest.approx(math.log(found.data.vocab_size))


def test_the_losses_of_a_batch_do_not_depend_on_the_pieces_they_are_computed_in(monkeypatch):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=11, n_layer=1, n_head=2, n_kv_head=2, n_embd=8, block_size=6))
    ids = torch.randint(11, (3, 7))
    whole = token_losses(model.eval(), ids[:, :-1], ids[:, 1:])
    assert whole.shape == (3, 6)
    monkeypatch.setattr("gptlab.inference.evaluate.LOGITS", 44)
    assert torch.allclose(token_losses(model, ids[:, :-1], ids[:, 1:]), whole, atol=1e-6)


def test_the_record_is_that_of_the_step_or_of_the_nearest_one(train):
    folder = train(max_iters=12, log_interval=5)
    fifth = next(r for r in Run(folder).records() if r["step"] == 5 and "loss" in r)
    assert blame(folder, 5).record == fifth
    traced = blame(folder, 6).record  # metrics.jsonl has nothing of it, trace.jsonl has
    assert traced["step"] == 6 and traced["loss"] == pytest.approx(fifth["loss"], abs=0.5)
    (folder / "trace.jsonl").unlink()
    assert blame(folder, 6).record == fifth


def test_the_checkpoint_is_the_one_asked_for_and_best_by_default(train):
    folder = train()
    for asked, name in ((None, "best.pt"), ("best", "best.pt"), ("ckpt", "ckpt.pt")):
        assert blame(folder, 1, checkpoint=asked).checkpoint.path == folder / name
    (folder / "best.pt").unlink()
    assert blame(folder, 1).checkpoint.path.name == "ckpt.pt"
    with pytest.raises(CheckpointError, match=r"no checkpoint .*best\.pt"):
        blame(folder, 1, checkpoint="best")


@pytest.mark.parametrize("step", [0, -1, 13])
def test_a_step_that_the_run_has_not_taken_is_refused(train, step):
    with pytest.raises(ConfigError, match="has taken 12 steps, so choose one from 1 to 12"):
        blame(train(), step)


def test_data_that_are_gone_or_changed_are_a_sentence(train, tmp_path):
    folder = train()
    book = tmp_path / "books" / "b3.txt"
    book.write_text(book.read_text().replace("the", "teh"), encoding="utf-8")
    books = prepare("books", PrepareOptions(tokenizer="char", split="document")).dataset
    assert blame(folder, 1).windows  # of the version that the run began with
    forget_versions(books.folder, [])
    with pytest.raises(RunError, match="trained on other data than books now holds"):
        blame(folder, 1)
    shutil.rmtree(tmp_path / "data" / "books")
    with pytest.raises(DataError, match="No prepared dataset 'books'"):
        blame(folder, 1)


def test_a_folder_without_records_is_a_sentence(tmp_path):
    with pytest.raises(RunError, match="no records of a training"):
        blame(tmp_path, 1)


# Which sequences ----------------------------------------------------------------------------------


def test_the_sequences_of_every_step_come_out_of_the_records_alone():
    """Runs with changes of the batch at random steps; unclear ones may be refused, never wrong."""
    chance, refused, asked, compared = random.Random(3), 0, 0, 0
    for _ in range(200):
        interval, length = chance.choice([1, 3, 10]), chance.randint(5, 60)
        changes = {step: chance.randint(1, 9) for step in range(length) if chance.random() < 0.04}
        batch, first, truth, records = 4, 0, {}, []
        for step in range(1, length + 1):
            batch = changes.get(step - 1, batch)
            truth[step] = (first, batch)
            first += batch
            if step == 1 or step % interval == 0:
                records.append({"step": step, "sequences_seen": first})
        between = np.diff([0, *sorted(changes), length])
        for step, expected in truth.items():
            asked += 1
            try:
                found = sequences_of(records, batch, step)
            except RunError:
                refused += 1
                continue
            if min(between) > 2 * interval:  # one change at most between two records
                assert found == expected, (changes, interval, step)
                compared += bool(changes)
    assert refused < asked / 10 and compared > 500


def test_sequences_that_a_roll_back_left_out_belong_to_no_step():
    def seen(step, number):
        return {"step": step, "sequences_seen": number}

    def back(step, first, end):
        return {"step": step, "rolled_back": {"skipped_sequences": [first, end]}}

    # 4 a step; twice back to step 10, from steps 13 and 12, which never became part of the run
    records = [seen(1, 4), seen(10, 40), back(10, 40, 52), back(10, 40, 60), seen(20, 100)]
    firsts = [sequences_of(records, 4, step)[0] for step in range(1, 23)]
    assert firsts == [*range(0, 40, 4), *range(60, 108, 4)]
    # back to a checkpoint that was no step of the log, and no record since
    assert sequences_of([*records, back(23, 112, 120)], 4, 23) == (108, 4)
    assert sequences_of([*records, back(23, 112, 120)], 4, 25) == (124, 4)


# How it is shown ----------------------------------------------------------------------------------


def window_of(tokens):
    return Window(0, "t", 0, tokens, [float(i) for i in range(1, len(tokens))])


def test_tokens_that_share_a_letter_are_shown_together_with_the_highest_loss(home):
    (home / "t.txt").write_text("aé 中文 \U0001f600\n" * 200, encoding="utf-8")
    options = PrepareOptions(tokenizer="bpe", vocab_size=258)
    tokenizer = prepare(str(home / "t.txt"), options).dataset.tokenizer
    ids = [tokenizer.token_bytes(i) for i in range(256)]
    letters = [ids.index(bytes([byte])) for byte in "aé中\U0001f600".encode()]
    shown = pieces(window_of([*letters, tokenizer.eot_id, letters[0]]), tokenizer)
    assert [piece.text for piece in shown] == ["a", "é", "中", "\U0001f600", "", "a"]
    assert [piece.loss for piece in shown] == [None, 2.0, 5.0, 9.0, 10.0, 11.0]
    assert [piece.is_end for piece in shown] == [False] * 4 + [True, False]
    cut = pieces(window_of(letters[:-1]), tokenizer)
    assert cut[-1].text == "\ufffd" and cut[-1].loss == 8.0


def test_without_a_tokenizer_the_ids_are_shown():
    assert [piece.text for piece in pieces(window_of([5, 17]), None)] == ["5 ", "17 "]


def test_the_level_counts_quarters_of_the_uniform_baseline():
    losses = (None, 0.0, 0.99, 1.0, 2.5, 3.9, 4.0, 40.0)
    assert [level(loss, 4.0) for loss in losses] == [0, 0, 0, 1, 2, 3, 4, 4]
