"""The values of a configuration with their sources, and the differences of two configurations."""

from dataclasses import dataclass

from gptlab.training.config import OPTIONS, START_OPTIONS, Overrides, build
from gptlab.training.named_config import NamedConfig

ABSENT = object()


@dataclass(frozen=True)
class OptionDifference:
    """An option in which two configurations differ, with both values and their sources."""

    name: str
    values: tuple
    sources: tuple[str, str]


def override_settings(overrides: Overrides) -> tuple[dict, dict]:
    """(values, sources) of all options before anything is resolved: overrides and defaults."""
    preset = {name: v for name, v in overrides.values.items() if name == "model_preset" and v}
    values = {**preset, **build(overrides.values).flat()}
    values = {name: v for name, v in values.items() if name not in START_OPTIONS}
    if overrides.values.get("vocab_size") is None:
        values["vocab_size"] = None  # follows from the data
    return values, {name: overrides.sources.get(name, "default") for name in values}


def final_settings(target: NamedConfig) -> tuple[dict, dict]:
    """(values, sources) of all options: resolved for a run, unresolved for a recipe."""
    if target.run is None:
        return override_settings(target.overrides)
    return target.run.values, target.run.sources


def differences(first: NamedConfig, second: NamedConfig) -> list[OptionDifference]:
    """The options in which two configurations differ, in the order of help.

    Two runs are compared by their resolved values; otherwise the overrides and defaults count.
    """
    if first.run is not None and second.run is not None:
        one, other = final_settings(first), final_settings(second)
    else:
        one, other = override_settings(first.overrides), override_settings(second.overrides)
    return differing(one, other)


def differing(one: tuple[dict, dict], other: tuple[dict, dict]) -> list[OptionDifference]:
    """The options in which two pairs of (values, sources) differ, in the order of help."""
    found = []
    for name in ("model_preset", *(n for n in OPTIONS if n != "model_preset")):
        values = tuple(pair[0].get(name, ABSENT) for pair in (one, other))
        if values[0] == values[1]:
            continue
        values = tuple(None if value is ABSENT else value for value in values)
        sources = tuple(pair[1].get(name, "not set") for pair in (one, other))
        found.append(OptionDifference(name, values, sources))
    return found
