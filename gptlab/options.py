"""Declare options once: a dataclass field with its type, default and sentence is an option.

    @dataclass(frozen=True)
    class SampleOptions:
        \"\"\"Sampling\"\"\"
        top_k: Annotated[int, "keep the k likeliest tokens; 0 switches it off"] = 200

The command line, the checks of a recipe's values and the reference page follow from such classes.
A value that is not set is absent from the dicts here, so that layers can be merged.
"""

import argparse
import dataclasses
import difflib
import math
import re
import shutil
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from gptlab.errors import ConfigError

TRUE_WORDS = {"true", "yes", "on", "1"}
FALSE_WORDS = {"false", "no", "off", "0"}
# Marks an option whose text may have \n, \t and \\ in it on the command line:
# Annotated[str, "what it does", ESCAPED].
ESCAPED = "escaped"


@dataclass(frozen=True)
class Option:
    """One option: `type` is bool, int, float, str or a tuple of strings (a list of words)."""

    name: str
    type: type
    optional: bool  # None is allowed, written "none" where no other text is
    choices: tuple[Any, ...]  # the allowed values, or () for any
    words: tuple[str, ...]  # words allowed beside a number, such as "auto"
    default: object
    help: str
    group: str
    escaped: bool = False  # \n, \t and \\ of the command line are read


def options_of(*classes: type) -> dict[str, Option]:
    """The options of these dataclasses, by name; a field without a sentence is not an option."""
    options: dict[str, Option] = {}
    for owner in classes:
        hints = typing.get_type_hints(owner, include_extras=True)
        for field in dataclasses.fields(owner):
            hint = hints[field.name]
            if typing.get_origin(hint) is not typing.Annotated:
                continue
            kind, sentence, *marks = typing.get_args(hint)
            if field.name in options:
                raise ValueError(f"option {field.name} is declared twice")
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            group = (owner.__doc__ or owner.__name__).splitlines()[0].rstrip(".")
            options[field.name] = Option(
                field.name,
                *_read_type(kind, default),
                default=default,
                help=sentence,
                group=group,
                escaped=ESCAPED in marks,
            )
    return options


def option_words(values: Mapping[str, object]) -> list[str]:
    """Options as the words of a command line; a tuple or list is an option that is repeated."""
    words = []
    for name, value in values.items():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            words += [f"--{name}"] if one is True else [f"--{name}", str(one)]
    return words


def _read_type(kind: Any, default: object) -> tuple[type, bool, tuple[Any, ...], tuple[str, ...]]:
    """(type, optional, choices, words) of an annotation such as `int | Literal["auto"] | None`."""
    is_union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    parts = typing.get_args(kind) if is_union else (kind,)
    optional = type(None) in parts or default is None
    literals = [p for p in parts if typing.get_origin(p) is typing.Literal]
    choices = tuple(value for literal in literals for value in typing.get_args(literal))
    plain = [p for p in parts if p is not type(None) and p not in literals]
    if not plain:
        return type(choices[0]), optional, choices, ()
    base = typing.get_origin(plain[0]) or plain[0]
    return base, optional, (), choices


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The known name that is closest to `name`, or None."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return close[0] if close else None


def coerce(option: Option, value: Any) -> Any:
    """`value` (a word of the command line, or a value of a recipe) as the option's own type.

    "1e3" becomes an int for an int option, 1 a float for a float option, "false" a bool. Raises
    ConfigError with the option's name and the expected type.
    """
    word = value.strip().lower() if isinstance(value, str) else None
    is_text = option.type is str and not option.choices
    if option.optional and (value is None or (word == "none" and not is_text)):
        return None
    if word is not None and word in option.words:
        return word
    if option.choices:
        match = word if word in option.choices else value
        if match in option.choices:
            return match
        raise ConfigError(
            f"{option.name} cannot be {_shown(value)}",
            f"choose from {', '.join(str(choice) for choice in option.choices)}",
        )
    try:
        return _CONVERSIONS[option.type](value)
    except (TypeError, ValueError, OverflowError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}
        fits = wanted.get(option.type, "text")
        beside = "".join(f" or {known}" for known in option.words)
        beside += " or none" if option.optional and not is_text else ""
        raise ConfigError(
            f"{option.name} cannot be {_shown(value)}", f"it takes {fits}{beside}"
        ) from None


def _shown(value: object) -> str:
    """A value's repr on one line, shortened to about 50 characters."""
    try:
        text = " ".join(repr(value)[:200].split())
    except ValueError:  # repr refuses numbers of more than 4,300 digits
        text = f"a {type(value).__name__} as long as that"
    return text if len(text) <= 60 else f"{text[:50]}..."


