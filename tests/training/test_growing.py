"""A model and a text that grows: the vocabulary widens, an unfinished run keeps its old tokens."""

import re
import shlex

import pytest
import torch

from gptlab.checkpoints import read_checkpoint
from gptlab.cli.main import main
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.token_files import open_dataset
from gptlab.errors import ConfigError, RunError
from gptlab.model.proof import difference_from
from gptlab.runs import load_checkpoint

DIARY = "Monday: rain, and a walk by the river.\n" * 60
TODAY = "Today: coffee for 3 €, naïve\n"
GROWN = DIARY + TODAY * 10


@pytest.fixture
def diary(tmp_path, monkeypatch):
    """Prepare a text as the dataset `diary` of an empty home, where the commands run."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def write(text=DIARY, **options):
        (tmp_path / "diary.txt").write_text(text, encoding="utf-8")
        return prepare("diary.txt", PrepareOptions(**options)).dataset

    write()
    return write


def follow(sentence):
    """Run each command that a message names between backticks; its program's exit code is 0."""
    commands = re.findall(r"`python (\w+)\.py (.*?)`", sentence)
    assert commands
    for program, words in commands:
        assert main([program, *shlex.split(words)]) == 0, words
    return [program for program, _ in commands]


@pytest.mark.parametrize(("tied", "optimizer"), [(True, "adamw"), (False, "muon")])
def test_a_widened_model_has_the_old_logits_and_learns_the_new_characters(
    train, diary, tmp_path, tied, optimizer
):
    options = dict(dataset="diary", optimizer=optimizer)
    train("out/old", **options, tie_weights=tied, max_iters=5)
    grown = diary(GROWN)
    started = dict(init_from="out/old", extend_vocabulary=True, **options)
    train("out/still", **started, max_iters=1, learning_rate=1e-30, weight_decay=0.0)
    old, new = (load_checkpoint(tmp_path / "out" / name).model for name in ("old", "still"))
    size = old.config.vocab_size
    assert new.config.vocab_size == grown.vocab_size == size + 6
    assert ("lm_head.weight" in read_checkpoint(tmp_path / "out/still/ckpt.pt")["model"]) != tied
    tokens = torch.randint(size, (4, 16))
    assert torch.equal(new(tokens)[0][..., :size], old(tokens)[0])
    stored = read_checkpoint(tmp_path / "out/still/ckpt.pt")
    assert difference_from(stored["proof"], new) == ""
    # and a training of it, stopped and resumed, ends as an unbroken one
    train("out/whole", **started, max_iters=8, ema_decay=0.9)
    train("out/broken", **started, max_iters=8, ema_decay=0.9, stop_at=5)
    train("out/broken", resume=True)
    whole, broken = (read_checkpoint(tmp_path / "out" / n / "ckpt.pt") for n in ("whole", "broken"))
    for name, weight in whole["model"].items():
        assert torch.equal(weight, broken["model"][name]), name
    before = new.token_embedding.weight[size:]
    assert not torch.equal(whole["model"]["token_embedding.weight"][size:], before)


def test_a_new_character_is_no_likelier_than_the_old_ones_on_average(train, diary, tmp_path):
    train("out/old", dataset="diary", max_iters=5, learning_rate=1e-2)
    diary(GROWN)
    train(
        "out/new", dataset="diary", init_from="out/old", extend_vocabulary=True, max_iters=1,
        learning_rate=1e-30, weight_decay=0.0,
    )  # fmt: skip
    model = load_checkpoint(tmp_path / "out/new").model
    shares = model(torch.randint(model.config.vocab_size - 6, (8, 16)))[0].softmax(-1)
    assert (shares[..., -6:].sum(-1) <= 6 / model.config.vocab_size + 1e-6).all()


def test_without_the_option_the_refusal_names_the_command_that_works(train, diary, tmp_path):
    train("out/old", dataset="diary", max_iters=2)
    diary(GROWN)
    with pytest.raises(ConfigError) as caught:
        train("out/new", dataset="diary", init_from="out/old", max_iters=3)
    sentence = str(caught.value)
    assert "'3' (U+0033)" in sentence and "'ï' (U+00EF)" in sentence
    assert "--max_iters 3" in sentence  # the user's own options
    assert follow(sentence) == ["train"]
    assert load_checkpoint(tmp_path / "out/new/ckpt.pt").step == 3


