"""Models that are built to be filled, counted or compared: no weight of them is drawn."""

import dataclasses
import functools
import math

import torch
from torch.overrides import TorchFunctionMode

from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT

# of a narrow copy, at most; its heads are as many
NARROW = dict(vocab_size=64, intermediate_size=48, head_dim=8, block_size=256, n_layer=8)


class SkipInitialisation(TorchFunctionMode):
    """A context in which torch.nn.init draws nothing, because the weights come from elsewhere.

    Nothing is copied either, so the memory of a matrix is not even touched.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init" or func is torch.Tensor.copy_:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def parameter_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of `GPT(config)` by its name, asked of the module itself.

    A tied matrix is there once. On the meta device: no memory, whatever the sizes.
    """

    class WithoutTables(GPT):
        def make_tables(self, device=None):
            """Nothing: arithmetic on the meta device imports torch._dynamo, which takes seconds."""

    with torch.device("meta"), SkipInitialisation():
        model = WithoutTables(config)
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


@functools.lru_cache
def module_parameters(config: GPTConfig) -> int:
    """Number of parameters of `GPT(config)` itself; `count_parameters` is the formula for them.

    Blocks behind the third count as the third does: to build a hundred of them takes a second.
    """
    if config.n_layer <= 3:
        return sum(map(math.prod, parameter_shapes(config).values()))
    two, three = (module_parameters(dataclasses.replace(config, n_layer=n)) for n in (2, 3))
    return two + (config.n_layer - 2) * (three - two)


@torch.no_grad()
def narrow_copy(model: GPT, dropout: float = 0.0) -> GPT:
    """A small model of the same code, heads and switches, with large random weights.

    A branch whose weights are zero or tiny hides what it computes; here every branch shows.
    """
    config = model.config
    small = {name: min(getattr(config, name), size) for name, size in NARROW.items()}
    if config.n_expert:
        small["expert_size"] = min(config.expert_size, NARROW["intermediate_size"] // 2)
        small["intermediate_size"] = config.n_expert_active * small["expert_size"]
    small["n_embd"] = config.n_head * small["head_dim"]
    if config.n_head * config.head_dim != config.n_embd:
        small["n_embd"] = min(config.n_embd, small["n_embd"] + 8)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), SkipInitialisation():
        narrow = type(model)(dataclasses.replace(config, **small, dropout=dropout))
    generator = torch.Generator().manual_seed(0)
    embeddings = {id(m.weight) for m in narrow.modules() if isinstance(m, torch.nn.Embedding)}
    for name, weight in narrow.named_parameters():
        drawn = torch.randn(weight.shape, generator=generator)
        if id(weight) in embeddings:
            weight.copy_(drawn)
        elif weight.dim() > 1:
            weight.copy_(drawn * 2 / weight.size(-1) ** 0.5)
        else:
            weight.copy_(drawn / 2 + (not name.endswith("bias")))
    return narrow.eval()
