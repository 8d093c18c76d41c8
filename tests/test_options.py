"""Options: declared once, accepted in any spelling, refused in one sentence."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlab.errors import ConfigError
from gptlab.options import (
    coerce,
    describe_default,
    nearest,
    options_of,
    parse_command_line,
    unknown_option,
)


@dataclass(frozen=True)
class Batch:
    """Batch. More words."""

    batch_size: Annotated[int, "sequences, 100%"] = 32
    max_iters: Annotated[int | None, "steps"] = None
    warmup_iters: Annotated[int | Literal["auto"], "steps"] = "auto"
    learning_rate: Annotated[float, "rate"] = 1e-3
    min_lr: Annotated[float | None, "rate at the end"] = None
    private: int = 5


@dataclass(frozen=True)
class Rest:
    """Rest"""

    dropout: Annotated[float, "share"] = 0.0
    bias: Annotated[bool, "add biases"] = False
    resume: Annotated[bool, "go on"] = True
    compile_model: Annotated[bool | Literal["auto"], "compile"] = "auto"
    optimizer: Annotated[Literal["adamw", "muon"], "which"] = "adamw"
    activation: Annotated[Literal["gelu", "relu"] | None, "which"] = None
    out_dir: Annotated[str | None, "where"] = None
    prompt: Annotated[str, "text"] = ""
    stop: Annotated[tuple[str, ...], "where to stop"] = ()
    names: Annotated[tuple[str, ...], "words"] = field(default_factory=lambda: ("a",))
    head_dim: Annotated[int, "channels"] = None  # filled in at construction


OPTIONS = options_of(Batch, Rest)


def parse(*argv, **more):
    return parse_command_line(
        argv, [Batch, Rest], prog="try.py", summary="Tries.", example="python try.py", **more
    )


# declaring


def test_an_option_is_a_field_with_a_sentence():
    assert "private" not in OPTIONS
    option = OPTIONS["warmup_iters"]
    assert (option.type, option.words, option.optional) == (int, ("auto",), False)
    assert (option.default, option.group, option.help) == ("auto", "Batch. More words", "steps")
    assert OPTIONS["optimizer"].choices == ("adamw", "muon")
    assert OPTIONS["activation"].optional and OPTIONS["activation"].choices == ("gelu", "relu")
    assert (OPTIONS["head_dim"].type, OPTIONS["head_dim"].optional) == (int, True)
    assert (OPTIONS["stop"].type, OPTIONS["names"].default) == (tuple, ("a",))


@pytest.mark.parametrize(
    "words",
    [
        ("--batch_size", "1", "--batch-size=2"),
        ("--batch_size", "1", "--batch_size", "1"),
        ("--resume", "--resume"),
        ("--resume", "--resume=false"),
        ("--prompt=", "--prompt", "a"),
        ("--min_lr", "none", "--min_lr", "none"),
    ],
)
def test_an_option_given_twice_is_refused_unless_it_takes_several(words):
    for positionals in ((), [("texts", "*", "texts")]):
        if positionals and words[-1] == "--resume=false":
            continue  # where words stand alone, a switch takes no value
        with pytest.raises(ConfigError, match=r"^--\w+ is given twice.*say it once"):
            parse(*words, positionals=positionals)
    assert parse("--stop=a", "--stop=b", "--bias") == {"stop": ("a", "b"), "bias": True}


def test_an_option_declared_twice_is_a_mistake_of_the_programmer():
    with pytest.raises(ValueError, match="batch_size is declared twice"):
        options_of(Batch, dataclasses.make_dataclass("Other", [("batch_size", Annotated[int, ""])]))


# spellings of values


@given(st.integers(-(10**15), 10**15))
def test_every_spelling_of_a_whole_number_is_that_number(number):
    option = OPTIONS["batch_size"]
    spellings = [number, float(number), str(number), f"{number:_}", f" {number} ", f"{number}.0"]
    for spelling in spellings:
        value = coerce(option, spelling)
        assert value == number and type(value) is int


@given(st.integers(1, 999), st.integers(0, 12))
def test_whole_numbers_can_be_written_with_an_exponent(mantissa, exponent):
    value = coerce(OPTIONS["batch_size"], f"{mantissa}e{exponent}")
    assert value == mantissa * 10**exponent and type(value) is int


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_survives_its_spelling(number):
    for spelling in (number, str(number), repr(number), f"{number:.17e}"):
        value = coerce(OPTIONS["dropout"], spelling)
        assert value == number and type(value) is float


@given(st.integers(-1000, 1000))
def test_a_whole_number_is_a_number(number):
    for spelling in (number, str(number)):
        value = coerce(OPTIONS["dropout"], spelling)
        assert value == number and type(value) is float


@given(st.data())
def test_truth_has_many_spellings_in_any_case(data):
    for words, truth in ((("true", "yes", "on", "1"), True), (("false", "no", "off", "0"), False)):
        word = data.draw(st.sampled_from(words))
        cased = "".join(data.draw(st.sampled_from([c.lower(), c.upper()])) for c in word)
        assert coerce(OPTIONS["bias"], f" {cased}\n") is truth
    assert coerce(OPTIONS["bias"], 1) is True and coerce(OPTIONS["bias"], 0) is False
    assert coerce(OPTIONS["bias"], True) is True and coerce(OPTIONS["bias"], False) is False


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_text_stays_as_it_is(text):
    assert coerce(OPTIONS["prompt"], text) == text
    assert coerce(OPTIONS["out_dir"], text) == text
    assert coerce(OPTIONS["stop"], [text, "x"]) == (text, "x")
    assert coerce(OPTIONS["stop"], text) == (text,)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_iters", "none", None),
        ("max_iters", "None", None),
        ("max_iters", None, None),
        ("min_lr", "NONE", None),
        ("activation", "none", None),
        ("out_dir", None, None),
        ("warmup_iters", "AUTO", "auto"),
        ("warmup_iters", "1e2", 100),
        ("compile_model", "auto", "auto"),
        ("compile_model", "off", False),
        ("optimizer", " Muon ", "muon"),
        ("activation", "GELU", "gelu"),
    ],
)
def test_words_beside_the_type_are_known(name, value, expected):
    assert coerce(OPTIONS[name], value) == expected


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("batch_size", "1.5", "a whole number"),
        ("batch_size", 1.5, "a whole number"),
        ("batch_size", "8x", "a whole number"),
        ("batch_size", "", "a whole number"),
        ("batch_size", True, "a whole number"),
        ("batch_size", None, "a whole number"),
        ("batch_size", [8], "a whole number"),
        ("batch_size", "inf", "a whole number"),
        ("batch_size", "nan", "a whole number"),
        ("batch_size", "1e999", "a whole number"),
        ("max_iters", "many", "a whole number or none"),
        ("warmup_iters", "some", "a whole number or auto"),
        ("dropout", "a lot", "a number"),
        ("dropout", False, "a number"),
        ("dropout", "nan", "a number"),
        ("dropout", float("inf"), "a number"),
        ("dropout", {}, "a number"),
        ("bias", "maybe", "true or false"),
        ("bias", 2, "true or false"),
        ("bias", None, "true or false"),
        ("prompt", 5, "text"),
        ("out_dir", 5, "text"),
        ("stop", 5, "text"),
        ("stop", ["a", 5], "text"),
        ("optimizer", "adam", "adamw, muon"),
        ("optimizer", 5, "adamw, muon"),
        ("optimizer", None, "adamw, muon"),
        ("optimizer", [], "adamw, muon"),
    ],
)
def test_a_value_that_does_not_fit_is_one_sentence_with_its_name(name, value, wanted):
    with pytest.raises(ConfigError) as error:
        coerce(OPTIONS[name], value)
    sentence = str(error.value)
    assert sentence.startswith(f"{name} cannot be {value!r}: ")
    assert sentence.endswith(f"{wanted}.")


# the command line


@pytest.mark.parametrize(
    ("argv", "overrides"),
    [
        (["--batch-size", "8"], {"batch_size": 8}),
        (["--batch_size=8"], {"batch_size": 8}),
        (["--batch-size=8"], {"batch_size": 8}),
        (["--learning_rate", "1e-3"], {"learning_rate": 1e-3}),
        (["--max_iters", "1e3"], {"max_iters": 1000}),
        (["--dropout", "1"], {"dropout": 1.0}),
        (["--min_lr", "-1"], {"min_lr": -1.0}),
        (["--bias", "false"], {"bias": False}),
        (["--bias=False"], {"bias": False}),
        (["--bias"], {"bias": True}),
        (["--resume", "--bias", "no"], {"resume": True, "bias": False}),
        (["--compile_model"], {"compile_model": True}),
        (["--compile-model", "auto"], {"compile_model": "auto"}),
        (["--stop", "a", "--stop", "b c"], {"stop": ("a", "b c")}),
        (["--prompt", "--a well-known text"], {"prompt": "--a well-known text"}),
        (["--prompt=--well-known"], {"prompt": "--well-known"}),
        (["--prompt", "a=b-c"], {"prompt": "a=b-c"}),
        (["--prompt", "none", "--out-dir", "None"], {"prompt": "none", "out_dir": "None"}),
        (["--prompt", ""], {"prompt": ""}),
        ([], {}),
    ],
)
def test_every_spelling_of_an_option_is_understood(argv, overrides):
    assert parse(*argv) == overrides


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--batchsize", "8"], "Unknown option --batchsize: did you mean batch_size?"),
        (["--batch_sise=8"], "Unknown option --batch_sise: did you mean batch_size?"),
        (["--lerning-rate", "1"], "Unknown option --lerning_rate: did you mean learning_rate?"),
        (["--batch", "8"], "Unknown option --batch: did you mean batch_size?"),
        (["--zzz"], "Unknown option --zzz."),
        (["8"], "'8' is not an option: write options as --name value; see try.py --help."),
        (["--batch_size"], "--batch_size: expected one argument; see try.py --help."),
        (["--batch_size", "x"], "batch_size cannot be 'x': it takes a whole number."),
        (["--optimizer", "sgd"], "optimizer cannot be 'sgd': choose from adamw, muon."),
        (["--bias", "perhaps"], "bias cannot be 'perhaps': it takes true or false."),
    ],
)
def test_a_mistake_is_one_sentence(argv, sentence, capsys):
    with pytest.raises(ConfigError) as error:
        parse(*argv)
    assert str(error.value) == sentence
    assert capsys.readouterr() == ("", "")


SOURCES = [("sources", "*", "files")]


def test_a_switch_takes_no_word_from_the_positionals():
    overrides = parse("--bias", "a.txt", "b.txt", positionals=SOURCES)
    assert overrides == {"bias": True, "sources": ("a.txt", "b.txt")}
    with pytest.raises(ConfigError, match="Unknown option --baes: did you mean bias"):
        parse("--baes", "a.txt", positionals=SOURCES)


def test_names_after_two_dashes_are_never_options():
    overrides = parse("--batch-size", "8", "--", "--my-file", "--bias", positionals=SOURCES)
    assert overrides == {"batch_size": 8, "sources": ("--my-file", "--bias")}


def test_help_shows_the_example_first_and_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("python try.py\n\nTries.")
    assert [name for name in OPTIONS if f"--{name}" not in out] == []
    assert "Batch. More words:" in out and "Rest:" in out
    assert "sequences, 100% [32]" in out
    assert "adamw|muon" in out


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("batch_size", "[32]"),
        ("max_iters", ""),
        ("dropout", "[0.0]"),
        ("bias", ""),
        ("resume", "[on]"),
        ("compile_model", "[auto]"),
        ("optimizer", "[adamw]"),
        ("stop", ""),
        ("prompt", ""),
    ],
)
def test_a_default_is_shown_in_brackets(name, shown):
    assert describe_default(OPTIONS[name]) == shown


def test_the_nearest_name_is_offered_or_none():
    names = ["batch_size", "block_size", "n_layer", "n_head"]
    assert nearest("batchsize", names) == "batch_size"
    assert nearest("blocksize", names) == "block_size"
    assert nearest("nlayers", names) == "n_layer"
    assert nearest("temperature", names) is None
    assert nearest("anything", []) is None
    found = unknown_option("nlayer", "nlayer", names)
    assert str(found) == "Unknown option nlayer: did you mean n_layer?"
    assert found.fix == "did you mean n_layer?"
    assert str(unknown_option("x", "x", names)) == "Unknown option x."
