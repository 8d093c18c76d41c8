"""What a run takes over from the model that init_from names."""

from gptlab.errors import ConfigError
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
                f"{option} {overrides.values[option]!r} is not what init_from {name} has "
                f"({value!r}): leave {option} out."
            )
    sources = {**dict.fromkeys(stored, f"init_from {name}"), **overrides.sources}
    return Overrides({**stored, **overrides.values}, sources)
