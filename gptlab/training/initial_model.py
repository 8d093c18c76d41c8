"""What a run takes over from the model that init_from names."""

from gptlab.checkpoints import Checkpoint
from gptlab.data.mixture import Mixture
from gptlab.errors import ConfigError
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


def with_model_of(start: Checkpoint, overrides: Overrides, dataset: Mixture) -> Overrides:
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
