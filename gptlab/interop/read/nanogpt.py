"""Checkpoints of nanoGPT: its ckpt.pt with model_args, and meta.pkl for models of characters."""

import pickle
import warnings
from pathlib import Path

from gptlab.checkpoints import WRAPPER_PREFIXES
from gptlab.data.downloads import gpt2_tokenizer
from gptlab.data.nanogpt_meta import read_characters
from gptlab.data.tokenizer import Tokenizer, char_tokenizer_without_end
from gptlab.errors import CheckpointError, ConfigError
from gptlab.files import display
from gptlab.interop.architectures import NANOGPT_NAMES
from gptlab.interop.read.imported_model import Imported
from gptlab.interop.weights import from_peer
from gptlab.model.config import GPTConfig

# GPT-2's 50,257 ids, and the multiple of 64 that nanoGPT rounds them up to
GPT2_VOCABULARIES = (50257, 50304)


def is_checkpoint(path) -> bool:
    """Whether a file is a checkpoint of nanoGPT, as far as it can be read safely."""
    try:
        return "model_args" in _load(Path(path))
    except CheckpointError:
        return False


def read(path, meta=None) -> Imported:
    """The model of a ckpt.pt, loaded without running any code in it.

    meta: the meta.pkl of its dataset, if it is a model of characters; by default the one beside
    the checkpoint or in the dataset's folder as the checkpoint names it. Raises CheckpointError
    for a file that holds more than tensors and plain values, or another model.
    """
    path = Path(path)
    where = display(path)
    content = _load(path)
    arguments, weights = content.get("model_args"), content.get("model")
    if not isinstance(arguments, dict) or not isinstance(weights, dict):
        raise _without_sizes(content, where)
    config = _config_of(arguments, where)
    weights = {_plain_name(name): value for name, value in weights.items()}
    imported = from_peer(
        config,
        NANOGPT_NAMES,
        {name: tuple(value.shape) for name, value in weights.items()},
        weights.__getitem__,
        where,
        # the causal mask that releases without flash attention keep as a buffer
        ignored=(".attn.bias",),
    )
    dataset = (content.get("config") or {}).get("dataset")
    tokenizer = _tokenizer(config.vocab_size, path, meta, dataset)
    more = {}
    loss = content.get("best_val_loss")
    if loss is not None:
        more["val_loss"] = float(loss)
    if isinstance(content.get("iter_num"), int):
        more["step"] = content["iter_num"]
    return Imported(config, imported, tokenizer, "nanoGPT", more=more)


def _without_sizes(content: dict, where: str) -> CheckpointError:
    """The error for a file without model_args: weights alone, or something else."""
    import torch

    inner = [content.get(name) for name in ("model", "state_dict", "model_state_dict")]
    for weights in [*inner, content]:
        if (
            isinstance(weights, dict)
            and weights
            and all(isinstance(value, torch.Tensor) for value in weights.values())
        ):
            break
    else:
        return CheckpointError(
            f"{where} is not a checkpoint of nanoGPT (it has no model_args)",
            "import a ckpt.pt that nanoGPT's train.py wrote, a Hugging Face folder or a .gguf file",
            sep="; ",
        )
    weights = {_plain_name(name): value for name, value in weights.items()}
    sizes = ", ".join(f"{name}={value}" for name, value in _sizes_of(weights).items())
    return CheckpointError(
        f"{where} holds weights alone, without the sizes of their model (model_args)",
        "save them in nanoGPT's form, torch.save({'model': weights, 'model_args': "
        f"dict({sizes})}}, 'ckpt.pt'), or, if transformers wrote them, save the model as a folder "
        "with save_pretrained(...)",
        sep="; ",
    )


def _sizes_of(weights: dict) -> dict:
    """nanoGPT's model_args as far as the shapes of weights tell them, else what to fill in."""
    sizes = dict.fromkeys(("n_layer", "n_head", "n_embd", "block_size", "vocab_size"), "...")
    tokens, places = (weights.get(f"transformer.{name}.weight") for name in ("wte", "wpe"))
    if tokens is not None and tokens.dim() == 2:
        sizes["vocab_size"], sizes["n_embd"] = tokens.shape
        layers = {name.split(".")[2] for name in weights if name.startswith("transformer.h.")}
        sizes["n_layer"] = len(layers)
    if places is not None and places.dim() == 2:
        sizes["block_size"] = len(places)
    return sizes | {"bias": any(name.endswith("ln_1.bias") for name in weights)}


def _load(path: Path) -> dict:
    import torch

    where = display(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd pickles, which are refused all the same
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{where} was refused: it holds more than tensors and plain values, and loading such a "
            "file could run somebody's code."
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise CheckpointError(f"{where} is damaged or not a checkpoint.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{where} is not a checkpoint of nanoGPT (it has no model_args).")
    return content


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"  # the format since torch 1.6; only it can be mapped


def _plain_name(name: str) -> str:
    for prefix in WRAPPER_PREFIXES:
        name = name.replace(prefix, "")
    return name


def _config_of(arguments: dict, where: str) -> GPTConfig:
    sizes = {}
    for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
        value = arguments.get(name)
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{where} has no valid {name} in its model_args ({value!r}).")
        sizes[name] = value
    return GPTConfig(
        **sizes,
        dropout=float(arguments.get("dropout", 0.0)),
        bias=bool(arguments.get("bias", True)),
        use_rms_norm=False,
        use_swiglu=False,
        activation="gelu",
        position_encoding="learned",
    )


def _tokenizer(vocab_size: int, path: Path, meta, dataset) -> Tokenizer:
    if meta is None and vocab_size in GPT2_VOCABULARIES:
        return gpt2_tokenizer()
    if meta is None:
        beside = [path.parent / "meta.pkl"]
        if isinstance(dataset, str):  # nanoGPT's layout: out-NAME/ckpt.pt and data/NAME/meta.pkl
            beside += [
                root / "data" / dataset / "meta.pkl" for root in (path.parent.parent, Path())
            ]
        meta = next((file for file in beside if file.is_file()), None)
    if meta is None:
        raise ConfigError(
            f"{display(path)} has a vocabulary of {vocab_size} ids whose meaning is in its "
            "dataset's meta.pkl",
            "name that file with --meta, or copy it beside the checkpoint",
        )
    alphabet = read_characters(meta)
    if len(alphabet) != vocab_size:
        raise ConfigError(
            f"{display(meta)} has {len(alphabet)} characters and the model {vocab_size} ids",
            "name the meta.pkl of the dataset that it was trained on with --meta",
        )
    return char_tokenizer_without_end(alphabet)
