"""GGUF out: a file that llama.cpp and all that is built on it run, tokenizer inside."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np

from gptlab.errors import ConfigError
from gptlab.interop.architectures import (
    GGUF_GPT2_NAMES,
    GGUF_KINDS,
    GGUF_NAMES,
    architecture_of,
)
from gptlab.interop.read.gguf import read_weights
from gptlab.interop.weights import to_peer
from gptlab.interop.write.gguf_vocabulary import vocabulary_fields
from gptlab.interop.write.output import new_file
from gptlab.interop.write.verify import check_weights
from gptlab.model.config import GPTConfig
from gptlab.model.shapes import shapes

# llama.cpp's number of what most tensors are (general.file_type)
_FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}


def check(checkpoint) -> None:
    """Raise ConfigError, naming what it is, for a model or tokenizer that llama.cpp has not."""
    config = checkpoint.model.config
    if architecture_of(config) == "gpt2" and config.activation not in ("gelu", "gelu_tanh"):
        raise ConfigError(
            f"This model cannot be exported as GGUF: llama.cpp's GPT-2 has no activation "
            f"{config.activation}, only gelu; use --format hf."
        )
    if checkpoint.tokenizer is None:
        raise ConfigError("This model has no tokenizer, and a GGUF file needs one.")
    vocabulary_fields(checkpoint.tokenizer)


def write(
    checkpoint, output, *, overwrite: bool = False, progress=None, quantize: str | None = None
) -> Path:
    """Write a checkpoint (`runs.load_checkpoint`) as one GGUF file; its path.

    quantize: f32 (what None means), f16, bf16, q8_0 or q4_0, of the matrices; norms, biases and
    learned positions stay float32, rows that blocks cannot hold (no multiple of 32) float16. With
    q4_0 the embedding and the head take 8 bits, as their rounding costs most. Only the ids that
    the tokenizer knows are written, and one more where it has no end of text.
    """
    import gguf

    config, tokenizer = checkpoint.model.config, checkpoint.tokenizer
    kind, vocabulary = architecture_of(config), vocabulary_fields(tokenizer)
    weights = {name: value.detach() for name, value in checkpoint.model.state_dict().items()}
    weights |= _table(weights, tokenizer.vocab_size, len(vocabulary["tokens"]))
    if kind == "gpt2" and not config.bias:  # GPT-2 has biases: zeros compute the same
        config = dataclasses.replace(config, bias=True)
        weights = _zero_biases(config) | weights
    if kind == "llama":
        for name in weights:
            if name.split(".")[-2] in ("q_proj", "k_proj"):
                weights[name] = _interleaved(weights[name], config.head_dim)
    naming = GGUF_GPT2_NAMES if kind == "gpt2" else GGUF_NAMES
    tensors = to_peer(weights, config, naming)
    quantize = quantize or "f32"
    with new_file(output, overwrite, mark=b"GGUF") as file:
        # by its temporary name: the writer opens files itself
        with contextlib.closing(gguf.GGUFWriter(file.name, GGUF_KINDS.get(kind, kind))) as writer:
            _add_settings(writer, checkpoint, kind, config)
            writer.add_file_type(_FILE_TYPES[quantize])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            _add_vocabulary(writer, vocabulary)
            _write(writer, tensors, quantize, progress)
        found, read_back = read_weights(file.name)
        if kind == "gpt2":  # the only activation there; its tanh is within 5e-4 of the exact gelu
            found = dataclasses.replace(found, activation=config.activation)
        check_weights(checkpoint, found, read_back, "gguf", quantize)
    return Path(output)


def _table(weights: dict, known: int, wanted: int) -> dict:
    """The embedding and the head with as many rows as there are tokens.

    A table may be padded beyond the `known` ids of the tokenizer. A row that is missing, that of an
    end of text which the model never saw, becomes the mean of the others: its logit is the mean of
    theirs, so it is never the likeliest, and in sampling rarer than the average id.
    """
    import torch

    found = {}
    for name in ("token_embedding.weight", "lm_head.weight"):
        rows = weights[name][:known]
        mean = rows.mean(0, keepdim=True)
        found[name] = torch.cat([rows, *[mean] * (wanted - known)])
    return found


def _zero_biases(config: GPTConfig) -> dict:
    import torch

    return {n: torch.zeros(shape) for n, shape in shapes(config).items() if n.endswith(".bias")}


def _interleaved(weight, head_dim: int):
    """Rows of Q or K (or their biases) as neighbouring pairs, which llama.cpp's Llama rotates."""
    halves = weight.reshape(len(weight) // head_dim, 2, head_dim // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _write(writer, tensors: dict, quantize: str, progress) -> None:
    """Everything into the file, tensor by tensor, so that no second copy of them all is made."""
    import gguf

    types = {name: _type_of(name, value.shape, quantize) for name, value in tensors.items()}
    for name, value in tensors.items():
        block, size = gguf.GGML_QUANT_SIZES[types[name]]
        n_bytes = value.numel() // block * size
        writer.add_tensor_info(name, tuple(value.shape), np.float32, n_bytes, types[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total = sum(value.nbytes for value in tensors.values())
    for name, value in tensors.items():
        writer.write_tensor_data(gguf.quantize(value.numpy(), types[name]))
        if progress:
            progress("writing the weights", value.nbytes, total)


def _type_of(name: str, shape, quantize: str):
    """How a tensor is stored: matrices as asked, where they can be."""
    from gguf import GGMLQuantizationType as Type

    # llama.cpp wants the router as it is
    if len(shape) < 2 or name == "position_embd.weight" or "ffn_gate_inp" in name:
        return Type.F32
    if quantize in ("q8_0", "q4_0") and shape[-1] % 32:
        return Type.F16
    if quantize == "q4_0" and name in ("token_embd.weight", "output.weight"):
        return Type.Q8_0
    return Type[quantize.upper()]


def _add_settings(writer, checkpoint, kind: str, config: GPTConfig) -> None:
    imported = checkpoint.content.get("imported") or {}
    writer.add_name(imported.get("name") or checkpoint.path.resolve().parent.name)
    if imported.get("license"):
        writer.add_license(imported["license"])
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(config.intermediate_size)
    if config.n_expert:
        writer.add_expert_count(config.n_expert)
        writer.add_expert_used_count(config.n_expert_active)
        writer.add_expert_feed_forward_length(config.expert_size)
    writer.add_head_count(config.n_head)
    if kind == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_head_count_kv(config.n_kv_head)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.norm_eps)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_rope_dimension_count(config.head_dim)
    if template := checkpoint.content.get("chat_template"):
        writer.add_chat_template(template)


def _add_vocabulary(writer, vocabulary: dict) -> None:
    writer.add_vocab_size(len(vocabulary["tokens"]))
    writer.add_tokenizer_model(vocabulary["model"])
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["token_type"])
    writer.add_token_merges(vocabulary["merges"])
    writer.add_bos_token_id(vocabulary["bos_token_id"])
    writer.add_eos_token_id(vocabulary["eos_token_id"])
    writer.add_pad_token_id(vocabulary["padding_token_id"])
    writer.add_add_bos_token(vocabulary["add_bos_token"])
