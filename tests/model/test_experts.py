"""A mixture of experts is transformers' Qwen3-MoE, and what one token after another makes."""

import math

import pytest
import torch
import torch.nn.functional as F

from gptlab.errors import ConfigError
from gptlab.model.arithmetic import active_parameters, count_parameters, flops_per_token
from gptlab.model.config import GPTConfig
from gptlab.model.experts import Reorder, layers_of, take_counts, with_balance
from gptlab.model.reference import disagreement
from gptlab.model.transformer import GPT
from gptlab.training.config import OptimizerOptions
from gptlab.training.optimizers.muon import Muon, orthogonalize

MIXTURES = {
    "two of four": dict(n_expert=4, n_expert_active=2),
    "three of five": dict(n_expert=5, n_expert_active=3, expert_size=12),
    "all of three": dict(n_expert=3, n_expert_active=3),
}
OTHERS = {
    "biases": dict(n_expert=4, bias=True, qk_norm=False),
    "squared relu": dict(n_expert=4, use_swiglu=False, activation="relu2", bias=True),
    "gpt2's positions": dict(n_expert=4, position_encoding="learned", use_rms_norm=False),
}
mixtures = pytest.mark.parametrize("settings", MIXTURES.values(), ids=MIXTURES.keys())


def qwen3_moe(model):
    """The Qwen3MoeForCausalLM of transformers that holds the model's weights."""
    transformers = pytest.importorskip("transformers")
    config, weights = model.config, model.state_dict()
    peer = transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.n_embd,
            intermediate_size=config.intermediate_size,
            moe_intermediate_size=config.expert_size,
            num_experts=config.n_expert,
            num_experts_per_tok=config.n_expert_active,
            norm_topk_prob=True,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.n_kv_head,
            head_dim=config.head_dim,
            max_position_embeddings=config.block_size,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_weights,
            experts_implementation="eager",
            use_cache=False,
        )
    )
    renamed = {
        "embed_tokens.weight": weights["token_embedding.weight"],
        "norm.weight": weights["final_norm.weight"],
    }
    for layer in range(config.n_layer):
        ours, theirs = f"blocks.{layer}.", f"layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"):
            renamed[f"{theirs}self_attn.{name}.weight"] = weights[f"{ours}attention.{name}.weight"]
        renamed[f"{theirs}input_layernorm.weight"] = weights[f"{ours}attention_norm.weight"]
        renamed[f"{theirs}post_attention_layernorm.weight"] = weights[f"{ours}mlp_norm.weight"]
        renamed[f"{theirs}mlp.gate.weight"] = weights[f"{ours}mlp.router.weight"]
        experts = [
            {m: weights[f"{ours}mlp.experts.{n}.{m}_proj.weight"] for m in ("gate", "up", "down")}
            for n in range(config.n_expert)
        ]
        renamed[f"{theirs}mlp.experts.gate_up_proj"] = torch.stack(
            [torch.cat((each["gate"], each["up"])) for each in experts]
        )
        renamed[f"{theirs}mlp.experts.down_proj"] = torch.stack([e["down"] for e in experts])
    peer.model.load_state_dict(renamed, strict=True)
    peer.lm_head.load_state_dict({"weight": weights["lm_head.weight"]}, strict=True)
    return peer


def one_after_another(layer, x):
    """What a layer [B, T, C] writes, token by token and expert by expert."""
    found = torch.empty_like(x)
    for b in range(x.size(0)):
        for t in range(x.size(1)):
            logits = layer.router.weight @ x[b, t]
            chosen = sorted(range(len(logits)), key=lambda n: -logits[n])[: layer.n_active]
            shares = torch.stack([logits[n].exp() for n in chosen])
            parts = torch.stack([layer.experts[n](x[b, t]) for n in chosen])
            found[b, t] = (parts * (shares / shares.sum())[:, None]).sum(0)
    return found


