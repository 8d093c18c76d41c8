"""The names of runs and recipes on a command line, and every value with its source."""

import shlex
from pathlib import Path

import pytest

from gptlab.errors import ConfigError, RunError
from gptlab.runs import find_run
from gptlab.training.config import START_OPTIONS, layer
from gptlab.training.config_diff import differences, final_settings, override_settings
from gptlab.training.named_config import open_config
from gptlab.training.run_recipe import read_run_recipe


def test_a_run_is_named_by_its_path_or_by_its_name_under_out(make_run, monkeypatch, tmp_path):
    run = make_run("first")
    monkeypatch.chdir(tmp_path)
    assert find_run("first") == find_run(str(run.folder)) == run.folder
    assert find_run("out/first").resolve() == run.folder.resolve()


def test_a_run_that_is_not_there_is_named_with_those_that_are(make_run):
    run = make_run("first")
    run.best.write_bytes(b"")
    with pytest.raises(RunError, match=r"'second': .*out holds first; name"):
        find_run("second")


def test_a_name_that_is_nearly_a_run_s_is_answered_with_that_run(make_run):
    for name in ("plays", "novels"):
        make_run(name).best.write_bytes(b"")
    with pytest.raises(RunError, match="did you mean plays"):
        find_run("playss")


def test_a_run_wins_over_a_folder_of_the_same_name(make_run, monkeypatch, tmp_path):
    run = make_run("plays")
    (tmp_path / "here" / "plays").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert find_run("plays") == run.folder
    (tmp_path / "here" / "plays" / "ckpt.pt").write_bytes(b"")
    assert find_run("plays").resolve() == tmp_path / "here" / "plays"


def test_a_folder_without_config_is_no_run(home):
    (home / "out" / "foreign").mkdir(parents=True)
    with pytest.raises(RunError, match=r"foreign has no config\.py"):
        open_config("foreign")


def test_an_imported_model_is_said_to_be_one_with_the_command_that_trains_it(home):
    folder = home / "out" / "from elsewhere"
    folder.mkdir(parents=True)
    (folder / "imported.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match="imported model") as refused:
        open_config("from elsewhere")
    words = shlex.split(refused.value.fix)
    assert words[:3] == ["python", "train.py", "--init_from"] and Path(words[3]).samefile(folder)


def test_a_recipe_that_is_not_there_is_named(home):
    with pytest.raises(ConfigError, match=r"no recipe nothing\.py"):
        open_config("nothing.py")


def test_what_a_run_wrote_is_read_back_with_every_source(make_run):
    run = make_run(typed={"learning_rate": 2e-3, "seed": 5}, model_preset="tiny", bias=True)
    recipe = read_run_recipe(run.recipe)
    assert recipe.values["learning_rate"] == 2e-3
    assert recipe.sources["learning_rate"] == "command line"
    assert recipe.sources["n_layer"] == "config/own.py"
    assert recipe.sources["n_head"] == "config/own.py"
    assert (recipe.values["max_iters"], recipe.values["warmup_iters"]) == (400, 20)
    assert recipe.sources["warmup_iters"] == "a twentieth of the run, at most 100 steps"
    assert recipe.values["model_preset"] == "tiny" and recipe.values["bias"] is True
    assert recipe.values["vocab_size"] == 66 and recipe.sources["weight_decay"] == "default"
    assert recipe.machine == "a machine"
    assert not START_OPTIONS & set(recipe.values)


def test_an_option_set_to_auto_is_read_back_as_its_resolved_value(make_run):
    recipe = read_run_recipe(make_run(device="auto", typed={"dtype": "auto"}).recipe)
    assert recipe.overrides.values["device"] == "auto"
    assert (recipe.values["device"], recipe.values["dtype"]) == ("cpu", "float32")
    assert recipe.sources["device"] == "cpu, because there is no accelerator"


def test_a_line_that_would_have_to_be_run_is_refused_by_its_number(make_run):
    run = make_run()
    run.recipe.write_text("max_iters = 5 * 4  # config/own.py\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="Line 1 of"):
        read_run_recipe(run.recipe)


def test_the_command_line_overrides_a_run_and_other_sources_stay(make_run):
    make_run(typed={"seed": 5})
    target = open_config("run", {"seed": 6})
    assert (
        target.overrides.values["seed"] == 6 and target.overrides.sources["seed"] == "command line"
    )
    assert target.overrides.sources["n_layer"] == "config/own.py"
    assert final_settings(target)[0]["seed"] == 5  # what the run itself resolved


def test_before_anything_is_resolved_a_value_is_an_override_or_a_default():
    values, sources = override_settings(layer({"model_preset": "gpt2"}, {"seed": 3}))
    assert values["n_layer"] == 12 and sources["n_layer"] == "preset gpt2"
    assert values["seed"] == 3 and sources["seed"] == "command line"
    assert values["warmup_iters"] is None and sources["warmup_iters"] == "default"
    assert values["vocab_size"] is None and values["model_preset"] == "gpt2"


def test_two_runs_differ_in_what_was_resolved_for_them(make_run):
    make_run("one", max_iters=400)
    make_run("two", max_iters=1000, typed={"seed": 2})
    found = {d.name: (d.values, d.sources) for d in differences(*map(open_config, ("one", "two")))}
    assert found["seed"] == ((1337, 2), ("default", "command line"))
    assert found["warmup_iters"][0] == (20, 50)
    assert set(found) == {"seed", "max_iters", "warmup_iters", "lr_decay_iters"}


def test_a_recipe_and_a_run_are_compared_by_their_overrides(make_run, tmp_path):
    run = make_run(typed={"seed": 2})
    recipe = tmp_path / "own.py"
    overrides = read_run_recipe(run.recipe).overrides.values
    lines = [f"{name} = {value!r}" for name, value in overrides.items() if name != "seed"]
    recipe.write_text("\n".join([*lines, "beta1 = 0.8"]), encoding="utf-8")
    found = {d.name: d.values for d in differences(open_config(str(recipe)), open_config("run"))}
    assert found == {"seed": (1337, 2), "beta1": (0.8, 0.9)}
