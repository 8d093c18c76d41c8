"""The model itself: shapes, causality, initial weights, dropout, checkpointing, learning."""

import math

import pytest
import torch
import torch.nn.functional as F

from gptlab.errors import GenerationError
from gptlab.model import transformer
from gptlab.model.arithmetic import count_parameters
from gptlab.model.building import SkipInitialisation
from gptlab.model.config import PRESETS, GPTConfig
from gptlab.model.transformer import GPT, create_model

CLASSIC = dict(use_rms_norm=False, use_swiglu=False, position_encoding="learned", bias=True)


def test_every_inner_shape_is_the_one_that_its_comment_says(monkeypatch):
    B, T, C, H, K, D, F_, V = 2, 5, 28, 6, 3, 10, 44, 37
    assert len({B, T, C, H, K, D, F_, V, H * D, K * D}) == 10  # nothing fits by chance
    model = GPT(
        GPTConfig(
            block_size=9,
            vocab_size=V,
            n_layer=1,
            n_head=H,
            n_kv_head=K,
            n_embd=C,
            head_dim=D,
            intermediate_size=F_,
            qk_norm=True,
            tie_weights=False,
        )
    )
    expected = {
        "token_embedding": (B, T, C),
        "dropout": (B, T, C),
        "blocks.0.attention_norm": (B, T, C),
        "blocks.0.attention.q_proj": (B, T, H * D),
        "blocks.0.attention.k_proj": (B, T, K * D),
        "blocks.0.attention.v_proj": (B, T, K * D),
        "blocks.0.attention.q_norm": (B, T, H, D),
        "blocks.0.attention.k_norm": (B, T, K, D),
        "blocks.0.attention.o_proj": (B, T, C),
        "blocks.0.attention": (B, T, C),
        "blocks.0.dropout": (B, T, C),
        "blocks.0.mlp_norm": (B, T, C),
        "blocks.0.mlp.gate_proj": (B, T, F_),
        "blocks.0.mlp.up_proj": (B, T, F_),
        "blocks.0.mlp.down_proj": (B, T, C),
        "blocks.0.mlp": (B, T, C),
        "blocks.0": (B, T, C),
        "final_norm": (B, T, C),
        "lm_head": (B, T, V),
    }
    seen, attended = {}, []
    for name, module in model.named_modules():
        if name and name != "blocks":
            module.register_forward_hook(
                lambda _module, _inputs, output, name=name: seen.update({name: output.shape})
            )
    attention = F.scaled_dot_product_attention

    def watched(q, k, v, **kwargs):
        y = attention(q, k, v, **kwargs)
        attended.extend(tuple(t.shape) for t in (q, k, v, y))
        return y

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    tokens = torch.randint(V, (B, T))
    logits, no_loss = model(tokens)
    assert {name: tuple(shape) for name, shape in seen.items()} == expected
    assert attended == [(B, H, T, D), (B, K, T, D), (B, K, T, D), (B, H, T, D)]
    assert tuple(logits.shape) == (B, T, V) and no_loss is None
    assert tuple(model.features(tokens).shape) == (B, T, C)
    assert tuple(model.unembed(torch.zeros(C)).shape) == (V,)
    no_logits, loss = model(tokens, tokens)
    assert no_logits is None and loss.shape == ()
    assert tuple(model.cos.shape) == tuple(model.sin.shape) == (9, D)


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(n_kv_head=1, qk_norm=True),
        dict(position_encoding="learned"),
        dict(position_encoding="sinusoidal"),
        CLASSIC,
    ],
    ids=str,
)
def test_a_token_changes_no_logits_before_it_and_all_from_it_on(random_model, settings):
    model = random_model(**settings)
    tokens = torch.randint(37, (2, 16))
    with torch.no_grad():
        before = model(tokens)[0]
        for position in (0, 7, 15):
            changed = tokens.clone()
            changed[:, position] = (changed[:, position] + 1) % 37
            moved = (model(changed)[0] - before).abs().amax((0, 2))  # [T]
            assert (moved[:position] < 1e-5).all()
            assert (moved[position:] > 1e-4).all()