@mixtures
@pytest.mark.parametrize("tie_weights", [True, False])
def test_logits_and_gradients_are_those_of_transformers(random_model, settings, tie_weights):
    model = random_model(
        block_size=24, n_kv_head=2, qk_norm=True, tie_weights=tie_weights, expert_balance=0.0,
        **settings,
    )  # fmt: skip
    peer = qwen3_moe(model).eval()
    tokens, targets = torch.randint(37, (2, 3, 24))
    logits = model(tokens)[0]
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, peer(tokens).logits, atol=2e-5, rtol=0)
    model.train()(tokens, targets)[1].backward()
    F.cross_entropy(peer(tokens).logits.flatten(0, 1), targets.flatten()).backward()
    ours, theirs = model.blocks[1].mlp, peer.model.layers[1].mlp
    torch.testing.assert_close(
        ours.router.weight.grad, theirs.gate.weight.grad, atol=1e-6, rtol=1e-4
    )
    for number, expert in enumerate(ours.experts):
        grads = [expert.gate_proj.weight.grad, expert.up_proj.weight.grad]
        peers = theirs.experts.gate_up_proj.grad[number], theirs.experts.down_proj.grad[number]
        torch.testing.assert_close(torch.cat(grads), peers[0], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(expert.down_proj.weight.grad, peers[1], atol=1e-6, rtol=1e-4)
    embedding = peer.model.embed_tokens.weight.grad
    torch.testing.assert_close(model.token_embedding.weight.grad, embedding, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("settings", (MIXTURES | OTHERS).values(), ids=(MIXTURES | OTHERS).keys())
def test_a_layer_is_what_its_experts_make_of_one_token_after_another(random_model, settings):
    model = random_model(**settings)
    layer, x = model.blocks[0].mlp, torch.randn(2, 7, 32)
    torch.testing.assert_close(layer(x), one_after_another(layer, x), atol=1e-5, rtol=1e-5)
    assert disagreement(model) == ""


def test_the_gradient_of_a_layer_is_right(random_model):
    layer = random_model(n_expert=4, n_embd=8, n_head=2, expert_size=3).double().blocks[0].mlp
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    names, weights = zip(*layer.named_parameters(), strict=True)

    def written(x, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(written, (x, *weights))
    order = torch.tensor([2, 0, 1, 3])
    rows = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: Reorder.apply(rows, order, order.argsort()), rows)


def test_an_expert_without_tokens_has_a_gradient_of_zeros(random_model):
    model = random_model(n_expert=8).train()
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    model(tokens, tokens)[1].backward()
    experts = model.blocks[0].mlp.experts
    sizes = [expert.up_proj.weight.grad.abs().sum().item() for expert in experts]
    assert sizes.count(0.0) == 6


# The router ---------------------------------------------------------------------------------------


def test_the_router_computes_in_float32_under_autocast(random_model):
    layer, x = random_model(n_expert=4).blocks[0].mlp, torch.randn(50, 32)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.route(x)
        assert layer.experts[0](x).dtype == torch.bfloat16
        assert layer(x[None].bfloat16()).dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert torch.equal(found, (x @ layer.router.weight.T).softmax(-1))


def imbalance_of(layer, x):
    """By the words of `with_balance`, of one sequence [T, C]."""
    probabilities = (x @ layer.router.weight.T).softmax(-1)
    n_expert, counts = len(layer.experts), torch.zeros(len(layer.experts))
    for row in probabilities:
        for chosen in row.argsort(descending=True)[: layer.n_active]:
            counts[chosen] += 1
    return n_expert * (counts / counts.sum() * probabilities.mean(0)).sum()


def test_the_balance_adds_to_the_gradient_and_not_to_the_loss(random_model):
    tokens, targets = torch.randint(37, (2, 3, 16))
    targets[0, 4:] = targets[1] = -1  # a sequence with 4 targets, one without any, a whole one
    grads, losses = [], []
    for weight in (0.0, 0.25):
        model = random_model(n_expert=4, expert_balance=weight).train()
        _, loss = model(tokens, targets, reduction="sum")
        loss.backward()
        losses.append(loss.item())
        grads.append(model.blocks[1].mlp.router.weight.grad)
    assert losses[0] == losses[1]
    model.zero_grad()
    inputs = []
    hook = model.blocks[1].mlp.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    model(tokens)
    hook.remove()
    layer = model.blocks[1].mlp
    extra = sum(
        0.25 * counted * imbalance_of(layer, x)
        for counted, x in zip((4, 0, 16), inputs[0], strict=True)
    )
    (expected,) = torch.autograd.grad(extra, layer.router.weight)
    torch.testing.assert_close(grads[1] - grads[0], expected, atol=1e-5, rtol=1e-4)


def test_even_use_of_experts_has_an_imbalance_of_one(random_model):
    model = random_model(n_expert=4).train()
    layer = model.blocks[0].mlp
    layer.router.weight.data.zero_()
    layer(torch.randn(2, 8, 32))
    torch.testing.assert_close(layer.imbalance, torch.ones(2))
    model.eval()
    with torch.no_grad():
        layer(torch.randn(2, 8, 32))
    assert layer.imbalance is None


def test_a_model_without_experts_and_one_in_evaluation_keep_their_loss(random_model):
    loss, targets = torch.tensor(3.0), torch.zeros(4, dtype=torch.int64)
    for settings in ({}, {"n_expert": 4}):
        model = random_model(**settings)
        model(targets.view(2, 2))
        assert with_balance(loss, model, targets) is loss


def test_evaluation_counts_the_tokens_of_each_expert(random_model):
    model = random_model(n_expert=4)
    for _ in range(2):
        model(torch.randint(37, (3, 10)))
    model.train()(torch.randint(37, (3, 10)))
    counts = take_counts(model)
    assert counts.shape == (2, 4)
    assert counts.sum(1).tolist() == [2 * 3 * 10 * 2] * 2
    assert take_counts(model).numel() == 0
    assert not layers_of(random_model())


# Sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", (MIXTURES | OTHERS).values(), ids=(MIXTURES | OTHERS).keys())
def test_the_counts_are_those_of_the_module(random_model, settings):
    model = random_model(**settings)
    config = model.config
    numbers = {name: weight.numel() for name, weight in model.named_parameters()}
    assert count_parameters(config) == sum(numbers.values())
    an_expert = sum(n for name, n in numbers.items() if name.startswith("blocks.0.mlp.experts.0."))
    idle = config.n_layer * (config.n_expert - config.n_expert_active) * an_expert
    assert active_parameters(config) == sum(numbers.values()) - idle


def test_a_mixture_works_as_much_as_its_dense_twin_and_the_router():
    dense = GPTConfig(qk_norm=True)
    mixture = GPTConfig(qk_norm=True, n_expert=8)
    router = dense.n_layer * dense.n_embd * 8
    assert active_parameters(mixture) == active_parameters(dense) + router
    assert flops_per_token(mixture) == flops_per_token(dense) + 6 * router
    assert count_parameters(mixture) > 2 * count_parameters(dense)
    assert active_parameters(dense) == count_parameters(dense)


def test_sizes_follow_from_each_other_and_contradictions_are_named():
    assert GPTConfig(n_expert=4, expert_size=100).intermediate_size == 200
    assert GPTConfig(n_expert=4, intermediate_size=90).expert_size == 45
    filled = GPTConfig(n_expert=6, n_expert_active=3, intermediate_size=90)
    assert GPTConfig(**filled.to_dict()) == filled
    assert (GPTConfig().n_expert_active, GPTConfig().expert_size) == (0, 0)
    for settings, words in (
        (dict(n_expert=4, n_expert_active=1), "n_expert_active is 1 and n_expert 4"),
        (dict(n_expert=1), "at least 2 experts"),
        (dict(n_expert=-1), "at least 2 experts"),
        (dict(n_expert=4, n_expert_active=5), "n_expert_active is 5"),
        (dict(n_expert=4, intermediate_size=90, expert_size=40), "use 80"),
        (dict(n_expert=4, intermediate_size=91), "use 90"),
        (dict(n_expert=4, intermediate_size=0), "expert_size is 0"),
        (dict(n_expert=4, expert_balance=math.nan), "expert_balance is nan"),
    ):
        with pytest.raises(ConfigError, match=words):
            GPTConfig(**settings)


# Training -----------------------------------------------------------------------------------------


def test_initial_weights_follow_from_the_seed_and_the_name():
    torch.manual_seed(3)
    small, more = (
        GPT(GPTConfig(vocab_size=11, n_layer=2, n_head=2, n_embd=16, n_expert=n, expert_size=24))
        for n in (4, 6)
    )
    weights, others = dict(small.named_parameters()), dict(more.named_parameters())
    name = "blocks.1.mlp.experts.3.up_proj.weight"
    assert torch.equal(weights[name], others[name])
    assert not torch.equal(weights[name], weights[name.replace("experts.3", "experts.2")])
    assert weights[name].std().item() == pytest.approx(0.02, rel=0.2)
    down = weights["blocks.1.mlp.experts.3.down_proj.weight"]
    assert down.std().item() == pytest.approx(0.02 / 2, rel=0.2)  # of the 2 x 2 that add up


def test_muon_orthogonalises_each_matrix_of_each_expert_by_itself(random_model):
    model = random_model(n_expert=3, expert_size=20).train()
    taken = list(Muon.takes(model))
    assert {id(p) for p in model.blocks.parameters() if p.dim() == 2} == {id(p) for p in taken}
    optimizer = Muon([{"params": taken, "weight_decay": 0.0}], OptimizerOptions(), torch.float32)
    tokens = torch.randint(37, (4, 16))
    model(tokens, tokens)[1].backward()
    before = [parameter.detach().clone() for parameter in taken]
    optimizer.step()
    for old, new in zip(before, taken, strict=True):
        own = orthogonalize((new.grad + 0.95 * (0.05 * new.grad - new.grad))[None], torch.float32)
        update = 0.2 * math.sqrt(max(new.shape)) * 1e-3 * own[0]
        torch.testing.assert_close(old - new.detach(), update, atol=2e-6, rtol=1e-3)
