"""The architecture of a model as plain numbers (no torch), and the presets."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from gptlab.errors import ConfigError

PositionEncoding = Literal["rope", "learned", "sinusoidal"]
Activation = Literal["gelu", "gelu_tanh", "relu", "relu2"]
InitProjection = Literal["scaled", "zero"]
FILLED_IN: Any = None  # the default of a field whose value construction fills in


@dataclass(frozen=True)
class GPTConfig:
    """Model.

    Every setting of the transformer. It can be exactly a Llama (the defaults), a Qwen3
    (`qk_norm`), a Qwen3-MoE (`qk_norm`, `n_expert`), a GPT-2 (`position_encoding="learned",
    use_rms_norm=False, use_swiglu=False, activation="gelu_tanh", bias=True`) or the classic small
    GPT. Values that follow from others are None until construction fills them in, so a built config
    holds numbers only.
    Raises ConfigError for a combination that cannot be built.
    """

    block_size: Annotated[int, "longest sequence the model sees, in tokens"] = 256
    vocab_size: Annotated[int, "number of token ids (belongs to the data)"] = 8192
    n_layer: Annotated[int, "number of transformer blocks"] = 6
    n_head: Annotated[int, "number of attention heads [6]"] = FILLED_IN
    n_kv_head: Annotated[
        int, "key/value heads shared by the heads, 1 = multi-query [n_head; 3 if that is unset]"
    ] = FILLED_IN
    n_embd: Annotated[int, "width: channels of the residual stream"] = 384
    mlp_ratio: Annotated[float, "MLP size relative to n_embd (SwiGLU: times 2/3, rounded)"] = 4.0
    dropout: Annotated[
        float, "probability of dropping a channel of a residual branch, as the nearest n/256"
    ] = 0.1
    bias: Annotated[bool, "additive biases in linear layers and LayerNorm"] = False
    use_rms_norm: Annotated[bool, "RMSNorm (Zhang & Sennrich 2019), else LayerNorm"] = True
    use_swiglu: Annotated[bool, "gated SwiGLU MLP (Shazeer 2020), else a plain one"] = True
    activation: Annotated[
        Activation | None,
        f"activation of the plain MLP: {', '.join(get_args(Activation))} [gelu]",
    ] = None
    position_encoding: Annotated[
        PositionEncoding, "how positions enter: RoPE (Su et al. 2021), ..."
    ] = "rope"
    rope_theta: Annotated[float, "base of the RoPE frequencies"] = 10000.0
    qk_norm: Annotated[bool, "learned RMSNorm on queries and keys, before RoPE (as Qwen3)"] = False
    tie_weights: Annotated[bool, "one matrix for token embedding and output head"] = True
    norm_eps: Annotated[float, "added to the variance inside every norm"] = 1e-5
    head_dim: Annotated[int, "channels of a head [n_embd / n_head]"] = FILLED_IN
    intermediate_size: Annotated[
        int, "hidden size of the MLP; 0 = no MLP, attention only [from mlp_ratio]"
    ] = FILLED_IN
    n_expert: Annotated[
        int, "experts in place of each MLP, of which a router chooses some for each token; 0 = none"
    ] = 0
    n_expert_active: Annotated[int, "experts that work on each token [2]"] = FILLED_IN
    expert_size: Annotated[
        int, "hidden size of an expert [intermediate_size / n_expert_active]"
    ] = FILLED_IN
    expert_balance: Annotated[
        float, "weight of the loss for uneven use of the experts within a sequence; 0 = off"
    ] = 0.01
    init_std: Annotated[float, "standard deviation of the initial weights"] = 0.02
    init_projection: Annotated[
        InitProjection,
        "initial residual projections: scaled by 1/sqrt(2 n_layer) (GPT-2), or zero",
    ] = "scaled"
    gradient_checkpointing: Annotated[
        bool, "recompute each block in the backward pass: less memory, about a third slower"
    ] = False

    def __post_init__(self) -> None:
        filled: dict[str, Any] = {}
        if self.n_head is None:
            filled["n_head"] = 6
        n_head = filled.get("n_head", self.n_head)
        if self.n_kv_head is None:
            filled["n_kv_head"] = 3 if self.n_head is None else n_head
        self._check_sizes(n_head, filled.get("n_kv_head", self.n_kv_head))
        if self.head_dim is None:
            filled["head_dim"] = self.n_embd // n_head
        filled |= self._mlp_sizes()
        if self.activation is None and not self.use_swiglu:
            filled["activation"] = "gelu"
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        self._check_combinations()

    def _mlp_sizes(self) -> dict[str, int]:
        """The sizes that are not set; those of experts are 0 in a model without them."""
        hidden, size = self.intermediate_size, self.expert_size
        if not self.n_expert:
            hidden = self._default_intermediate_size() if hidden is None else hidden
            return {"intermediate_size": hidden, "n_expert_active": 0, "expert_size": 0}
        active = 2 if self.n_expert_active is None else self.n_expert_active
        if not 2 <= active <= self.n_expert:
            # the weight of a single one is always 1, so its router would not learn
            raise ConfigError(
                f"n_expert_active is {active} and n_expert {self.n_expert}: at least 2 experts "
                "work on each token, and at most all of them; n_expert 0 is a model without."
            )
        if size is None:
            size = (self._default_intermediate_size() if hidden is None else hidden) // active
        if size < 1:
            raise ConfigError(f"expert_size is {size}: it must be at least 1.")
        if hidden is not None and hidden != size * active:
            raise ConfigError(
                f"intermediate_size {hidden} is not the hidden size of the {active} experts that "
                f"work on a token: use {size * active}, or leave it out and set expert_size."
            )
        return {
            "intermediate_size": size * active, "n_expert_active": active, "expert_size": size,
        }  # fmt: skip

    def _default_intermediate_size(self) -> int:
        if not self.use_swiglu:
            return int(self.mlp_ratio * self.n_embd)
        # three matrices instead of two, so 2/3 of the size for the same number of parameters
        return max(32, round(self.mlp_ratio * self.n_embd * 2 / 3 / 32) * 32)

    def _check_sizes(self, n_head: int, n_kv_head: int) -> None:
        sizes = {
            "block_size": self.block_size,
            "vocab_size": self.vocab_size,
            "n_layer": self.n_layer,
            "n_head": n_head,
            "n_kv_head": n_kv_head,
            "n_embd": self.n_embd,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}: it must be at least 1.")
        even = 2 if self.position_encoding == "rope" else 1  # which rotates pairs of channels
        if self.head_dim is None and self.n_embd % (even * n_head):
            step, shared = even * n_head, self.n_kv_head or 1
            widths = [
                n for n in (self.n_embd // step * step, self.n_embd // step * step + step) if n
            ]
            ways = (n_head + sign * d for d in range(n_head) for sign in (-1, 1))
            closest = next((n for n in ways if not self.n_embd % (even * n) and not n % shared), 0)
            raise ConfigError(
                f"n_embd {self.n_embd} does not divide into n_head {n_head} heads"
                f"{' of an even size' * (even - 1)}: use {f'n_head {closest}, or ' * bool(closest)}"
                f"n_embd {' or '.join(map(str, widths))} (the width)."
            )
        if n_head % n_kv_head:
            raise ConfigError(
                f"n_head {n_head} is not a multiple of n_kv_head {n_kv_head}: every key/value "
                f"head serves the same number of heads, so use one of "
                f"{', '.join(str(n) for n in range(1, min(n_head, 1024) + 1) if n_head % n == 0)}."
            )

    def _check_combinations(self) -> None:
        for name, least in {"head_dim": 1, "intermediate_size": 0}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least {least}.")
        choices: dict[str, Any] = {
            "position_encoding": PositionEncoding,
            "init_projection": InitProjection,
        }
        if self.activation is not None:
            choices["activation"] = Activation
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(
                    f"{name} cannot be {getattr(self, name)!r}: choose from "
                    f"{', '.join(get_args(kind))}."
                )
        if self.position_encoding == "rope" and self.head_dim % 2:
            raise ConfigError(
                f"head_dim {self.head_dim} is odd and RoPE rotates pairs of channels: use an even "
                f"one, such as {self.head_dim + 1}, or position_encoding learned."
            )
        if self.use_swiglu and self.activation is not None:
            raise ConfigError(
                f"activation {self.activation} has no effect in a SwiGLU MLP: add --use_swiglu "
                "false, or leave activation out."
            )
        if self.tie_weights and self.init_projection == "zero":
            raise ConfigError(
                "init_projection zero with tied weights starts far from the uniform prediction: "
                "add --tie_weights false, or use init_projection scaled."
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout {self.dropout} must be at least 0 and below 1.")
        if not (math.isfinite(self.expert_balance) and self.expert_balance >= 0):
            raise ConfigError(
                f"expert_balance is {self.expert_balance}: it must be finite and at least 0."
            )
        for name in ("mlp_ratio", "rope_theta", "norm_eps", "init_std"):
            value = getattr(self, name)
            if not math.isfinite(value) or value <= 0:
                raise ConfigError(f"{name} is {value}: it must be finite and above 0.")

    @property
    def branches(self) -> int:
        """Residual branches of a block: attention and MLP (or experts), if there is one."""
        return 2 if self.intermediate_size else 1

    @property
    def cached_layers(self) -> tuple[tuple[int, int], ...]:
        """(key/value heads, channels of each) of every layer that a cache holds."""
        return ((self.n_kv_head, self.head_dim),) * self.n_layer

    @property
    def dropped_of_256(self) -> int:
        """n of the 256 values of a random byte with which training drops a number: dropout is
        applied as the nearest n/256 that drops something and not everything."""
        return min(255, max(1, round(256 * self.dropout))) if self.dropout else 0

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain types: what a checkpoint stores."""
        return dataclasses.asdict(self)