@pytest.mark.parametrize("position_encoding", ["rope", "learned", "sinusoidal"])
def test_the_order_of_earlier_tokens_matters(random_model, position_encoding):
    model = random_model(position_encoding=position_encoding, n_layer=1)
    tokens = torch.tensor([[3, 4, 5], [4, 3, 5]])
    with torch.no_grad():
        first, second = model(tokens)[0][:, -1]
    assert (first - second).abs().max() > 1e-3


def test_rope_sees_only_distances(random_model):
    """Logits do not move when all positions move by the same distance (Su et al. 2021)."""
    model = random_model()
    tokens = torch.randint(37, (2, 5))
    with torch.no_grad():
        here = model(tokens)[0]
        model.cos, model.sin = model.cos.roll(-7, 0), model.sin.roll(-7, 0)  # positions 7 to 11
        there = model(tokens)[0]
        model.cos, model.sin = model.cos[::2], model.sin[::2]  # twice the distances
        stretched = model(tokens)[0]
    torch.testing.assert_close(there, here, atol=1e-5, rtol=1e-5)
    assert (stretched - here).abs().max() > 1e-3


def test_sinusoids_are_those_of_the_paper():
    model = GPT(GPTConfig(block_size=9, n_embd=12, n_head=2, position_encoding="sinusoidal"))
    for position in (0, 1, 8):
        for i in range(6):
            angle = position / 10000 ** (2 * i / 12)
            assert model.position_table[position, i].item() == pytest.approx(math.sin(angle))
            assert model.position_table[position, 6 + i].item() == pytest.approx(math.cos(angle))


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
        (
            "gelu_tanh",
            lambda x: 0.5 * x * (1 + torch.tanh((x + 0.044715 * x**3) * math.sqrt(2 / math.pi))),
        ),
        ("relu", lambda x: x * (x > 0)),
        ("relu2", lambda x: x * x * (x > 0)),
    ],
)
def test_the_plain_mlp_applies_the_activation_that_was_asked_for(random_model, activation, formula):
    mlp = random_model(use_swiglu=False, activation=activation, bias=True).blocks[0].mlp
    x = torch.randn(7, 32)
    with torch.no_grad():
        hidden = formula(x @ mlp.up_proj.weight.T + mlp.up_proj.bias)
        expected = hidden @ mlp.down_proj.weight.T + mlp.down_proj.bias
        torch.testing.assert_close(mlp(x), expected, atol=1e-5, rtol=1e-5)


def test_without_an_mlp_a_model_is_one_whose_mlps_write_nothing(random_model):
    whole = random_model()
    attention_only = random_model(intermediate_size=0)
    weights = whole.state_dict()
    attention_only.load_state_dict({n: w for n, w in weights.items() if ".mlp" not in n})
    tokens = torch.randint(37, (2, 16))
    with torch.no_grad():
        for block in whole.blocks:
            block.mlp.down_proj.weight.zero_()
        assert torch.equal(attention_only(tokens)[0], whole(tokens)[0])


def test_a_sequence_longer_than_the_window_is_refused_with_both_numbers(random_model):
    model = random_model(block_size=16)
    model(torch.randint(37, (1, 16)))
    with pytest.raises(GenerationError, match=r"17 tokens do not fit .* window of 16"):
        model(torch.randint(37, (1, 17)))


SMALL_PRESETS = [
    (name, vocab_size)
    for name, settings in PRESETS.items()
    for vocab_size in [50257 if name.startswith("gpt2") else 8192]
    if count_parameters(GPTConfig(**settings, vocab_size=vocab_size)) < 125e6
]


@pytest.mark.parametrize(("name", "vocab_size"), SMALL_PRESETS)
def test_an_untrained_preset_predicts_almost_uniformly(name, vocab_size):
    assert len(SMALL_PRESETS) == 4
    torch.manual_seed(0)
    model = create_model(name, vocab_size=vocab_size).eval()
    tokens = torch.randint(vocab_size, (2, 129))
    with torch.no_grad():
        loss = model(tokens[:, :-1], tokens[:, 1:])[1].item()
    assert math.log(vocab_size) - 0.05 < loss < math.log(vocab_size) + 0.25


