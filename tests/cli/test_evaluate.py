"""gpt.py evaluate: what it prints, keeps and refuses."""

import json

import pytest
import torch

from gptlab.checkpoints import model_content
from gptlab.cli.main import main
from gptlab.data.tokenizer import char_tokenizer
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.runs import Run

TEXT = "to be or not to be, that is the question.\n" * 5


@pytest.fixture
def run(home):
    """A random model of characters as out/run, and held_out.txt in the working directory."""
    (home / "held_out.txt").write_text(TEXT)
    tokenizer = char_tokenizer(TEXT)
    torch.manual_seed(0)
    config = GPTConfig(
        block_size=8, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=8, dropout=0.0
    )
    run = Run(home / "out" / "run")
    run.begin()
    run.save_best(model_content(GPT(config), tokenizer, step=5, val_loss=1.0))
    run.end()
    return run


def evaluate(*words):
    return main(["evaluate", *words, "--device", "cpu"])


def test_it_prints_the_figures_and_keeps_them_in_the_run(run, capsys):
    assert evaluate("--data", "held_out.txt") == 0  # the newest run
    out = capsys.readouterr().out
    assert "bits per byte" in out and "tokens before" in out and f"{len(TEXT)} tokens" in out
    assert evaluate("out/run", "--data", "held_out.txt", "--stride", "4", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    first, second = run.evaluated()
    assert {name: second[name] for name in found} == found
    assert first["stride"] == 8 and found["stride"] == 4 and found["step"] == 5
    assert first["data_sha256"] == second["data_sha256"]
    # of a character model on ASCII a token is a byte
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / 0.6931472)


def test_a_checkpoint_and_a_folder_outside_are_evaluated_and_only_runs_written_to(
    run, home, capsys
):
    assert evaluate("out/run/best.pt", "--data", "held_out.txt", "--json") == 0
    ours = json.loads(capsys.readouterr().out)
    assert main(["export", "out/run", "--output", "hf"]) == 0
    before = {path.name for path in (home / "hf").iterdir()}
    capsys.readouterr()
    assert evaluate("hf", "--data", "held_out.txt", "--json") == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["loss"] == pytest.approx(ours["loss"], abs=1e-6)
    assert {path.name for path in (home / "hf").iterdir()} == before
    assert len(run.evaluated()) == 1


def test_a_new_run_removes_the_evaluations_of_the_old_one(run):
    assert evaluate("--data", "held_out.txt") == 0
    assert run.evaluations.exists()
    run.begin(overwrite=True)
    run.end()
    assert not run.evaluations.exists()


