"""The name and shape of every parameter as the settings say it, by formula (no torch)."""

from gptlab.model.config import GPTConfig


def shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by name; a tied head is left out."""
    C, D, F = config.n_embd, config.head_dim, config.expert_size or config.intermediate_size
    q, kv = config.n_head * D, config.n_kv_head * D
    found = {"token_embedding.weight": (config.vocab_size, C)}
    if config.position_encoding == "learned":
        found["position_embedding.weight"] = (config.block_size, C)

    def add_norm(name):
        found[f"{name}.weight"] = (C,)
        if config.bias and not config.use_rms_norm:
            found[f"{name}.bias"] = (C,)

    def add_linear(name, size_in, size_out):
        found[f"{name}.weight"] = (size_out, size_in)
        if config.bias:
            found[f"{name}.bias"] = (size_out,)

    for layer in range(config.n_layer):
        block = f"blocks.{layer}"
        add_norm(f"{block}.attention_norm")
        add_linear(f"{block}.attention.q_proj", C, q)
        add_linear(f"{block}.attention.k_proj", C, kv)
        add_linear(f"{block}.attention.v_proj", C, kv)
        add_linear(f"{block}.attention.o_proj", q, C)
        if config.qk_norm:
            found[f"{block}.attention.q_norm.weight"] = (D,)
            found[f"{block}.attention.k_norm.weight"] = (D,)
        if not F:
            continue
        add_norm(f"{block}.mlp_norm")
        mlps = [f"{block}.mlp"]
        if config.n_expert:
            found[f"{block}.mlp.router.weight"] = (config.n_expert, C)
            mlps = [f"{block}.mlp.experts.{number}" for number in range(config.n_expert)]
        for mlp in mlps:
            if config.use_swiglu:
                add_linear(f"{mlp}.gate_proj", C, F)
            add_linear(f"{mlp}.up_proj", C, F)
            add_linear(f"{mlp}.down_proj", F, C)
    add_norm("final_norm")
    if not config.tie_weights:
        found["lm_head.weight"] = (config.vocab_size, C)
    return found
