"""Weights under the names of other programs, written and read; every misfit is named."""

import functools
import re
from collections.abc import Callable, Iterable

from gptlab.errors import CheckpointError
from gptlab.interop.architectures import Naming
from gptlab.model.config import GPTConfig
from gptlab.model.shapes import shapes

SAFETENSORS_INDEX = "model.safetensors.index.json"  # of weights in several files


def to_peer(weights: dict, config: GPTConfig, naming: Naming) -> dict:
    """Our weights as another program names and shapes them; one copy of a tied matrix."""
    import torch

    parts: dict[str, dict] = {}
    stacked: dict[str, bool] = {}
    for name in shapes(config):
        value = weights[name]
        peer, part = naming.peer_key(name)
        parts.setdefault(peer, {})[part] = value.T if naming.is_transposed(name) else value
        stacked[peer] = naming.is_stacked(name)
    found = {}
    for name, values in parts.items():
        if None in values:
            found[name] = values[None].contiguous()
        elif stacked[name]:
            found[name] = torch.stack([values[i] for i in range(len(values))])
        else:  # [C, 3C] where it is transposed, [3C, C] or [3C] where not
            dim = 1 if naming.transposed and name.endswith("weight") else 0
            found[name] = torch.cat([values[i] for i in range(3)], dim).contiguous()
    return found


def from_peer(
    config: GPTConfig,
    naming: Naming,
    available: dict[str, tuple[int, ...]],
    get: Callable[[str], object],
    where: str,
    ignored: Iterable[str] = (),
) -> dict:
    """Our weights in float32 from those of another program.

    available: shape of each of their tensors by name. get: reads one. where: their file in words.
    ignored: endings of names that hold no weights. Biases that no layer of a Llama has are zero.
    Raises CheckpointError for a tensor that is missing, superfluous, of another shape or no float.
    """
    import torch

    found, used = {}, set()
    get = functools.lru_cache(maxsize=3)(get)  # of what holds several of our tensors
    kinds = {_kind(name) for name in available}
    for name, shape in shapes(config).items():
        peer, part = naming.peer_key(name)
        used.add(peer)
        if peer not in available:
            # Llama has a switch for the biases of attention and one for the MLP's; we have one
            if config.use_rms_norm and name.endswith("bias") and _kind(peer) not in kinds:
                found[name] = torch.zeros(shape)
                continue
            raise CheckpointError(f"{where} is incomplete: it has no tensor {peer}.")
        whole = shape if part is None else (3 * shape[0], *shape[1:])
        if naming.is_stacked(name):
            whole = (config.n_expert, *shape)
        whole = whole[::-1] if naming.is_transposed(name) else whole
        if tuple(available[peer]) != whole:
            raise CheckpointError(
                f"{where} does not fit its own settings: {peer} has the shape "
                f"{tuple(available[peer])} and should have {whole}."
            )
        value = get(peer)
        if not value.is_floating_point() or value.element_size() < 2:
            raise CheckpointError(
                f"{where} holds {peer} as {str(value.dtype).removeprefix('torch.')}: weights in "
                "float32, float16 or bfloat16 can be imported."
            )
        value = value.T if naming.is_transposed(name) else value
        # a copy: three views of one storage could not be saved one by one
        if naming.is_stacked(name):
            value = value[part].clone()
        elif part is not None:
            value = value.chunk(3)[part].clone()
        found[name] = value.to(torch.float32).contiguous()
    if config.tie_weights:
        used.add(naming.peer_key("lm_head.weight")[0])  # a second copy of the same matrix
    extra = [n for n in available if n not in used and not n.endswith(tuple(ignored))]
    if extra:
        raise CheckpointError(
            f"{where} has {extra[0]}, which its architecture does not have"
            + (f" ({len(extra)} such tensors)." if len(extra) > 1 else ".")
        )
    return found


def _kind(name: str) -> str:
    """A tensor's name without the number of its layer."""
    return re.sub(r"\.\d+\.", ".", name)
