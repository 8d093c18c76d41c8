"""HTML out: one page with the model inside, which writes in any browser without a network."""

import base64
import json
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import torch

from gptlab.data.tokenizer import BytePairTokenizer, CharTokenizer, Tokenizer
from gptlab.errors import ConfigError
from gptlab.interop.write.output import new_file
from gptlab.interop.write.verify import check_weights
from gptlab.model.config import GPTConfig
from gptlab.model.quantization import GROUP, dequantize, quantize
from gptlab.model.shapes import shapes
from gptlab.web.assets import PAGE_MARK, asset, filled

MAX_PARAMETERS = 15_000_000  # a byte each, a third more as text: about what a friend's mail takes


@dataclass(frozen=True)
class Inside:
    """What a page needs beside the weights to look inside its model (gptlab/web/inside.js).

    content: JSON: the texts of the views, and what they show of the model for any prompt. tensors:
    what lies beside the weights, by its name in inside.js: means, translators. start: the prompt
    that the page begins with, and what of it is explained; None: the page begins with writing.
    """

    content: dict
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    start: dict | None = None


def check(checkpoint) -> None:
    """Raise ConfigError for a model that is too large for a page, or has what it lacks."""
    if checkpoint.model.config.n_expert:
        raise ConfigError(
            "This model has experts, and a page computes models without", "use --format gguf or hf"
        )
    parameters = _number(checkpoint)
    if parameters > MAX_PARAMETERS:
        raise ConfigError(
            f"This model has {parameters:,} parameters and a page holds up to {MAX_PARAMETERS:,}",
            "use --format gguf or hf",
        )
    if not isinstance(checkpoint.tokenizer, (CharTokenizer, BytePairTokenizer)):
        kind = checkpoint.tokenizer.kind if checkpoint.tokenizer else "missing"
        raise ConfigError(
            f"This model's tokenizer is {kind}, and a page has characters, byte-level BPE trained "
            "here, and GPT-2's",
            "use --format hf or gguf",
        )


def write(
    checkpoint,
    output,
    *,
    overwrite: bool = False,
    progress=None,
    inside: Inside | None = None,
) -> Path:
    """Write a checkpoint (`runs.load_checkpoint`) as one HTML page; its path.

    Matrices as `quantization.quantize` makes them int8, vectors in float32, only the ids that the
    tokenizer knows. Works offline from a file: no request leaves the page. With `inside` it also
    shows how the model comes to its words.
    """
    config = checkpoint.model.config.to_dict()
    config["vocab_size"] = known = checkpoint.tokenizer.vocab_size
    weights = checkpoint.model.state_dict()
    weights = {name: weights[name] for name in shapes(checkpoint.model.config)}
    for name in weights.keys() & {"token_embedding.weight", "lm_head.weight"}:
        weights[name] = weights[name][:known]  # a table may be padded
    beside = inside.tensors if inside else {}
    manifest, int8, floats, held = _packed(weights | beside, progress)
    held = {name: held[name] for name in weights}
    check_weights(checkpoint, GPTConfig(**config), held, "html", "int8")
    content = {
        "config": config,
        "tokenizer": _vocabulary(checkpoint.tokenizer),
        "tensors": manifest,
        "group": GROUP,
        "inside": inside and inside.content | {"start": inside.start},
    }
    name = _name(checkpoint)
    look = asset("inside.html") if inside else ""
    is_first = inside is not None and inside.start is not None
    page = filled(
        "page.html",
        NAME=escape(name),
        SUMMARY=escape(_summary(checkpoint)),
        FACTS=escape(_facts(checkpoint)),
        FIRST=look if is_first else "",
        LAST="" if is_first else look,
        MODEL=json.dumps(content, ensure_ascii=False).replace("<", "\\u003c"),
        INT8=_base64(int8, np.int8),
        FLOATS=_base64(floats, "<f4"),
    )
    with new_file(output, overwrite, mark=PAGE_MARK) as file:
        file.write(page.encode())
    return Path(output)


def _packed(tensors: dict[str, torch.Tensor], progress) -> tuple[list, list, list, dict]:
    """Their names and shapes, matrices as int8, scales and vectors; and what these stand for."""
    manifest, int8, floats, held = [], [], [], {}
    total = sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        value = tensor.float().cpu()
        manifest.append([name, *value.shape, 0][:3])
        held[name] = value
        if value.dim() == 2:
            steps, value = quantize(value)
            int8.append(steps.numpy())
            held[name] = dequantize(steps, value)
        floats.append(value.numpy())
        if progress:
            progress("rounding the weights", tensor.nbytes, total)
    return manifest, int8, floats, held


def _number(checkpoint) -> int:
    return sum(weight.numel() for weight in checkpoint.model.parameters())


def _base64(arrays: list, dtype) -> str:
    values = b"".join(np.ascontiguousarray(array, dtype).tobytes() for array in arrays)
    return base64.b64encode(values).decode()


def _vocabulary(tokenizer: Tokenizer) -> dict:
    if isinstance(tokenizer, CharTokenizer):
        return {"kind": "char", "alphabet": tokenizer.characters, "end": tokenizer.eot_id}
    merges = json.loads(tokenizer.to_json())["model"]["merges"]
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return {"kind": "bpe", "merges": lines, "end": tokenizer.eot_id}


def _name(checkpoint) -> str:
    imported = checkpoint.content.get("imported") or {}
    return imported.get("name") or checkpoint.path.resolve().parent.name


def _summary(checkpoint) -> str:
    """What the model is, in a sentence."""
    parameters = f"{_number(checkpoint):,}"
    dataset = (checkpoint.content.get("dataset") or {}).get("name")
    units = "character by character" if checkpoint.tokenizer.kind == "char" else "token by token"
    read = f", trained on {Path(dataset).name}" if isinstance(dataset, str) else ""
    return f"A small GPT of {parameters} parameters{read}, that writes {units}."


def _facts(checkpoint) -> str:
    config, loss = checkpoint.model.config, checkpoint.val_loss
    facts = [
        f"{config.n_layer} layers of {config.n_head} heads, width {config.n_embd}",
        f"a window of {config.block_size:,} tokens",
        f"{checkpoint.tokenizer.vocab_size:,} token ids",
        "weights rounded to 8 bits",
    ]
    if loss is not None:
        bits = checkpoint.content.get("val_bits_per_byte")
        bits = f" ({bits:.2f} bits per byte)" if bits else ""
        facts.append(f"validation loss {loss:.2f}{bits}")
    return " · ".join(facts) + ". Made with gptlab."
