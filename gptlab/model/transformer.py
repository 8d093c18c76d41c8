"""The whole model on one page: norm, rotary positions, attention, MLP, block, GPT, loss, generate.

Letters: B sequences, T tokens of each, C channels (n_embd), H heads, K key/value heads, D channels
of a head (head_dim), F hidden channels of the MLP, V token ids.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gptlab.errors import GenerationError
from gptlab.model.arithmetic import loss_chunk_rows
from gptlab.model.config import GPTConfig, preset
from gptlab.model.dropout import Dropout
from gptlab.model.experts import Experts, with_balance
from gptlab.model.initialisation import normal
from gptlab.model.kv_cache import KVCache


class RMSNorm(nn.Module):
    """Scale to unit root mean square, times a learned weight (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        # in and out in the precision of x: a float32 weight would promote the whole stream, and
        # CUDA's autocast returns float32 from every norm
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """Zero mean, unit variance, times a learned weight, plus an optional bias (Ba et al. 2016)."""

    def __init__(self, size: int, eps: float, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None
        self.eps = eps

    def forward(self, x):
        bias = None if self.bias is None else self.bias.to(x.dtype)
        weight = self.weight.to(x.dtype)
        return F.layer_norm(x, weight.shape, weight, bias, self.eps).to(x.dtype)


def norm(config: GPTConfig) -> nn.Module:
    """The norm over the residual stream that the settings ask for."""
    if config.use_rms_norm:
        return RMSNorm(config.n_embd, config.norm_eps)
    return LayerNorm(config.n_embd, config.norm_eps, config.bias)


def rotary_tables(config: GPTConfig, device=None) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and signed sin of every position's angles, each [block_size, D] (Su et al. 2021)."""
    channels = torch.arange(0, config.head_dim, 2, device=device).float()
    frequencies = config.rope_theta ** (-channels / config.head_dim)  # [D/2]
    positions = torch.arange(config.block_size, device=device).float()
    angles = torch.outer(positions, frequencies)  # [block_size, D/2]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x, cos, sin):
    """Turn channel pairs (i, i + D/2) of x [B, T, H, D] by their position's angles.

    cos, sin: [T, 1, D] or [B, T, 1, D]. Halves, not neighbours: the Hugging Face convention.
    """
    other = x.roll(x.size(-1) // 2, dims=-1)  # the other channel of each pair
    return torch.addcmul(x * cos, other, sin)


def sinusoids(config: GPTConfig, device=None) -> torch.Tensor:
    """The fixed position vectors [block_size, C] of Vaswani et al. 2017: sines, then cosines."""
    half = (config.n_embd + 1) // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=device).float() / half)
    positions = torch.arange(config.block_size, device=device).float()
    angles = torch.outer(positions, frequencies)  # [block_size, ceil(C/2)]
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, : config.n_embd]


class ResidualProjection(nn.Linear):
    """A linear layer that writes to the residual stream, and is initialised as such."""


class Attention(nn.Module):
    """Causal self-attention; H/K heads share each key/value head (GQA, Ainslie et al. 2023)."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        C, D, bias = config.n_embd, config.head_dim, config.bias
        self.q_proj = nn.Linear(C, config.n_head * D, bias=bias)
        self.k_proj = nn.Linear(C, config.n_kv_head * D, bias=bias)
        self.v_proj = nn.Linear(C, config.n_kv_head * D, bias=bias)
        self.o_proj = ResidualProjection(config.n_head * D, C, bias=bias)
        self.q_norm = RMSNorm(D, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(D, config.norm_eps) if config.qk_norm else None

    def forward(self, x, rotary, cache: KVCache | None, mask=None):
        B, T, D = *x.shape[:2], self.config.head_dim
        q = self.q_proj(x).view(B, T, -1, D)  # [B, T, H, D]
        k = self.k_proj(x).view(B, T, -1, D)  # [B, T, K, D]
        v = self.v_proj(x).view(B, T, -1, D)
        if self.q_norm is not None:  # Henry et al. 2020, query-key normalization
            q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, H or K, T, D]
        if cache is not None:
            k, v, mask = cache.append(self.layer, k, v)  # [B, K, slots in use, D]
        is_grouped = self.config.n_head != self.config.n_kv_head
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and T > 1, enable_gqa=is_grouped
        )  # [B, H, T, D]
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))  # [B, T, C]


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),  # So et al. 2021, Primer
}


class MLP(nn.Module):
    """The position-wise network: SwiGLU (Shazeer 2020), or two matrices and an activation."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        C, size, bias = config.n_embd, config.intermediate_size, config.bias
        self.gate_proj = nn.Linear(C, size, bias=bias) if config.use_swiglu else None
        self.up_proj = nn.Linear(C, size, bias=bias)
        self.down_proj = ResidualProjection(size, C, bias=bias)
        self.activation = None if config.use_swiglu else ACTIVATIONS[config.activation]

    def forward(self, x):
        if self.gate_proj is not None:
            hidden = F.silu(self.gate_proj(x)) * self.up_proj(x)  # [B, T, F]
        else:
            hidden = self.activation(self.up_proj(x))  # [B, T, F]
        return self.down_proj(hidden)  # [B, T, C]


class Block(nn.Module):
    """Two residual branches, each normalised at its entrance (Xiong et al. 2020, pre-norm)."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.attention_norm = norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = norm(config) if config.intermediate_size else None
        self.mlp = None
        if config.intermediate_size:
            self.mlp = Experts(config, MLP) if config.n_expert else MLP(config)
        self.dropout = Dropout(config)

    def forward(self, x, rotary, cache=None, masks=(None, None), documents=None):
        y = self.attention(self.attention_norm(x), rotary, cache, documents)  # [B, T, C]
        x = x + self.dropout(y, masks[0])
        if self.mlp is None:  # attention only (Elhage et al. 2021)
            return x
        return x + self.dropout(self.mlp(self.mlp_norm(x)), masks[1])


class CrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of logits [n, V]; its gradient is computed in the forward pass.

    Targets [n] of -1 do not count. The logits themselves are not kept.
    """

    @staticmethod
    def forward(ctx, logits, targets):
        values = logits.to(torch.promote_types(logits.dtype, torch.float32))  # of the sums
        unmasked = targets != -1  # [n]
        labels = targets.clamp_min(0)[:, None]  # [n, 1]
        log_sum = values.logsumexp(-1, keepdim=True)  # [n, 1]
        if ctx.needs_input_grad[0]:
            # d loss / d logits = softmax - one-hot, beside the logits, which unembed may need
            grad = values.sub(log_sum).exp_()  # [n, V]
            grad = grad.scatter_add_(1, labels, -torch.ones_like(log_sum))
            ctx.save_for_backward(grad, unmasked)
            ctx.dtype = logits.dtype
        return ((log_sum - values.gather(1, labels))[:, 0] * unmasked).sum()

    @staticmethod
    def backward(ctx, grad_loss):
        grad, unmasked = ctx.saved_tensors
        return grad.mul_((unmasked * grad_loss)[:, None]).to(ctx.dtype), None


class ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of unembed(hidden), without ever holding all N x V logits.

    Chunks of rows are turned into logits, loss and gradients at once, in the forward pass; the
    backward pass only scales. Gradients reach hidden and those of `parameters` that unembed uses.
    Memory: two chunks of logits, and the gradients that are wanted, twice.
    """

    @staticmethod
    def forward(ctx, unembed, criterion, targets, chunk, grad_enabled, hidden, *parameters):
        loss = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        needed = ctx.needs_input_grad[5:] if grad_enabled else ()  # of hidden, of each parameter
        wanted = [i for i, is_needed in enumerate(needed) if is_needed]
        grads = [torch.empty_like(hidden) if 0 in wanted else None, *[None] * len(parameters)]
        leaf = hidden.detach().requires_grad_(0 in wanted)
        for start in range(0, hidden.size(0), chunk):
            rows = slice(start, start + chunk)
            with torch.set_grad_enabled(bool(wanted)):
                part = leaf[rows]  # [n, C]
                total = criterion(unembed(part), targets[rows])
            loss = loss + total.detach()
            if not wanted:
                continue
            inputs = [parameters[i - 1] if i else part for i in wanted]
            found = torch.autograd.grad(total, inputs, allow_unused=True)
            for i, more in zip(wanted, found, strict=True):
                if i == 0:
                    grads[0][rows] = more
                elif more is not None:  # cloned, since two parameters may be given one tensor
                    grads[i] = more.clone() if grads[i] is None else grads[i].add_(more)
            del found, more  # or the next chunk's would be made beside them
        ctx.save_for_backward(*grads)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        grads = (None if grad is None else grad * grad_loss for grad in ctx.saved_tensors)
        return None, None, None, None, None, *grads


class GPT(nn.Module):
    """A decoder-only transformer language model (Radford et al. 2019; Touvron et al. 2023).

    Its weights follow from torch.initial_seed(): models with one seed are equal.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = None
        if config.position_encoding == "learned":
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = Dropout(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_weights:  # Press & Wolf 2017
            self.lm_head.weight = self.token_embedding.weight
        self.make_tables()
        if not self.lm_head.weight.is_meta:
            self.init_weights(torch.initial_seed())

    def make_tables(self, device=None) -> None:
        """Compute the position tables; they follow from the config, so no checkpoint has them."""
        cos = sin = table = None
        if self.config.position_encoding == "rope":
            cos, sin = rotary_tables(self.config, device)
        if self.config.position_encoding == "sinusoidal":
            table = sinusoids(self.config, device)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.register_buffer("position_table", table, persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int, write=torch.Tensor.copy_) -> None:
        """Draw each weight of a linear layer or embedding from (seed, its name), biases zero.

        Normal of std init_std, residual projections scaled or zero. A parameter of any other module
        keeps the value that its constructor gave it. write(parameter, drawn) takes a whole tensor,
        in float32 on the CPU, whatever the device and the sharding of the parameter.
        """
        for name, parameter in self.named_parameters():
            path, _, kind = name.rpartition(".")
            owner = self.get_submodule(path)
            if not isinstance(owner, nn.Linear | nn.Embedding) or kind not in ("weight", "bias"):
                continue
            std = self.config.init_std if kind == "weight" else 0.0
            if isinstance(owner, ResidualProjection):  # 2 n_layer add up (Radford et al. 2019)
                is_zero = self.config.init_projection == "zero"
                std *= 0.0 if is_zero else 1 / math.sqrt(2 * self.config.n_layer)
            write(parameter, normal(seed, name, parameter.shape, std))

    def features(self, tokens, cache: KVCache | None = None, masks=None, documents=None):
        """The last hidden state of each token, normalised: int64 [B, T] -> [B, T, C].

        With a cache the tokens follow those that it holds, row by row. masks: dropout's, of the
        embedding and of each block's branches. documents: bool [B, 1, T, T], who attends to whom.
        """
        T = tokens.size(1)
        longest = T + (max(cache.lengths) if cache else 0)
        if longest > self.config.block_size:
            raise GenerationError(
                f"{longest} tokens do not fit the model's window of {self.config.block_size}."
            )
        positions = cache.reserve(T) if cache else slice(0, T)  # of shape [T] or [B, T]
        x = self.token_embedding(tokens)  # [B, T, C]
        if self.position_embedding is not None:
            x = x + self.position_embedding.weight[positions]
        if self.position_table is not None:
            x = x + self.position_table[positions].to(x.dtype)
        kind = x.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))  # a float32 stream costs bandwidth
        rotary = None
        if self.cos is not None:
            tables = (self.cos[positions], self.sin[positions])
            rotary = [table.to(x.dtype).unsqueeze(-2) for table in tables]  # [T, 1, D]
        first, *rest = masks or [None] + [(None, None)] * self.config.n_layer
        x = self.dropout(x, first)
        for block, own in zip(self.blocks, rest, strict=True):
            if self.config.gradient_checkpointing and self.training and cache is None:
                x = checkpoint(block, x, rotary, None, own, documents, use_reentrant=False)
            else:
                x = block(x, rotary, cache, own, documents)
        if cache is not None:
            cache.advance(T)
        return self.final_norm(x)

    def unembed(self, hidden):
        """Logits of the next token: [..., C] -> [..., V]."""
        return self.lm_head(hidden)

    def forward(
        self, tokens, targets=None, cache=None, reduction="mean", masks=None, documents=None,
        criterion=CrossEntropy.apply,
    ):  # fmt: skip
        """(logits [B, T, V], None), or with targets [B, T] (None, cross-entropy in nats).

        Targets of -1 do not count. reduction: "mean" over unmasked targets, or "sum". criterion:
        the loss of each chunk of logits, in order. The other arguments are those of `features`.
        """
        hidden = self.features(tokens, cache, masks, documents)
        if targets is None:
            return self.unembed(hidden), None
        x, targets = hidden.flatten(0, 1), targets.flatten()  # [N, C], [N]
        chunk = loss_chunk_rows(targets.numel(), self.config.vocab_size)
        loss = ChunkedCrossEntropy.apply(
            self.unembed, criterion, targets, chunk, torch.is_grad_enabled(), x, *self.parameters()
        )
        loss = with_balance(loss, self, targets)
        if reduction == "mean":
            loss = loss / (targets != -1).sum().clamp_min(1)
        return None, loss

    @torch.no_grad()
    def generate(self, tokens, max_new_tokens, temperature=1.0, top_k=None, top_p=None):
        """Continue int64 [B, T] by max_new_tokens sampled tokens, slowly: no cache, one page.

        The oracle that the fast `Generator` is proven against. temperature 0 takes the likeliest;
        top_k and top_p (Holtzman et al. 2020) keep the likeliest ids, in this order. A full window
        keeps its last block_size // 2 tokens. Dropout is off, whatever the mode of the model.
        """
        was_training = self.training
        self.eval()
        window = tokens[:, -self.config.block_size :]
        for _ in range(max_new_tokens):
            if window.size(1) > self.config.block_size:
                window = window[:, -max(1, self.config.block_size // 2) :]
            logits = self(window)[0][:, -1].float()  # [B, V]
            if temperature == 0:
                chosen = logits.argmax(-1, keepdim=True)  # [B, 1]
            else:
                values, ids = (logits / temperature).sort(dim=-1, descending=True)
                if top_k:
                    values[:, top_k:] = -torch.inf
                if top_p is not None:
                    probabilities = values.softmax(-1)
                    likelier = probabilities.cumsum(-1) - probabilities  # mass of those before
                    values[likelier >= top_p] = -torch.inf
                chosen = ids.gather(1, torch.multinomial(values.softmax(-1), 1))  # [B, 1]
            tokens = torch.cat((tokens, chosen), dim=1)
            window = torch.cat((window, chosen), dim=1)
        self.train(was_training)
        return tokens


def create_model(name: str, **settings) -> GPT:
    """A new model of a preset's architecture: `create_model("small", vocab_size=5000)`."""
    return GPT(GPTConfig(**(preset(name) | settings)))


if __name__ == "__main__":
    torch.manual_seed(0)
    model = create_model("tiny", vocab_size=256).eval()
    ids = torch.tensor([list(b"To be, or not to be")])
    print(model)
    print(f"{Path(__file__).name}: {sum(p.numel() for p in model.parameters()):,} parameters")
    print(f"tokens {tuple(ids.shape)} -> logits {tuple(model(ids)[0].shape)}")
    loss = model(ids[:, :-1], ids[:, 1:])[1]
    print(f"loss of an untrained model {loss:.3f}, ln(256) = {math.log(256):.3f}")
    print(f"generated ids: {model.generate(ids, 8, top_k=50)[0, -8:].tolist()}")
