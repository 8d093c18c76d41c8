"""Adapters and frozen layers: what is trained, what it computes, and what it costs by formula."""

import dataclasses

import pytest
import torch

from gptlab.model.arithmetic import (
    Trained,
    count_parameters,
    flops_per_token,
    matrix_parameters,
    projections,
    trained_parameters,
)
from gptlab.model.config import GPTConfig
from gptlab.model.lora import (
    add_adapters,
    has_adapters,
    is_adapter,
    merge_adapters,
    merged_weights,
    train_only,
)
from gptlab.model.transformer import GPT

LLAMA = GPTConfig(
    block_size=24, vocab_size=50, n_layer=3, n_head=4, n_kv_head=2, n_embd=32, dropout=0.0
)
GPT2 = dataclasses.replace(
    LLAMA, n_kv_head=4, position_encoding="learned", use_rms_norm=False, use_swiglu=False,
    activation="gelu_tanh", bias=True,
)  # fmt: skip
UNTIED = dataclasses.replace(LLAMA, tie_weights=False, qk_norm=True, head_dim=10)
CONFIGS = pytest.mark.parametrize("config", [LLAMA, GPT2, UNTIED], ids=["llama", "gpt2", "untied"])
ATTENTION_ONLY = dataclasses.replace(LLAMA, intermediate_size=0)
PARTS = [
    Trained(),
    Trained(freeze_layers=2),
    Trained(lora_rank=4, lora_targets=("q_proj", "v_proj")),
    Trained(lora_rank=2, lora_targets=("k_proj", "o_proj", "down_proj"), freeze_layers=1),
]


def model_of(config, trained, alpha=8.0, seed=0):
    torch.manual_seed(seed)
    model = GPT(config)
    train_only(model, trained, alpha)
    return model


def randomized(model):
    """The adapters as a training may leave them."""
    torch.manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def ids(config, rows=2):
    torch.manual_seed(3)
    return torch.randint(config.vocab_size, (rows, config.block_size + 1))


@CONFIGS
@pytest.mark.parametrize("trained", PARTS)
def test_what_gets_gradients_is_what_the_formula_counts_and_nothing_else(config, trained):
    model = model_of(config, trained)
    tokens = ids(config)
    model(tokens[:, :-1], tokens[:, 1:])[1].backward()
    changed = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in model.named_parameters() if p.grad is not None} == changed
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == (
        trained_parameters(config, trained)
    )
    frozen = [f"blocks.{layer}." for layer in range(trained.freeze_layers)]
    assert not [name for name in changed if name.startswith(tuple(frozen) or "-")]
    if trained.lora_rank:
        assert all(map(is_adapter, changed))
        projection = {name.split(".")[-2] for name in changed}
        assert projection == set(trained.lora_targets)
    elif trained.freeze_layers:
        assert "token_embedding.weight" not in changed
        assert "final_norm.weight" in changed
        assert ("lm_head.weight" in changed) == (not config.tie_weights)
    else:
        assert len(changed) == len(list(model.parameters()))


@CONFIGS
def test_a_new_adapter_changes_nothing_and_a_trained_one_does(config):
    trained = Trained(lora_rank=4, lora_targets=tuple(projections(config)))
    tokens = ids(config)[:, :-1]
    torch.manual_seed(0)
    plain = GPT(config)(tokens)[0]
    model = model_of(config, trained)
    assert torch.equal(model(tokens)[0], plain)
    assert (randomized(model)(tokens)[0] - plain).abs().max() > 0.1


@pytest.mark.parametrize("config", [LLAMA, GPT2, UNTIED, ATTENTION_ONLY])
def test_the_merged_model_equals_the_adapted_one(config):
    trained = Trained(lora_rank=4, lora_targets=tuple(projections(config)), freeze_layers=1)
    model, tokens = randomized(model_of(config, trained)), ids(config)[:, :-1]
    wanted = model(tokens)[0]
    loose = GPT(config)
    loose.load_state_dict(merged_weights(model))
    torch.testing.assert_close(loose(tokens)[0], wanted, atol=1e-5, rtol=0)
    assert has_adapters(model)  # merged_weights left it alone
    merge_adapters(model)
    assert not has_adapters(model) and list(model.state_dict()) == list(loose.state_dict())
    torch.testing.assert_close(model(tokens)[0], wanted, atol=1e-5, rtol=0)


