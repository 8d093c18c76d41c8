"""Find the run or the recipe that a word on the command line names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gptlab.errors import ConfigError, RunError
from gptlab.files import display, out_home
from gptlab.runs import Run, list_runs
from gptlab.training.config import Overrides, layer, read_recipe
from gptlab.training.run_recipe import RunRecipe, read_run_recipe


@dataclass(frozen=True)
class Target:
    """A named configuration: its overrides, and for a run its resolved values.

    run: the content of the run's config.py; None for a recipe.
    """

    name: str
    overrides: Overrides
    run: RunRecipe | None = None


def run_folder(word: str) -> Path:
    """The run directory that `word` names: a path, or a name under out/.

    Raises RunError if there is none.
    """
    for folder in (Path(word).expanduser(), out_home() / word):
        if folder.is_dir():
            return folder
    names = ", ".join(folder.name for folder in list_runs()[:8])
    there = f"there is {names}" if names else "nothing is trained yet"
    raise RunError(f"There is no run {word!r}: {there}; name one, or the path of its directory.")


def open_target(word: str, command_line: Mapping | None = None) -> Target:
    """The recipe or the run that `word` names, with the command line's overrides.

    Raises ConfigError for a recipe that cannot be read, RunError for a directory that is not a run.
    """
    if Path(word).expanduser().is_file():
        return recipe_target(word, command_line)
    if Path(word).suffix == ".py":
        raise ConfigError(f"There is no recipe {display(word)}: check the path.")
    folder = run_folder(word)
    path = Run(folder).recipe
    if not path.is_file():
        raise RunError(
            f"{display(folder)} has no config.py: it is not a run, or another program made it."
        )
    run = read_run_recipe(path)
    merged = layer(run.overrides.values, command_line, display(path))
    sources = {**merged.sources}
    for name, source in run.overrides.sources.items():
        if name in sources and name not in (command_line or {}):
            sources[name] = source
    return Target(display(folder), Overrides(merged.values, sources), run)


def recipe_target(path, command_line: Mapping | None = None) -> Target:
    """A recipe with the command line's overrides."""
    name = display(Path(path).expanduser())
    return Target(name, layer(read_recipe(Path(path).expanduser()), command_line, name))
