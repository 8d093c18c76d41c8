"""Build a recipe by questions: from a shipped one, group by group, checked as it is typed.

`build_recipe()` is the builder; the wizard also writes its recipes with `write_recipe`.
"""

import ast
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from gptlab.cli.ui import questions
from gptlab.cli.ui.command_line import command_line
from gptlab.cli.ui.questions import MenuItem
from gptlab.data.corpora import dataset_name
from gptlab.data.mixture import find_mixture_meta
from gptlab.errors import ConfigError
from gptlab.files import atomic_write, display, home
from gptlab.model.arithmetic import active_in_words, count_parameters
from gptlab.options import (
    Option,
    coerce,
    describe_default,
    format_value,
    options_of,
    unknown_option,
)
from gptlab.training.config import (
    GROUPS,
    OPTIONS,
    START_OPTIONS,
    PresetOption,
    build,
    layer,
    named_recipes,
    read_recipe,
)

EXPLANATION = """\
A recipe is a file with options for python train.py --config FILE; the others keep their defaults.
Each group shows the options that this recipe sets. Type NAME VALUE to set an option (several are
possible: n_layer 8 n_head 8 n_embd 512), NAME default to reset it, or ? NAME for its meaning. Press
Enter for the next group."""
# no option has this word as its value
RESET = "default"
SPARE_LINES = 4  # of a window, beside the table: the title, the answer, and empty ones


def build_recipe() -> Path | None:
    """Ask for a whole recipe and write it to config/NAME.py; its path. Needs a terminal."""
    questions.refuse_without_terminal("write a recipe in an editor, starting from one in config/")
    console = questions.open_console()
    builder = RecipeBuilder(console)
    groups = [
        lambda title=title, options=options: builder.ask_group(title, options)
        for title, options in option_groups().items()
    ]
    questions.walk([builder.ask_start, *groups, builder.ask_name])
    title = "Made by the recipe builder" + (f", from {builder.origin}." if builder.origin else ".")
    write_recipe(builder.path, builder.overrides, title)
    console.print(f"Wrote {display(builder.path)}. Train with it:", markup=False)
    print(command_line("train.py", {"config": display(builder.path)}))
    return builder.path


def option_groups() -> dict[str, dict[str, Option]]:
    """The options of a recipe in groups, in the order in which they are asked; the model in two,
    so that each fits a screen."""
    model = options_of(PresetOption, GROUPS["model"])
    parts = {name: model.pop(name) for name in list(model) if name not in MODEL_SIZE}
    groups = {"Run": options_of(GROUPS["run"]), "Model size": model, "Model parts": parts}
    for name, owner in GROUPS.items():
        if name not in ("run", "model"):
            groups[(owner.__doc__ or owner.__name__).splitlines()[0].rstrip(".")] = options_of(
                owner
            )
    return groups


MODEL_SIZE = {
    "model_preset", "block_size", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd",
    "head_dim", "mlp_ratio", "intermediate_size", "n_expert",
    "n_expert_active", "expert_size", "dropout", "gradient_checkpointing",
}  # fmt: skip


def choices_of(option: Option) -> str:
    """What an option can be, in words; "" for any number or text."""
    if option.type is bool:
        return " or ".join(["true", "false", *option.words])
    return ", ".join(map(str, option.choices))


class RecipeBuilder:
    """The options set so far, and the questions that change them."""

    def __init__(self, console):
        self.console = console
        self.overrides: dict = {}
        self.origin = ""
        self.path: Path | None = None

    def ask_start(self) -> None:
        """Which recipe to start from."""
        choices = [
            MenuItem(path, name, recipe_title(path)) for name, path in named_recipes().items()
        ]
        choices.append(MenuItem(None, "empty", "every option has its default"))
        title = "Start from which recipe?"
        path = questions.select(self.console, title, choices, 0, EXPLANATION, is_first=True)
        self.overrides = read_recipe(path) if path else {}
        self.origin = display(path) if path else ""

    def ask_group(self, title: str, options: Mapping[str, Option]) -> None:
        """Show one group and take changes to it, until Enter."""
        # the vocabulary belongs to the data, some options to one start
        hidden = {*START_OPTIONS, "vocab_size"}
        options = {name: option for name, option in options.items() if name not in hidden}
        while True:
            self._show_group(options)
            line = questions.ask(
                self.console,
                f"{title}: type NAME VALUE, ? NAME, or Enter to continue.",
                lambda line, options=options: self._take(line, options),
                "",
                EXPLANATION,
                "continue",
            )
            if not line:
                return

    def _show_group(self, options: Mapping[str, Option]) -> None:
        """A table of the options, with their meaning where the window is high enough."""
        table = self._table(options, has_help=True)
        if len(self.console.render_lines(table, pad=False)) > self.console.height - SPARE_LINES:
            table = self._table(options, has_help=False)
        self.console.print()
        self.console.print(table)

    def _table(self, options: Mapping[str, Option], has_help: bool):
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="cyan", overflow="fold")
        table.add_column(overflow="fold")
        table.add_column(style="dim", overflow="fold")
        for name, option in options.items():
            if name in self.overrides:
                value = Text(repr(self.overrides[name]), "bold")
            else:
                default = "-" if option.default in (None, "") else format_value(option.default)
                value = Text(f"[{default}]", "dim")
            words = [choices_of(option), option.help if has_help else ""]
            table.add_row(Text(name), value, Text("; ".join(filter(None, words))))
        return table

    def _take(self, line: str, options: Mapping[str, Option]) -> str:
        """Take the assignments of a line, if the resulting recipe is valid. Raises ConfigError."""
        if line.startswith("?"):
            self.console.print(explain_option(line[1:].strip(), options), markup=False)
            return line
        changes = parse_assignments(line)
        overrides = dict(self.overrides)
        for name, value in changes.items():
            if name in START_OPTIONS or name == "vocab_size":
                raise ConfigError(f"{name} belongs to one start, not to a recipe", "leave it out")
            if value == RESET:
                overrides.pop(name, None)
            else:
                overrides[name] = value
        check_recipe(overrides)
        self.overrides = overrides
        if changes:
            self._note_size(overrides)
        return line

    def _note_size(self, overrides: dict) -> None:
        config = check_recipe(overrides)
        vocab_size = vocabulary_of(overrides) or config.model.vocab_size
        model = build({**config.flat(), "vocab_size": vocab_size}).model
        self.console.print(
            f"{count_parameters(model):,} parameters{active_in_words(model)} at a "
            f"vocabulary of {vocab_size:,}, {config.tokens_per_step:,} tokens a step.",
            style="dim",
        )

    def ask_name(self) -> None:
        """The name of the file; one that exists is refused."""
        self.path = ask_recipe_name(self.console, "my_recipe")


