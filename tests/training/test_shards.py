"""Training on shards is training on one file; attention can stop at the borders of documents."""

import itertools
import math

import pytest
import torch

from gptlab.analysis.blame import blame
from gptlab.analysis.evaluation import evaluate_dataset
from gptlab.analysis.replay import replay
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.token_files import open_dataset
from gptlab.errors import ConfigError
from gptlab.model.documents import document_mask
from gptlab.runs import Run, load_checkpoint
from tests.training.conftest import generated_text


@pytest.fixture(scope="module")
def in_shards(prepared_home):
    """The datasets "one", of one file each for training and validation, and "many", the same text
    in shards; "few" and "parts", another one, with the same tokenizer."""
    (prepared_home / "lines.txt").write_text(generated_text(5000))
    (prepared_home / "others.txt").write_text(generated_text(8000)[25_000:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_HOME", str(prepared_home))
        how = dict(document="line", tokenizer=str(prepared_home / "data" / "tiny"))
        how["val_fraction"] = 0.3
        for text, names in (("lines", ("one", "many")), ("others", ("few", "parts"))):
            for name, size in zip(names, ("100M", "2k"), strict=True):
                made = PrepareOptions(dataset=name, shard_tokens=size, **how)
                prepare(str(prepared_home / f"{text}.txt"), made)
        assert len(open_dataset("many").train.files) > 5
        assert len(open_dataset("parts").val.files) > 1
    return prepared_home


def trained(train, out_dir, dataset, **options):
    train(str(out_dir), dataset=dataset, max_iters=8, eval_interval=4, log_interval=1, **options)
    return [
        {name: value for name, value in record.items() if "loss" in name or "norm" in name}
        for record in Run(out_dir).records()
    ]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("words", [("one", "many"), ("one:0.6,few:0.4", "many:0.6,parts:0.4")])
def test_a_run_on_shards_is_bitwise_that_on_one_file(train, tmp_path, in_shards, words, masked):
    one, many = (
        trained(train, tmp_path / name, word, document_mask=masked, dropout=0.1)
        for name, word in zip("ab", words, strict=True)
    )
    if "," in words[0]:  # the losses of each dataset have its name
        for record in one + many:
            record.pop("val_losses", None)
    assert one == many and sum("loss" in record for record in one) == 8
    weights = [load_checkpoint(tmp_path / name).model.state_dict() for name in "ab"]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_on_one_file_goes_on_in_shards_and_its_text_is_found(train, tmp_path, in_shards):
    trained(train, tmp_path / "a", "one")
    trained(train, tmp_path / "b", "one")
    run = dict(resume=True, max_iters=12)
    train(str(tmp_path / "a"), dataset="many", **run)  # the same tokens: no other data
    train(str(tmp_path / "b"), dataset="one", **run)
    found = [load_checkpoint(tmp_path / name / "ckpt.pt").model.state_dict() for name in "ab"]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    blamed = [blame(str(tmp_path / name), 12, top=4).windows for name in "ab"]
    assert [w.tokens for w in blamed[0]] == [w.tokens for w in blamed[1]]
    assert blamed[0][0].places == blamed[1][0].places != ()
    assert replay(tmp_path / "a", steps=8).difference is None


def test_each_dataset_of_shards_keeps_its_position_when_a_text_grows(train, tmp_path, in_shards):
    word = "many:0.6,grown:0.4"
    how = dict(document="line", tokenizer=str(in_shards / "data" / "tiny"), shard_tokens="2k")

    def prepare_grown(words):
        (in_shards / "grown.txt").write_text(generated_text(words))
        return prepare(str(in_shards / "grown.txt"), PrepareOptions(**how)).dataset

    prepare_grown(3000)
    whole = trained(train, tmp_path / "whole", word)
    train(str(tmp_path / "part"), dataset=word, max_iters=8, eval_interval=4, stop_at=3)
    assert prepare_grown(4000).meta["version"] == 2
    train(str(tmp_path / "part"), resume=True)
    losses = [
        [record["loss"] for record in Run(tmp_path / name).records() if "loss" in record]
        for name in ("whole", "part")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == len(whole) - 2 == 8


# Attention that stops at document borders ---------------------------------------------------------


def test_masked_training_evaluates_and_is_evaluated_under_the_mask(train, tmp_path, in_shards):
    run = tmp_path / "run"
    records = trained(train, run, "one", document_mask=True, eval_tokens=512)
    checkpoint = load_checkpoint(run / "ckpt.pt")
    dataset = open_dataset("one")
    assert checkpoint.separator == dataset.tokenizer.eot_id
    measured = evaluate_dataset(checkpoint, "one", max_tokens=512).measured.loss
    assert measured == pytest.approx(records[-1]["val_loss"], rel=1e-6)
    held_out, nats = dataset.validation(16, 512), []
    for start in held_out.starts:  # each window by hand, document by document
        ids = torch.tensor(dataset.val[start : start + 17].astype("int64"))
        begins = [0, *(i for i in range(1, 16) if ids[i] == dataset.tokenizer.eot_id), 16]
        for a, b in itertools.pairwise(begins):
            loss = checkpoint.model(ids[None, a:b], ids[None, a + 1 : b + 1], reduction="sum")[1]
            nats.append(loss.item())
    assert len(nats) > len(held_out.starts)
    assert math.fsum(nats) / (16 * len(held_out.starts)) == pytest.approx(measured, rel=1e-5)
    plain = trained(train, tmp_path / "plain", "one", eval_tokens=512)
    assert plain[-1]["val_loss"] != records[-1]["val_loss"]
    assert load_checkpoint(tmp_path / "plain" / "ckpt.pt").separator is None


def test_micro_batches_and_checkpointed_blocks_take_the_mask(train, tmp_path, in_shards):
    masked = trained(train, tmp_path / "a", "one", document_mask=True)
    again = trained(
        train, tmp_path / "b", "one", document_mask=True, gradient_checkpointing=True, batch_size=2,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    for one, other in zip(masked, again, strict=True):
        assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dataset": "tiny"}, "tiny is one document without an end of text"),
        ({"dataset": "one:1,tiny:1"}, "tiny is one document"),
        (
            {"dataset": "task:copying", "block_size": 32},
            "copying.* is a task, whose rows are whole problems",
        ),
        ({"dataset": "one", "position_encoding": "learned"}, "counts from the beginning of a row"),
    ],
)
def test_a_mask_that_has_no_effect_or_would_not_be_exact_is_refused(
    train, in_shards, options, sentence
):
    with pytest.raises(ConfigError, match=sentence):
        train(document_mask=True, max_iters=1, **options)


def test_a_mask_of_every_document_costs_no_more_than_the_tokens_say():
    tokens = torch.tensor([[1, 2, 0, 3, 0, 0, 4, 5]])
    seen = document_mask(tokens, 0).sum(-1).flatten()
    assert seen.tolist() == [1, 2, 1, 2, 1, 1, 2, 3]
