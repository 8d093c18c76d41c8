"""Models in GGUF, the format of llama.cpp: float and quantised weights, tokenizer inside."""

from collections import Counter
from pathlib import Path

import numpy as np

from gptlab.errors import CheckpointError, ConfigError
from gptlab.files import display
from gptlab.interop.architectures import GGUF_GPT2_NAMES, GGUF_NAMES, Settings
from gptlab.interop.read.gguf_tokenizer import tokenizer_of
from gptlab.interop.read.imported_model import Imported
from gptlab.interop.weights import from_peer
from gptlab.model.config import GPTConfig

ARCHITECTURES = ("llama", "qwen3", "qwen3moe", "gpt2")
# tensors that llama.cpp computes anew from the settings
_IGNORED = ("attn_rot_embd",)


def read(path, progress=None) -> Imported:
    """The model of a GGUF file, its weights in float32.

    progress: called as (stage, advance, total in bytes). Raises CheckpointError for a file that is
    damaged or does not fit its own settings, ConfigError for what this model cannot be.
    """
    path = Path(path)
    fields, tensors = open_file(path)
    config, weights = _weights(path, fields, tensors, progress)
    return Imported(
        config=config,
        weights=weights,
        tokenizer=tokenizer_of(fields, display(path)),
        kind="GGUF",
        name=str(fields.get("general.name") or ""),
        license=str(fields.get("general.license") or ""),
        chat_template=str(fields.get("tokenizer.chat_template") or ""),
        stored_as=_stored_as(tensors),
    )


def _stored_as(tensors: dict) -> str:
    """GGUF's name of the type that most weights have; embeddings are often finer than the rest."""
    sizes = Counter()
    for tensor in tensors.values():
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    return sizes.most_common(1)[0][0] if sizes else ""


def read_weights(path) -> tuple[GPTConfig, dict]:
    """(settings, our weights by name) of a file, without its tokenizer; as `read`."""
    return _weights(Path(path), *open_file(path))


def _weights(path: Path, fields: dict, tensors: dict, progress=None) -> tuple[GPTConfig, dict]:
    where = display(path)
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"{where} is of the architecture {architecture!r}: {', '.join(ARCHITECTURES)} can be "
            "imported."
        )
    available = {name: tuple(map(int, reversed(t.shape))) for name, t in tensors.items()}
    config = config_of(fields, available, where)
    total = sum(int(tensor.n_bytes) for tensor in tensors.values())

    def get(name):
        if progress:
            progress("reading the weights", int(tensors[name].n_bytes), total)
        values = _as_torch(tensors[name], where)
        if architecture == "llama" and name.split(".")[-2] in ("attn_q", "attn_k"):
            values = _halves(values, config.head_dim)
        return values

    naming = GGUF_GPT2_NAMES if architecture == "gpt2" else GGUF_NAMES
    return config, from_peer(config, naming, available, get, where, ignored=_IGNORED)


def open_file(path) -> tuple[dict, dict]:
    """(metadata, tensors by name) of a file."""
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError:
        raise ConfigError("GGUF files are read by the package gguf", "pip install gguf") from None
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"{display(path)} is not a GGUF file.")
    try:
        reader = GGUFReader(path)
        fields = {name: _value(field) for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise CheckpointError(
            f"{display(path)} is damaged: it is cut short or was changed after it was written."
        ) from error
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def _value(field):
    """A metadata field as plain Python values."""
    from gguf import GGUFValueType

    value = field.contents()
    if field.types == [GGUFValueType.FLOAT32]:
        return float(str(np.float32(value)))  # 1e-05, where the nearest double is 9.9999997e-06
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _as_torch(tensor, where: str):
    """A tensor's values in float32, dequantised."""
    import gguf
    import torch

    try:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
    except (NotImplementedError, ValueError) as error:
        raise CheckpointError(
            f"{where} holds {tensor.name} as {tensor.tensor_type.name}, which cannot be read "
            f"({error})."
        ) from None
    shape = tuple(map(int, reversed(tensor.shape)))
    return torch.from_numpy(np.array(values, np.float32).reshape(shape))


def _halves(weight, head_dim: int):
    """Rows of neighbouring channel pairs, as llama.cpp rotates them, as the halves of each head.

    Its converter interleaves the rows of Q and K for the architecture llama, and only for it.
    """
    pairs = weight.reshape(len(weight) // head_dim, head_dim // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def config_of(fields: dict, available: dict, where: str) -> GPTConfig:
    """The GPTConfig of a file's metadata. available: shapes of its tensors by name."""
    architecture = fields["general.architecture"]
    prefix = f"{architecture}."
    settings = Settings({name.removeprefix(prefix): value for name, value in fields.items()}, where)
    embedding = available.get("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise CheckpointError(f"{where} is incomplete: it has no tensor token_embd.weight.")
    n_embd, n_head = settings.number("embedding_length"), settings.number("attention.head_count")
    common = dict(
        block_size=settings.number("context_length"),
        vocab_size=embedding[0],
        n_layer=settings.number("block_count"),
        n_head=n_head,
        n_embd=n_embd,
        dropout=0.0,
        tie_weights="output.weight" not in available,
    )
    if architecture == "gpt2":
        return GPTConfig(
            **common,
            intermediate_size=settings.number("feed_forward_length"),
            bias=True,
            use_rms_norm=False,
            use_swiglu=False,
            activation="gelu_tanh",
            position_encoding="learned",
            norm_eps=settings.number("attention.layer_norm_epsilon", float, 1e-5),
        )
    settings.refuse_unless("rope.scaling.type", "none")
    if architecture == "qwen3moe":
        mlp = {
            "n_expert": settings.number("expert_count"),
            "n_expert_active": settings.number("expert_used_count"),
            "expert_size": settings.number("expert_feed_forward_length"),
        }
    else:
        settings.refuse_unless("expert_count", 0)
        mlp = {"intermediate_size": settings.number("feed_forward_length")}
    head_dim = settings.number("attention.key_length", default=n_embd // n_head)
    settings.refuse_unless("attention.value_length", head_dim)
    settings.refuse_unless("rope.dimension_count", head_dim)
    if "rope_freqs.weight" in available:
        raise ConfigError(
            f"{where} has scaled RoPE frequencies (rope_freqs.weight), which this model cannot "
            "have",
            "only plain RoPE can be imported",
        )
    return GPTConfig(
        **common,
        **mlp,
        n_kv_head=settings.number("attention.head_count_kv", default=n_head),
        head_dim=head_dim,
        bias=any(name.endswith(".bias") for name in available),
        rope_theta=settings.number("rope.freq_base", float, 10000.0),
        qk_norm=architecture in ("qwen3", "qwen3moe"),
        norm_eps=settings.number("attention.layer_norm_rms_epsilon", float),
    )
