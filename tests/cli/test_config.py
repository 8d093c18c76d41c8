"""config show and config diff: every value with its source, what two of them differ in."""

import json

import pytest

from gptlab.cli.commands import config as command
from gptlab.errors import ConfigError, RunError
from gptlab.hardware import choose, judge
from gptlab.hardware.probe import DTYPES, DeviceFacts, Facts
from gptlab.hardware.trials import Trial
from gptlab.planning import plan as planning
from gptlab.planning.plan import Machine
from gptlab.runs import Run
from gptlab.training.config import OPTIONS, START_OPTIONS, layer
from gptlab.training.resolving import Situation, resolve
from gptlab.training.run_recipe import as_recipe

TRIALS = {dtype: Trial(flops=1e11 if dtype == "float32" else 1e9) for dtype in DTYPES}
PROCESSOR = DeviceFacts("cpu", "cpu", "Some CPU", 16 * 10**9, 8 * 10**9, trials=TRIALS)
HARDWARE = judge(Facts((PROCESSOR,), 2, "Linux", "3.12.1", "2.13.0"))


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """An empty home, recipes in the working directory, and a processor as the machine."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    machine = Machine(HARDWARE, choose(HARDWARE), 1e11)
    monkeypatch.setattr(planning, "this_machine", lambda overrides: machine)
    (tmp_path / "own.py").write_text(
        'model_preset = "tiny"\nn_layer = 3\nmax_iters = 200\nlearning_rate = 2e-3\n',
        encoding="utf-8",
    )
    (tmp_path / "other.py").write_text(
        'model_preset = "tiny"\nn_layer = 4\nmax_iters = 200\n', encoding="utf-8"
    )
    return tmp_path


def make_run(folder, **typed):
    overrides = layer({"n_layer": 2, "max_iters": 100}, typed, "own.py")
    run = Run(folder)
    run.folder.mkdir(parents=True)
    resolved = resolve(overrides, Situation(choose(HARDWARE), 66, 100_000, 10_000))
    run.recipe.write_text(as_recipe(overrides, resolved), encoding="utf-8")


def shown(capsys, *words):
    assert command.main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_option_is_shown_with_its_source(capsys):
    rows = shown(capsys, "show", "own.py", "--batch_size", "5")
    assert set(OPTIONS) - set(rows) == START_OPTIONS
    assert rows["batch_size"] == {"value": 5, "source": "command line"}
    assert rows["n_layer"] == {"value": 3, "source": "own.py"}
    assert rows["n_embd"] == {"value": 320, "source": "preset tiny"}
    assert rows["beta1"] == {"value": 0.9, "source": "default"}
    assert rows["warmup_iters"] == {
        "value": 10, "source": "a twentieth of the run, at most 100 steps",
    }  # fmt: skip
    assert rows["min_lr"] == {"value": 2e-4, "source": "a tenth of learning_rate"}
    assert rows["device"]["value"] == "cpu" and "no accelerator" in rows["device"]["source"]


def test_the_table_is_plain_in_a_pipe_and_names_its_basis(capsys):
    command.main(["show", "own.py"])
    out, err = capsys.readouterr()
    assert out.startswith("own.py\n") and "assumed; no dataset was named" in out
    assert "\x1b" not in out and err == ""
    assert "learning_rate" in out and "0.002" in out


def test_at_sixty_columns_nothing_is_cut(surroundings, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    make_run(surroundings / "out" / "mine", seed=4)
    assert command.main(["show", "mine"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out and max(map(len, out.splitlines())) <= 60
    for word in ("tensorboard,", "wandb,", "trackio)", "gelu_tanh,", "sinusoidal)"):
        assert word in out.split(), word


def test_a_run_is_shown_as_it_resolved_itself(surroundings, capsys):
    make_run(surroundings / "out" / "mine", seed=4)
    rows = shown(capsys, "show", "mine")
    assert rows["seed"] == {"value": 4, "source": "command line"}
    assert rows["vocab_size"] == {"value": 66, "source": "from the dataset"}
    assert rows["eval_interval"]["value"] == 10
    again = shown(capsys, "show", "mine", "--seed", "6")
    assert again["seed"] == {"value": 6, "source": "command line"}
    assert again["eval_interval"] == {"value": 10, "source": "as the run began"}


def test_what_differs_is_listed_and_nothing_else(capsys):
    rows = shown(capsys, "diff", "own.py", "other.py")
    assert rows == {
        "learning_rate": [
            {"value": 2e-3, "source": "own.py"}, {"value": 1e-3, "source": "default"},
        ],
        "n_layer": [{"value": 3, "source": "own.py"}, {"value": 4, "source": "other.py"}],
    }  # fmt: skip
    command.main(["diff", "own.py", "other.py"])
    out = capsys.readouterr().out
    assert "Different in 2 options, as set" in out and "0.002" in out
    command.main(["diff", "own.py", "own.py"])
    assert capsys.readouterr().out == "own.py and own.py have the same values.\n"


def test_runs_are_compared_as_they_were_resolved(surroundings, capsys):
    make_run(surroundings / "out" / "a")
    make_run(surroundings / "out" / "b", max_iters=300)
    assert shown(capsys, "diff", "a", "b")["warmup_iters"] == [
        {"value": 5, "source": "a twentieth of the run, at most 100 steps"},
        {"value": 15, "source": "a twentieth of the run, at most 100 steps"},
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["show"], "config show takes one recipe or run"),
        (["show", "own.py", "other.py"], "config show takes one recipe or run"),
        (["diff", "own.py"], "config diff takes two"),
        (["diff", "own.py", "other.py", "--seed", "3"], "leave --seed out"),
        (["sho", "own.py"], "config knows show and diff, not 'sho'"),
        (["show", "none.py"], r"no recipe none\.py"),
        (["show", "own.py", "--n_layr", "3"], "did you mean n_layer"),
        (["--seed", "3"], "Use config show"),
    ],
)
def test_a_wrong_command_line_is_refused_with_what_to_say(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        command.main(words)


def test_a_run_that_is_not_there_is_refused():
    with pytest.raises(RunError, match="no run 'nothing'"):
        command.main(["show", "nothing"])
