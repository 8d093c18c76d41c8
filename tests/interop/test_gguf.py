"""GGUF files: read bitwise where they are floats, dequantised where not, and as llama.cpp does."""

import re

import gguf
import numpy as np
import pytest
import torch

from gptlab.data.tokenizer import train_bpe
from gptlab.errors import CheckpointError, ConfigError, GPTLabError, TokenizerError
from gptlab.inference.config import SamplingConfig
from gptlab.inference.generator import Generator
from gptlab.interop.read.gguf import read
from gptlab.interop.read.models import import_model
from gptlab.runs import load_checkpoint

GPT2 = dict(
    position_encoding="learned",
    use_rms_norm=False,
    use_swiglu=False,
    activation="gelu_tanh",
    bias=True,
)
KINDS = {
    "llama": ("llama", dict()),
    "llama, grouped queries": ("llama", dict(n_head=6, n_kv_head=2, n_embd=48)),
    "llama, untied": ("llama", dict(n_kv_head=1, tie_weights=False)),
    "llama, biases": ("llama", dict(bias=True)),
    "qwen3": ("qwen3", dict(qk_norm=True, n_kv_head=2, head_dim=16, rope_theta=1e6)),
    "gpt2": ("gpt2", GPT2),
    "gpt2, untied": ("gpt2", GPT2 | dict(tie_weights=False)),
}
each_kind = pytest.mark.parametrize(("architecture", "settings"), KINDS.values(), ids=KINDS.keys())


@each_kind
def test_a_file_of_floats_is_read_bitwise_with_its_settings(
    random_model, write_gguf, gguf_fields, bpe, tmp_path, architecture, settings
):
    model = random_model(**settings)
    write_gguf(tmp_path / "model.gguf", model, architecture, gguf_fields)
    back = load_checkpoint(import_model(str(tmp_path / "model.gguf"), tmp_path / "run"))
    assert back.model.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(back.model.state_dict()[name], value), name
    assert back.tokenizer.fingerprint == bpe.fingerprint


@each_kind
def test_llama_cpp_writes_the_same_greedy_text_from_the_same_file(
    random_model, write_gguf, gguf_fields, tmp_path, architecture, settings, llama_cpp
):
    model = random_model(noise=0.3, **settings)
    write_gguf(tmp_path / "model.gguf", model, architecture, gguf_fields)
    imported = load_checkpoint(import_model(str(tmp_path / "model.gguf"), tmp_path / "run"))
    config = SamplingConfig(temperature=0, max_tokens=60)
    ours = Generator(imported.model, imported.tokenizer).generate("Hello, world", config)[0]
    peer = llama_cpp(tmp_path / "model.gguf").greedy("Hello, world", 60)
    assert len(ours.text) > 20 and peer.rstrip("\ufffd") == ours.text.rstrip("\ufffd")


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16"])
def test_quantised_weights_are_within_their_rounding(
    random_model, write_gguf, gguf_fields, tmp_path, name
):
    model = random_model(n_kv_head=2)
    kind = gguf.GGMLQuantizationType[name]
    write_gguf(tmp_path / "model.gguf", model, "llama", gguf_fields, quantization=kind)
    found = read(tmp_path / "model.gguf").weights
    for parameter, value in model.named_parameters():
        difference = (found[parameter] - value.detach()).abs().max()
        bits = {"F16": 11, "BF16": 8}.get(name) or int(name[1])
        spread = value.detach().abs().max() * (2 if name.endswith("1") else 1)
        assert difference <= spread / 2 ** (bits - 1) * 1.01, parameter
        assert (difference > 0) == (value.dim() == 2), parameter


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_ids_are_those_of_llama_cpp_for_every_split_rule_that_is_known(
    random_model, write_gguf, fields_of, mixed, tmp_path, pre, llama_cpp
):
    # long words and numbers, so that the rules differ in what they let through
    tokenizer = train_bpe([" ".join(mixed) * 4, "1234567890 123 456 " * 9, "\n\n .\n" * 9], 600)
    model = random_model(vocab_size=tokenizer.vocab_size, block_size=512)
    path = tmp_path / "model.gguf"
    write_gguf(path, model, "llama", fields_of(tokenizer, pre))
    ours, peer = read(path).tokenizer, llama_cpp(path)
    for line in [*mixed, "a.\n\nb", "x 12345 y", "it's IT'S", " \n  z", "\r\n\r\n"]:
        assert ours.encode(line) == peer.ids(line), line
        assert ours.decode(ours.encode(line)) == line
    assert ours.kind == ("bpe" if pre == "gpt-2" else "imported")
    assert ours.eot_id == tokenizer.eot_id
    assert ours.can_be_cut == (pre in ("gpt-2", "smollm"))


