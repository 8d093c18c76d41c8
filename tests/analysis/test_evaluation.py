"""Evaluations against transformers and against sums made by hand."""

import math

import numpy as np
import pytest
import torch

from gptlab.analysis.evaluation import evaluate_dataset, evaluate_text, open_model
from gptlab.checkpoints import model_content
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.tokenizer import char_tokenizer_without_end, train_bpe
from gptlab.data.windows import evaluation_windows
from gptlab.errors import CheckpointError, ConfigError, DataError
from gptlab.inference.evaluate import evaluate_loss, sliding_windows
from gptlab.interop.write.export import export
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.runs import Run, load_checkpoint

TEXT = "To be, or not to be: that is the question, naïve Müller. " * 5
BLOCK = 16


@pytest.fixture
def text(home):
    path = home / "held_out.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def checkpoint(home):
    """A random model with a BPE, as a run."""
    return make(home, train_bpe([TEXT], 300))


def make(home, tokenizer, name="run"):
    torch.manual_seed(0)
    config = GPTConfig(
        block_size=BLOCK, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_embd=16,
        dropout=0.0, init_std=0.3,
    )  # fmt: skip
    run = Run(home / "out" / name)
    run.begin()
    run.save_best(model_content(GPT(config), tokenizer, step=3, val_loss=1.5))
    run.end()
    return load_checkpoint(run.folder)


@torch.no_grad()
def by_hand(checkpoint, ids, stride):
    """{position of the token in ids: its loss}, a window at a time, and its place in the window."""
    losses, end, start = {}, 0, 0
    while end < len(ids) - 1:
        window = torch.tensor([ids[start : start + BLOCK + 1]])
        logits = checkpoint.model(window[:, :-1])[0][0].log_softmax(-1)
        for place in range(window.size(1) - 1):
            if start + place + 1 > end:
                token = int(window[0, place + 1])
                losses[start + place + 1] = (float(-logits[place, token]), place + 1)
        end, start = min(start + BLOCK, len(ids) - 1), start + stride
    return losses


@pytest.mark.parametrize("stride", [None, 5, 1])
def test_every_token_counts_once_with_the_context_that_its_window_has(checkpoint, text, stride):
    found = evaluate_text(checkpoint, str(text), stride=stride)
    ids = [checkpoint.tokenizer.eot_id, *checkpoint.tokenizer.encode(TEXT)]
    losses = by_hand(checkpoint, ids, stride or BLOCK)
    assert found.measured.tokens == len(losses) == len(ids) - 1
    mean = sum(loss for loss, _ in losses.values()) / len(losses)
    assert found.measured.loss == pytest.approx(mean, abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(mean), rel=1e-4)
    bits = sum(loss for loss, _ in losses.values()) / math.log(2) / len(TEXT.encode())
    assert found.bits_per_byte == pytest.approx(bits, rel=1e-5) and found.bytes == len(
        TEXT.encode()
    )
    for first, last, tokens, loss in found.measured.by_position():
        own = [value for value, place in losses.values() if first <= place <= last]
        assert len(own) == tokens and loss == pytest.approx(sum(own) / len(own), abs=1e-5)


def test_the_ranges_of_positions_double_and_hold_every_token(checkpoint, text):
    found = evaluate_text(checkpoint, str(text)).measured
    rows = found.by_position()
    assert [row[:2] for row in rows] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16)]
    assert sum(row[2] for row in rows) == found.tokens


@pytest.mark.parametrize("n_tokens", [2, 3, 16, 17, 18, 40])
@pytest.mark.parametrize("stride", [1, 5, 15, 16])
def test_windows_predict_each_token_once_after_enough_others(n_tokens, stride):
    predicted = []
    for start, known in sliding_windows(n_tokens, BLOCK, stride):
        targets = range(start + 1, min(start + BLOCK, n_tokens - 1) + 1)
        predicted += targets[known:]
        assert known >= BLOCK - stride or start == 0 or targets[-1] == n_tokens - 1
    assert predicted == list(range(1, n_tokens))