def test_lines_that_no_evaluation_writes_are_left_out(run):
    assert evaluate("--data", "held_out.txt") == 0
    with open(run.evaluations, "a") as file:
        file.write('{"step": 1, "data": "x", "time": "now", "loss": NaN}\n[]\n{"step": 2}\nhalf{')
    assert len(run.evaluated()) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["out/run"], "--data FILE"),
        (["out/run", "--data", "a", "--dataset", "b"], "--data FILE"),
        (["out/run", "--data", "nothing.txt"], "nothing.txt does not exist"),
        (["elsewhere", "--data", "held_out.txt"], "No model found at"),
        (["out/run", "--data", "held_out.txt", "--max_tokens", "0"], "at least 1"),
        (["out/run", "--data", "held_out.txt", "--block_size", "9"], "use 8 or less"),
        (["out/run", "--dataset", "none"], "No prepared dataset"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(run, words, sentence, capsys):
    assert evaluate(*words) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert not run.evaluations.exists()


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_token_files_of_nanogpt_are_evaluated_and_what_nobody_knows_is_left_out(
    run, home, capsys, has_tokenizer
):
    folder, text, tokenizer = (
        home / "data" / "nano",
        "to be or not to be " * 40,
        char_tokenizer(TEXT),
    )
    folder.mkdir(parents=True)
    for name in ("train.bin", "val.bin"):
        (folder / name).write_bytes(tokenizer.encode_to_array(text).astype("<u2").tobytes())
    word = "out/run"
    if not has_tokenizer:
        word, bare = "out/bare", Run(home / "out" / "bare")
        config = GPTConfig(block_size=8, vocab_size=99, n_layer=1, n_head=2, n_embd=8)
        bare.begin()
        bare.save_best(model_content(GPT(config), None, step=5, val_loss=1.0))
        bare.end()
    assert evaluate(word, "--dataset", "nano", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] > 0 and found["tokens"] == len(text) - 1
    # a token is a character of one byte
    assert found["bytes"] == (found["tokens"] if has_tokenizer else None)
    assert evaluate(word, "--dataset", "nano") == 0
    assert ("bits per byte" in capsys.readouterr().out) == has_tokenizer
    assert len(Run(home / word).evaluated()) == 2  # which the report reads
    assert evaluate(word, "--data", str(folder)) == 2
    assert ("--dataset" if has_tokenizer else "tokenizer.json") in capsys.readouterr().err


def test_text_that_the_model_cannot_spell_is_one_sentence(run, home, capsys):
    (home / "strange.txt").write_text("漢字")
    assert evaluate("--data", "strange.txt") == 2
    assert "has none of the characters of strange.txt" in capsys.readouterr().err


def test_characters_that_the_model_lacks_are_left_out_and_counted(run, home, capsys):
    assert evaluate("--data", "held_out.txt", "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    (home / "mixed.txt").write_text(TEXT.replace("to", "3to€ö", 4), encoding="utf-8")
    assert evaluate("--data", "mixed.txt", "--json") == 0
    mixed = json.loads(capsys.readouterr().out)
    assert mixed["unknown_characters"] == {"3": 4, "€": 4, "ö": 4}
    for name in ("loss", "tokens", "bytes", "bits_per_byte"):
        assert mixed[name] == plain[name]
    assert plain["unknown_characters"] == {}
    assert evaluate("--data", "mixed.txt") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "mixed.txt without 12 unknown characters" in shown
    assert "Not measured: 12 characters that the model lacks ('3' (U+0033), 4 times" in shown


def test_samples_of_a_model_without_training_text_are_measured_and_the_reason_is_said(run, capsys):
    assert evaluate("--samples", "2", "--max_tokens", "60", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    measures = {each["name"]: each for each in found["measures"]}
    assert measures["different words"]["samples"] > 0 and len(found["texts"]) == 2
    assert measures["known words"]["samples"] is None
    assert all(each["held_out"] is each["differs"] is None for each in found["measures"])
    assert "does not record which text it was trained on" in found["verdict"]
    (kept,) = run.evaluated()
    assert kept["measures"] == found["measures"] and "texts" not in kept
    assert evaluate("--samples", "2", "--max_tokens", "60") == 0
    out = capsys.readouterr().out
    assert "2 samples of at most 60 tokens, temperature 0.8, seed 1" in " ".join(out.split())
    assert all(f"{name}: " in out for name in measures)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--samples", "4", "--stride", "4"], "--stride has no effect with --samples"),
        (["--data", "x.txt", "--seed", "4"], "--seed has no effect with --data"),
        (["--tasks", "arc", "--max_tokens", "4"], "--max_tokens has no effect with --tasks"),
        (["--samples", "0"], "samples is 0: it must be at least 1"),
        (["--samples", "4000", "--max_tokens", "900"], "3,600,000 tokens to write"),
        (["--samples", "4", "--data", "x.txt"], "Use one of the four"),
    ],
)
def test_options_without_effect_and_too_much_text_are_refused(run, words, problem, capsys):
    assert evaluate(*words) == 2
    assert problem in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def ensemble(run, home):
    """out/run and out/other, a model of its tokenizer with a longer window, as words."""
    make_another(home / "out" / "other", char_tokenizer(TEXT), block_size=12)
    return "out/run", "out/other", "--ensemble"


def make_another(folder, tokenizer, block_size):
    torch.manual_seed(1)
    config = GPTConfig(
        block_size=block_size, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=1, n_embd=8
    )
    other = Run(folder)
    other.begin()
    other.save_best(model_content(GPT(config), tokenizer, step=7, val_loss=1.0))
    other.end()


def test_an_ensemble_is_measured_beside_its_members_and_no_run_records_it(run, ensemble, capsys):
    assert evaluate(*ensemble, "--data", "held_out.txt", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    of_each = []
    for word in ensemble[:2]:
        words = (word, "--data", "held_out.txt", "--block_size", "8", "--json")
        assert evaluate(*words) == 0
        of_each.append(json.loads(capsys.readouterr().out))
    assert [one["step"] for one in found["members"]] == [5, 7]
    for member, alone in zip(found["members"], of_each, strict=True):
        for name in ("model", "loss", "bits_per_byte"):
            assert member[name] == pytest.approx(alone[name], abs=1e-6), name
    # an average of probabilities is never worse than the average of their losses (Jensen)
    assert found["loss"] < sum(one["loss"] for one in of_each) / 2
    assert found["block_size"] == 8 and len(run.evaluated()) == 1
    assert evaluate(*ensemble, "--data", "held_out.txt") == 0
    shown = capsys.readouterr()
    assert "their average" in shown.out and "8, 12: the shortest decides" in shown.out
    assert "none records this" in shown.err and len(run.evaluated()) == 1


def test_what_is_no_ensemble_is_refused_in_a_sentence(home, ensemble, capsys):
    make_another(home / "out" / "foreign", char_tokenizer("xyz"), 8)
    text = ("--data", "held_out.txt")
    refusals = {
        "out/foreign/best.pt has another tokenizer than out/run/best.pt": (
            "out/run", "out/foreign", "--ensemble", *text,
        ),
        "two models or more": ("out/run", "--ensemble", *text),
        "2 models are named": (*ensemble[:2], *text),
        "--samples measures one model": (*ensemble, "--samples", "2"),
        "--tasks measures one model": (*ensemble, "--tasks", "arc_easy"),
        "longer than the window of 8": (*ensemble, *text, "--block_size", "12"),
    }  # fmt: skip
    for sentence, words in refusals.items():
        assert evaluate(*words) == 2
        assert sentence in capsys.readouterr().err
