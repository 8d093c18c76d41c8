"""Open the configuration of a run or a recipe that is named on a command line."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gptlab.errors import RunError
from gptlab.files import display, quoted
from gptlab.runs import Run, find_run
from gptlab.training.config import Overrides, layer, named_recipes, read_recipe
from gptlab.training.run_recipe import RunRecipe, read_run_recipe


@dataclass(frozen=True)
class NamedConfig:
    """A named configuration: its overrides, and for a run its resolved values.

    run: the content of the run's config.py; None for a recipe.
    """

    name: str
    overrides: Overrides
    run: RunRecipe | None = None


def open_config(word: str, command_line: Mapping | None = None) -> NamedConfig:
    """The recipe or the run that `word` names, with the command line's overrides.

    Raises ConfigError for a recipe that cannot be read, RunError for a directory that is not a run.
    """
    if Path(word).expanduser().is_file():
        return open_recipe(word, command_line)
    if Path(word).suffix == ".py":
        return open_recipe(word, command_line)
    try:
        folder = find_run(word)
    except RunError:
        if word not in named_recipes():
            raise
        return open_recipe(word, command_line)
    path = Run(folder).recipe
    if not path.is_file():
        if Run(folder).imported.is_file():
            raise RunError(
                f"{display(folder)} is an imported model and was not trained here, so it has no "
                "options of a training",
                f"python train.py --init_from {quoted(display(folder))} trains it further",
            )
        raise RunError(
            f"{display(folder)} has no config.py", "it is not a run, or another program made it"
        )
    run = read_run_recipe(path)
    merged = layer(run.overrides.values, command_line, display(path))
    sources = {**merged.sources}
    for name, source in run.overrides.sources.items():
        if name in sources and name not in (command_line or {}):
            sources[name] = source
    return NamedConfig(display(folder), Overrides(merged.values, sources), run)


def open_recipe(path, command_line: Mapping | None = None) -> NamedConfig:
    """A recipe with the command line's overrides."""
    name = display(Path(path).expanduser())
    return NamedConfig(name, layer(read_recipe(Path(path).expanduser()), command_line, name))