SENTENCE_PIECE = {
    "model": "llama",
    "tokens": [
        *("<unk>", "<s>", "</s>"),
        *(f"<0x{i:02X}>" for i in range(256)),
        *("▁t", "he", "▁the", "in", "▁in", "er", "▁a", "re", "on", "th", "▁there", "then"),
        *("▁", "e", "t", "h", "i", "n", "r", "a", "o", "s", "漢", "é", "▁▁"),
    ],
    "eos_token_id": 2,
    "bos_token_id": 1,
    "unknown_token_id": 0,
    "add_bos_token": True,
}
SENTENCE_PIECE["scores"] = [0.0] * 259 + [-float(i) for i in range(25)]
SENTENCE_PIECE["token_type"] = [2, 3, 3] + [6] * 256 + [1] * 25


def test_a_sentence_piece_vocabulary_gives_the_ids_of_llama_cpp(
    random_model, write_gguf, mixed, tmp_path, llama_cpp
):
    path = tmp_path / "model.gguf"
    model = random_model(vocab_size=len(SENTENCE_PIECE["tokens"]), block_size=1024)
    write_gguf(path, model, "llama", SENTENCE_PIECE)
    ours, peer = read(path).tokenizer, llama_cpp(path, n_ctx=1024)
    for line in [*mixed, "then there in the other", "  the  therein ", "é漢 tt hh"]:
        if not line:
            continue
        ids = ours.encode(line)
        assert ids == peer.ids(line), line
        assert ours.decode(ids) == line
    assert (ours.bos_id, ours.eot_id, ours.can_be_cut) == (1, 2, False)
    spelled = b"".join(map(ours.token_bytes, ours.encode("the é漢🙂")))
    assert spelled.decode() == " the é漢🙂"


# What does not fit --------------------------------------------------------------------------------


@pytest.fixture
def write(random_model, write_gguf, gguf_fields, tmp_path):
    """Writes tmp_path/model.gguf with some fields changed."""

    def write(tokenizer=None, architecture="llama", **more):
        path = tmp_path / "model.gguf"
        fields = gguf_fields if tokenizer is None else tokenizer
        write_gguf(path, random_model(n_kv_head=2), architecture, fields, **more)
        return path

    return write


def refusal(path):
    with pytest.raises(GPTLabError) as caught:
        import_model(str(path), path.parent / "run")
    assert not (path.parent / "run").exists()
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return caught.value


@pytest.mark.parametrize("keep", [3, 100, 3000, 0.5, 0.99])
def test_a_truncated_file_is_named(write, keep):
    path = write()
    content = path.read_bytes()
    path.write_bytes(content[: keep if keep > 1 else int(len(content) * keep)])
    error = refusal(path)
    assert isinstance(error, CheckpointError)
    assert re.search(r"model\.gguf is (damaged|not a GGUF file)", str(error))


FIELDS = {
    "rope.scaling.type 'yarn'": {"llama.rope.scaling.type": "yarn"},
    "expert_count 8": {"llama.expert_count": 8},
    "rope.dimension_count 4": {"llama.rope.dimension_count": 4},
    "no valid embedding_length (None)": {"llama.embedding_length": None},
    "no valid attention.head_count (None)": {"llama.attention.head_count": None},
    "architecture 'mamba'": {"architecture": "mamba"},
    "should have": {"llama.feed_forward_length": 64},
    "kind 'bert'": {"tokenizer.ggml.model": "bert"},
    "rule 'kimi-k2'": {"tokenizer.ggml.pre": "kimi-k2"},
    "without merges": {"tokenizer.ggml.merges": None},
    "no vocabulary": {"tokenizer.ggml.tokens": None},
    "has 1 types": {"tokenizer.ggml.token_type": [1]},
}


@pytest.mark.parametrize("words", FIELDS)
def test_what_this_model_cannot_be_is_named(write, words):
    error = refusal(write(**FIELDS[words]))
    assert isinstance(error, (ConfigError, CheckpointError, TokenizerError))
    assert words in str(error)


def test_a_scaled_table_of_frequencies_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name in ("context_length", "embedding_length", "block_count", "feed_forward_length"):
        writer.add_uint32(f"llama.{name}", 2)
    writer.add_uint32("llama.attention.head_count", 1)
    writer.add_tensor("token_embd.weight", np.zeros((400, 2), np.float32))
    writer.add_tensor("rope_freqs.weight", np.zeros(1, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "scaled RoPE frequencies" in str(refusal(path))
