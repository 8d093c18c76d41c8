"""Parameters, FLOPs and bytes of a model and of its training, by formula (no torch)."""

import dataclasses
from dataclasses import dataclass

from gptlab.model.config import GPTConfig


@dataclass(frozen=True)
class Trained:
    """What of a model a training changes: all of it, unless something is said here.

    freeze_layers: above 0 the embeddings (and a head tied to them) and the first so many blocks
    stay as they are. lora_rank: above 0 only adapters of this rank are trained (Hu et al. 2021),
    beside the projections `lora_targets` of every block that is not frozen.
    """

    freeze_layers: int = 0
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ()


ALL = Trained()


def count_parameters(config: GPTConfig) -> int:
    """Number of parameters; tied weights count once, as `sum(p.numel())` of the module does."""
    return sum(parameters_by_component(config).values())


def parameters_by_component(config: GPTConfig) -> dict[str, int]:
    """Parameters by what they do, the blocks' summed over all blocks.

    With tied weights the output head has none of its own; biases belong to their component.
    """
    queries = config.n_head * config.head_dim
    keys = config.n_kv_head * config.head_dim
    attention = config.n_embd * (2 * queries + 2 * keys)
    mlp = config.n_embd * config.intermediate_size * (3 if config.use_swiglu else 2)
    if config.bias:
        attention += queries + 2 * keys + config.n_embd
        mlp += config.intermediate_size * (2 if config.use_swiglu else 1) + config.n_embd
    norm = config.n_embd * (2 if config.bias and not config.use_rms_norm else 1)
    qk_norms = 2 * config.head_dim * config.qk_norm
    tokens = config.vocab_size * config.n_embd
    positions = config.block_size * config.n_embd
    return {
        "token embedding": tokens,
        "position embedding": positions if config.position_encoding == "learned" else 0,
        "attention": config.n_layer * attention,
        "mlp": config.n_layer * mlp,
        "norms": config.n_layer * (2 * norm + qk_norms) + norm,
        "output head": 0 if config.tie_weights else tokens,
    }


def matrix_parameters(config: GPTConfig) -> int:
    """Parameters that take part in a matrix product for every token (embeddings only look up)."""
    queries = config.n_head * config.head_dim
    keys = config.n_kv_head * config.head_dim
    mlp = config.intermediate_size * (3 if config.use_swiglu else 2)
    block = config.n_embd * (2 * queries + 2 * keys + mlp)
    return config.n_layer * block + config.vocab_size * config.n_embd


def projections(config: GPTConfig) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each projection of a block, by its name."""
    C, F = config.n_embd, config.intermediate_size
    queries, keys = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
    gate = {"gate_proj": (F, C)} if config.use_swiglu else {}
    attention = {"q_proj": (queries, C), "k_proj": (keys, C), "v_proj": (keys, C)}
    return {**attention, "o_proj": (C, queries), **gate, "up_proj": (F, C), "down_proj": (C, F)}


def trained_parameters(config: GPTConfig, trained: Trained = ALL) -> int:
    """Number of parameters that get gradients; adapters are beside those of the model."""
    blocks = config.n_layer - trained.freeze_layers
    if trained.lora_rank:
        sizes = projections(config)
        return blocks * trained.lora_rank * sum(sum(sizes[name]) for name in trained.lora_targets)
    if not trained.freeze_layers:
        return count_parameters(config)
    parts = parameters_by_component(config)
    embeddings = parts["token embedding"] + parts["position embedding"]
    return count_parameters(_live(config, trained)) - embeddings


def _live(config: GPTConfig, trained: Trained) -> GPTConfig:
    """The model without the blocks that no gradient reaches."""
    return dataclasses.replace(config, n_layer=config.n_layer - trained.freeze_layers)


def _head_is_trained(config: GPTConfig, trained: Trained) -> bool:
    return not trained.lora_rank and not (trained.freeze_layers and config.tie_weights)


def flops_per_token(config: GPTConfig, length: int | None = None, trained: Trained = ALL) -> float:
    """FLOPs of forward and backward per token in a sequence of `length` (default block_size).

    6 per matrix parameter (Kaplan et al. 2020) and, for causal attention, 6 * heads * head_dim *
    length (half of the full square, Chowdhery et al. 2022, appendix B). A forward pass alone is a
    third of it. Of these 6, 2 are the gradient of a weight, which a frozen one does not have, and 2
    are the gradient of what goes in, which frozen blocks at the beginning do not need.
    """
    length = length or config.block_size
    live = _live(config, trained)

    def attention(blocks: int) -> float:
        return 2 * blocks * config.n_head * config.head_dim * length

    flops = 2 * matrix_parameters(config) + attention(config.n_layer)
    flops += 2 * matrix_parameters(live) + 2 * attention(live.n_layer)
    if trained.lora_rank:
        return flops + 6 * trained_parameters(config, trained)
    head = 0 if _head_is_trained(config, trained) else config.vocab_size * config.n_embd
    return flops + 2 * (matrix_parameters(live) - head)


def kv_cache_bytes(config: GPTConfig, batch_size: int = 1, bytes_per_value: int = 4) -> int:
    """Bytes of the preallocated key/value cache."""
    values = 2 * config.n_layer * config.n_kv_head * config.head_dim * config.block_size
    return values * batch_size * bytes_per_value


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training needs on one device, by what they hold."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        """Everything together, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.loss