@pytest.mark.parametrize("stride", [None, 6])
def test_the_loss_is_that_of_transformers_on_the_exported_model(checkpoint, text, home, stride):
    """The loop of transformers' own guide to the perplexity of models of fixed length."""
    transformers = pytest.importorskip("transformers")
    export(checkpoint, "hf", home / "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained(home / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(home / "hf")
    ids = [tokenizer.eos_token_id, *tokenizer(TEXT)["input_ids"]]
    ids, total, count, before = torch.tensor([ids]), 0.0, 0, 0
    length, step = BLOCK + 1, stride or BLOCK  # a window of ours and the target of its last token
    for begin in range(0, ids.size(1), step):
        end = min(begin + length, ids.size(1))
        fresh = end - max(before, begin + 1)
        labels = ids[:, begin:end].clone()
        labels[:, :-fresh] = -100
        with torch.no_grad():
            total += float(model(ids[:, begin:end], labels=labels).loss) * fresh
        count, before = count + fresh, end
        if end == ids.size(1):
            break
    for word in (str(home / "hf"), "run"):  # the folder itself, and the run by its name
        opened, run = open_model(word)
        assert (run is None) == (word != "run")
        found = evaluate_text(opened, str(text), stride=stride)
        assert found.measured.tokens == count
        assert found.measured.loss == pytest.approx(total / count, abs=1e-4)


def test_each_document_starts_a_new_context_and_separators_do_not_count(checkpoint, home):
    (home / "two.jsonl").write_text('{"text": "To be"}\n{"text": "or not"}\n', encoding="utf-8")
    found = evaluate_text(checkpoint, str(home / "two.jsonl"))
    tokenizer = checkpoint.tokenizer
    parts = [tokenizer.encode(part) for part in ("To be", "or not")]
    ids = [tokenizer.eot_id, *parts[0], tokenizer.eot_id, *parts[1]]
    losses = by_hand(checkpoint, ids, BLOCK)
    del losses[len(parts[0]) + 1]
    assert found.bytes == len("To beor not") and found.measured.tokens == sum(map(len, parts))
    mean = sum(loss for loss, _ in losses.values()) / len(losses)
    assert found.measured.loss == pytest.approx(mean, abs=1e-5)


def test_without_a_mark_before_texts_the_first_token_is_given(home, text):
    checkpoint = make(home, char_tokenizer_without_end(sorted(set(TEXT))), "plain")
    found = evaluate_text(checkpoint, str(text))
    assert found.measured.tokens == len(TEXT) - 1
    assert found.bytes == len(TEXT.encode()) - 1  # the T


def test_the_first_tokens_of_a_text_alone_count_their_own_bytes(checkpoint, text):
    found = evaluate_text(checkpoint, str(text), max_tokens=7)
    own = checkpoint.tokenizer.encode(TEXT)[:7]
    assert found.measured.tokens == 7
    assert found.bytes == len(checkpoint.tokenizer.decode(own).encode())


def test_a_dataset_gives_the_loss_that_training_measures(home, text):
    prepared = prepare(str(text), PrepareOptions(tokenizer="char")).dataset
    checkpoint = make(home, prepared.tokenizer, "chars")
    for most in (None, 40):
        found = evaluate_dataset(checkpoint, "held_out", max_tokens=most)
        windows = evaluation_windows(len(prepared.val), BLOCK, most)
        loss = evaluate_loss(checkpoint.model, prepared.val, windows, BLOCK, 4, "cpu")
        assert found.measured.loss == pytest.approx(loss, abs=1e-6)
        per_byte = len(prepared.val) / prepared.meta["val_bytes"]
        assert found.bits_per_byte == pytest.approx(loss / math.log(2) * per_byte, rel=1e-5)


def test_the_loss_without_text_of_the_training_part_stands_beside_that_of_all(home):
    letters = "".join(np.random.default_rng(0).choice(list("abcdefgh"), 3000))
    (home / "t.txt").write_text(letters + letters[40:140], encoding="utf-8")
    data = prepare("t.txt", PrepareOptions(tokenizer="char")).dataset
    leaked = {i for a, b in data.val_leaks.tolist() for i in range(a, b)}
    checkpoint = make(home, data.tokenizer, "chars")
    for stride in (BLOCK, 5):
        found = evaluate_dataset(checkpoint, "t", stride=stride)
        losses = by_hand(checkpoint, data.val.tolist(), stride)
        assert found.measured.loss == pytest.approx(np.mean([x for x, _ in losses.values()]), 1e-5)
        window_of = {at: at - place for at, (_, place) in losses.items()}
        clean = [
            loss
            for at, (loss, _) in losses.items()
            if not leaked & set(range(window_of[at] + 1, window_of[at] + BLOCK + 1))
        ]
        assert 0 < len(clean) < len(losses) and found.clean.tokens == len(clean)
        assert found.clean.loss == pytest.approx(np.mean(clean), 1e-5)
        assert found.to_dict()["clean_loss"] == found.clean.loss


def test_a_shorter_window_sees_less(checkpoint, text):
    found = evaluate_text(checkpoint, str(text), block_size=4)
    assert len(found.measured.counts) == 4
    assert not np.isclose(found.measured.loss, evaluate_text(checkpoint, str(text)).measured.loss)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(block_size=17), "use 16 or less"),
        (dict(stride=17), "use 16 or less"),
        (dict(stride=0), "use 1 or more"),
        (dict(block_size=0), "use 1 or more"),
    ],
)
def test_windows_that_cannot_be_are_refused(checkpoint, text, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        evaluate_text(checkpoint, str(text), **options)


def test_what_does_not_belong_together_is_refused(checkpoint, home, text):
    prepare(str(text), PrepareOptions(tokenizer="char"))
    with pytest.raises(ConfigError, match="another tokenizer"):
        evaluate_dataset(checkpoint, "held_out")
    with pytest.raises(CheckpointError, match="No model found at"):
        open_model("nowhere")
    (home / "blank.txt").write_text("")
    with pytest.raises(DataError, match="no text"):
        evaluate_text(checkpoint, str(home / "blank.txt"))
    torch.manual_seed(0)
    run = Run(home / "out" / "ids")
    run.begin()
    run.save_best(model_content(checkpoint.model, None))
    run.end()
    with pytest.raises(CheckpointError, match="without a tokenizer"):
        evaluate_text(load_checkpoint(run.folder), str(text))