def format_value(value: object) -> str:
    """A value of an option as tables show it; floats with six digits."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if value == "":
        return '""'
    return f"{value:g}" if isinstance(value, float) else str(value)


def _to_bool(value: Any) -> bool:
    word = str(value).strip().lower()
    if word in TRUE_WORDS or word in FALSE_WORDS:
        return word in TRUE_WORDS
    raise ValueError(value)


def _to_int(value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, str):
        try:
            value = int(value.replace("_", ""))
        except ValueError:
            value = float(value)
    if value != int(value) or abs(value) >= 1 << 63:
        raise ValueError(value)
    return int(value)


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError(value)
    return float(value)


def _to_str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    return value


def _to_words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(_to_str(part) for part in value)


_CONVERSIONS: dict[type, Callable[[Any], Any]] = {
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    str: _to_str,
    tuple: _to_words,
}


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises a ConfigError instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise ConfigError(
            f"{message[:1].upper()}{message[1:]}",
            f"see {self.prog} --help",
            sep="; ",
        )


class _Once(argparse.Action):
    """Stores a value; ConfigError where the option was given before, which would be ignored."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        value = self.const if self.nargs == 0 else values
        if hasattr(namespace, self.dest):
            both = f"{_shown(getattr(namespace, self.dest))} and {_shown(value)}"
            shown = "" if value is True else f" ({both})"
            raise ConfigError(f"--{self.dest} is given twice{shown}", "say it once")
        setattr(namespace, self.dest, value)


def parse_command_line(
    argv: Sequence[str],
    classes: Sequence[type],
    *,
    prog: str,
    summary: str,
    example: str,
    positionals: Sequence[tuple[str, str, str]] = (),
    wording: Callable[[str], str] = str,
) -> dict[str, Any]:
    """The options given on a command line, by name, each of its own type.

    classes: the dataclasses whose options this command takes; the help shows one group for each.
    example: shown first by --help. positionals: (name, nargs, sentence) of words without an option
    name. wording: what becomes of each text of the help. `--batch-size 8`, `--batch_size=8` and
    `--batch_size 8` are the same; a tuple option may be given several times, any other only once.
    `--help` prints and exits with 0. Raises ConfigError for an unknown name (with the nearest real
    one) or a value that does not fit.
    """
    options = options_of(*classes)
    width = min(100, shutil.get_terminal_size().columns)
    parser = _Parser(
        prog=wording(prog),
        usage=argparse.SUPPRESS,
        description=wording(f"{example.rstrip()}\n\n{summary.strip()}"),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=32, width=width
        ),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, nargs, sentence in positionals:
        parser.add_argument(name, nargs=nargs, help=wording(sentence))
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in options.values():
        group = groups.get(option.group) or parser.add_argument_group(option.group)
        groups[option.group] = group
        _add_option(group, option, wording, flag_only=bool(positionals))
    end = argv.index("--") if "--" in argv else len(argv)
    words = [*map(_with_underscores, argv[:end]), *argv[end:]]
    given, unknown = parser.parse_known_args(words)
    if unknown:
        raise _unknown_word(unknown[0], options, prog)
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(given).items()
    }


def _with_underscores(word: str) -> str:
    """`--batch-size=8` as `--batch_size=8`; anything but an option name stays as it is."""
    name, equals, value = word.partition("=")
    if not re.fullmatch(r"--\w[\w-]*", name):
        return word  # such as a prompt that begins with a dash
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def _add_option(
    group: argparse._ArgumentGroup,
    option: Option,
    wording: Callable[[str], str],
    flag_only: bool,
) -> None:
    def convert(word: str) -> Any:
        if option.escaped:
            word = unescaped(word)
        if option.type is tuple:
            return word  # one of several
        return coerce(option, word)  # argparse lets its ConfigError pass

    help_text = wording(f"{option.help} {describe_default(option)}").replace("%", "%%")
    if option.type is bool and not option.words and flag_only:
        group.add_argument(f"--{option.name}", action=_Once, nargs=0, const=True, help=help_text)
        return
    metavar = "|".join(str(c) for c in option.choices) or {
        bool: "BOOL",
        int: "N",
        float: "X",
    }.get(option.type, option.name.rsplit("_", 1)[-1].upper())
    extra: dict[str, Any] = {"action": _Once}
    if option.type is bool:
        extra |= {"nargs": "?", "const": True}
    if option.type is tuple:
        extra = {"action": "append"}
    group.add_argument(f"--{option.name}", type=convert, metavar=metavar, help=help_text, **extra)


def unescaped(word: str) -> str:
    """A word of the command line with \\n, \\t and \\\\ read; other backslashes stay as they are.

    cmd.exe has no other way to give a line end, and bash takes "\\n" as it stands.
    """
    return re.sub(r"\\([nt\\])", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), word)


def describe_default(option: Option) -> str:
    """The default in brackets, as help and the reference page show it."""
    if option.default in (None, "", ()):
        return ""
    if option.type is bool:
        return "[on]" if option.default is True else "" if option.default is False else "[auto]"
    return f"[{option.default}]"


def _unknown_word(word: str, options: dict[str, Option], prog: str) -> ConfigError:
    if not word.startswith("-"):
        return ConfigError(
            f"{word!r} is not an option", f"write options as --name value; see {prog} --help"
        )
    name = word.split("=")[0].lstrip("-").replace("-", "_")
    return unknown_option(f"--{name}", name, options)


def unknown_option(shown: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for an unknown option, with the nearest real one."""
    close = nearest(name, known)
    return ConfigError(f"Unknown option {shown}", f"did you mean {close}?" if close else "")