def recipe_title(path: Path) -> str:
    """The first line of a recipe's docstring, without running it."""
    try:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError):
        return ""
    return (docstring or "").split("\n")[0]


def vocabulary_of(overrides: Mapping) -> int | None:
    """The vocabulary of the recipe's dataset, where it is prepared."""
    meta = find_mixture_meta(overrides.get("dataset", "shakespeare"))
    return meta and meta["vocab_size"]


def check_recipe(overrides: Mapping):
    """The configuration of these options with defaults elsewhere. Raises ConfigError."""
    # a preset's options are among the values, and the machine's do not affect the others
    left_out = ("model_preset", "device", "dtype", "compile_model")
    values = layer(recipe=overrides).values
    return build({name: value for name, value in values.items() if name not in left_out})


def explain_option(name: str, among: Mapping[str, Option]) -> str:
    """The sentence of an option, with its default. Raises ConfigError, with the nearest name."""
    option = OPTIONS.get(name)
    if option is None:
        raise unknown_option(name, name, among)
    return f"{name}: {option.help} {describe_default(option)}"


def parse_assignments(line: str) -> dict:
    """`n_layer 8 n_head=8 --dropout 0.2` as options of their own types; "default" stays a word.

    Raises ConfigError for an unknown name (with the nearest real one) or a value that does not fit.
    """
    try:
        words = shlex.split(line)
    except ValueError:
        raise ConfigError("A quotation mark is not closed", "type both") from None
    words = [part for word in words for part in _split_assignment(word)]
    names = [word.lstrip("-").replace("-", "_") for word in words[::2]]
    for name in names:
        if name not in OPTIONS:
            raise unknown_option(name, name, OPTIONS)
    if len(words) % 2:
        raise ConfigError(f"{names[-1]} needs a value", f"type {names[-1]} VALUE")
    return {
        name: word if word == RESET else coerce(OPTIONS[name], word)
        for name, word in zip(names, words[1::2], strict=True)
    }


def _split_assignment(word: str) -> list[str]:
    match = re.fullmatch(r"(-{0,2}[a-z]\w*)=(.*)", word)
    return list(match.groups()) if match else [word]


def ask_recipe_name(console, suggestion: str) -> Path:
    """A path config/NAME.py that does not exist yet. Raises Back."""
    folder = home() / "config"
    number, default = 1, suggestion
    while (folder / f"{default}.py").exists():
        number += 1
        default = f"{suggestion}_{number}"

    def convert(word: str) -> Path:
        name = word.removesuffix(".py")
        if dataset_name(name) != name:
            raise ConfigError(
                f"A recipe cannot be called {name!r}",
                f"a name has letters, digits, - _ and . only; for example {dataset_name(name)}",
            )
        if (folder / f"{name}.py").exists():
            raise ConfigError(f"{display(folder / name)}.py exists already", "choose another name")
        return folder / f"{name}.py"

    return questions.ask(
        console,
        f"Name of the recipe, in {display(folder)}",
        convert,
        default,
        "The file NAME.py is written there after the last question; no file is replaced.",
    )


def write_recipe(
    path: Path, overrides: Mapping, title: str, launcher: str = "python train.py"
) -> None:
    """Write options as a commented recipe, atomically. launcher: the words that run it."""
    lines = [f'"""{title}', "", f"Run: {launcher} --config {display(path)}", '"""']
    for group, options in option_groups().items():
        names = [name for name in options if name in overrides and name not in START_OPTIONS]
        if names:
            lines += ["", f"# {group}"]
        for name in names:
            lines.append(f"{name} = {overrides[name]!r}  # {options[name].help}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write("\n".join(lines) + "\n")
