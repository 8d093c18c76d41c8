"""Folders that transformers opens, written as Llama, Qwen3, Qwen3-MoE or GPT-2."""

import contextlib
import dataclasses
import json
from pathlib import Path

from gptlab.data.tokenizer import Tokenizer
from gptlab.errors import ConfigError
from gptlab.interop.architectures import architecture_of, hf_names, hf_settings
from gptlab.interop.read.huggingface import read_weights
from gptlab.interop.weights import SAFETENSORS_INDEX, to_peer
from gptlab.interop.write.model_card import model_card
from gptlab.interop.write.output import new_folder
from gptlab.interop.write.verify import check_weights
from gptlab.model.shapes import shapes

SHARD_BYTES = 5_000_000_000
# dtype of the weights, as transformers names it: a key of `verify.ROUNDING`
DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def check(checkpoint) -> None:
    """Raise ConfigError, naming the settings, for a model that no architecture outside is."""
    architecture_of(checkpoint.model.config)


def write(
    checkpoint, output, *, overwrite: bool = False, progress=None, dtype: str = "float32"
) -> Path:
    """Write a checkpoint (`runs.load_checkpoint`) as a folder for transformers; its path.

    Llama, Qwen3, Qwen3-MoE or GPT-2, weights in safetensors, the tokenizer, a model card. dtype: of
    the weights, a key of DTYPES. Nothing is there under the name until all is, and was read back as
    this model, rounded to the dtype. Raises ConfigError for settings that none of these has,
    for a folder that is taken, or for weights too large for float16.
    """
    import torch

    config = checkpoint.model.config
    kind = architecture_of(config)
    weights = {name: value.detach() for name, value in checkpoint.model.state_dict().items()}
    if kind == "gpt2" and not config.bias:  # GPT-2 has biases: zeros compute the same
        config = dataclasses.replace(config, bias=True)
        weights = _zeros(config) | weights
    tokenizer = checkpoint.tokenizer
    settings = hf_settings(config) | _special_ids(tokenizer)
    # transformers 4 reads the first, 5 the second
    settings |= {"torch_dtype": dtype, "dtype": dtype, "use_cache": True}
    with new_folder(output, overwrite, mark="config.json") as folder:
        _write_json(folder / "config.json", settings)
        _write_json(folder / "generation_config.json", _special_ids(tokenizer))
        peer = to_peer(weights, config, hf_names(kind))
        peer = {name: value.to(getattr(torch, dtype)) for name, value in peer.items()}
        if bad := [name for name, value in peer.items() if not value.isfinite().all()]:
            raise ConfigError(
                f"{bad[0]} holds weights that {dtype} cannot", "use --dtype bfloat16 or float32"
            )
        _write_weights(folder, peer, progress)
        if tokenizer is not None:
            _write_tokenizer(folder, checkpoint)
        card = model_card(checkpoint, settings["architectures"][0])
        (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")
        check_weights(checkpoint, *read_weights(folder), "hf", DTYPES[dtype])
    return Path(output)


def _zeros(config) -> dict:
    import torch

    return {n: torch.zeros(shape) for n, shape in shapes(config).items() if n.endswith(".bias")}


def _special_ids(tokenizer: Tokenizer | None) -> dict:
    end = tokenizer.eot_id if tokenizer else None
    begin = tokenizer.bos_id if tokenizer else None
    return {
        "bos_token_id": end if begin is None else begin,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def _write_json(path: Path, value: dict) -> None:
    path.write_text(
        json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n"
    )


def _write_weights(folder: Path, weights: dict, progress) -> None:
    """model.safetensors, or shards of at most SHARD_BYTES and their index."""
    from safetensors.torch import save_file

    shards, size = [{}], 0
    for name, value in weights.items():
        if shards[-1] and size + value.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    total = sum(value.nbytes for value in weights.values())
    where = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else file
        save_file(shard, folder / file, metadata={"format": "pt"})
        # safetensors lets nobody else read it, and not every mount has permissions (exFAT, CIFS)
        with contextlib.suppress(OSError):
            (folder / file).chmod(0o644)
        where |= dict.fromkeys(shard, file)
        if progress:
            progress("writing the weights", sum(v.nbytes for v in shard.values()), total)
    if len(shards) > 1:
        _write_json(
            folder / SAFETENSORS_INDEX, {"metadata": {"total_size": total}, "weight_map": where}
        )


def _write_tokenizer(folder: Path, checkpoint) -> None:
    """tokenizer.json, and the generic class that both transformers 4 and 5 know."""
    tokenizer = checkpoint.tokenizer
    (folder / "tokenizer.json").write_text(
        tokenizer.to_plain_json(), encoding="utf-8", newline="\n"
    )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": checkpoint.model.config.block_size,
        # without it transformers 4 adds token_type_ids, which none of these models takes
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if tokenizer.eot_id is not None:
        end = tokenizer.special_token(tokenizer.eot_id)
        begin = end if tokenizer.bos_id is None else tokenizer.special_token(tokenizer.bos_id)
        settings |= {"bos_token": begin, "eos_token": end, "pad_token": end}
    if template := checkpoint.content.get("chat_template"):
        settings["chat_template"] = template
    _write_json(folder / "tokenizer_config.json", settings)
