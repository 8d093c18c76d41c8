"""The formulas against what they stand for: counted parameters, counted FLOPs, measured bytes."""

import contextlib
import itertools
from typing import Literal, get_args

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from gptlab.model import config as model_config
from gptlab.model import transformer
from gptlab.model.arithmetic import (
    count_parameters,
    flops_per_token,
    kv_cache_bytes,
    matrix_parameters,
)
from gptlab.model.building import module_parameters
from gptlab.model.config import PRESETS, GPTConfig
from gptlab.model.dropout import dropout_masks
from gptlab.model.kv_cache import KVCache
from gptlab.model.memory import training_memory
from gptlab.model.transformer import GPT


def built_on_meta(config):
    with torch.device("meta"):
        return GPT(config)


def every_parameter(config):
    return sum(parameter.numel() for parameter in built_on_meta(config).parameters())


SMALL = dict(block_size=24, vocab_size=53, n_layer=2, n_head=4, n_embd=48)


@pytest.mark.parametrize("position_encoding", ["rope", "learned", "sinusoidal"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_parameters_are_those_of_the_module(bias, position_encoding):
    switches = ["use_rms_norm", "use_swiglu", "qk_norm", "tie_weights"]
    for values in itertools.product([False, True], repeat=len(switches)):
        for sizes in [
            dict(),
            dict(n_kv_head=1, head_dim=10, intermediate_size=70, n_layer=3),
            dict(intermediate_size=0),
        ]:
            settings = SMALL | dict(zip(switches, values, strict=True)) | sizes
            config = GPTConfig(bias=bias, position_encoding=position_encoding, **settings)
            assert count_parameters(config) == every_parameter(config), config


@pytest.mark.parametrize("name", PRESETS)
def test_the_parameters_of_a_preset_are_those_of_the_module(name):
    config = GPTConfig(**PRESETS[name])
    assert count_parameters(config) == every_parameter(config)


@pytest.mark.parametrize("n_layer", [1, 3, 9])
def test_the_module_is_counted_with_what_an_edit_added_to_it(n_layer, monkeypatch):
    before = transformer.Block.__init__

    def with_scale(block, config, layer):
        before(block, config, layer)
        block.scale = torch.nn.Parameter(torch.ones(config.n_embd))

    config = GPTConfig(**SMALL | dict(n_layer=n_layer))
    module_parameters.cache_clear()
    assert module_parameters(config) == count_parameters(config)
    module_parameters.cache_clear()
    monkeypatch.setattr(transformer.Block, "__init__", with_scale)
    assert module_parameters(config) == every_parameter(config)
    assert module_parameters(config) == count_parameters(config) + n_layer * config.n_embd
    module_parameters.cache_clear()


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", 10), ("small", 25), ("medium", 80), ("large", 350)]
)
def test_the_presets_have_the_size_in_their_description(name, millions):
    parameters = count_parameters(GPTConfig(**PRESETS[name], vocab_size=8192))
    assert abs(parameters / (millions * 1e6) - 1) < 0.1


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_the_gpt2_presets_are_exact(name, parameters):
    """The sizes of OpenAI's published checkpoints."""
    assert count_parameters(GPTConfig(**PRESETS[name], vocab_size=50257)) == parameters


def in_place_product(into, left, right, *, out_shape, **_):
    return 2 * left[0] * left[1] * right[1]


def counted_flops(config, batch_size, length):
    """FLOPs of the matrix products and of attention in one forward and backward pass.

    On the meta device attention is written out as its two products over the full square.
    """
    model = built_on_meta(config)
    tokens = torch.zeros(batch_size, length, dtype=torch.long, device="meta")
    in_place = {torch.ops.aten.addmm_: in_place_product}  # torch knows the other products
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model(tokens, tokens)[1].backward()
    counts = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    attention = counts.pop("aten.bmm")
    return sum(counts.values()), attention


@pytest.mark.parametrize(
    "settings",
    [
        SMALL,
        SMALL | dict(n_kv_head=2, head_dim=10, tie_weights=False, use_swiglu=False, bias=True),
        SMALL | dict(intermediate_size=0),
        PRESETS["small"],
        PRESETS["gpt2"],
    ],
    ids=["llama", "odd sizes", "attention only", "small", "gpt2"],
)
def test_the_flops_are_those_that_torch_counts(settings):
    """Attention is causal: half of the square that torch counts, as flash kernels compute it."""
    config = GPTConfig(**(settings | dict(dropout=0.0)))
    for length in (config.block_size, config.block_size // 2):
        matrices, attention = counted_flops(config, 2, length)
        tokens = 2 * length
        assert 6 * matrix_parameters(config) * tokens == matrices
        assert flops_per_token(config, length) * tokens == matrices + attention / 2
    assert flops_per_token(config) == flops_per_token(config, config.block_size)


def test_the_bytes_of_a_cache_are_those_of_its_tensors():
    config = GPTConfig(**SMALL | dict(n_kv_head=2, head_dim=10))
    cache = KVCache(config, 3, dtype=torch.float16)
    held = sum(tensor.nbytes for tensor in cache.keys + cache.values)
    assert kv_cache_bytes(config, 3, bytes_per_value=2) == held


CLASSIC = dict(use_rms_norm=False, use_swiglu=False, position_encoding="learned")
SHAPES = {
    "llama": dict(),
    "deep": dict(n_layer=9),
    "wide": dict(n_embd=192, n_layer=2, n_head=6),
    "multi-query": dict(n_kv_head=1),
    "wide heads": dict(head_dim=64),
    "wide mlp": dict(mlp_ratio=8.0),
    "attention only": dict(intermediate_size=0),
    "attention only, dropout": dict(intermediate_size=0, dropout=0.1),
    "dropout": dict(dropout=0.1),
    "qk_norm": dict(qk_norm=True),
    "gpt2": CLASSIC | dict(activation="gelu_tanh", bias=True),
    "relu": CLASSIC | dict(activation="relu"),
    "relu2": CLASSIC | dict(activation="relu2"),
}
TRAINED = dict(block_size=64, vocab_size=211, n_layer=4, n_head=4, n_embd=128, dropout=0.0)


def batch(config, batch_size):
    return torch.randint(config.vocab_size, (2, batch_size, config.block_size))


@pytest.mark.parametrize("settings", SHAPES.values(), ids=SHAPES.keys())
def test_the_activations_are_those_that_the_backward_pass_keeps(live_bytes, settings):
    config = GPTConfig(**(TRAINED | settings))
    model = GPT(config)
    tokens, _ = batch(config, 4)
    with live_bytes(*model.parameters(), *model.buffers()) as memory:
        hidden = model.features(tokens, masks=dropout_masks(config, 0, range(4), "cpu"))
    assert hidden.requires_grad
    assert training_memory(config, 4).activations == pytest.approx(memory.now, rel=0.05)


def test_a_new_activation_is_two_edits(live_bytes, monkeypatch):
    """Its name in the config's type, its formula in the table; the rest of model/ follows."""
    monkeypatch.setattr(model_config, "Activation", Literal["gelu", "silu"])
    monkeypatch.setitem(transformer.ACTIVATIONS, "silu", F.silu)
    config = GPTConfig(**TRAINED | dict(use_swiglu=False, activation="silu"))
    model = GPT(config)
    tokens, _ = batch(config, 4)
    with live_bytes(*model.parameters(), *model.buffers()) as memory:
        hidden = model.features(tokens)
    assert hidden.requires_grad
    assert training_memory(config, 4).activations == pytest.approx(memory.now, rel=0.05)
    assert count_parameters(config) == every_parameter(config)


def test_every_activation_of_the_config_has_its_formula():
    assert set(transformer.ACTIVATIONS) == set(get_args(model_config.Activation))


def peak_of_a_step(live_bytes, config, batch_size, autocast):
    """Bytes at the worst moment of two micro-batches and an AdamW step, weights included."""
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    with live_bytes(*model.buffers()) as memory:
        memory.now = sum(parameter.nbytes for parameter in model.parameters())
        memory.sizes |= {p.untyped_storage()._cdata: p.nbytes for p in model.parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes its state
        optimizer.zero_grad()
        for _ in range(2):
            with autocast:
                masks = dropout_masks(config, 0, range(batch_size), "cpu")
                _, loss = model(*batch(config, batch_size), masks=masks)
            del masks
            loss.backward()
            del loss
        optimizer.step()
    return memory.peak


@pytest.mark.parametrize(
    "settings",
    [
        *SHAPES.values(),
        dict(gradient_checkpointing=True),
        dict(dropout=0.1),
        dict(gradient_checkpointing=True, dropout=0.1),
        dict(vocab_size=2000, tie_weights=False),
        dict(vocab_size=20000, n_layer=1),
        dict(vocab_size=100_000, n_layer=1),
    ],
    ids=[
        *SHAPES.keys(),
        "checkpointing",
        "dropout",
        "checkpointing and dropout",
        "large vocabulary",
        "little but vocabulary",
        "two chunks of logits",
    ],
)
def test_the_memory_of_training_is_the_peak_of_a_step(live_bytes, settings):
    config = GPTConfig(**(TRAINED | settings))
    peak = peak_of_a_step(live_bytes, config, 4, contextlib.nullcontext())
    assert training_memory(config, 4).total == pytest.approx(peak, rel=0.06)


def test_the_memory_under_autocast_counts_the_copies_of_the_weights(live_bytes):
    config = GPTConfig(**TRAINED)
    autocast = torch.autocast("cpu", torch.bfloat16)
    peak = peak_of_a_step(live_bytes, config, 4, autocast)
    memory = training_memory(config, 4, bytes_per_activation=2)
    assert memory.total == pytest.approx(peak, rel=0.15)
    assert memory.weights == 4 * count_parameters(config) + 2 * matrix_parameters(config)


def test_averaged_weights_and_fewer_optimizer_states_are_counted():
    config = GPTConfig(**TRAINED)
    plain = training_memory(config, 4)
    parameters = count_parameters(config)
    assert training_memory(config, 4, ema=True).total == plain.total + 4 * parameters
    muon = training_memory(config, 4, optimizer_states=1.0)
    assert muon.total == plain.total - 4 * parameters


def test_a_large_vocabulary_costs_chunks_of_logits_not_all_of_them():
    config = GPTConfig(**PRESETS["gpt2"], vocab_size=50257)
    head = 4 * config.vocab_size * config.n_embd
    for batch_size in (4, 8, 32):
        all_logits = 4 * batch_size * config.block_size * config.vocab_size
        assert training_memory(config, batch_size).loss <= 2 * head + all_logits / 8
