"""`python train.py`: train a model."""

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.started import STARTED
from gptlab.errors import ConfigError, GPTLabError
from gptlab.files import display, quoted
from gptlab.training.config import Overrides, layer, named_recipes, read_recipe


@dataclass(frozen=True)
class StartOptions:
    """Start."""

    config: Annotated[str | None, "a recipe: a Python file of assignments, which is executed"] = (
        None
    )
    interactive: Annotated[bool, "ask a few questions and train, as gpt.py train does"] = False
    show_hardware: Annotated[bool, "show what this machine has, and stop"] = False
    json: Annotated[bool, "with --show-hardware: print it as JSON"] = False


def main(argv: list[str]) -> int:
    """Train with the options of the command line; the exit code."""
    try:
        overrides, recipe_path, recipe = _read(argv)
    except GPTLabError as error:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            from gptlab.training.parallel import fail_before_training

            fail_before_training(error)
        raise
    if overrides.pop("interactive", False):
        if overrides or recipe_path:
            raise ConfigError(
                "--interactive asks for everything",
                f"leave --{next(iter(overrides), 'config')} out, or it",
            )
        return importlib.import_module(COMMANDS["train"].asking).main([])
    as_json = overrides.pop("json", False)
    if overrides.pop("show_hardware", False):
        from gptlab.cli.commands.hardware import show_hardware

        show_hardware(as_json)
        return 0
    if as_json:
        raise ConfigError("--json belongs to --show-hardware", "add it, or leave --json out")
    layered = layer(recipe, overrides, display(recipe_path) if recipe_path else "recipe")
    return run_training(layered, STARTED, Path(recipe_path).stem if recipe_path else "")


def _read(argv: list[str]) -> tuple[dict, str | None, dict]:
    """The options of the command line, the recipe that they name, and its options."""
    if argv and not argv[0].startswith("-"):
        raise _not_an_option(argv[0])
    overrides = COMMANDS["train"].parse(argv)
    recipe_path = overrides.pop("config", None)
    return overrides, recipe_path, read_recipe(recipe_path) if recipe_path else {}


def _not_an_option(word: str) -> ConfigError:
    """What to do with a text, a dataset or a recipe that was named without an option."""
    from gptlab.data.tasks import is_task_word
    from gptlab.data.token_files import dataset_folder, is_dataset

    if is_task_word(word) or is_dataset(dataset_folder(word)):
        kind = "task" if is_task_word(word) else "prepared dataset"
        return ConfigError(
            f"{word} is a {kind}, and was given without an option",
            f"train on it with python train.py --dataset {quoted(word)}",
        )
    if word in named_recipes() or (Path(word).suffix == ".py" and Path(word).is_file()):
        return ConfigError(
            f"{word} is a recipe, and was given without an option",
            f"use it with python train.py --config {quoted(word)}",
        )
    if Path(word).exists():
        return ConfigError(
            f"{word} is text, and training needs a prepared dataset",
            f"prepare it first: python prepare.py {quoted(word)}",
        )
    return ConfigError(f"{word!r} is not an option", "write options as --name value")


def run_training(overrides: Overrides, started: float | None = None, recipe_name: str = "") -> int:
    """Train, and at a terminal show the result; the exit code."""
    quiet = overrides.values.get("quiet")
    if sys.stderr.isatty() and not quiet:
        print("Loading torch ...", end="\r", file=sys.stderr, flush=True)
    from gptlab.training.trainer import train

    outcome = train(overrides, started=started, recipe_name=recipe_name)
    is_first = os.environ.get("RANK", "0") == "0"
    is_shown = sys.stdout.isatty() and not quiet and not overrides.values.get("dry_run")
    if outcome.exit_code == 0 and is_first and is_shown:
        from gptlab.cli.ui.after_training import show_result

        show_result(outcome)
    return outcome.exit_code
