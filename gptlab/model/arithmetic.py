"""Parameters and FLOPs of a model and of its training, by formula (no torch)."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from gptlab.model.config import GPTConfig


@dataclass(frozen=True)
class Trained:
    """The part of a model that a training changes; by default all of it.

    freeze_layers: above 0, the embeddings (and a head tied to them) and this many of the first
    blocks are frozen. lora_rank: above 0, only adapters of this rank are trained (Hu et al. 2021),
    at the projections `lora_targets` of every block that is not frozen.
    """

    freeze_layers: int = 0
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()


ALL = Trained()


def count_parameters(config: GPTConfig) -> int:
    """Number of parameters; tied weights count once, as `sum(p.numel())` of the module does."""
    return sum(parameters_by_component(config).values())


def active_parameters(config: GPTConfig) -> int:
    """Number of parameters that work on a token: all but the experts that are not chosen for it."""
    idle = config.n_expert - config.n_expert_active
    return count_parameters(config) - idle * config.n_layer * _mlp_parameters(config)


def active_in_words(config: GPTConfig, write: Callable[[int], str] = "{:,}".format) -> str:
    """What of a model's parameters works on a token, to follow their number; "" for all."""
    if not config.n_expert:
        return ""
    which = f"{config.n_expert_active} of {config.n_expert} experts"
    return f", {write(active_parameters(config))} of them active for each token ({which})"


def _mlp_parameters(config: GPTConfig) -> int:
    """Number of parameters of an MLP, or of one expert."""
    hidden = config.expert_size or config.intermediate_size
    matrices = 3 if config.use_swiglu else 2
    biases = hidden * (matrices - 1) + config.n_embd if config.bias and hidden else 0
    return config.n_embd * hidden * matrices + biases


def parameters_by_component(config: GPTConfig) -> dict[str, int]:
    """Parameters by component, summed over all blocks: with experts, those of all.

    Tied weights count as token embedding only; biases belong to their component.
    """
    queries = config.n_head * config.head_dim
    keys = config.n_kv_head * config.head_dim
    attention = config.n_embd * (2 * queries + 2 * keys)
    if config.bias:
        attention += queries + 2 * keys + config.n_embd
    norm = config.n_embd * (2 if config.bias and not config.use_rms_norm else 1)
    norms = config.branches * norm + 2 * config.head_dim * config.qk_norm
    tokens = config.vocab_size * config.n_embd
    positions = config.block_size * config.n_embd
    return {
        "token embedding": tokens,
        "position embedding": positions if config.position_encoding == "learned" else 0,
        "attention": config.n_layer * attention,
        "mlp": config.n_layer * max(1, config.n_expert) * _mlp_parameters(config),
        **({"router": config.n_layer * config.n_embd * config.n_expert} if config.n_expert else {}),
        "norms": config.n_layer * norms + norm,
        "output head": 0 if config.tie_weights else tokens,
    }


def matrix_parameters(config: GPTConfig) -> int:
    """Parameters that take part in a matrix product for a token (embeddings are look-ups).

    Of experts those count that are active.
    """
    queries = config.n_head * config.head_dim
    keys = config.n_kv_head * config.head_dim
    mlp = config.intermediate_size * (3 if config.use_swiglu else 2)
    block = config.n_embd * (2 * queries + 2 * keys + mlp + config.n_expert)
    return config.n_layer * block + config.vocab_size * config.n_embd


def idle_matrix_parameters(config: GPTConfig) -> int:
    """Parameters of the matrices of experts that are not active."""
    idle = config.n_expert - config.n_expert_active
    matrices = 3 if config.use_swiglu else 2
    return config.n_layer * idle * matrices * config.n_embd * config.expert_size


def projections(config: GPTConfig) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each projection of a block, by its name; not those of experts."""
    C, F = config.n_embd, config.intermediate_size
    queries, keys = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    gate = {"gate_proj": (F, C)} if config.use_swiglu else {}
    mlp = {**gate, "up_proj": (F, C), "down_proj": (C, F)} if F and not config.n_expert else {}
    attention = {"q_proj": (queries, C), "k_proj": (keys, C), "v_proj": (keys, C)}
    return {**attention, "o_proj": (C, queries), **mlp}


def trained_parameters(config: GPTConfig, trained: Trained = ALL) -> int:
    """Number of parameters that get gradients; adapters are not among the model's own."""
    blocks = config.n_layer - trained.freeze_layers
    if trained.lora_rank:
        sizes = projections(config)
        return blocks * trained.lora_rank * sum(sum(sizes[name]) for name in trained.lora_targets)
    if not trained.freeze_layers:
        return count_parameters(config)
    parts = parameters_by_component(config)
    embeddings = parts["token embedding"] + parts["position embedding"]
    return count_parameters(without_frozen_blocks(config, trained)) - embeddings


def without_frozen_blocks(config: GPTConfig, trained: Trained) -> GPTConfig:
    """The model without the blocks that no gradient reaches."""
    return dataclasses.replace(config, n_layer=config.n_layer - trained.freeze_layers)


def head_is_trained(config: GPTConfig, trained: Trained) -> bool:
    """Whether the output head gets a gradient."""
    return not trained.lora_rank and not (trained.freeze_layers and config.tie_weights)


def flops_per_token(config: GPTConfig, length: int | None = None, trained: Trained = ALL) -> float:
    """FLOPs of forward and backward per token in a sequence of `length` (default block_size).

    6 per matrix parameter (Kaplan et al. 2020) and, for causal attention, 6 * heads * head_dim *
    length (half of the full square, Chowdhery et al. 2022, appendix B). A forward pass alone is a
    third of it. Of these 6, 2 are for the gradient of a weight, which a frozen one lacks, and 2 for
    the gradient of the input, which frozen blocks at the beginning do not need.
    """
    length = length or config.block_size
    live = without_frozen_blocks(config, trained)

    def attention(blocks: int) -> float:
        return 2 * blocks * config.n_head * config.head_dim * length

    flops = 2 * matrix_parameters(config) + attention(config.n_layer)
    flops += 2 * matrix_parameters(live) + 2 * attention(live.n_layer)
    if trained.lora_rank:
        return flops + 6 * trained_parameters(config, trained)
    head = 0 if head_is_trained(config, trained) else config.vocab_size * config.n_embd
    return flops + 2 * (matrix_parameters(live) - head)


def kv_cache_bytes(config: GPTConfig, batch_size: int = 1, bytes_per_value: int = 4) -> int:
    """Bytes of the preallocated key/value cache."""
    values = 2 * config.n_layer * config.n_kv_head * config.head_dim * config.block_size
    return values * batch_size * bytes_per_value


def loss_chunk_rows(tokens: int, vocab_size: int) -> int:
    """Rows of logits that the loss of `tokens` tokens holds at once: about 64 MB in float32.

    At most 16 chunks, because each adds a pass over the gradient of the output head. Otherwise a
    power of two, so that the chunks of a batch have one shape.
    """
    rows = max(1, (1 << 24) // vocab_size)
    return max(1 << (rows.bit_length() - 1), -(-tokens // 16))
