"""native.cpp computes what the model computes, with weights of four, two and one byte."""

import shutil
import subprocess
import sys

import pytest
import torch

from gptlab.errors import GenerationError
from gptlab.inference import native
from gptlab.inference.config import SamplingConfig
from gptlab.inference.decoding import Decoder
from gptlab.inference.generator import Generator
from gptlab.inference.native import NativeDecoder
from gptlab.model.arithmetic import Trained
from gptlab.model.config import GPTConfig
from gptlab.model.kv_cache import KVCache
from gptlab.model.lora import train_only
from gptlab.model.quantization import GROUP, dequantize, quantize, round_weights
from gptlab.model.transformer import GPT

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler here"
)
SETTINGS = {
    "llama": dict(),
    "multi-query": dict(n_kv_head=1),
    "qwen3": dict(qk_norm=True, tie_weights=False),
    "gpt2": dict(use_swiglu=False, activation="gelu", bias=True, use_rms_norm=False,
                 position_encoding="learned"),
    "relu2, sinusoidal": dict(use_swiglu=False, activation="relu2", position_encoding="sinusoidal",
                              n_embd=52, n_kv_head=4),
    "odd sizes": dict(use_swiglu=False, activation="gelu_tanh", head_dim=20, intermediate_size=77),
    "relu with biases": dict(use_swiglu=False, activation="relu", bias=True),
    "wide": dict(n_embd=144, intermediate_size=200),
    "attention only": dict(intermediate_size=0),
}  # fmt: skip


def make(**settings):
    torch.manual_seed(0)
    small = dict(vocab_size=101, n_layer=3, n_head=4, n_kv_head=2, n_embd=48, block_size=40)
    model = GPT(GPTConfig(**(small | settings), dropout=0.0)).eval()
    with torch.no_grad():  # norms and biases that matter
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model


@needs_compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_step_is_the_step_of_the_model(settings, dtype):
    model = make(**settings)
    round_weights(model, dtype)
    decoder = NativeDecoder.of(model, dtype)
    for lengths in ([7], [7, 3, 11], [5, 9, 2, 7, 1, 3, 8, 20, 4]):
        rows = len(lengths)
        tokens = torch.randint(101, (rows, 30), generator=torch.Generator().manual_seed(rows))
        with torch.inference_mode():
            plain, fast = (KVCache(model.config, rows) for _ in range(2))
            for cache in (plain, fast):
                model.features(tokens[:, : max(lengths)], cache=cache)
                cache.set_lengths(lengths)
            for column in tokens.T[:8]:
                hidden = model.features(column[:, None], cache=plain)
                expected = model.unembed(hidden[:, -1])
                found = decoder.step(column[:, None], fast)[:, 0]
                # int8's products take tokens of 16 bits: see the next test
                close = 1e-3 if dtype == "int8" else 1e-4
                torch.testing.assert_close(found, expected, rtol=close, atol=close)
        assert fast.lengths == plain.lengths


