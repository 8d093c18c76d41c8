"""The import command: what it makes is a run like any other."""

import pytest

from gptlab.checkpoints import model_content
from gptlab.cli.main import run_command
from gptlab.data.tokenizer import char_tokenizer
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.runs import Run, load_checkpoint


@pytest.fixture
def hf_folder(home):
    """A small model in the folder `model`."""
    tokenizer = char_tokenizer("abcdefgh ")
    model = GPT(GPTConfig(block_size=16, vocab_size=10, n_layer=1, n_head=2, n_embd=16))
    run = Run(home / "elsewhere" / "run")
    run.begin()
    run.save_best(model_content(model, tokenizer, step=1, val_loss=1.0))
    run.end()
    assert run_command("export", ["elsewhere/run", "--output", "model"]) == 0
    return home / "model"


def test_an_imported_model_is_sampled_and_exported_like_any_other(hf_folder, home, capsys):
    assert run_command("import", ["model"]) == 0
    captured = capsys.readouterr()
    assert "The model is in out/model" in captured.out
    assert "sample.py --out_dir out/model --interactive" in captured.out
    assert captured.err == "Reading model.\nWriting out/model.\n"
    assert {p.name for p in (home / "out/model").iterdir()} == {
        ".lock",
        "best.pt",
        "tokenizer.json",
    }
    assert run_command("sample", ["--prompt", "abc", "--max_tokens", "5"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("abc") and "no validation loss recorded" in captured.err
    assert run_command("export", ["out/model", "--output", "again"]) == 0
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (home / "again" / name).read_bytes() == (hf_folder / name).read_bytes()


def test_out_dir_and_overwrite(hf_folder, home, capsys):
    assert run_command("import", ["model", "--out_dir", "mine"]) == 0
    assert run_command("import", ["model", "--out_dir", "mine"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert run_command("import", ["model", "--out_dir", "mine", "--overwrite"]) == 0
    assert load_checkpoint(home / "mine").content["imported"]["kind"] == "Hugging Face"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "model"),
        (["nothing"], "no 'nothing' to import"),
        (["model", "--outdir", "x"], "did you mean out_dir?"),
        (["hf:one"], "not of the form hf:OWNER/NAME"),
    ],
)
def test_a_wrong_word_is_one_sentence(home, capsys, argv, words):
    assert run_command("import", argv) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not (home / "out").exists()


def test_help_opens_with_an_example(capsys):
    with pytest.raises(SystemExit):
        run_command("import", ["--help"])
    assert capsys.readouterr().out.startswith("python gpt.py import")
