"""The beginning of a run repeated: equal, or the first step, tensor and line that differ."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gptlab
from gptlab.analysis import replay as module
from gptlab.analysis.replay import CodeChange, changed_code, replay
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.versions import forget_versions
from gptlab.errors import DataError, RunError
from gptlab.files import read_json, write_json
from gptlab.model.initialisation import NUMERICS
from gptlab.model.transformer import GPT
from gptlab.runs import Run
from gptlab.training import starting
from gptlab.training.resolving import Measurements

PACKAGE = Path(gptlab.__file__).parent


def content_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(optimizer="muon", schedule="wsd", dropout=0.2, gradient_accumulation_steps=2),
        dict(ema_decay=0.9, tie_weights=True, position_encoding="learned", max_iters=60),
    ],
)
def test_the_same_steps_again_are_bitwise_equal_and_the_run_is_untouched(train, options):
    folder = train(**options)
    before = content_of(folder)
    torch.manual_seed(99)  # whatever the process did in between
    result = replay(folder, 50)
    assert result.difference is None and result.changes == [] and result.code == []
    assert result.steps == min(50, options.get("max_iters", 12))
    assert result.digested == tuple(s for s in (0, 1, 2, 5, 10, 20, 50) if s <= result.steps)
    assert content_of(folder) == before
    assert not list(Path(os.environ["GPTLAB_HOME"]).glob("out/*replay*"))


def test_only_as_many_steps_as_asked_are_taken(train):
    done = []
    result = replay(train(), 3, done.append)
    assert (result.steps, result.digested, done) == (3, (0, 1, 2), [0, 1, 2, 3])


def test_a_run_of_minutes_is_replayed_with_the_length_that_it_had(train, monkeypatch):
    monkeypatch.setattr(starting, "measure", lambda *_, **__: Measurements(1.0, 4.0, 1e-6, 0.01))
    folder = train(minutes=1, max_iters=None, max_minutes=0.05)
    assert 5 < read_json(Run(folder).provenance)["settings"]["max_iters"] < 20
    monkeypatch.setattr(starting, "measure", None)  # nothing is measured again
    assert replay(folder, 50).difference is None


def test_a_run_that_began_from_another_is_replayed_from_any_folder(train, tmp_path, monkeypatch):
    train("first")
    monkeypatch.chdir(tmp_path / "out")
    folder = train("second", init_from="first")
    assert replay(folder, 50).difference is None
    monkeypatch.chdir(tmp_path)
    assert replay(folder, 50).difference is None


def test_a_run_with_older_draws_is_replayed_where_its_weights_can_be_had(train, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(NUMERICS, "dropout", 1)
        scratch = train("scratch", max_iters=3)
        tuned = train("tuned", init_from=str(scratch), dropout=0.3, max_iters=5)
    for folder in (scratch, tuned):
        recorded = read_json(Run(folder).provenance)
        del recorded["numerics"]  # as before there were versions
        write_json(Run(folder).provenance, recorded)
    assert replay(tuned, 50).difference is None
    with pytest.raises(RunError, match="initial weights were drawn in another way"):
        replay(scratch, 50)


# What differs -------------------------------------------------------------------------------------


def test_another_forward_pass_is_named_by_step_and_tensors(train, monkeypatch):
    folder, features = train(), GPT.features
    monkeypatch.setattr(GPT, "features", lambda *args: features(*args) * 1.001)
    difference = replay(folder, 50).difference
    assert (difference.step, difference.what) == (1, "loss")
    assert difference.before != difference.after
    assert difference.tensors_step == 1 and "token_embedding.weight" in difference.tensors
    model = gptlab.load_checkpoint(folder).model
    assert difference.total == len(list(model.parameters()))


def test_other_initial_weights_are_named_before_the_first_step(train, monkeypatch):
    folder, initialise = train(), GPT.init_weights

    def another(model, *rest):
        initialise(model, *rest)
        with torch.no_grad():
            model.blocks[0].attention.q_proj.weight[0, 0] += 1e-3

    monkeypatch.setattr(GPT, "init_weights", another)
    difference = replay(folder, 50).difference
    assert (difference.step, difference.what, difference.tensors_step) == (0, "weights", 0)
    assert difference.tensors == ("blocks.0.attention.q_proj.weight",)


def test_a_difference_from_a_later_step_on_is_found_there(train, monkeypatch):
    folder, train_step = train(), module.train_step

    def nudged(setup, state):
        result = train_step(setup, state)
        if state.step == 6:
            with torch.no_grad():
                state.model.final_norm.weight += 1e-3
        return result

    monkeypatch.setattr(module, "train_step", nudged)
    difference = replay(folder, 50).difference
    assert (difference.step, difference.what) == (7, "loss")
    assert difference.tensors_step == 10 and "final_norm.weight" in difference.tensors


def test_other_threads_are_named_and_a_result_that_is_equal_stays_so(train):
    folder = train()
    torch.set_num_threads(2)
    result = replay(folder, 5)
    assert result.changes == [("threads", "1", "2")]


def test_another_release_is_named_although_the_result_is_equal(train):
    folder = train()
    stored = read_json(folder / "provenance.json")
    stored["conditions"] |= {"torch": "2.12.1", "CPU capability": "AVX9"}
    write_json(folder / "provenance.json", stored)
    result = replay(folder, 5)
    assert result.difference is None
    capability = torch.backends.cpu.get_cpu_capability()
    assert result.changes == [
        ("torch", "2.12.1", torch.__version__),
        ("CPU capability", "AVX9", capability),
    ]


@pytest.mark.parametrize("more", ["", "a letter that was not there: \u00e9\n"])
def test_other_data_are_named(train, tmp_path, more):
    folder = train()
    book = tmp_path / "books" / "b3.txt"
    book.write_text(book.read_text().replace("the", "teh") + more, encoding="utf-8")
    books = prepare("books", PrepareOptions(tokenizer="char", split="document")).dataset
    assert replay(folder, 2).difference is None  # on the version that the run began with
    forget_versions(books.folder, [])
    result = replay(folder, 50)
    assert result.difference is not None
    assert result.changes[0][0] == "data books" and "SHA-256" in result.changes[0][1]
    if more:  # another alphabet makes other tensors
        assert result.difference.step == 0
        assert "token_embedding.weight" in result.difference.tensors


def test_data_that_are_gone_are_a_sentence(train, tmp_path):
    folder = train()
    shutil.rmtree(tmp_path / "data" / "books")
    with pytest.raises(DataError, match="No prepared dataset 'books'"):
        replay(folder, 5)


def test_a_changed_line_of_the_model_is_named_with_file_and_line(train, tmp_path):
    """A process of its own, because this one has the model loaded already."""
    folder = train()
    copy = tmp_path / "copy"
    shutil.copytree(PACKAGE, copy / "gptlab", ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / "gptlab" / "model" / "transformer.py"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if "return self.final_norm(x)" in line)
    lines[number] = lines[number].replace("(x)", "(x * 1.01 + 0.01)")
    path.write_text("".join(lines), encoding="utf-8")
    shutil.copy(PACKAGE.parent / "gpt.py", copy)
    done = subprocess.run(
        [sys.executable, "gpt.py", "replay", str(folder), "--steps", "5"],
        cwd=copy, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, encoding="utf-8", timeout=120,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"differs first in the loss of step 1\b", done.stdout)
    assert re.search(r"tensors that differ at step 1: token_embedding\.weight", done.stdout)
    before = "`return self.final_norm(x)`"
    after = "`return self.final_norm(x * 1.01 + 0.01)`"
    assert f"gptlab/model/transformer.py:{number + 1}: {before} -> {after}\n" in done.stdout
    assert done.stdout.count("gptlab/") == 1 and "threads" not in done.stdout


# The code -----------------------------------------------------------------------------------------

TEXT = "a = 1\nb = 2\n\nc = 3\n"


def hashes(**texts):
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (TEXT, []),
        ("a = 1\nb = 5\n\nc = 3\n", [(2, "b = 2", "b = 5")]),
        ("a = 1\n\nc = 3\n", [(2, "b = 2", "")]),
        ("a = 1\nb = 2\n\nc = 3\nd = 4\n", [(5, "", "d = 4")]),
        ("a = 0\nb = 2\n\nc = 4\n", [(1, "a = 1", "a = 0"), (4, "c = 3", "c = 4")]),
    ],
)
def test_each_changed_place_has_its_line(now, expected):
    places, unread = changed_code(hashes(m=TEXT), {"m": TEXT}, {"m": now})
    assert places == [CodeChange("m", *place) for place in expected] and unread == []


def test_files_that_came_went_or_have_no_former_text_are_named():
    found = changed_code(hashes(a=TEXT, b=TEXT), {"a": TEXT}, {"b": "x = 1\n", "c": "y = 1\n"})
    assert found == ([CodeChange("a", 1, "a = 1", ""), CodeChange("c", 1, "", "y = 1")], ["b"])


# What cannot be replayed --------------------------------------------------------------------------


def test_a_device_that_is_not_here_is_a_sentence(train):
    folder = train(max_iters=2)
    stored = read_json(folder / "provenance.json")
    stored["settings"]["device"] = "xpu:7"
    write_json(folder / "provenance.json", stored)
    with pytest.raises(RunError, match="trained on xpu:7 in float32, which this machine does not"):
        replay(folder, 5)


def test_a_run_without_a_record_of_its_beginning_is_a_sentence(train, tmp_path):
    folder = train(max_iters=2)
    (folder / "trace.jsonl").write_text('{"step": 0, "weights": {}}\n')
    with pytest.raises(RunError, match="no record of a first step"):
        replay(folder, 5)
    (folder / "provenance.json").unlink()
    with pytest.raises(RunError, match=r"no provenance\.json"):
        replay(folder, 5)
