"""The architecture as other programs know it, computed once more from formulas.

What exports to them and decodes without torch rests on this description, so the live module is
held against it: `disagreement` says how an edited module differs.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from gptlab.model.building import narrow_copy
from gptlab.model.config import GPTConfig
from gptlab.model.proof import TOKENS, difference, plain_logits, probe_tokens
from gptlab.model.shapes import shapes

ACTIVATIONS = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + torch.tanh((x + 0.044715 * x**3) * math.sqrt(2 / math.pi))) / 2,
    "relu": lambda x: x.clamp_min(0),
    "relu2": lambda x: x.clamp_min(0) ** 2,
}
SHORT = 32  # tokens, where the weights may be many


@torch.no_grad()
def logits(config: GPTConfig, weights: dict, tokens: torch.Tensor) -> torch.Tensor:
    """Logits float32 [T, V] of tokens int64 [T]. weights: float32 tensors by the names of `shapes`.

    Llama, Qwen3, Qwen3-MoE, GPT-2 and what lies between, from formulas alone and without the
    module's code.
    """
    T, H, K, D = len(tokens), config.n_head, config.n_kv_head, config.head_dim
    w, mask = weights, torch.ones(T, T).triu(1).bool()  # what lies ahead

    def rms(x, name):
        return (
            x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * w[f"{name}.weight"]
        )

    def norm(x, name):
        if config.use_rms_norm:
            return rms(x, name)
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * w[f"{name}.weight"]
        return x + w[f"{name}.bias"] if config.bias else x

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"] if config.bias else None)

    def turned(x):  # [T, heads, D]: channels i and i + D/2 by the angle of their position
        if config.position_encoding != "rope":
            return x
        frequencies = config.rope_theta ** (-torch.arange(0, D, 2) / D)  # [D/2]
        angles = torch.arange(T)[:, None, None] * frequencies  # [T, 1, D/2]
        a, b = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def attention(x, name):
        q, k, v = (linear(x, f"{name}.{letter}_proj").view(T, -1, D) for letter in "qkv")
        if config.qk_norm:
            q, k = rms(q, f"{name}.q_norm"), rms(k, f"{name}.k_norm")
        q, k = turned(q), turned(k)
        k, v = (each.repeat_interleave(H // K, dim=1) for each in (k, v))  # [T, H, D]
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(D)
        shares = scores.masked_fill(mask, -torch.inf).softmax(-1)  # [H, T, T]
        return linear(torch.einsum("hqk,khd->qhd", shares, v).reshape(T, -1), f"{name}.o_proj")

    def mlp(x, name):
        up = linear(x, f"{name}.up_proj")  # [T, F]
        if config.use_swiglu:
            gate = linear(x, f"{name}.gate_proj")
            return linear(gate * gate.sigmoid() * up, f"{name}.down_proj")
        return linear(ACTIVATIONS[config.activation](up), f"{name}.down_proj")

    def experts(x, name):  # each token by itself, through the likeliest experts
        rows = []
        for row in x @ w[f"{name}.router.weight"].T:  # [n_expert]
            chosen = row.argsort(descending=True)[: config.n_expert_active].tolist()
            token = x[len(rows)][None]  # [1, C]
            shares = row[chosen].softmax(0)
            parts = [mlp(token, f"{name}.experts.{number}") for number in chosen]
            rows.append(sum(share * part[0] for share, part in zip(shares, parts, strict=True)))
        return torch.stack(rows)

    x = w["token_embedding.weight"][tokens]  # [T, C]
    if config.position_encoding == "learned":
        x = x + w["position_embedding.weight"][:T]
    if config.position_encoding == "sinusoidal":
        half = (config.n_embd + 1) // 2
        angles = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        x = x + torch.cat((angles.sin(), angles.cos()), -1)[:, : config.n_embd]
    for layer in range(config.n_layer):
        block = f"blocks.{layer}"
        x = x + attention(norm(x, f"{block}.attention_norm"), f"{block}.attention")
        if config.intermediate_size:
            own = experts if config.n_expert else mlp
            x = x + own(norm(x, f"{block}.mlp_norm"), f"{block}.mlp")
    head = w["token_embedding.weight" if config.tie_weights else "lm_head.weight"]
    return norm(x, "final_norm") @ head.T


# The live module beside it ------------------------------------------------------------------------


def disagreement(model) -> str:
    """How the live module differs from this description, in words; "" where it is the same.

    Names and shapes first, then logits: of its own weights, and of a narrow copy in which no
    branch is zero.
    """
    if reason := unlike_names(model):
        return reason
    weights = {name: value.detach().cpu().float() for name, value in model.state_dict().items()}
    return _unlike_logits(model, weights, SHORT) or unlike_code(model)


def unlike_names(model) -> str:
    """The first name, shape or setting of the live module that is not described here, or ""."""
    config, expected = model.config, shapes(model.config)
    if not config.use_swiglu and config.activation not in ACTIVATIONS:
        return f"it has the activation {config.activation}"
    found = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if config.tie_weights:
        found.pop("lm_head.weight", None)
    for name in [*found, *expected]:
        if name not in expected:
            return f"it has a parameter {name}"
        if name not in found:
            return f"it has no parameter {name}"
        if found[name] != expected[name]:
            return f"its {name} has the shape {found[name]} and not {expected[name]}"
    return ""


def unlike_code(model) -> str:
    """How the code of the live module differs, whatever its weights are, or ""."""
    return unlike_in_narrow_copy(
        model, lambda narrow: _unlike_logits(narrow, narrow.state_dict(), TOKENS)
    )


def unlike_in_narrow_copy(model, unlike: Callable[..., str]) -> str:
    """What `unlike` finds in a narrow copy of the module, or why that copy is no help."""
    try:
        narrow = narrow_copy(model)
        return unlike_names(narrow) or unlike(narrow)
    except Exception as error:  # whatever an edited module may do in another size
        first = next(iter(str(error).splitlines()), "")
        return f"a narrow copy of it cannot be computed: {type(error).__name__} {first}".rstrip()


def _unlike_logits(model, weights: dict, length: int) -> str:
    tokens = probe_tokens(min(model.config.block_size, length), model.config.vocab_size)
    return difference(plain_logits(model, tokens).cpu(), logits(model.config, weights, tokens))
