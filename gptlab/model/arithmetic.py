"""Parameters, FLOPs and bytes of a model and of its training, by formula (no torch)."""

from dataclasses import dataclass

from gptlab.model.config import GPTConfig


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


def flops_per_token(config: GPTConfig, length: int | None = None) -> float:
    """FLOPs of forward and backward per token in a sequence of `length` (default block_size).

    6 per matrix parameter (Kaplan et al. 2020) and, for causal attention, 6 * heads * head_dim *
    length (half of the full square, Chowdhery et al. 2022, appendix B). A forward pass alone is a
    third of it.
    """
    length = length or config.block_size
    attention = 6 * config.n_layer * config.n_head * config.head_dim * length
    return 6 * matrix_parameters(config) + attention


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

    Never more than 16 chunks: a compiler unrolls their loop, and its time grows faster than they
    do. A power of two otherwise, so that the chunks of a batch are of one shape.
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
) -> TrainingMemory:
    """Memory of a training step with float32 weights and micro-batches of `batch_size` sequences.

    bytes_per_activation: 4, or 2 under autocast, which also keeps a copy of every matrix in that
    precision. optimizer_states: float32 values kept per parameter (AdamW 2, Muon 1). An upper
    estimate: gradients are all there while activations are (true from the second micro-batch on),
    and activations are those of eager code (fused kernels and compilation keep fewer).
    """
    parameters = count_parameters(config)
    tokens = batch_size * config.block_size
    head = 4 * config.vocab_size * config.n_embd
    rows = min(tokens, loss_chunk_rows(tokens, config.vocab_size))
    logits = 4 * rows * config.vocab_size
    per_token = _top_activations(config) + config.n_layer * _block_activations(config)
    if config.gradient_checkpointing:  # the input of every block, and one block in full
        per_token = (
            _top_activations(config) + _block_activations(config) + config.n_layer * config.n_embd
        )
    copies = bytes_per_activation * matrix_parameters(config) if bytes_per_activation < 4 else 0
    return TrainingMemory(
        weights=4 * parameters * (2 if ema else 1) + copies,
        gradients=4 * parameters,
        optimizer=int(4 * parameters * optimizer_states),
        activations=tokens * per_token * bytes_per_activation,
        # forward: two chunks of logits beside the head's gradient; backward: that gradient scaled
        loss=head + max(2 * logits, head),
    )


def _norm_activations(config: GPTConfig, channels: int, rms: bool) -> int:
    """Values per token that the backward pass of a norm and of what reads its output needs."""
    return channels * (3 if rms else 2)  # input, RMSNorm's input over its mean, output


def _block_activations(config: GPTConfig) -> int:
    """Values per token that the backward pass of one block needs."""
    queries = config.n_head * config.head_dim
    keys = config.n_kv_head * config.head_dim
    norms = 2 * _norm_activations(config, config.n_embd, config.use_rms_norm)
    attention = 2 * queries + 2 * keys + config.n_head  # q, output; k, v; sums of exponentials
    if config.qk_norm:
        attention += _norm_activations(config, queries + keys, rms=True) - (queries + keys)
    # gate, its activation, up, their product; or before and after (ReLU: after is enough)
    copies = 4 if config.use_swiglu else 1 if config.activation == "relu" else 2
    masks = 2 * config.n_embd if config.dropout else 0
    return norms + attention + copies * config.intermediate_size + masks


def _top_activations(config: GPTConfig) -> int:
    """Values per token outside the blocks: final norm, gradient of its output, dropout's mask."""
    masks = config.n_embd if config.dropout else 0
    return _norm_activations(config, config.n_embd, config.use_rms_norm) + config.n_embd + masks
