"""The import command: what it makes is a run like any other."""

import json
import pickle
import re

import pytest
import torch

from gptlab.checkpoints import model_content
from gptlab.cli.main import run_command
from gptlab.data.tokenizer import char_tokenizer, train_bpe
from gptlab.interop.architectures import NANOGPT_NAMES
from gptlab.interop.weights import to_peer
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
    said = "model: imported as Hugging Face; its weights came in float32."
    assert captured.err == f"Reading model.\n{said}\nWriting out/model.\n"
    files = {".lock", "best.pt", "imported.json", "tokenizer.json"}
    assert {p.name for p in (home / "out/model").iterdir()} == files
    assert run_command("sample", ["--prompt", "abc", "--max_tokens", "5"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("abc") and "no validation loss recorded" in captured.err
    assert run_command("export", ["out/model", "--output", "again"]) == 0
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (home / "again" / name).read_bytes() == (hf_folder / name).read_bytes()


def test_weights_of_few_bits_and_a_chat_model_are_said_at_import_in_info_and_in_the_card(
    home, capsys
):
    tokenizer = train_bpe(["abc def " * 20], 262)
    config = dict(block_size=16, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2)
    model = GPT(GPTConfig(**config, n_embd=64, intermediate_size=64))
    run = Run(home / "elsewhere" / "run")
    run.begin()
    content = model_content(model, tokenizer, step=1, val_loss=1.0)
    run.save_best({**content, "chat_template": "{{ messages[0].content }}"})
    run.end()
    export = ["elsewhere/run", "--format", "gguf", "--quantize", "q8_0", "--output", "m.gguf"]
    assert run_command("export", export) == 0
    assert run_command("import", ["m.gguf"]) == 0
    captured = capsys.readouterr()
    assert "sample.py --out_dir out/m --chat" in captured.out
    assert run_command("info", []) == 0
    info = " ".join(capsys.readouterr().out.split())
    assert run_command("export", ["out/m", "--output", "again"]) == 0
    card = (home / "again" / "README.md").read_text(encoding="utf-8").lower()
    for shown in (captured.err, info, card):
        assert "its weights were rounded to 8 bits (q8_0) and stay so" in shown.replace("Q8", "q8")
        assert "a chat model, with its own template" in shown
    (home / "out/m/imported.json").write_text("{")  # damaged: the rest of the run is whole
    assert run_command("info", []) == 0


def test_the_next_command_after_a_text_for_a_model_trains_that_model(hf_folder, home, capsys):
    assert run_command("import", ["model"]) == 0
    (home / "mine.txt").write_text("abc def gh " * 99, encoding="utf-8")
    for word in ("out/model", "model"):
        capsys.readouterr()
        prepare = ["mine.txt", "--tokenizer", word, "--dataset", "mine", "--overwrite"]
        assert run_command("prepare", prepare) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("Next: python train.py --dataset mine")
        assert f"--init_from {word} --config finetune_shakespeare" in last
        assert "--block_size 16 --out_dir out/mine" in last  # no longer than the model's window


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


def refusal(capsys, *argv):
    """The one sentence with which an import ends, and nothing is written."""
    assert run_command("import", list(argv)) == 2
    *progress, sentence = capsys.readouterr().err.splitlines()
    assert len(progress) <= 1 and sentence.startswith("gptlab: ")
    return sentence


def test_an_adapter_alone_is_named_with_its_model_and_the_run_that_holds_both(
    hf_folder, home, capsys
):
    for folder in ("elsewhere/run/adapter", "alone"):
        (home / folder).mkdir()
        content = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "owner/base"})
        (home / folder / "adapter_config.json").write_text(content)
        (home / folder / "adapter_model.safetensors").write_bytes(b"")
        assert "holds an adapter of owner/base and no model" in refusal(capsys, folder)
    assert "merge_and_unload" in refusal(capsys, "alone")
    said = refusal(capsys, "elsewhere/run/adapter")
    assert "the run elsewhere/run holds the model with it" in said
    assert run_command("export", ["elsewhere/run", "--output", "merged"]) == 0  # as it is told


def test_a_checkpoint_of_tensorflow_is_named_with_its_way_here(home, capsys):
    (home / "run1").mkdir()
    names = ("checkpoint", "model-900.index", "model-1000.index", "model-1000.meta", "hparams.json")
    for name in names:
        (home / "run1" / name).write_bytes(b"x")
    sizes = {"n_vocab": 50257, "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}
    for word in ("run1", "run1/model-1000.index", "run1/checkpoint"):
        said = refusal(capsys, word)
        assert "run1 is a checkpoint of TensorFlow" in said
        assert "'run1/model-1000.index', from_tf=True, config=GPT2Config(...))" in said
    (home / "run1" / "hparams.json").write_text(json.dumps(sizes))
    config = "vocab_size=50257, n_positions=1024, n_embd=768, n_head=12, n_layer=12"
    assert f"config=GPT2Config({config}))" in refusal(capsys, "run1")
    (home / "tf2").mkdir()
    (home / "tf2" / "config.json").write_text('{"model_type": "gpt2"}')
    (home / "tf2" / "tf_model.h5").write_bytes(b"x")
    assert "tf_model.h5" in refusal(capsys, "tf2") and not (home / "out").exists()


def test_weights_without_an_archive_of_their_model_say_which_sizes_are_missing(home, capsys):
    names = {"transformer.wte.weight": (65, 8), "transformer.wpe.weight": (16, 8)}
    names |= {f"transformer.h.{n}.ln_1.bias": (8,) for n in range(3)}
    weights = {name: torch.zeros(shape) for name, shape in names.items()}
    for content in (weights, {"state_dict": weights}, {"model": weights}):
        torch.save(content, home / "model.pt")
        said = refusal(capsys, "model.pt")
        assert "model.pt holds weights alone, without the sizes" in said
        sizes = "n_layer=3, n_head=..., n_embd=8, block_size=16, vocab_size=65, bias=True"
        assert f"dict({sizes})" in said
    torch.save({"epoch": 3}, home / "model.pt")
    assert "is not a checkpoint of nanoGPT" in refusal(capsys, "model.pt")


def test_weights_that_are_saved_as_the_sentence_says_are_imported(home, capsys):
    model = GPT(
        GPTConfig(
            block_size=16, vocab_size=65, n_layer=2, n_head=2, n_embd=8, bias=True,
            position_encoding="learned", use_rms_norm=False, use_swiglu=False, activation="gelu",
        )
    )  # fmt: skip
    weights = to_peer(model.state_dict(), model.config, NANOGPT_NAMES)
    torch.save(weights, home / "model.pt")
    form = re.search(r"torch\.save\((.*), 'ckpt\.pt'\)", refusal(capsys, "model.pt"))[1]
    content = eval(form.replace("n_head=...", "n_head=2"), {"weights": weights})
    torch.save(content, home / "ckpt.pt")
    alphabet = [chr(60 + n) for n in range(65)]
    (home / "meta.pkl").write_bytes(pickle.dumps({"stoi": {c: n for n, c in enumerate(alphabet)}}))
    assert run_command("import", ["ckpt.pt", "--out_dir", "mine"]) == 0
    again = load_checkpoint(home / "mine").model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_help_opens_with_an_example(capsys):
    with pytest.raises(SystemExit):
        run_command("import", ["--help"])
    assert capsys.readouterr().out.startswith("python gpt.py import")
