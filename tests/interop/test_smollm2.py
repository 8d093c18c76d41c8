"""A real pretrained model: the same in ours, in transformers and in llama.cpp. Minutes long."""

import random

import pytest
import torch

from gptlab.cli.main import run_command
from gptlab.errors import DownloadError
from gptlab.inference.config import SamplingConfig
from gptlab.inference.generator import Generator
from gptlab.interop.read import gguf, smollm2
from gptlab.interop.read.imported_model import write_run
from gptlab.interop.write.export import export
from gptlab.runs import load_checkpoint

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

PROMPTS = ["The capital of France is", "Once upon a time, there was a", "def fibonacci(n):\n"]


@pytest.fixture(scope="module")
def gguf_file():
    try:
        return smollm2.smollm2_file(note=print)  # kept for good under data/
    except DownloadError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def checkpoint(gguf_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2") / "run"
    return load_checkpoint(write_run(gguf.read(gguf_file), folder, {"from": "smollm2-135m"}))


@pytest.fixture(scope="module")
def hf_folder(checkpoint):
    folder = checkpoint.path.parent.parent / "hf"
    export(checkpoint, "hf", folder)
    return folder


@pytest.fixture(scope="module")
def in_transformers(hf_folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(hf_folder, local_files_only=True)
    return model.eval()


@pytest.fixture(scope="module")
def hf_tokenizer(hf_folder):
    return transformers.AutoTokenizer.from_pretrained(hf_folder, local_files_only=True)


@pytest.fixture(scope="module")
def in_llama_cpp(checkpoint, gguf_file, write_gguf, llama_cpp):
    """llama.cpp with the same float32 weights; the Q4_1 file would be rounded once more there."""
    path = checkpoint.path.parent.parent / "float32.gguf"
    fields, _ = gguf.open_file(gguf_file)
    prefix = "tokenizer.ggml."
    own = {n.removeprefix(prefix): v for n, v in fields.items() if n.startswith(prefix)}
    write_gguf(path, checkpoint.model, "llama", own)
    return llama_cpp(path)


def test_it_knows_the_capital_of_france_from_the_command_line(
    gguf_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("gptlab.interop.read.models.smollm2_file", lambda *_: gguf_file)
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run_command("import", ["smollm2-135m"]) == 0
    options = ["--out_dir", "out/smollm2-135m", "--prompt", PROMPTS[0], "--temperature", "0"]
    assert run_command("sample", [*options, "--max_tokens", "20"]) == 0
    assert "The capital of France is Paris" in capsys.readouterr().out


def test_the_logits_are_those_of_transformers_at_200_positions(checkpoint, in_transformers):
    torch.manual_seed(0)
    tokens = torch.randint(checkpoint.tokenizer.vocab_size, (1, 200))
    with torch.no_grad():
        ours, peer = checkpoint.model(tokens)[0], in_transformers(tokens).logits
    torch.testing.assert_close(ours, peer, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_the_same_in_all_three_programs(
    checkpoint, in_transformers, hf_tokenizer, in_llama_cpp, prompt
):
    config = SamplingConfig(temperature=0, max_tokens=32)
    ours = Generator(checkpoint.model, checkpoint.tokenizer).generate(prompt, config)[0]
    ids = hf_tokenizer(prompt, return_tensors="pt")
    peer = in_transformers.generate(**ids, max_new_tokens=32, do_sample=False)
    assert peer[0, ids["input_ids"].size(1) :].tolist() == ours.token_ids
    assert in_llama_cpp.greedy(prompt, 32) == ours.text


def test_the_ids_of_a_thousand_mixed_lines_are_those_of_the_other_two(
    checkpoint, hf_tokenizer, in_llama_cpp, mixed
):
    draw = random.Random(0)
    words = [word for line in mixed for word in line.split(" ") if "|" not in word]
    lines = [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(1000)]
    lines = [line + draw.choice(["", "\n", "\n\n", "  ", "\t"]) for line in lines]
    for line in lines:
        ids = checkpoint.tokenizer.encode(line)
        assert hf_tokenizer(line, split_special_tokens=True)["input_ids"] == ids, line
        assert in_llama_cpp.ids(line) == ids, line
        assert checkpoint.tokenizer.decode(ids) == line