def loss_chunk_rows(tokens: int, vocab_size: int) -> int:
    """Rows of logits that the loss of `tokens` tokens holds at once: about 64 MB in float32.

    Never more than 16 chunks: each adds a pass over the gradient of the output head. A power of two
    otherwise, so that the chunks of a batch are of one shape.
    """
    rows = max(1, (1 << 24) // vocab_size)
    return max(1 << (rows.bit_length() - 1), -(-tokens // 16))


def training_memory(
    config: GPTConfig,
    batch_size: int,
    *,
    bytes_per_activation: int = 4,
    optimizer_states: float = 2.0,
    ema: bool = False,
    trained: Trained = ALL,
) -> TrainingMemory:
    """Memory of a training step with float32 weights and micro-batches of `batch_size` sequences.

    bytes_per_activation: 4, or 2 under autocast, which also keeps a copy of every matrix in that
    precision. optimizer_states: float32 values kept per parameter (AdamW 2, Muon 1). An upper
    estimate: gradients are all there while activations are (true from the second micro-batch on),
    and activations are those of eager code (fused kernels and compilation keep fewer).
    """
    changed = trained_parameters(config, trained)
    parameters = count_parameters(config) + (changed if trained.lora_rank else 0)
    tokens = batch_size * config.block_size
    head = 4 * config.vocab_size * config.n_embd * _head_is_trained(config, trained)
    rows = min(tokens, loss_chunk_rows(tokens, config.vocab_size))
    logits = 4 * rows * config.vocab_size
    product = 1.5 if bytes_per_activation < 4 else 1  # autocast's, and its copy in float32
    earlier = head * (rows < tokens)  # the head's gradient, summed over the chunks before
    live = _live(config, trained)  # frozen blocks at the beginning keep nothing
    block = _block_activations(live, trained)
    per_token = _top_activations(config) + live.n_layer * block
    if config.gradient_checkpointing:  # the input of every block, and one block in full
        per_token = _top_activations(config) + block + live.n_layer * config.n_embd
    copies = bytes_per_activation * matrix_parameters(live) if bytes_per_activation < 4 else 0
    return TrainingMemory(
        weights=4 * (parameters + (changed if ema else 0)) + copies,
        gradients=4 * changed,
        optimizer=int(4 * changed * optimizer_states),
        activations=tokens * per_token * bytes_per_activation,
        # forward: a chunk's logits and their gradient, then that and the head's; backward: the sum
        # of the head's gradients, and the same scaled
        loss=max(earlier + logits + int(product * max(logits, head)), 2 * head),
    )


def _norm_activations(config: GPTConfig, channels: int, rms: bool) -> int:
    """Values per token that the backward pass of a norm and of what reads its output needs."""
    return channels * (3 if rms else 2)  # input, RMSNorm's input over its mean, output


def _block_activations(config: GPTConfig, trained: Trained = ALL) -> int:
    """Values per token that the backward pass of one block needs.

    With adapters: the input of each, as of a weight that is trained, and A's output.
    """
    queries = config.n_head * config.head_dim
    keys = config.n_kv_head * config.head_dim
    norms = 2 * _norm_activations(config, config.n_embd, config.use_rms_norm)
    attention = 2 * queries + 2 * keys + config.n_head  # q, output; k, v; sums of exponentials
    if config.qk_norm:
        attention += _norm_activations(config, queries + keys, rms=True) - (queries + keys)
    # gate, its activation, up, their product; or before and after (ReLU: after is enough)
    copies = 4 if config.use_swiglu else 1 if config.activation == "relu" else 2
    masks = 2 * config.n_embd if config.dropout else 0
    adapters = trained.lora_rank * len(trained.lora_targets)
    return norms + attention + copies * config.intermediate_size + masks + adapters


def _top_activations(config: GPTConfig) -> int:
    """Values per token outside the blocks: final norm, gradient of its output, dropout's mask."""
    masks = config.n_embd if config.dropout else 0
    return _norm_activations(config, config.n_embd, config.use_rms_norm) + config.n_embd + masks
