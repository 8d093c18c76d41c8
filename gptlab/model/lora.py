"""Train a part of a model: frozen layers, and low-rank adapters beside frozen weights.

LoRA (Hu et al. 2021): a matrix W stays frozen, and training learns a product of two thin matrices
that is added to it, W + alpha / rank * B A. The modules are wrapped in place from outside, so
weights keep their names; the names of adapters end with lora_A and lora_B.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from gptlab.errors import ConfigError
from gptlab.model.arithmetic import Trained, projections
from gptlab.model.transformer import GPT

ADAPTER_ENDINGS = (".lora_A", ".lora_B")


class LoRALinear(nn.Module):
    """A linear layer with frozen weights, and its adapter: A [rank, in], B [out, rank]."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        like = dict(device=self.weight.device, dtype=self.weight.dtype)
        out_size, in_size = self.weight.shape
        drawn = torch.empty(rank, in_size)  # on the CPU: the same on every device
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))  # like the paper's code, loralib
        self.lora_A = nn.Parameter(drawn.to(**like))
        self.lora_B = nn.Parameter(torch.zeros(out_size, rank, **like))

    def forward(self, x):
        thin = F.linear(x, self.lora_A) * self.scale  # [..., rank]
        return F.linear(x, self.weight, self.bias) + F.linear(thin, self.lora_B)

    @torch.no_grad()
    def merged_weight(self) -> torch.Tensor:
        """The single matrix [out, in] that is equivalent to weight and adapter."""
        return torch.addmm(self.weight, self.lora_B, self.lora_A, alpha=self.scale)


def train_only(model: GPT, trained: Trained, alpha: float) -> None:
    """Freeze the weights that `trained` excludes, and add its adapters unless there are some.

    Only parameters with requires_grad get gradients and optimizer state. The A of an adapter is
    drawn from torch's generator and its B is zero, so the output of the model does not change.
    Raises ConfigError where a block has no linear layer of a target's name and shape.
    """
    if trained.lora_rank:
        if not has_adapters(model):
            _check_targets(model, trained)
            for block in model.blocks[trained.freeze_layers :]:
                _wrap(block, trained.lora_targets, trained.lora_rank, alpha)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_adapter(name))
    elif trained.freeze_layers:
        frozen = [model.token_embedding, *model.blocks[: trained.freeze_layers]]
        if model.position_embedding is not None:
            frozen.append(model.position_embedding)
        for module in frozen:  # a tied output head is the token embedding
            module.requires_grad_(False)


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter."""
    return name.endswith(ADAPTER_ENDINGS)


def has_adapters(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return any(isinstance(module, LoRALinear) for module in model.modules())


def add_adapters(model: GPT, weights: Mapping[str, torch.Tensor], alpha: float) -> None:
    """Wrap the projections whose adapters are in `weights`, and load the adapters."""
    for name in weights:
        if not name.endswith(".lora_A"):
            continue
        where, _, projection = name.removesuffix(".lora_A").rpartition(".")
        parent = model.get_submodule(where)
        wrapped = LoRALinear(getattr(parent, projection), weights[name].size(0), alpha)
        setattr(parent, projection, wrapped)
    model.load_state_dict(weights, strict=False)


def merge_adapters(model: GPT) -> None:
    """Merge the adapters into the weights, in place, and remove them."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, LoRALinear):
                setattr(parent, name, _merged(module))


def merged_weights(model: GPT) -> dict[str, torch.Tensor]:
    """`model.state_dict()` with the adapters merged; the model itself does not change."""
    weights = {name: w for name, w in model.state_dict().items() if not is_adapter(name)}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            weights[f"{name}.weight"] = module.merged_weight()
    return weights


def _check_targets(model: GPT, trained: Trained) -> None:
    expected = projections(model.config)
    for block in model.blocks[trained.freeze_layers :]:
        layers = {
            name: module
            for parent in (block.attention, block.mlp)
            if parent is not None
            for name, module in parent.named_children()
        }
        for name in trained.lora_targets:
            layer, shape = layers.get(name), expected[name]
            if not isinstance(layer, nn.Linear) or layer.weight.shape != shape:
                raise ConfigError(
                    f"lora_targets has {name}, and this model has no linear layer {name} of "
                    f"{shape[0]} x {shape[1]} weights in each block: leave {name} out."
                )


def _wrap(block: nn.Module, targets: tuple[str, ...], rank: int, alpha: float) -> None:
    for parent in filter(None, (block.attention, block.mlp)):
        for name, module in list(parent.named_children()):
            if name in targets:
                setattr(parent, name, LoRALinear(module, rank, alpha))


def _merged(wrapped: LoRALinear) -> nn.Linear:
    out_size, in_size = wrapped.weight.shape
    # allocates no memory: the weights are set next
    linear = nn.utils.skip_init(nn.Linear, in_size, out_size, bias=wrapped.bias is not None)
    linear.weight = nn.Parameter(wrapped.merged_weight())
    if wrapped.bias is not None:
        linear.bias = nn.Parameter(wrapped.bias.detach())
    return linear