def test_initial_weights_have_the_spread_that_was_asked_for():
    model = GPT(GPTConfig(n_embd=192, n_layer=8, init_std=0.03, tie_weights=False, **CLASSIC))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            is_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.03 / math.sqrt(16) if is_residual else 0.03
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.05 * std, name


def test_each_initial_weight_follows_from_the_seed_and_its_name_alone():
    settings = dict(n_embd=16, n_head=2, n_kv_head=2, vocab_size=30, block_size=8)
    torch.manual_seed(5)
    model = GPT(GPTConfig(**settings, n_layer=2))
    torch.rand(3)  # what else is drawn has no say
    weights = dict(GPT(GPTConfig(**settings, n_layer=3, qk_norm=True)).named_parameters())
    for name, weight in model.named_parameters():
        if not name.endswith(("o_proj.weight", "down_proj.weight")):  # scaled by the depth
            assert torch.equal(weight, weights[name]), name
    torch.manual_seed(6)
    others = dict(GPT(model.config).named_parameters())
    matrices = [name for name, weight in model.named_parameters() if weight.dim() == 2]
    assert not any(torch.equal(weights[name], others[name]) for name in matrices)
    named = [weights[f"blocks.{i}.attention.q_proj.weight"] for i in range(3)]
    assert not torch.equal(named[0], named[1]) and not torch.equal(named[1], named[2])


def test_a_model_on_the_meta_device_is_filled_with_the_weights_of_its_seed():
    config = GPTConfig(n_embd=16, n_head=2, n_kv_head=2, n_layer=2, vocab_size=30, block_size=8)
    torch.manual_seed(5)
    expected, filled = GPT(config), {}
    torch.manual_seed(6)
    with torch.device("meta"), SkipInitialisation():
        model = GPT(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    model.init_weights(5, lambda parameter, drawn: filled.update({names[id(parameter)]: drawn}))
    for name, weight in expected.named_parameters():
        if "norm" not in name:
            assert torch.equal(filled.pop(name), weight), name
    assert not filled


class EditedBlock(transformer.Block):
    """A block with parameters of its own, and one more branch."""

    def __init__(self, config, layer):
        super().__init__(config, layer)
        self.scale = torch.nn.Parameter(torch.full((config.n_embd,), 0.5))
        self.mix_weight = torch.nn.Parameter(torch.full((2, 2), 0.25))
        self.gate_bias = torch.nn.Parameter(torch.full((config.n_embd,), -3.0))
        self.branch = transformer.ResidualProjection(config.n_embd, config.n_embd, bias=True)
        self.mlp.up_proj.scale = torch.nn.Parameter(torch.full((1,), 2.0))


@pytest.mark.parametrize("init_projection", ["scaled", "zero"])
def test_initialisation_leaves_parameters_alone_that_no_linear_layer_owns(
    monkeypatch, init_projection
):
    monkeypatch.setattr(transformer, "Block", EditedBlock)
    model = GPT(
        GPTConfig(n_embd=192, n_layer=8, tie_weights=False, init_projection=init_projection)
    )
    for block in model.blocks:
        assert (block.scale == 0.5).all()
        assert (block.mix_weight == 0.25).all()
        assert (block.gate_bias == -3.0).all()
        assert (block.mlp.up_proj.scale == 2.0).all()
        assert (block.branch.bias == 0).all()
        std = block.branch.weight.std().item()
        assert std == pytest.approx(0.02 / 4 if init_projection == "scaled" else 0, rel=0.05)


def test_zero_initialised_projections_leave_the_residual_stream_alone():
    model = GPT(GPTConfig(n_layer=2, dropout=0.0, tie_weights=False, init_projection="zero")).eval()
    tokens = torch.randint(8192, (1, 5))
    with torch.no_grad():
        expected = model.lm_head(model.final_norm(model.token_embedding(tokens)))
        torch.testing.assert_close(model(tokens)[0], expected)


def test_tied_weights_are_one_parameter_that_stays_tied_through_a_step(random_model):
    model = random_model(tie_weights=True)
    assert model.lm_head.weight is model.token_embedding.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.randint(37, (2, 6))
    before = model.lm_head.weight.detach().clone()
    model(tokens[:, :-1], tokens[:, 1:])[1].backward()
    optimizer.step()
    assert not torch.equal(model.lm_head.weight, before)
    assert torch.equal(model.lm_head.weight, model.token_embedding.weight)
    untied = random_model(tie_weights=False)
    assert untied.lm_head.weight is not untied.token_embedding.weight


def test_tables_that_follow_from_the_config_are_not_stored(random_model):
    for position_encoding in ("rope", "sinusoidal"):
        model = random_model(position_encoding=position_encoding)
        assert set(model.state_dict()) - {"lm_head.weight"} == set(dict(model.named_parameters()))


def test_without_dropout_training_mode_computes_the_same(random_model):
    model = random_model(dropout=0.0)
    tokens = torch.randint(37, (2, 8))
    with torch.no_grad():
        assert torch.equal(model.train()(tokens)[0], model.eval()(tokens)[0])


def test_dropout_acts_in_training_mode_only(random_model):
    model = random_model(dropout=0.5)
    tokens = torch.randint(37, (2, 8))
    with torch.no_grad():
        assert torch.equal(model.eval()(tokens)[0], model(tokens)[0])
        assert not torch.equal(model.train()(tokens)[0], model(tokens)[0])


def test_dropout_acts_on_the_embedding_and_both_branches_not_on_attention(
    random_model, monkeypatch
):
    dropped, attention_arguments = [], []
    dropout, attention = F.dropout, F.scaled_dot_product_attention

    def watched_dropout(x, p, training, inplace):
        dropped.append((tuple(x.shape), p, training))
        return dropout(x, p, training, inplace)

    def watched_attention(*args, **kwargs):
        attention_arguments.append(kwargs)
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "dropout", watched_dropout)
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched_attention)
    random_model(dropout=0.3, n_layer=2).train()(torch.randint(37, (2, 8)))
    assert dropped == [((2, 8, 32), 0.3, True)] * (1 + 2 * 2)
    assert len(attention_arguments) == 2
    assert all(not kwargs.get("dropout_p") for kwargs in attention_arguments)