_GPT2: dict[str, Any] = dict(
    block_size=1024,
    position_encoding="learned",
    use_rms_norm=False,
    use_swiglu=False,
    activation="gelu_tanh",
    bias=True,
    dropout=0.0,
)

# Architectures only. tiny to large are Llamas with grouped queries, named for their parameters at
# a vocabulary of 8,192: 10M, 25M, 80M, 350M. gpt2 to gpt2-xl are OpenAI's (Radford et al. 2019).
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(block_size=256, n_layer=6, n_head=5, n_embd=320),
    "small": dict(block_size=512, n_layer=8, n_head=8, n_kv_head=2, n_embd=512),
    "medium": dict(block_size=1024, n_layer=12, n_head=12, n_kv_head=4, n_embd=768),
    "large": dict(block_size=1024, n_layer=30, n_head=16, n_kv_head=8, n_embd=1024),
    "gpt2": dict(**_GPT2, n_layer=12, n_head=12, n_embd=768),
    "gpt2-medium": dict(**_GPT2, n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": dict(**_GPT2, n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": dict(**_GPT2, n_layer=48, n_head=25, n_embd=1600),
}


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset. Raises ConfigError, with all names, for an unknown one."""
    if name not in PRESETS:
        raise ConfigError(f"There is no preset {name!r}: choose from {', '.join(PRESETS)}.")
    return dict(PRESETS[name])