@needs_compiler
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_tokens_of_16_bits_cost_little_beside_what_weights_of_8_bits_cost(settings):
    plain, rounded = make(**settings), make(**settings)
    round_weights(rounded, "int8")
    tokens = torch.randint(101, (1, 30), generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        found = NativeDecoder.of(rounded, "int8").step(tokens, KVCache(rounded.config, 1))
        exact, expected = plain(tokens)[0], rounded(tokens)[0]
    assert (found - expected).abs().mean() < (expected - exact).abs().mean() / 100


@needs_compiler
def test_a_text_is_the_same_through_sliding_windows_and_dropped_rows():
    model = make()
    prompts = [[1, 2, 3], [4] * 30, [5, 6]]
    plain, fast = (Decoder(model, prompts, n) for n in (None, NativeDecoder.of(model)))
    for step in range(60):
        chosen = plain.logits.argmax(-1).tolist()
        assert fast.logits.argmax(-1).tolist() == chosen
        if step == 20:
            chosen = chosen[1:]
            for decoder in (plain, fast):
                decoder.select([1, 2])
        for decoder in (plain, fast):
            decoder.append(chosen)
    torch.testing.assert_close(fast.logits, plain.logits, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_a_generator_writes_the_same_text_with_it():
    class Letters:
        vocab_size, eot_id, bos_id = 101, None, None
        encode = staticmethod(lambda text: [ord(letter) % 101 for letter in text])
        token_bytes = staticmethod(lambda token: bytes([32 + token % 90]))

    model = make()
    config = SamplingConfig(max_tokens=50, seed=3, temperature=0.7, num_samples=2)
    plain = Generator(model, Letters()).generate("some words", config)
    fast = Generator(model, Letters(), NativeDecoder.of(model)).generate("some words", config)
    assert [c.text for c in fast] == [c.text for c in plain]


def test_int8_weights_are_within_half_a_step_of_their_group():
    torch.manual_seed(1)
    weight = torch.randn(7, 150) * torch.logspace(-3, 1, 7)[:, None]
    steps, scales = quantize(weight)
    assert steps.dtype == torch.int8 and scales.shape == (7, 3)
    found = dequantize(steps, scales)
    for start in range(0, 150, GROUP):
        group = slice(start, start + GROUP)
        largest = weight[:, group].abs().amax(1, keepdim=True)
        assert ((found - weight)[:, group].abs() <= largest / 127 * 0.501).all()
    assert torch.equal(quantize(torch.zeros(2, 5))[0], torch.zeros(2, 5, dtype=torch.int8))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rounded_weights_are_what_the_packed_ones_say_and_stay_tied(dtype):
    model = make()
    round_weights(model, dtype)
    assert model.lm_head.weight is model.token_embedding.weight
    weight = model.blocks[0].mlp.down_proj.weight
    again = weight.bfloat16().float() if dtype == "bfloat16" else dequantize(*quantize(weight))
    torch.testing.assert_close(again, weight, rtol=1e-6, atol=0)
    assert not torch.equal(weight, make().blocks[0].mlp.down_proj.weight)


def test_without_a_compiler_torch_decodes(monkeypatch):
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    native.library.cache_clear()
    try:
        assert NativeDecoder.of(make()) is None
    finally:
        native.library.cache_clear()


def test_a_compiler_that_fails_is_reported_and_torch_decodes(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CXX", sys.executable)  # a program that compiles nothing
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    try:
        assert NativeDecoder.of(make()) is None
        assert "It was not compiled" in caplog.text
        assert list(tmp_path.rglob("*.so")) == []
    finally:
        native.library.cache_clear()


def test_a_short_text_does_not_wait_for_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "library", lambda: pytest.fail("compiled for a short text"))
    assert NativeDecoder.worth_it(make(), "float32", 100) is None


@needs_compiler
def test_it_is_compiled_once_and_named_by_its_source(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls, run = [], subprocess.run

    def recorded_run(*args, **options):
        calls.append(args)
        return run(*args, **options)

    monkeypatch.setattr(native.subprocess, "run", recorded_run)
    native.library.cache_clear()
    try:
        for _ in range(2):
            assert native.library() is not None
            native.library.cache_clear()
    finally:
        native.library.cache_clear()
    assert len(calls) == 1 and len(list((tmp_path / "gptlab").iterdir())) == 1


@needs_compiler
def test_a_row_without_a_slot_is_refused_and_nothing_is_written_behind_the_cache():
    model = make(block_size=8)
    decoder, cache = NativeDecoder.of(model), KVCache(model.config, 2)
    cache.set_lengths([3, 8])
    with pytest.raises(GenerationError, match="9 tokens do not fit the model's window of 8"):
        decoder.step(torch.tensor([[1], [2]]), cache)
    assert cache.lengths == [3, 8] and not any(keys.any() for keys in cache.keys)


@needs_compiler
def test_what_native_does_not_take_is_named_and_torch_decodes(caplog):
    model = make()
    train_only(model, Trained(lora_rank=2, lora_targets=("q_proj",)), alpha=4.0)
    assert NativeDecoder.of(model) is None
    assert "it has a parameter blocks.0.attention.q_proj.lora_A" in caplog.text
    assert caplog.text.count("\n") == 1
