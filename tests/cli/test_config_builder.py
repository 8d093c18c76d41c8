"""The recipe builder: from a shipped recipe, group by group, to a file that trains."""

import io
import re
from pathlib import Path

import pytest

from gptlab.cli.ui import questions
from gptlab.cli.ui import recipe_builder as builder
from gptlab.errors import ConfigError
from gptlab.training.config import OPTIONS, read_recipe

GROUPS = 9  # run, model (2), batch, optimizer, schedule, evaluation, fine-tuning, machine


@pytest.fixture
def build(home, monkeypatch, capsys):
    """Type these lines at the builder; (path or None, what was shown in one line)."""
    monkeypatch.setattr(questions, "at_terminal", lambda: True)

    def build(*lines):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        try:
            path = builder.build_recipe()
        except SystemExit as ended:
            assert ended.code == 0
            path = None
        build.out = capsys.readouterr().out
        return path, " ".join(build.out.split())

    return build


def enter(times):
    return [""] * times


def test_enter_everywhere_copies_the_shipped_recipe_with_comments(build, home):
    path, shown = build("shakespeare_char", *enter(GROUPS), "")
    assert path == home / "config" / "my_recipe.py" and "train.py --config" in shown
    shipped = Path(builder.__file__).parents[3] / "config" / "shakespeare_char.py"
    assert read_recipe(path) == read_recipe(shipped)
    text = path.read_text(encoding="utf-8")
    (named,) = re.findall(r"^Run: python train\.py --config (\S+)$", text, re.MULTILINE)
    assert read_recipe(named) == read_recipe(shipped)
    assert "from" in text.splitlines()[0] and "shakespeare_char.py" in text
    for line in text.splitlines():
        if " = " in line:
            assert "  # " in line  # each with its sentence


def test_changes_are_taken_validated_and_written(build):
    path, shown = build(
        "empty",
        "dataset plays seed=7", "",
        "n_embd 100", "n_layer 2 n_head 4 n_embd 64", "droput 0.1", "dropout 3", "? dropout",
        "mlp_ratio", "dropout 0.2", "dropout default", "",
        *enter(GROUPS - 2),
        "mine",
    )  # fmt: skip
    assert "does not divide" in shown and "did you mean dropout" in shown
    assert "below 1" in shown and "mlp_ratio needs a value" in shown
    assert "probability of dropping" in shown and "parameters at a vocabulary of" in shown
    assert read_recipe(path) == {
        "dataset": "plays", "seed": 7, "n_layer": 2, "n_head": 4, "n_embd": 64,
    }  # fmt: skip


def test_one_can_go_back_a_group(build):
    path, shown = build("empty", "", "b", "seed 3", "", *enter(GROUPS - 1), "back_again")
    assert read_recipe(path) == {"seed": 3} and shown.count("type NAME VALUE, ?") >= GROUPS + 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("out_dir out/x", "belongs to one start"),
        ("resume true", "belongs to one start"),
        ("vocab_size 65", "belongs to one start"),
        ("learning_rate fast", "learning_rate cannot be 'fast'"),
        ("min_lr 1", "above learning_rate"),
        ("max_iters 10 minutes 3", "set one of the two"),
        ("batch_size 0", "at least 1"),
        ("model_preset huge", "no preset 'huge'"),
        ("use_swiglu true activation gelu", "no effect in a SwiGLU"),
        ("seed '", "not closed"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_is_not_taken(build, line, words):
    path, shown = build("empty", line, *enter(GROUPS), "kept")
    assert words in shown and read_recipe(path) == {}


@pytest.mark.parametrize("answered", [0, 1, 4, 8])
def test_the_end_of_the_input_leaves_no_recipe(build, home, answered):
    path, _ = build(*["empty", *enter(GROUPS)][:answered])
    assert path is None and not (home / "config").exists()


def test_a_recipe_that_exists_is_not_replaced(build, home):
    (home / "config").mkdir()
    (home / "config" / "mine.py").write_text("seed = 5\n", encoding="utf-8")
    path, shown = build("mine", *enter(GROUPS), "mine", "mine.py", "../up", "other")
    assert path.name == "other.py" and shown.count("exists already") == 2
    assert "letters, digits" in shown
    assert (home / "config" / "mine.py").read_text(encoding="utf-8") == "seed = 5\n"
    assert read_recipe(path) == {"seed": 5}


def test_without_a_terminal_it_explains_itself(home):
    with pytest.raises(ConfigError, match="editor"):
        builder.build_recipe()


def test_every_option_of_a_recipe_is_asked_in_exactly_one_group():
    asked = [name for options in builder.option_groups().values() for name in options]
    assert sorted(asked) == sorted(OPTIONS) and len(builder.option_groups()) == GROUPS


@pytest.mark.parametrize("width", [60, 80])
def test_each_group_fits_a_screen_and_shows_what_can_be_chosen(home, monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", "24")
    made = builder.RecipeBuilder(questions.open_console())
    for options in builder.option_groups().values():
        monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
        made.ask_group("Group", options)
        out = capsys.readouterr().out
        lines = out.splitlines()
        assert len(lines) < 24 and max(map(len, lines)) <= width
        for option in options.values():
            if option.name not in builder.START_OPTIONS | {"vocab_size"}:
                shown = " ".join(out.split())
                assert all(str(choice) in shown for choice in option.choices), option.name
