"""`python gpt.py config`: make a recipe, show every value and its source, compare two."""

import json
from dataclasses import dataclass
from typing import Annotated

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.console import (
    leading_words,
    make_console,
    make_table,
    note,
    print_table,
)
from gptlab.errors import ConfigError
from gptlab.options import format_value


@dataclass(frozen=True)
class ShowOptions:
    """Output"""

    json: Annotated[bool, "print it as JSON"] = False


def main(argv: list[str]) -> int:
    """Show or compare configurations; the exit code."""
    words, rest = leading_words(argv)
    overrides = COMMANDS["config"].parse(rest)
    as_json = overrides.pop("json", False)
    match words:
        case ["show", target]:
            show_config(target, overrides, as_json)
        case ["diff", first, second]:
            diff(first, second, overrides, as_json)
        case ["show", *_]:
            raise ConfigError("config show takes one recipe or run", "see gpt.py config --help")
        case ["diff", *_]:
            raise ConfigError("config diff takes two recipes or runs", "see gpt.py config --help")
        case [] if not overrides:
            from gptlab.cli.ui.recipe_builder import build_recipe

            build_recipe()
        case []:
            raise ConfigError("Use config show FILE or config diff A B", "see gpt.py config --help")
        case [word, *_]:
            raise ConfigError(
                f"config knows show and diff, not {word!r}",
                "use config show FILE or config diff A B",
            )
    return 0


def show_config(word: str, overrides: dict, as_json: bool) -> None:
    """Print every option of a recipe or a run."""
    from gptlab.training.config_diff import final_settings
    from gptlab.training.named_config import open_config

    target = open_config(word, overrides)
    remark = ""
    if target.run is not None and not overrides:
        values, sources = final_settings(target)
        remark = "Values as the run resolved them."
    else:
        values, sources, remark = _resolved_here(target)
    if as_json:
        rows = {name: {"value": value, "source": sources[name]} for name, value in values.items()}
        print(json.dumps(rows, indent=2))
        return
    _print_settings(target.name, values, sources, remark)


def _resolved_here(target) -> tuple[dict, dict, str]:
    """(values, sources, remark) as training on this machine would resolve them."""
    from gptlab.planning.plan import resolve_here, text_size, this_machine
    from gptlab.training.run_recipe import settings

    decided = target.run.values if target.run else None
    note("Looking at this machine ...")
    text = text_size(target.overrides, (decided or {}).get("vocab_size"))
    machine = this_machine(target.overrides)
    resolved, _ = resolve_here(target.overrides, text, machine, machine.estimate, decided)
    values, sources = settings(target.overrides, resolved)
    sources["vocab_size"] = text.source
    remark = f"Resolved for {machine.choice.device}, {text.source}. {machine.note}".strip()
    return values, sources, remark


def _print_settings(title: str, values: dict, sources: dict, remark: str) -> None:
    from rich.text import Text

    from gptlab.cli.ui.recipe_builder import option_groups

    console = make_console()
    console.print(Text(title, style="bold"))
    if remark:
        console.print(Text(remark, style="dim"))
    width = max(map(len, values))
    for group, options in option_groups().items():
        names = [name for name in options if name in values]
        if not names:
            continue
        table = make_table("option", "value", "source")
        table.columns[0].min_width, table.columns[0].no_wrap = width, True
        table.columns[1].min_width = 12
        table.columns[1].overflow = table.columns[2].overflow = "fold"  # a path has no spaces
        for name in names:
            style = "dim" if sources[name] == "default" else ""
            value = Text(format_value(values[name]), style="" if style else "bold")
            choices = (
                f" (of {', '.join(map(str, found))})" if (found := options[name].choices) else ""
            )
            table.add_row(Text(name), value, Text(sources[name] + choices), style=style)
        print_table(console, group, table)


def diff(first: str, second: str, overrides: dict, as_json: bool) -> None:
    """Print the options in which two recipes or runs differ."""
    from rich.text import Text

    from gptlab.training.config_diff import differences
    from gptlab.training.named_config import open_config

    if overrides:
        raise ConfigError("config diff compares files only", f"leave --{next(iter(overrides))} out")
    targets = [open_config(word) for word in (first, second)]
    found = differences(*targets)
    if as_json:
        rows = {}
        for d in found:
            pairs = zip(d.values, d.sources, strict=True)
            rows[d.name] = [{"value": value, "source": source} for value, source in pairs]
        print(json.dumps(rows, indent=2))
        return
    names = [target.name for target in targets]
    if not found:
        print(f"{names[0]} and {names[1]} have the same values.")
        return
    resolved = all(target.run is not None for target in targets)
    table = make_table("option", *names)
    for difference in found:
        cells = []
        for value, source in zip(difference.values, difference.sources, strict=True):
            cells.append(Text.assemble((format_value(value), "bold"), (f"  {source}", "dim")))
        table.add_row(Text(difference.name), *cells)
    as_what = "resolved" if resolved else "set"
    title = f"Different in {len(found)} options, as {as_what}"
    print_table(make_console(), title, table)
