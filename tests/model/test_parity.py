"""The same weights give the same logits as the reference implementations of transformers."""

import pytest
import torch
import torch.nn.functional as F

transformers = pytest.importorskip("transformers")

LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "attention": "self_attn",
    "mlp_norm": "post_attention_layernorm",
    "mlp": "mlp",
}


def llama_name(name):
    """The name that Llama and Qwen3 give to a parameter of ours."""
    if name.startswith("blocks."):
        _, layer, part, *rest = name.split(".")
        return ".".join(["model.layers", layer, LAYER_NAMES[part], *rest])
    top = {"token_embedding": "model.embed_tokens", "final_norm": "model.norm"}
    module, _, leaf = name.rpartition(".")
    return f"{top.get(module, module)}.{leaf}"


def llama_settings(config):
    """Our settings in the words of LlamaConfig and Qwen3Config."""
    return dict(
        vocab_size=config.vocab_size,
        hidden_size=config.n_embd,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        num_key_value_heads=config.n_kv_head,
        head_dim=config.head_dim,
        max_position_embeddings=config.block_size,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tie_weights,
        attention_bias=config.bias,
        use_cache=False,
    )


def as_llama(model, **extra):
    """The LlamaForCausalLM or Qwen3ForCausalLM (with qk_norm) that holds the model's weights."""
    settings = llama_settings(model.config) | extra
    if model.config.qk_norm:
        reference = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**settings))
    else:
        settings["mlp_bias"] = model.config.bias
        reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    weights = {llama_name(name): value for name, value in model.state_dict().items()}
    reference.load_state_dict(weights, strict=True)
    return reference.eval()


def gpt2_weights(model):
    """Our weights under GPT-2's names: one matrix for q, k and v, and every matrix transposed."""
    ours = model.state_dict()

    def turned(value):
        return value.T if value.dim() == 2 else value

    peer = {
        "transformer.wte.weight": ours["token_embedding.weight"],
        "transformer.wpe.weight": ours["position_embedding.weight"],
        "transformer.ln_f.weight": ours["final_norm.weight"],
        "transformer.ln_f.bias": ours["final_norm.bias"],
        "lm_head.weight": ours["lm_head.weight"],
    }
    pairs = {
        "attention_norm": "ln_1",
        "attention.o_proj": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    }
    for layer in range(model.config.n_layer):
        block, h = f"blocks.{layer}.", f"transformer.h.{layer}."
        for leaf in ("weight", "bias"):
            qkv = torch.cat([ours[f"{block}attention.{x}_proj.{leaf}"] for x in "qkv"])
            peer[f"{h}attn.c_attn.{leaf}"] = turned(qkv)
            for our_name, their_name in pairs.items():
                peer[f"{h}{their_name}.{leaf}"] = turned(ours[f"{block}{our_name}.{leaf}"])
    return peer


def as_gpt2(model):
    """The GPT2LMHeadModel that holds the model's weights."""
    config = transformers.GPT2Config(
        vocab_size=model.config.vocab_size,
        n_positions=model.config.block_size,
        n_embd=model.config.n_embd,
        n_layer=model.config.n_layer,
        n_head=model.config.n_head,
        n_inner=model.config.intermediate_size,
        layer_norm_epsilon=model.config.norm_eps,
        tie_word_embeddings=model.config.tie_weights,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    reference = transformers.GPT2LMHeadModel(config)
    reference.load_state_dict(gpt2_weights(model), strict=True)
    return reference.eval()


def assert_same_logits(model, reference):
    tokens = torch.randint(model.config.vocab_size, (3, model.config.block_size))
    with torch.no_grad():
        ours, peer = model(tokens)[0], reference(tokens).logits
    assert ours.shape == peer.shape
    assert ours.std() > 0.1  # not equal for being flat
    torch.testing.assert_close(ours, peer, atol=1e-4, rtol=0)


LLAMAS = {
    "all heads alike": dict(),
    "grouped queries": dict(n_head=6, n_kv_head=2, n_embd=48),
    "multi-query": dict(n_head=4, n_kv_head=1),
    "untied": dict(n_kv_head=2, tie_weights=False),
    "own head_dim": dict(n_head=4, n_kv_head=2, head_dim=14, n_embd=32),
    "biases": dict(n_kv_head=2, bias=True),
    "theta, eps and size": dict(rope_theta=500.0, norm_eps=1e-2, intermediate_size=77),
}


@pytest.mark.parametrize("settings", LLAMAS.values(), ids=LLAMAS.keys())
def test_the_logits_of_a_llama_are_those_of_transformers(random_model, settings):
    model = random_model(block_size=40, n_layer=3, **settings)
    assert_same_logits(model, as_llama(model))


@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize("head_dim", [8, 22])
def test_the_logits_of_a_qwen3_are_those_of_transformers(random_model, head_dim, tie_weights):
    model = random_model(
        block_size=40, n_kv_head=2, head_dim=head_dim, qk_norm=True, tie_weights=tie_weights
    )
    assert_same_logits(model, as_llama(model))


GPT2 = dict(
    position_encoding="learned",
    use_rms_norm=False,
    use_swiglu=False,
    activation="gelu_tanh",
    bias=True,
)


@pytest.mark.parametrize("settings", [dict(), dict(tie_weights=False, intermediate_size=50)])
def test_the_logits_of_a_gpt2_are_those_of_transformers(random_model, settings):
    model = random_model(block_size=40, n_layer=3, n_head=3, n_embd=48, **GPT2, **settings)
    assert_same_logits(model, as_gpt2(model))


def test_attention_by_the_plain_formula_gives_the_same_logits(random_model):
    model = random_model(block_size=40, n_head=6, n_kv_head=2, n_embd=48, qk_norm=True)
    assert_same_logits(model, as_llama(model, attn_implementation="eager"))


@pytest.mark.parametrize("tie_weights", [True, False])
def test_the_gradients_of_a_llama_are_those_of_transformers(random_model, tie_weights):
    model = random_model(block_size=40, n_kv_head=2, tie_weights=tie_weights)
    reference = as_llama(model)
    tokens = torch.randint(model.config.vocab_size, (3, 41))
    model(tokens[:, :-1], tokens[:, 1:])[1].backward()
    logits = reference(tokens[:, :-1]).logits
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    peer = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        grad = peer[llama_name(name)].grad
        assert grad.abs().max() > 1e-3
        torch.testing.assert_close(parameter.grad, grad, atol=1e-5, rtol=1e-4, msg=name)


def test_the_gradients_of_a_gpt2_are_those_of_transformers(random_model):
    model = random_model(block_size=40, n_embd=48, **GPT2)
    reference = as_gpt2(model)
    tokens = torch.randint(model.config.vocab_size, (3, 41))
    model(tokens[:, :-1], tokens[:, 1:])[1].backward()
    logits = reference(tokens[:, :-1]).logits
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    peer = {name: parameter.grad for name, parameter in reference.named_parameters()}
    peer["lm_head.weight"] = peer["transformer.wte.weight"]  # tied: one tensor, two names
    for parameter in model.parameters():
        parameter.data = parameter.grad  # so that gpt2_weights renames gradients
    for name, grad in gpt2_weights(model).items():
        torch.testing.assert_close(grad, peer[name], atol=1e-5, rtol=1e-4, msg=name)
