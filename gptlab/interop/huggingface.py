"""Folders that transformers opens: written for any program, read from Llama, Qwen3 and GPT-2."""

import dataclasses
import json
from pathlib import Path

from gptlab.data.tokenizer import Tokenizer, folder_chat_template, folder_tokenizer
from gptlab.errors import CheckpointError, DataError
from gptlab.files import display, read_json
from gptlab.interop.architectures import (
    architecture_of,
    config_from_hf,
    hf_names,
    hf_settings,
    shapes,
)
from gptlab.interop.folders import new_folder
from gptlab.interop.hub import INDEX
from gptlab.interop.imported import Imported
from gptlab.interop.model_card import model_card
from gptlab.interop.weights import from_theirs, to_theirs

SHARD_BYTES = 5_000_000_000
# buffers that releases of transformers kept among the weights
_IGNORED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


# Out ----------------------------------------------------------------------------------------------


def check(checkpoint) -> None:
    """Raise ConfigError, naming the settings, for a model that no architecture outside is."""
    architecture_of(checkpoint.model.config)


def write(checkpoint, output, *, overwrite: bool = False, progress=None) -> Path:
    """Write a checkpoint (`runs.load_checkpoint`) as a folder for transformers; its path.

    Llama, Qwen3 or GPT-2, weights in float32 and safetensors, the tokenizer, a model card. Nothing
    is there under the name until all is. Raises ConfigError for settings that none of the three
    has, or for a folder that is taken.
    """
    config = checkpoint.model.config
    kind = architecture_of(config)
    weights = {name: value.detach() for name, value in checkpoint.model.state_dict().items()}
    if kind == "gpt2" and not config.bias:  # GPT-2 has biases: zeros compute the same
        config = dataclasses.replace(config, bias=True)
        weights = _zeros(config) | weights
    tokenizer = checkpoint.tokenizer
    settings = hf_settings(config) | _special_ids(tokenizer)
    # transformers 4 reads the first, 5 the second
    settings |= {"torch_dtype": "float32", "dtype": "float32", "use_cache": True}
    with new_folder(output, overwrite, mark="config.json") as folder:
        _write_json(folder / "config.json", settings)
        _write_json(folder / "generation_config.json", _special_ids(tokenizer))
        _write_weights(folder, to_theirs(weights, config, hf_names(kind)), progress)
        if tokenizer is not None:
            _write_tokenizer(folder, checkpoint)
        card = model_card(checkpoint, settings["architectures"][0])
        (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")
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
        (folder / file).chmod(0o644)  # safetensors lets nobody else read it
        where |= dict.fromkeys(shard, file)
        if progress:
            progress("writing the weights", sum(v.nbytes for v in shard.values()), total)
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


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


# In -----------------------------------------------------------------------------------------------


def read(folder, progress=None) -> Imported:
    """The model of a folder that transformers wrote, its weights in float32.

    progress: called as (stage, advance, total in bytes). Raises CheckpointError for weights that
    are missing, damaged or do not fit, ConfigError for what this model cannot be.
    """
    folder = Path(folder)
    content = _read_settings(folder / "config.json")
    files = _weight_files(folder)
    opened, available = {}, {}
    for file in files:
        for name, tensor in _open(file):
            if name in opened:
                raise CheckpointError(f"{display(folder)} has the tensor {name} twice.")
            opened[name] = tensor
            available[name] = tuple(tensor.get_shape())
    names, available = _with_prefix(content.get("model_type"), available)
    config = config_from_hf(content, available, display(folder / "config.json"))
    total = sum(file.stat().st_size for file in files)

    def get(name):
        value = opened[names[name]][:]
        if progress:
            progress("reading the weights", value.nbytes, total)
        return value

    weights = from_theirs(
        config,
        hf_names(content["model_type"]),
        available,
        get,
        display(folder),
        ignored=_IGNORED,
    )
    tokenizer = folder_tokenizer(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{display(folder)} has a tokenizer of {tokenizer.vocab_size:,} ids and a model of "
            f"{config.vocab_size:,}: they do not belong together."
        )
    return Imported(
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        kind="Hugging Face",
        name=str(content.get("_name_or_path") or folder.name),
        chat_template=folder_chat_template(folder),
    )


def _read_settings(path: Path) -> dict:
    try:
        return read_json(path)
    except DataError as error:
        raise CheckpointError(str(error)) from None


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by its index if there is one."""
    if (folder / INDEX).is_file():
        listed = _read_settings(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(n, str) for n in listed.values()):
            raise CheckpointError(f"{display(folder / INDEX)} has no valid weight_map.")
        files = [folder / name for name in sorted(set(listed.values()))]
        if missing := [file for file in files if not file.is_file()]:
            raise CheckpointError(
                f"{display(folder)} is incomplete: {missing[0].name}, which its index names, is "
                "missing."
            )
        return files
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise CheckpointError(
            f"{display(folder)} has its weights as pickles (.bin), and loading those could run "
            "somebody's code: save the model with transformers as safetensors "
            "(model.save_pretrained(...))."
        )
    raise CheckpointError(f"{display(folder)} is incomplete: it has no model.safetensors.")


def _open(file: Path):
    """(name, lazy tensor) of each tensor in a file."""
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(file, framework="pt")
        for name in opened.keys():
            yield name, opened.get_slice(name)
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, PermissionError):
            raise
        raise CheckpointError(
            f"{display(file)} is damaged: it is cut short or was changed after it was written."
        ) from error


def _with_prefix(kind, available: dict) -> tuple[dict, dict]:
    """(full name -> name in the file, full name -> shape): some files lack the model's prefix."""
    prefix = "transformer." if kind == "gpt2" else "model."
    names = {
        name if name.startswith((prefix, "lm_head.")) else prefix + name: name for name in available
    }
    return names, {full: available[name] for full, name in names.items()}