@pytest.mark.parametrize("settings", [dict(), dict(dropout=0.2), CLASSIC], ids=str)
def test_gradient_checkpointing_changes_memory_and_nothing_else(random_model, live_bytes, settings):
    plain = random_model(n_layer=4, **settings).train()
    saving = random_model(n_layer=4, gradient_checkpointing=True, **settings).train()
    tokens = torch.randint(37, (2, 17))
    kept, losses = [], []
    for model in (plain, saving):
        torch.manual_seed(0)
        with live_bytes(*model.parameters(), *model.buffers()) as memory:
            loss = model(tokens[:, :-1], tokens[:, 1:])[1]
            kept.append(memory.now)
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1]
    for ours, peer in zip(saving.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, peer.grad)
    assert kept[1] < kept[0] / 3


def test_a_bfloat16_model_answers_in_bfloat16(random_model):
    for settings in (dict(qk_norm=True), CLASSIC, dict(position_encoding="sinusoidal")):
        model = random_model(**settings)
        tokens = torch.randint(37, (2, 8))
        with torch.no_grad():
            exact = model(tokens)[0]
            for parameter in model.parameters():  # as sharding in mixed precision does: no buffer
                parameter.data = parameter.data.bfloat16()
            rounded = [model(tokens)[0], model.bfloat16()(tokens)[0]]
        for logits in rounded:
            assert logits.dtype == torch.bfloat16
            assert (logits.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("settings", [dict(), CLASSIC], ids=str)
def test_one_batch_can_be_learned_by_heart(settings):
    torch.manual_seed(0)
    small = dict(block_size=16, vocab_size=37, n_layer=2, n_head=2, n_embd=64, dropout=0.0)
    model = GPT(GPTConfig(**(small | settings)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = torch.randint(37, (4, 17))
    for _ in range(120):
        _, loss = model(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_create_model_lets_settings_override_the_preset():
    config = create_model("tiny", n_layer=1, vocab_size=99, dropout=0.0).config
    assert (config.n_layer, config.vocab_size, config.n_embd) == (1, 99, 320)
