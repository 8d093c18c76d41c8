"""What a run takes over from the model that init_from names, or from a file of tensors."""

import safetensors.torch
import torch

from gptlab.checkpoints import Checkpoint
from gptlab.data.token_files import Dataset
from gptlab.errors import CheckpointError, ConfigError
from gptlab.files import display
from gptlab.model.config import GPTConfig
from gptlab.training.config import CHANGEABLE_MODEL_OPTIONS, Overrides


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


def with_model_of(start: Checkpoint, overrides: Overrides, dataset: Dataset) -> Overrides:
    """The overrides with the architecture of the checkpoint that init_from names.

    Raises ConfigError for another tokenizer than the dataset's, or another architecture.
    """
    model, tokenizer = start.model.config, start.tokenizer
    known = tokenizer.vocab_size if tokenizer else model.vocab_size
    if known != dataset.vocab_size or (
        tokenizer and dataset.tokenizer and tokenizer.fingerprint != dataset.tokenizer.fingerprint
    ):
        raise ConfigError(
            f"{display(start.path)} was trained with another tokenizer than {dataset.name} was "
            "prepared with",
            "prepare the text with the tokenizer of that model (prepare.py YOUR_TEXT --tokenizer "
            f"{display(start.path.parent)})",
        )
    return with_architecture(overrides, model, display(start.path))


@torch.no_grad()
def take_initial_tensors(model: torch.nn.Module, path) -> None:
    """Copy the tensors of a file over the parameters of the same name and shape.

    Raises CheckpointError where there is none.
    """
    try:
        tensors = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{display(path)} is not a .safetensors file ({error}).") from None
    taken = 0
    for name, weight in model.named_parameters():
        if name in tensors and tensors[name].shape == weight.shape:
            weight.copy_(tensors[name])
            taken += 1
    if not taken:
        raise CheckpointError(
            f"{display(path)} has no tensor of this model's names and shapes",
            "leave initial_tensors out",
        )