def test_a_dataset_with_other_ids_is_prepared_as_the_refusal_says(train, diary, tmp_path):
    train("out/old", dataset="diary", max_iters=2)
    diary(GROWN, overwrite=True)  # as a release that did not keep the ids
    with pytest.raises(ConfigError, match="another tokenizer than diary") as caught:
        train("out/new", dataset="diary", init_from="out/old", max_iters=3)
    assert follow(str(caught.value)) == ["prepare", "train"]
    assert load_checkpoint(tmp_path / "out/new/ckpt.pt").step == 3
    assert open_dataset("diary").tokenizer.extends(load_checkpoint(tmp_path / "out/old").tokenizer)


def test_a_model_of_bpe_goes_on_with_a_text_of_characters_as_the_refusal_says(
    train, diary, tmp_path
):
    diary(DIARY, dataset="merged", tokenizer="bpe", vocab_size=300)
    train("out/old", dataset="merged", max_iters=2)
    with pytest.raises(ConfigError) as caught:
        train("out/new", dataset="diary", init_from="out/old", max_iters=3)
    assert "--unknown" not in str(caught.value) and "--extend" not in str(caught.value)
    assert follow(str(caught.value)) == ["prepare", "train"]


def test_an_unfinished_run_goes_on_with_the_tokens_that_it_began_with(train, diary, tmp_path):
    train("out/whole", dataset="diary", max_iters=8)
    train("out/broken", dataset="diary", max_iters=8, stop_at=3)
    diary(GROWN)
    diary(GROWN + "!")
    assert train("out/broken", resume=True).step == 8
    whole, broken = (read_checkpoint(tmp_path / "out" / n / "ckpt.pt") for n in ("whole", "broken"))
    assert broken["dataset"]["fingerprint"] == whole["dataset"]["fingerprint"]
    for name, weight in whole["model"].items():
        assert torch.equal(weight, broken["model"][name]), name


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_resume_whose_tokens_are_gone_names_commands_that_go_on(
    train, diary, tmp_path, overwrite
):
    from gptlab.data.versions import forget_versions

    train("out/diary", dataset="diary", max_iters=3)
    grown = diary(GROWN, overwrite=overwrite)
    forget_versions(grown.folder, [])
    with pytest.raises(RunError, match="trained on other data") as caught:
        train("out/diary", resume=True, max_iters=5)
    assert follow(str(caught.value)) == (["prepare"] * overwrite + ["train"])
    new = load_checkpoint(tmp_path / "out/diary_2/ckpt.pt")
    assert new.step == 5 and new.tokenizer.extends(
        load_checkpoint(tmp_path / "out/diary").tokenizer
    )


def test_the_refusal_of_unknown_characters_names_ways_that_work(train, diary, tmp_path):
    train("out/old", dataset="diary", max_iters=2)
    (tmp_path / "d2.txt").write_text(GROWN, encoding="utf-8")
    words = ["prepare", "d2.txt", "--tokenizer", "out/old"]
    assert main(words) == 2
    assert main([*words, "--unknown", "add"]) == 0
    small = ["--max_iters", "1", "--device", "cpu", "--quiet"]
    start = ["train", "--dataset", "d2", "--init_from", "out/old", *small]
    assert main([*start, "--out_dir", "out/wide", "--extend_vocabulary"]) == 0
    assert main([*words, "--unknown", "drop"]) == 0
    assert main([*start, "--out_dir", "out/narrow"]) == 0
    assert main([*words, "--unknown", "replace:river"]) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(extend_vocabulary=True), "name the model with --init_from"),
        (dict(extend_vocabulary=True, init_from="out/old", lora_rank=2), "leave lora_rank out"),
        (dict(extend_vocabulary=True, init_from="out/old", freeze_layers=1), "leave freeze_layers"),
    ],
)
def test_an_extension_that_could_not_be_learned_is_refused(train, diary, options, sentence):
    train("out/old", dataset="diary", max_iters=1)
    diary(GROWN)
    with pytest.raises(ConfigError, match=sentence):
        train("out/new", dataset="diary", **options)


def test_adapters_are_trained_on_a_widened_model(train, diary, tmp_path):
    train("out/old", dataset="diary", max_iters=2)
    diary(GROWN)
    wide = dict(dataset="diary", extend_vocabulary=True)
    train("out/wide", **wide, init_from="out/old", max_iters=2)
    train("out/lora", dataset="diary", init_from="out/wide", lora_rank=2, max_iters=2)
    # and a model with adapters is widened
    diary(GROWN + "!")
    train("out/wider", **wide, init_from="out/lora/ckpt.pt", max_iters=2)
    wider = load_checkpoint(tmp_path / "out/wider").model
    assert wider.config.vocab_size == open_dataset("diary").vocab_size
