"""The same transformer in the words of others: Llama, Qwen3, Qwen3-MoE and GPT-2.

No torch here: names, shapes and numbers only.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gptlab.errors import ConfigError
from gptlab.model.config import GPTConfig

# Our modules -> the peer's keys, {} being the layer, and then the expert. A number says which QKV
# chunk it is: GPT-2 keeps queries, keys and values in one matrix. STACKED: those of all experts are
# one tensor.
STACKED = "stacked"
_LLAMA = {
    "token_embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "lm_head": "lm_head",
    "blocks.{}.attention_norm": "model.layers.{}.input_layernorm",
    "blocks.{}.attention.q_proj": "model.layers.{}.self_attn.q_proj",
    "blocks.{}.attention.k_proj": "model.layers.{}.self_attn.k_proj",
    "blocks.{}.attention.v_proj": "model.layers.{}.self_attn.v_proj",
    "blocks.{}.attention.o_proj": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.attention.q_norm": "model.layers.{}.self_attn.q_norm",
    "blocks.{}.attention.k_norm": "model.layers.{}.self_attn.k_norm",
    "blocks.{}.mlp_norm": "model.layers.{}.post_attention_layernorm",
    "blocks.{}.mlp.gate_proj": "model.layers.{}.mlp.gate_proj",
    "blocks.{}.mlp.up_proj": "model.layers.{}.mlp.up_proj",
    "blocks.{}.mlp.down_proj": "model.layers.{}.mlp.down_proj",
    "blocks.{}.mlp.router": "model.layers.{}.mlp.gate",
    "blocks.{}.mlp.experts.{}.gate_proj": "model.layers.{}.mlp.experts.{}.gate_proj",
    "blocks.{}.mlp.experts.{}.up_proj": "model.layers.{}.mlp.experts.{}.up_proj",
    "blocks.{}.mlp.experts.{}.down_proj": "model.layers.{}.mlp.experts.{}.down_proj",
}
_GPT2 = {
    "token_embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "lm_head": "lm_head",
    "blocks.{}.attention_norm": "transformer.h.{}.ln_1",
    "blocks.{}.attention.q_proj": ("transformer.h.{}.attn.c_attn", 0),
    "blocks.{}.attention.k_proj": ("transformer.h.{}.attn.c_attn", 1),
    "blocks.{}.attention.v_proj": ("transformer.h.{}.attn.c_attn", 2),
    "blocks.{}.attention.o_proj": "transformer.h.{}.attn.c_proj",
    "blocks.{}.mlp_norm": "transformer.h.{}.ln_2",
    "blocks.{}.mlp.up_proj": "transformer.h.{}.mlp.c_fc",
    "blocks.{}.mlp.down_proj": "transformer.h.{}.mlp.c_proj",
}
_GGUF = {
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "final_norm": "output_norm",
    "lm_head": "output",
    "blocks.{}.attention_norm": "blk.{}.attn_norm",
    "blocks.{}.attention.q_proj": "blk.{}.attn_q",
    "blocks.{}.attention.k_proj": "blk.{}.attn_k",
    "blocks.{}.attention.v_proj": "blk.{}.attn_v",
    "blocks.{}.attention.o_proj": "blk.{}.attn_output",
    "blocks.{}.attention.q_norm": "blk.{}.attn_q_norm",
    "blocks.{}.attention.k_norm": "blk.{}.attn_k_norm",
    "blocks.{}.mlp_norm": "blk.{}.ffn_norm",
    "blocks.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "blocks.{}.mlp.up_proj": "blk.{}.ffn_up",
    "blocks.{}.mlp.down_proj": "blk.{}.ffn_down",
    "blocks.{}.mlp.router": "blk.{}.ffn_gate_inp",
    "blocks.{}.mlp.experts.{}.gate_proj": ("blk.{}.ffn_gate_exps", STACKED),
    "blocks.{}.mlp.experts.{}.up_proj": ("blk.{}.ffn_up_exps", STACKED),
    "blocks.{}.mlp.experts.{}.down_proj": ("blk.{}.ffn_down_exps", STACKED),
}
_GGUF_GPT2 = _GGUF | {
    f"blocks.{{}}.attention.{letter}_proj": ("blk.{}.attn_qkv", qkv_chunk)
    for qkv_chunk, letter in enumerate("qkv")
}


@dataclass(frozen=True)
class Naming:
    """How another program names the weights. transposed: matrices are [in, out] (GPT-2's Conv1D);
    embeddings never are."""

    modules: dict
    transposed: bool = False

    def peer_key(self, name: str) -> tuple[str, int | None]:
        """The peer's key for one of our parameters, and which part of that tensor it is: the QKV
        chunk, or the expert (None: the whole tensor)."""
        module, _, leaf = name.rpartition(".")
        numbers = re.findall(r"\.(\d+)", module)  # of the layer, of the expert
        known = self.modules[re.sub(r"\.\d+", ".{}", module)]
        known, part = known if isinstance(known, tuple) else (known, None)
        part = int(numbers[1]) if part == STACKED else part
        return f"{known.format(*numbers)}.{leaf}", part

    def is_stacked(self, name: str) -> bool:
        """Whether their tensor has another dimension before ours, of the experts."""
        known = self.modules[re.sub(r"\.\d+", ".{}", name.rpartition(".")[0])]
        return isinstance(known, tuple) and known[1] == STACKED

    def is_transposed(self, name: str) -> bool:
        """Whether their tensor is the transpose of our parameter."""
        return self.transposed and name.startswith("blocks.") and name.endswith("proj.weight")


LLAMA_NAMES = Naming(_LLAMA)
GPT2_NAMES = Naming(_GPT2, transposed=True)
NANOGPT_NAMES = Naming(_GPT2)
GGUF_NAMES = Naming(_GGUF)
GGUF_GPT2_NAMES = Naming(_GGUF_GPT2)
GGUF_KINDS = {"qwen3_moe": "qwen3moe"}  # where llama.cpp's word is another


# Out ----------------------------------------------------------------------------------------------

_HF_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
_HF_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "relu2": "relu2"}


def architecture_of(config: GPTConfig) -> str:
    """ "llama", "qwen3", "qwen3_moe" or "gpt2": what computes the same.

    ConfigError names the settings that no such architecture has.
    """
    if config.position_encoding == "rope":
        name = "qwen3" if config.qk_norm else "llama"
        name = "qwen3_moe" if config.n_expert else name
        wrong = {
            "use_rms_norm false": not config.use_rms_norm,
            "use_swiglu false": not config.use_swiglu,
            "bias true (with qk_norm true)": config.bias and config.qk_norm,
            "qk_norm false (with n_expert)": config.n_expert and not config.qk_norm,
            "bias true (with n_expert)": config.n_expert and config.bias and not config.qk_norm,
        }
    else:
        name = "gpt2"
        wrong = {
            "position_encoding sinusoidal": config.position_encoding == "sinusoidal",
            "use_rms_norm true": config.use_rms_norm,
            "use_swiglu true": config.use_swiglu,
            "qk_norm true": config.qk_norm,
            f"n_expert {config.n_expert}": config.n_expert,
            f"n_kv_head {config.n_kv_head}": config.n_kv_head != config.n_head,
            f"head_dim {config.head_dim}": config.head_dim * config.n_head != config.n_embd,
        }
    wrong["intermediate_size 0 (no MLP)"] = config.intermediate_size == 0
    if found := [setting for setting, is_wrong in wrong.items() if is_wrong]:
        near = {"llama": "Llama", "qwen3": "Qwen3", "gpt2": "GPT-2"}.get(name, "Qwen3-MoE")
        raise ConfigError(
            f"This model cannot be exported: {', '.join(found)} with position_encoding "
            f"{config.position_encoding} is not a part of {near}, the nearest architecture that "
            "other programs know; train it with settings of Llama (the defaults), Qwen3, Qwen3-MoE "
            "or GPT-2."
        )
    return name


def hf_settings(config: GPTConfig) -> dict:
    """The content of config.json that describes the same model, without its special tokens."""
    kind = architecture_of(config)
    if kind == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": config.vocab_size,
            "n_positions": config.block_size,
            "n_ctx": config.block_size,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_inner": config.intermediate_size,
            "activation_function": _HF_ACTIVATIONS[config.activation],
            "layer_norm_epsilon": config.norm_eps,
            "initializer_range": config.init_std,
            "embd_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
            "attn_pdrop": 0.0,
            "scale_attn_weights": True,
            "tie_word_embeddings": config.tie_weights,
        }
    settings = {
        "architectures": [_HF_CLASSES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        # transformers 4 reads the first, 5 the second
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.bias,
        "attention_dropout": 0.0,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tie_weights,
    }
    if kind == "llama":
        settings["mlp_bias"] = config.bias
    if kind == "qwen3_moe":
        settings |= {
            "num_experts": config.n_expert,
            "num_experts_per_tok": config.n_expert_active,
            "moe_intermediate_size": config.expert_size,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "router_aux_loss_coef": config.expert_balance,
        }
    return settings


def hf_names(kind: str) -> Naming:
    """How transformers names the weights of an architecture."""
    return GPT2_NAMES if kind == "gpt2" else LLAMA_NAMES


# In -----------------------------------------------------------------------------------------------

FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe", "gpt2")


class Settings:
    """Somebody's config.json, read value by value: what is missing or odd is named."""

    def __init__(self, content: dict, where: str):
        self.content, self.where = content, where

    def number(self, name: str, kind: type = int, default=None):
        """A number above 0."""
        value = self.content.get(name)
        value = default if value is None else value
        fits = isinstance(value, (int, kind)) and not isinstance(value, bool) and value > 0
        if not fits:
            raise ConfigError(f"{self.where} has no valid {name} ({value!r}).")
        return kind(value)

    def refuse_unless(self, name: str, *allowed) -> None:
        """ConfigError unless a setting is unsaid or one of these."""
        value = self.content.get(name)
        if value is not None and value not in allowed:
            raise ConfigError(
                f"{self.where} has {name} {value!r}, which this model cannot have: only "
                f"{' or '.join(map(repr, allowed))} can be imported."
            )


def config_from_hf(content: dict, names: Iterable[str], where: str) -> GPTConfig:
    """The GPTConfig of a config.json of transformers, for weights of these names.

    Raises ConfigError for another architecture, and by name for a setting that changes what is
    computed and that this model does not have.
    """
    kind = content.get("model_type")
    settings = Settings(content, where)
    if kind == "gpt2":
        return _config_of_gpt2(settings, names)
    if kind in ("llama", "qwen2", "qwen3", "qwen3_moe"):
        return _config_of_llama(settings, kind, names)
    raise ConfigError(
        f"{where} is of the architecture {kind!r}: {', '.join(FAMILIES)} can be imported."
    )


def _is_tied(content: dict, names: Iterable[str], default: bool) -> bool:
    tied = content.get("tie_word_embeddings")
    if tied is None:  # written before the flag was; without a head of its own it must be
        return default or "lm_head.weight" not in names
    return bool(tied)


def _config_of_gpt2(settings: Settings, names: Iterable[str]) -> GPTConfig:
    content = settings.content
    peer = {
        "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "gelu": "gelu",
        "relu": "relu",
        "relu2": "relu2",
    }
    settings.refuse_unless("activation_function", *peer)
    settings.refuse_unless("scale_attn_weights", True)
    settings.refuse_unless("scale_attn_by_inverse_layer_idx", False)
    settings.refuse_unless("add_cross_attention", False)
    n_embd = settings.number("n_embd")
    return GPTConfig(
        block_size=settings.number("n_positions", default=content.get("n_ctx")),
        vocab_size=settings.number("vocab_size"),
        n_layer=settings.number("n_layer"),
        n_head=settings.number("n_head"),
        n_embd=n_embd,
        intermediate_size=settings.number("n_inner", default=4 * n_embd),
        dropout=0.0,
        bias=True,
        use_rms_norm=False,
        use_swiglu=False,
        activation=peer[content.get("activation_function") or "gelu_new"],
        position_encoding="learned",
        tie_weights=_is_tied(content, names, default=True),
        norm_eps=settings.number("layer_norm_epsilon", float, 1e-5),
        init_std=settings.number("initializer_range", float, 0.02),
    )


def _config_of_llama(settings: Settings, kind: str, names: Iterable[str]) -> GPTConfig:
    content = settings.content
    settings.refuse_unless("hidden_act", "silu")
    settings.refuse_unless("use_sliding_window", False)
    settings.refuse_unless("partial_rotary_factor", 1, 1.0)
    for layer_type in content.get("layer_types") or ():
        if layer_type != "full_attention":
            raise ConfigError(
                f"{settings.where} has layer_types {layer_type!r}: only full_attention can be "
                "imported."
            )
    n_embd, n_head = settings.number("hidden_size"), settings.number("num_attention_heads")
    mlp = {"intermediate_size": settings.number("intermediate_size")}
    if kind == "qwen3_moe":
        mlp = _experts(settings)
    return GPTConfig(
        block_size=settings.number("max_position_embeddings"),
        vocab_size=settings.number("vocab_size"),
        n_layer=settings.number("num_hidden_layers"),
        n_head=n_head,
        n_kv_head=settings.number("num_key_value_heads", default=n_head),
        n_embd=n_embd,
        head_dim=settings.number("head_dim", default=128 if kind == "qwen3" else n_embd // n_head),
        **mlp,
        dropout=0.0,
        # one switch for all biases: those that the model lacks become zeros, which is the same
        bias=any(name.endswith("proj.bias") for name in names),
        rope_theta=_rope_theta(settings),
        qk_norm=kind in ("qwen3", "qwen3_moe"),
        tie_weights=_is_tied(content, names, default=False),
        norm_eps=settings.number("rms_norm_eps", float, 1e-6),
        init_std=settings.number("initializer_range", float, 0.02),
    )


def _experts(settings: Settings) -> dict:
    """The sizes of experts; ConfigError for layers without, or weights that do not add up to 1."""
    settings.refuse_unless("decoder_sparse_step", 1)
    settings.refuse_unless("mlp_only_layers", [])
    if settings.content.get("norm_topk_prob") is not True:  # false where it is not said
        raise ConfigError(
            f"{settings.where} has norm_topk_prob false, which this model cannot have: only models "
            "in which the weights of a token's experts add up to 1 can be imported."
        )
    return {
        # transformers 5 writes it as it does for every mixture
        "n_expert": settings.number(
            "num_experts", default=settings.content.get("num_local_experts")
        ),
        "n_expert_active": settings.number("num_experts_per_tok"),
        "expert_size": settings.number("moe_intermediate_size"),
    }


def _rope_theta(settings: Settings) -> float:
    """The base of plain RoPE; ConfigError for positions that are scaled."""
    content = settings.content
    for name in ("rope_scaling", "rope_parameters"):
        rope = content.get(name) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ConfigError(
                f"{settings.where} has {name} of the type {kind!r}, which this model cannot have: "
                "only plain RoPE can be imported."
            )
        Settings(rope, settings.where).refuse_unless("partial_rotary_factor", 1, 1.0)
    theta = (content.get("rope_parameters") or {}).get("rope_theta")
    return settings.number("rope_theta", float, theta or 10000.0)