def test_an_adapter_is_the_product_that_the_paper_says():
    model = randomized(model_of(LLAMA, Trained(lora_rank=4, lora_targets=("q_proj",)), alpha=6.0))
    layer, x = model.blocks[1].attention.q_proj, torch.randn(5, 32)
    wanted = x @ layer.weight.T + 6.0 / 4 * (x @ layer.lora_A.T) @ layer.lora_B.T
    torch.testing.assert_close(layer(x), wanted)


def test_a_begins_as_in_peft_and_the_same_seed_gives_the_same():
    trained = Trained(lora_rank=200, lora_targets=("q_proj",))
    first, again = (
        model_of(LLAMA, trained).blocks[0].attention.q_proj.requires_grad_(False) for _ in range(2)
    )
    assert torch.equal(first.lora_A, again.lora_A) and not first.lora_B.any()
    bound = 1 / 32**0.5  # uniform, as torch's own nn.Linear(32, 200)
    assert 0.98 * bound < first.lora_A.abs().max() <= bound
    assert first.lora_A.std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_stored_adapters_come_back_where_they_were():
    trained = Trained(lora_rank=4, lora_targets=("up_proj", "o_proj"), freeze_layers=1)
    model, tokens = randomized(model_of(LLAMA, trained)), ids(LLAMA)[:, :-1]
    stored = {name: w for name, w in model.state_dict().items() if is_adapter(name)}
    torch.manual_seed(0)
    other = GPT(LLAMA)
    add_adapters(other, stored, alpha=8.0)
    assert torch.equal(other(tokens)[0], model(tokens)[0])
    train_only(other, trained, 8.0)  # they are there: it only freezes the rest
    assert torch.equal(other(tokens)[0], model(tokens)[0])


@CONFIGS
def test_gradient_checkpointing_gives_the_same_gradients(config):
    tokens, found = ids(config), []
    trained = Trained(lora_rank=4, lora_targets=("q_proj", "up_proj"), freeze_layers=1)
    for setting in (False, True):
        own = dataclasses.replace(config, gradient_checkpointing=setting)
        model = randomized(model_of(own, trained)).train()
        model(tokens[:, :-1], tokens[:, 1:])[1].backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*found, strict=True):
        assert torch.equal(plain, checkpointed)


@CONFIGS
@pytest.mark.parametrize("trained", PARTS)
def test_the_flops_are_those_of_the_products_that_are_left(config, trained):
    """Counted by torch, of matrices; attention's share is proven for the whole model."""
    from torch.utils.flop_counter import FlopCounterMode

    model, tokens = model_of(config, trained), ids(config)

    def product(into, left, right, *, out_shape, **_):
        return 2 * left[0] * left[1] * right[1]

    in_place = {torch.ops.aten.addmm_: product}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        model(tokens[:, :-1], tokens[:, 1:])[1].backward()
    counts = {str(n): c for n, c in counter.get_flop_counts()["Global"].items()}
    matrix_flops = sum(c for n, c in counts.items() if "mm" in n and "bmm" not in n)
    formula = flops_per_token(config, trained=trained) * tokens[:, 1:].numel()
    live = config.n_layer - trained.freeze_layers
    attention = (2 * config.n_layer + 4 * live) * config.n_head * config.head_dim
    attention *= config.block_size * tokens[:, 1:].numel()
    unneeded = 0  # with adapters only, nothing before the first live block's projections learns
    if trained.lora_rank:
        for name in ("q_proj", "k_proj", "v_proj"):
            outputs, inputs = projections(config)[name]
            unneeded += outputs * inputs + trained.lora_rank * inputs * (
                name in trained.lora_targets
            )
    assert matrix_flops == formula - attention - 2 * unneeded * tokens[:, 1:].numel()
    if trained == Trained():
        assert matrix_flops == 6 * matrix_parameters(config) * tokens[:, 1:].numel()
    assert count_parameters(config) == sum(
        p.numel() for name, p in model.named_parameters() if not is_adapter(name)
    )
