"""A run's config.py: its overrides as a recipe, and the derived values as comments."""

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

from gptlab.errors import ConfigError
from gptlab.files import as_installed, display
from gptlab.options import coerce
from gptlab.training.config import OPTIONS, START_OPTIONS, Overrides
from gptlab.training.resolving import Resolved

TITLE = "# The options set for this run. `python train.py --config THIS_FILE` repeats it."
_DERIVED = re.compile(r"# (\w+) = (.*?)  \((.*)\)")
_MACHINE = "# Machine: "


@dataclass(frozen=True)
class RunRecipe:
    """The content of a run's config.py: the overrides, and all final values with their sources."""

    overrides: Overrides
    values: dict = field(default_factory=dict)
    sources: dict = field(default_factory=dict)
    machine: str = ""


def as_recipe(overrides: Overrides, resolved: Resolved, machine: str = "") -> str:
    """The run as a recipe: the overrides, and the derived values as comments with their reasons.

    machine: the machine of the run, in words.
    """
    lines = [as_installed(TITLE), ""]
    for name, value in overrides.values.items():
        if name not in START_OPTIONS:
            lines.append(f"{name} = {value!r}  # {overrides.sources[name]}")
    lines += ["", "# Derived values:"]
    values, sources = settings(overrides, resolved)
    for name, value in values.items():
        if name not in overrides.values or overrides.values[name] != value:
            lines.append(f"# {name} = {value!r}  ({sources[name]})")
    if machine:
        lines += ["", f"{_MACHINE}{machine}"]
    return "\n".join(lines) + "\n"


def settings(overrides: Overrides, resolved: Resolved) -> tuple[dict, dict]:
    """(values, sources) by name of all options except START_OPTIONS, in the order of help."""
    values, sources = {}, {}
    if "model_preset" in overrides.values:
        values["model_preset"] = overrides.values["model_preset"]
    for name, value in resolved.config.flat().items():
        if name not in START_OPTIONS:
            values[name] = value
    for name, value in values.items():
        was_given = name in overrides.values and overrides.values[name] == value
        sources[name] = (
            overrides.sources[name] if was_given else resolved.reasons.get(name, "default")
        )
    return values, sources


def read_run_recipe(path) -> RunRecipe:
    """Read a file written by `as_recipe`, without executing it.

    Raises ConfigError, with the line number, for a file that no run wrote.
    """
    path = Path(path)
    overrides, derived, machine = Overrides({}, {}), Overrides({}, {}), ""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{display(path)} is damaged ({error}): no run wrote it.") from None
    for number, line in enumerate(lines, 1):
        comment = _DERIVED.fullmatch(line)
        try:
            if line.startswith(_MACHINE):
                machine = line.removeprefix(_MACHINE)
            elif comment and comment[1] in OPTIONS:
                derived.values[comment[1]] = _value(comment[1], comment[2])
                derived.sources[comment[1]] = comment[3]
            elif line and not line.startswith("#"):
                assignment, _, source = line.rpartition("  # ")
                name, _, value = assignment.partition(" = ")
                overrides.values[name] = _value(name, value)
                overrides.sources[name] = source
        except (ValueError, SyntaxError, LookupError, TypeError, RecursionError, ConfigError):
            raise ConfigError(
                f"Line {number} of {display(path)} was not written by a run: use the file as a "
                "recipe, with --config."
            ) from None
    values, sources = overrides.values | derived.values, overrides.sources | derived.sources
    if not values:
        raise ConfigError(f"{display(path)} is not an option, so no run wrote it.")
    order = [name for name in ("model_preset", *OPTIONS) if name in values]
    return RunRecipe(
        overrides, {n: values[n] for n in order}, {n: sources[n] for n in order}, machine
    )


def _value(name: str, text: str):
    """The value of an option as a run writes it. Raises KeyError for an unknown name."""
    return coerce(OPTIONS[name], ast.literal_eval(text))
