"""The memory of a training process at the worst moment of a step, by formula (no torch)."""

import dataclasses
from dataclasses import dataclass

from gptlab.model.arithmetic import (
    ALL,
    Trained,
    count_parameters,
    head_is_trained,
    idle_matrix_parameters,
    loss_chunk_rows,
    matrix_parameters,
    trained_parameters,
    without_frozen_blocks,
)
from gptlab.model.config import GPTConfig

TIGHT = 0.9  # share of the free memory that a training may need to fit

# Besides its tensors a training process on a CPU holds code that the first step loads, and memory
# that the allocator cannot reuse: glibc keeps freed blocks (`building.keep_freed_memory`) in one
# heap, which is fragmented after a few steps. Measured on Linux, with models of 0.8M to 124M
# parameters and steps of 64 to 72,000 tokens, within 17%; one process takes up to a fifth more than
# the next.
LIBRARIES = 16_000_000
FRAGMENTATION = 0.7  # of the activations
REUSED = 0.7  # share of freed activations' memory that gradients of the same step can reuse
# what a process holds on a GPU before the first tensor, and what its allocator leaves unused
GPU_CONTEXT = 600_000_000
GPU_FRAGMENTATION = 0.1


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of the tensors that training needs on one device, by what they hold."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        """Everything together, in bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.loss


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
    head = 4 * config.vocab_size * config.n_embd * head_is_trained(config, trained)
    rows = min(tokens, loss_chunk_rows(tokens, config.vocab_size))
    logits = 4 * rows * config.vocab_size
    product = 1.5 if bytes_per_activation < 4 else 1  # autocast's, and its copy in float32
    earlier = head * (rows < tokens)  # the head's gradient, summed over the chunks before
    live = without_frozen_blocks(config, trained)  # frozen blocks at the beginning keep nothing
    block = _block_activations(live, trained)
    per_token = _top_activations(config) + live.n_layer * block
    if config.gradient_checkpointing:  # the input of every block, and one block in full
        per_token = _top_activations(config) + block + live.n_layer * config.n_embd
    # of dropout, a byte each, all of them from the beginning of the forward pass on
    masks = config.n_embd * (1 + config.n_layer * config.branches) if config.dropout else 0
    matrices = matrix_parameters(live) + idle_matrix_parameters(live)
    copies = bytes_per_activation * matrices if bytes_per_activation < 4 else 0
    return TrainingMemory(
        weights=4 * (parameters + (changed if ema else 0)) + copies,
        gradients=4 * changed,
        optimizer=int(4 * changed * optimizer_states),
        activations=tokens * (per_token * bytes_per_activation + masks),
        # forward: a chunk's logits and their gradient, then that and the head's; backward: the sum
        # of the head's gradients, and the same scaled
        loss=max(earlier + logits + int(product * max(logits, head)), 2 * head),
    )


def process_memory(tensors: TrainingMemory, kind: str, micro_batches: int) -> dict[str, int]:
    """Bytes at the worst moment of a training process, by what they hold; the sum is the peak.

    kind: of the device, "cpu" or another. In a step of a single micro-batch gradients are created
    while activations are freed, so the smaller of the two needs no memory of its own; in the heap
    of a CPU some of the freed pieces are too small for that.
    """
    rows = dataclasses.asdict(tensors)
    working = tensors.activations + tensors.loss
    if micro_batches == 1:
        share = REUSED if kind == "cpu" else 1.0
        reused = int(share * min(tensors.gradients, working))
        rows["gradients in the place of activations"] = -reused
    if kind == "cpu":
        rows["libraries and allocator"] = LIBRARIES + int(FRAGMENTATION * tensors.activations)
    else:
        rows["context and allocator"] = GPU_CONTEXT + int(GPU_FRAGMENTATION * working)
    return rows


def fits(needed: int, free: int | None) -> bool:
    """Whether `needed` bytes fit into `free` with a margin; None: the device does not report it."""
    return free is None or needed <= TIGHT * free


def _norm_activations(config: GPTConfig, channels: int, rms: bool) -> int:
    """Values per token that the backward passes of a norm and of its reader need."""
    return channels * (3 if rms else 2)  # input, RMSNorm's input over its mean, output


def _block_activations(config: GPTConfig, trained: Trained = ALL) -> int:
    """Values per token that the backward pass of one block needs.

    With adapters: the input of each, as of a trained weight, and the output of its matrix A.
    """
    queries = config.n_head * config.head_dim
    keys = config.n_kv_head * config.head_dim
    norms = config.branches * _norm_activations(config, config.n_embd, config.use_rms_norm)
    attention = 2 * queries + 2 * keys + config.n_head  # q, output; k, v; sums of exponentials
    if config.qk_norm:
        attention += _norm_activations(config, queries + keys, rms=True) - (queries + keys)
    # gate, its activation, up, their product; or before and after (ReLU: after is enough)
    copies = 4 if config.use_swiglu else 1 if config.activation == "relu" else 2
    adapters = trained.lora_rank * len(trained.lora_targets)
    # of experts: a token's copies, sorted, what they become, and that in the tokens' order; the
    # router's probabilities and what chooses by them
    routing = 3 * config.n_expert_active * config.n_embd + 4 * config.n_expert
    routing = routing if config.n_expert else 0
    return norms + attention + copies * config.intermediate_size + adapters + routing


def _top_activations(config: GPTConfig) -> int:
    """Values per token outside the blocks: final norm and the gradient of its output."""
    return _norm_activations(config, config.n_embd, config.use_rms_norm) + config.n_embd
