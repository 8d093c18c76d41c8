"""Folders that transformers writes, read as Llama, Qwen2, Qwen3, Qwen3-MoE or GPT-2."""

from pathlib import Path

from gptlab.data.adopted_tokenizer import folder_chat_template, folder_tokenizer
from gptlab.errors import CheckpointError, DataError
from gptlab.files import display, read_json
from gptlab.interop.architectures import config_from_hf, hf_names
from gptlab.interop.read.imported_model import Imported
from gptlab.interop.weights import SAFETENSORS_INDEX, from_peer
from gptlab.model.config import GPTConfig

# buffers that releases of transformers kept among the weights
_IGNORED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


def read(folder, progress=None) -> Imported:
    """The model of a folder that transformers wrote, its weights in float32.

    progress: called as (stage, advance, total in bytes). Raises CheckpointError for weights that
    are missing, damaged or do not fit, ConfigError for what this model cannot be.
    """
    folder = Path(folder)
    config, weights = read_weights(folder, progress)
    content = _read_settings(folder / "config.json")
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
        stored_as=str(content.get("dtype") or content.get("torch_dtype") or ""),
    )


def read_weights(folder: Path, progress=None) -> tuple[GPTConfig, dict]:
    """(settings, our weights by name) of such a folder, without its tokenizer; as `read`."""
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

    weights = from_peer(
        config,
        hf_names(content["model_type"]),
        available,
        get,
        display(folder),
        ignored=_IGNORED,
    )
    return config, weights


def _read_settings(path: Path) -> dict:
    try:
        return read_json(path)
    except DataError as error:
        raise CheckpointError(error.problem, error.fix) from None


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by its index if there is one."""
    if (folder / SAFETENSORS_INDEX).is_file():
        listed = _read_settings(folder / SAFETENSORS_INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(n, str) for n in listed.values()):
            raise CheckpointError(f"{display(folder / SAFETENSORS_INDEX)} has no valid weight_map.")
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
            "somebody's code",
            "save the model with transformers as safetensors (model.save_pretrained(...))",
        )
    for name, option in (("tf_model.h5", "from_tf"), ("flax_model.msgpack", "from_flax")):
        if (folder / name).is_file():
            raise CheckpointError(
                f"{display(folder)} has its weights as {name}, which gptlab does not read",
                "convert them where transformers 4 is installed: AutoModelForCausalLM."
                f"from_pretrained({display(folder)!r}, {option}=True).save_pretrained(...)",
                sep="; ",
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
