"""docs/experiments.md is what its records say, and its questions can be asked again."""

import ast
import json
import re

import pytest

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.main import main
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.training.picture import Picture


@pytest.fixture
def experiments(scripts):
    import experiments

    return experiments


def test_the_page_is_what_the_script_makes_of_the_records(experiments):
    written = experiments.PAGE.read_text(encoding="utf-8")
    assert written == experiments.page(experiments.read_records()), (
        "run python benchmarks/experiments.py"
    )


def test_each_record_answers_a_question_as_it_stands(experiments):
    records = experiments.read_records()
    assert {path.stem for path in experiments.RECORDS.glob("*.json")} == set(records)
    for name, record in records.items():
        assert record["commands"] == experiments.ALL[name].commands


def test_the_intervals_of_the_records_are_those_of_scipy(experiments):
    from scipy.stats import ttest_1samp

    for name, record in experiments.read_records().items():
        if not (found := record["difference"]):
            continue
        differences = [pair["b"] - pair["a"] for pair in record["pairs"]]
        interval = ttest_1samp(differences, 0.0).confidence_interval(0.95)
        assert [found["low"], found["high"]] == pytest.approx(list(interval), abs=1e-9), name
        if record["verdict"] in ("A", "B"):
            assert (interval.low > 0) == (record["verdict"] == "A") and found["low"] * found[
                "high"
            ] > 0, name


def test_each_command_is_one_that_compare_takes(experiments):
    from gptlab.training.config import OPTIONS

    for question in experiments.ALL.values():
        words = question.commands[-1].split()
        assert words[:3] == ["python", "gpt.py", "compare"]
        given = COMMANDS["compare"].parse(words[3:])
        for word in (*given.get("set", ()), *given.get("both", ())):
            assert word.partition("=")[0] in OPTIONS
        assert ("against" in given) == question.patch != ("set" in given)


def test_each_variant_applies_to_the_code_as_it_is(experiments):
    questions = [question for question in experiments.ALL.values() if question.patch]
    assert {path.stem for path in experiments.VARIANTS.glob("*.patch")} == {
        question.name for question in questions
    }
    for question in questions:
        patch = experiments.patch_of(question).read_text(encoding="utf-8")
        for part in re.split(r"^diff --git .*\n", patch, flags=re.MULTILINE)[1:]:
            path = experiments.REPOSITORY / re.search(r"^\+\+\+ b/(.*)$", part, re.MULTILINE)[1]
            text = path.read_text(encoding="utf-8")
            for hunk in re.split(r"^@@ .*\n", part, flags=re.MULTILINE)[1:]:
                lines = hunk.splitlines(keepends=True)
                before = "".join(line[1:] for line in lines if line[0] in " -")
                after = "".join(line[1:] for line in lines if line[0] in " +")
                assert text.count(before) == 1, f"make {question.name}.patch anew"
                text = text.replace(before, after)
            ast.parse(text)


def test_runs_that_questions_share_say_what_compare_says(experiments, home, monkeypatch, capsys):
    (home / "tiny.txt").write_text("to be or not to be, " * 200, encoding="utf-8")
    prepare(str(home / "tiny.txt"), PrepareOptions(tokenizer="char"))
    monkeypatch.setattr(Picture, "draw", lambda *_: None)
    recipe = home / "tiny.py"
    recipe.write_text(
        'dataset = "tiny"\nn_layer = 1\nn_head = 2\nn_embd = 16\nblock_size = 8\nbatch_size = 2\n'
        'max_iters = 3\ndevice = "cpu"\ndtype = "float32"\ntie_weights = False\n'
    )
    monkeypatch.setattr(experiments, "RECIPE", str(recipe))
    monkeypatch.setattr(experiments, "SEEDS", 2)
    monkeypatch.setattr(experiments, "RECORDS", home)
    asked = [
        experiments.setting("normed", "no QK-norm", "QK-norm", "qk_norm=True"),
        experiments.setting("tied", "untied", "tied", "tie_weights=True"),
    ]
    monkeypatch.setattr(experiments, "ALL", {question.name: question for question in asked})
    assert experiments.measure(asked)
    assert len((home / "out/experiments/results.jsonl").read_text().splitlines()) == 6
    capsys.readouterr()
    for question in asked:
        assert main([*question.commands[0].split()[2:], "--json"]) == 0
        told, record = json.loads(capsys.readouterr().out), json.loads(question.record.read_text())
        assert record["pairs"] == told["pairs"] and record["verdict"] == told["verdict"]
        assert record["difference"] == told["difference"]["tokens"]
