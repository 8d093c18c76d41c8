"""What a run takes over from the model that init_from names, or from a file of tensors."""

import dataclasses

import safetensors
import torch

from gptlab.checkpoints import Checkpoint, model_from, tokenizer_content
from gptlab.data.mixture import Mixture
from gptlab.data.tokenizer import Tokenizer
from gptlab.errors import CheckpointError, ConfigError
from gptlab.files import display
from gptlab.model.config import GPTConfig
from gptlab.training.config import CHANGEABLE_MODEL_OPTIONS, Overrides
from gptlab.training.going_on import as_named, is_wider, other_vocabulary, same_ids


def with_architecture(overrides: Overrides, model: GPTConfig, name: str) -> Overrides:
    """The overrides with the architecture of a model; its vocabulary belongs to the data.

    name: of that model, as messages and sources show it. Raises ConfigError for an option of the
    model that is set to another value.
    """
    stored = model.to_dict()
    stored.pop("vocab_size")
    for option, value in stored.items():
        is_free = option in CHANGEABLE_MODEL_OPTIONS or option == "block_size"
        if not is_free and overrides.values.get(option, value) != value:
            raise ConfigError(
                f"{option} {overrides.values[option]!r} differs from {value!r}, which init_from "
                f"{name} has",
                f"leave {option} out",
            )
    sources = {**dict.fromkeys(stored, f"init_from {name}"), **overrides.sources}
    return Overrides({**stored, **overrides.values}, sources)


def with_model_of(
    start: Checkpoint, overrides: Overrides, data: Mixture
) -> tuple[Checkpoint, Overrides]:
    """(the checkpoint that init_from names, the overrides with its architecture).

    With extend_vocabulary the checkpoint is widened for what the data's tokenizer has beyond its
    own. Raises ConfigError for another tokenizer than the data's, or another architecture.
    """
    ours, model, dataset = start.tokenizer, start.model.config, data.parts[0]
    if overrides.values.get("extend_vocabulary") and is_wider(dataset.tokenizer, ours):
        start = widened(start, dataset.tokenizer)
    else:
        known = ours.vocab_size if ours else model.vocab_size
        if known != dataset.vocab_size or not same_ids(ours, dataset.tokenizer):
            word = overrides.values["init_from"]
            raise other_vocabulary(word, as_named(start.path), ours, dataset, overrides)
    return start, with_architecture(overrides, model, display(start.path))


def widened(start: Checkpoint, tokenizer: Tokenizer) -> Checkpoint:
    """A checkpoint with rows for the ids that `tokenizer` has beyond the checkpoint's own.

    Each new row of the embedding, and of an untied head, is the mean of the former ones (Hewitt
    2021): a new id is then no likelier than the former ones are on average, and their logits stay.
    """
    known = start.tokenizer.vocab_size
    rows = max(tokenizer.vocab_size, start.model.config.vocab_size)
    weights = dict(start.content["model"])
    for name in ("token_embedding.weight", "lm_head.weight"):
        if name not in weights:  # tied
            continue
        former = weights[name]
        weights[name] = former.new_empty(rows, former.size(1))  # [V, C]
        weights[name][: len(former)] = former
        weights[name][known : tokenizer.vocab_size] = former[:known].double().mean(0)
    content = {
        **{name: value for name, value in start.content.items() if name != "proof"},
        "model": weights,
        "model_config": {**start.content["model_config"], "vocab_size": rows},
        "tokenizer": tokenizer_content(tokenizer),
    }
    model = model_from(content, start.path).eval()
    return dataclasses.replace(start, model=model, tokenizer=tokenizer, content=content)


@torch.no_grad()
def take_initial_tensors(model: torch.nn.Module, path, write=torch.Tensor.copy_) -> None:
    """Copy the tensors of a file over the parameters of the same name and shape.

    write(parameter, whole) copies a tensor. Raises CheckpointError where there is none.
    """
    taken = 0
    try:
        with safetensors.safe_open(path, "pt") as tensors:
            names = set(tensors.keys())
            for name, weight in model.named_parameters():
                if name in names and (whole := tensors.get_tensor(name)).shape == weight.shape:
                    write(weight, whole)
                    taken += 1
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{display(path)} is not a .safetensors file ({error}).") from None
    if not taken:
        raise CheckpointError(
            f"{display(path)} has no tensor of this model's names and shapes",
            "leave initial_tensors out",
        )
