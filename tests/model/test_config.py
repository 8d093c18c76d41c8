"""GPTConfig: what is filled in, what is refused and in which words; the presets."""

import dataclasses
import json
import re

import pytest

from gptlab.errors import ConfigError
from gptlab.model.config import PRESETS, GPTConfig, preset


def heads(**settings):
    config = GPTConfig(n_embd=48, **settings)
    return config.n_head, config.n_kv_head, config.head_dim


def test_the_heads_that_are_not_set_follow_from_those_that_are():
    assert heads() == (6, 3, 8)
    assert heads(n_head=4) == (4, 4, 12)  # n_head alone: every head its own keys
    assert heads(n_kv_head=2) == (6, 2, 8)
    assert heads(n_head=8, n_kv_head=1) == (8, 1, 6)
    assert heads(n_head=5, head_dim=10) == (5, 5, 10)  # explicitly set: n_embd need not divide


def test_the_size_of_the_mlp_follows_from_its_ratio():
    assert GPTConfig(n_embd=384, use_swiglu=False).intermediate_size == 1536
    assert GPTConfig(n_embd=384).intermediate_size == 1024  # 2/3 of it: three matrices, not two
    assert GPTConfig(n_embd=320, n_head=5).intermediate_size == 864  # a multiple of 32
    assert GPTConfig(n_embd=12, n_head=1).intermediate_size == 32  # never nothing
    assert GPTConfig(intermediate_size=77, mlp_ratio=3.0).intermediate_size == 77


def test_only_a_plain_mlp_has_an_activation():
    assert GPTConfig().activation is None
    assert GPTConfig(use_swiglu=False).activation == "gelu"
    assert GPTConfig(use_swiglu=False, activation="relu2").activation == "relu2"


@pytest.mark.parametrize("settings", [{}, *PRESETS.values(), dict(use_swiglu=False, n_head=3)])
def test_a_config_survives_the_way_through_a_checkpoint(settings):
    config = GPTConfig(**settings)
    stored = json.loads(json.dumps(config.to_dict()))
    assert GPTConfig(**stored) == config


def test_a_built_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GPTConfig().n_layer = 3


REFUSED = [
    (dict(block_size=0), "block_size is 0: it must be at least 1."),
    (dict(vocab_size=0), "vocab_size is 0: it must be at least 1."),
    (dict(n_layer=0), "n_layer is 0: it must be at least 1."),
    (dict(n_head=0), "n_head is 0: it must be at least 1."),
    (dict(n_kv_head=0), "n_kv_head is 0: it must be at least 1."),
    (dict(n_embd=-4), "n_embd is -4: it must be at least 1."),
    (dict(head_dim=0), "head_dim is 0: it must be at least 1."),
    (dict(intermediate_size=-1), "intermediate_size is -1: it must be at least 0."),
    (dict(n_embd=100, n_head=6), "use n_head 5, or n_embd 96 or 108 (the width)."),
    (dict(n_embd=4, n_head=8), "use n_head 2, or n_embd 16 (the width)."),
    (dict(n_head=6, n_kv_head=4), "use one of 1, 2, 3, 6."),
    (dict(n_head=2, n_kv_head=4), "use one of 1, 2."),
    (dict(head_dim=7), "head_dim 7 is odd and RoPE rotates pairs of channels: use an even"),
    (dict(activation="relu"), "add --use_swiglu false, or leave activation out."),
    (dict(use_swiglu=False, activation="tanh"), "choose from gelu, gelu_tanh, relu, relu2."),
    (dict(position_encoding="alibi"), "choose from rope, learned, sinusoidal."),
    (dict(init_projection="none"), "choose from scaled, zero."),
    (dict(init_projection="zero"), "add --tie_weights false, or use init_projection scaled."),
    (dict(dropout=1.0), "dropout 1.0 must be at least 0 and below 1."),
    (dict(dropout=-0.1), "dropout -0.1 must be at least 0 and below 1."),
    (dict(dropout=float("nan")), "dropout nan must be at least 0 and below 1."),
    (dict(mlp_ratio=0.0), "mlp_ratio is 0.0: it must be finite and above 0."),
    (dict(rope_theta=-1.0), "rope_theta is -1.0: it must be finite and above 0."),
    (dict(norm_eps=0.0), "norm_eps is 0.0: it must be finite and above 0."),
    (dict(init_std=float("inf")), "init_std is inf: it must be finite"),
    (dict(init_std=float("nan")), "init_std is nan: it must be finite"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=[str(s) for s, _ in REFUSED])
def test_what_cannot_be_built_is_refused_in_one_sentence_with_the_way_out(settings, words):
    with pytest.raises(ConfigError) as refusal:
        GPTConfig(**settings)
    sentence = str(refusal.value)
    assert words in sentence
    assert sentence.endswith(".") and "\n" not in sentence
    assert all(name in sentence for name in settings if name != "use_swiglu")


def test_combinations_near_the_refused_ones_are_built():
    GPTConfig(head_dim=7, position_encoding="learned")
    GPTConfig(init_projection="zero", tie_weights=False)
    GPTConfig(dropout=0.0)


def test_an_unknown_preset_is_refused_with_the_list_of_those_that_exist():
    with pytest.raises(ConfigError, match=r"no preset 'huge': choose from tiny, small, medium"):
        preset("huge")


def test_a_preset_is_handed_out_as_a_copy():
    preset("tiny")["n_layer"] = 99
    assert PRESETS["tiny"]["n_layer"] == 6


def test_presets_are_architecture_only():
    for name, settings in PRESETS.items():
        assert "vocab_size" not in settings, name


@pytest.mark.parametrize("position_encoding", ["rope", "learned"])
@pytest.mark.parametrize("n_kv_head", [None, 2])
def test_what_a_refused_width_proposes_can_be_built(position_encoding, n_kv_head):
    """Each proposal is followed: it is valid by all rules, not only by the one that refused."""
    fixed = dict(position_encoding=position_encoding, n_kv_head=n_kv_head)
    for n_head in (2, 4, 6, 10):
        for n_embd in (1, 7, 50, 99, 385):
            try:
                GPTConfig(n_embd=n_embd, n_head=n_head, **fixed)
            except ConfigError as error:
                heads = re.findall(r"use n_head (\d+)", str(error))
                widths = re.findall(r"n_embd (\d+)(?: or (\d+))? \(the width\)", str(error))
                assert widths
                for width in filter(None, widths[0]):
                    GPTConfig(n_embd=int(width), n_head=n_head, **fixed)
                for head in heads:
                    GPTConfig(n_embd=n_embd, n_head=int(head), **fixed)
