"""The adapters of a LoRA training as files of their own, as the package `peft` reads them."""

import json
from pathlib import Path

import torch

from gptlab.errors import ConfigError
from gptlab.files import atomic_write
from gptlab.interop.architectures import Naming, architecture_of, hf_names
from gptlab.model.lora import LoRALinear
from gptlab.model.reference import unlike_code
from gptlab.model.transformer import GPT


def write_adapter(model: GPT, folder, base: str) -> bool:
    """Write adapter_model.safetensors and adapter_config.json; False where no program reads them.

    The names are those of the model's export for transformers. A model whose settings none of its
    architectures has is not exported either, nor one whose code computes something else. base: the
    name of the model that was adapted.
    """
    from safetensors.torch import save

    try:
        kind = architecture_of(model.config)
    except ConfigError:
        return False
    if unlike_code(model):
        return False
    adapters = _by_module(model, hf_names(kind))
    tensors = {}
    for name, (a, b, _) in adapters.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.detach().cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.detach().cpu().contiguous()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "adapter_config.json", "w") as file:
        json.dump(_settings(adapters, kind, base), file, indent=2)
    with atomic_write(folder / "adapter_model.safetensors") as file:
        file.write(save(tensors, metadata={"format": "pt"}))
    return True


@torch.no_grad()
def _by_module(model: GPT, naming: Naming) -> dict[str, tuple]:
    """{the peer's module: (A, B, alpha)}; a fused QKV module gets one adapter of three."""
    found, fused = {}, {}
    for name, module in model.named_modules():
        if not isinstance(module, LoRALinear):
            continue
        peer, qkv_chunk = naming.peer_key(f"{name}.weight")
        peer = peer.removesuffix(".weight")
        if qkv_chunk is None:
            found[peer] = (module.lora_A, module.lora_B, module.scale * len(module.lora_A))
        else:
            fused.setdefault(peer, {})[qkv_chunk] = module
    for name, parts in fused.items():  # A's beside each other, B's along a diagonal
        rank, size = len(next(iter(parts.values())).lora_A), parts[min(parts)].lora_B.size(0)
        a = torch.cat([part.lora_A for part in parts.values()])  # [parts * rank, in]
        b = a.new_zeros(3 * size, len(a))
        for number, (qkv_chunk, part) in enumerate(parts.items()):
            b[qkv_chunk * size :][:size, number * rank :][:, :rank] = part.lora_B
        found[name] = (a, b, parts[min(parts)].scale * len(a))
    return found


def _settings(adapters: dict, kind: str, base: str) -> dict:
    """What peft's LoraConfig holds."""
    # the ends of the names, behind the number of the layer: "self_attn.q_proj"
    targets = {name: name.split(".", 3)[3] for name in adapters}
    ranks = {targets[name]: len(a) for name, (a, _, _) in adapters.items()}
    alphas = {targets[name]: alpha for name, (_, _, alpha) in adapters.items()}
    rank, alpha = min(ranks.values()), min(alphas.values())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(ranks),
        "layers_to_transform": sorted({int(name.split(".")[2]) for name in adapters}),
        "layers_pattern": "h" if kind == "gpt2" else "layers",
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "fan_in_fan_out": kind == "gpt2",
        "inference_mode": True,
    }
