"""Runs side by side: what they share, kills and resumes, and verdicts on trained models."""

import pytest
import safetensors.torch
import torch

from gptlab import hardware
from gptlab.analysis import paired_runs as module
from gptlab.analysis.paired_runs import PairedRuns, make_arm, shares_initial_tensors, with_shuffled
from gptlab.analysis.verdict import judge_once, pairs_of
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.errors import CheckpointError, ConfigError, RunError
from gptlab.model.transformer import GPT
from gptlab.runs import Run
from gptlab.training.config import build, layer
from gptlab.training.initial_model import take_initial_tensors
from gptlab.training.metrics import Metrics
from gptlab.training.picture import Picture
from gptlab.training.provenance import digests, read_trace

SMALL = dict(
    dataset="tiny", n_layer=1, n_head=2, n_embd=16, block_size=16, dropout=0.0, batch_size=4,
    max_iters=6, log_interval=1, device="cpu", dtype="float32", learning_rate=1e-2,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A home with the dataset "tiny"."""
    home = tmp_path_factory.mktemp("home")
    words = "to be or not to be that is the question whether tis nobler in the mind to suffer "
    (home / "tiny.txt").write_text(words * 60, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_HOME", str(home))
        prepare(str(home / "tiny.txt"), PrepareOptions(tokenizer="char"))
    return home


@pytest.fixture(scope="module")
def measured():
    """The report on this machine and its peak, measured once."""
    report, peak = hardware.detect(), hardware.peak_flops("cpu", "float32")
    return {"detect": lambda only=None: report, "peak_flops": lambda device, dtype: peak}


@pytest.fixture(autouse=True)
def surroundings(data, measured, monkeypatch):
    """That home, no pictures, three evaluations a run."""
    monkeypatch.setenv("GPTLAB_HOME", str(data))
    monkeypatch.setattr(Picture, "draw", lambda *_: None)
    monkeypatch.setattr(module, "CURVE_POINTS", 3)
    for name, function in measured.items():
        monkeypatch.setattr(hardware, name, function)


def arm(name="A", **options):
    return make_arm(name, name, layer({**SMALL, **options}))


def both(folder, **b):
    runs = PairedRuns(folder, [arm(), arm("B", **b)])
    runs.open()
    return runs


def train(runs, *seeds):
    begun = []
    for seed in seeds:
        runs.train(seed, lambda arm, seed: begun.append((arm.name, seed)))
    return begun


def initial_weights(runs, side, seed):
    """The digests of the weights before the first step, as the run recorded them."""
    return read_trace(Run(runs.run_folder(runs.arms[side], seed)))[0]["weights"]


# What they share ----------------------------------------------------------------------------------


def test_b_begins_with_as_tensors_wherever_name_and_shape_agree(tmp_path):
    """A second layer shifts all draws after it: without copying the shared names differ."""
    runs = both(tmp_path / "c", n_layer=2)
    train(runs, 5)
    a, b = (initial_weights(runs, side, 5) for side in (0, 1))
    assert len(b) > len(a) > 5
    # the projections that end a branch are scaled by the number of layers, copied all the same
    assert {name: b[name] for name in a} == a
    torch.manual_seed(5)
    own = digests(GPT(runs.arms[1].config.model))
    assert own != b and own.keys() == b.keys()


def test_an_edit_of_the_initialisation_is_not_undone_by_copying(tmp_path):
    runs = both(tmp_path / "c", init_std=0.1)
    assert not shares_initial_tensors(*runs.arms)
    train(runs, 5)
    assert initial_weights(runs, 0, 5) != initial_weights(runs, 1, 5)
    assert not shares_initial_tensors(arm(), arm("B", n_layer=2, init_std=0.1))


def test_a_seed_gives_both_sides_the_same_text_in_the_same_order(tmp_path):
    """Equal up to the learning rate, so that the losses of the first step are equal too."""
    runs = both(tmp_path / "c", learning_rate=0.02)
    train(runs, 5)
    first, second = (read_trace(Run(runs.run_folder(arm, 5))) for arm in runs.arms)
    assert first[1]["loss"] == second[1]["loss"] and first[3]["loss"] != second[3]["loss"]


def test_every_run_is_an_ordinary_run_that_can_be_replayed(tmp_path):
    from gptlab.analysis.replay import replay

    runs = both(tmp_path / "c", n_layer=2)
    train(runs, 5)
    for arm_ in runs.arms:
        assert replay(runs.run_folder(arm_, 5), 50).difference is None


def test_the_whole_validation_split_is_measured_window_by_window(tmp_path):
    runs = both(tmp_path / "c", learning_rate=0.02)
    train(runs, 5)
    nats, targets, block_size = runs.windows(runs.arms[0], 5)
    assert targets.sum() == len(runs.arms[0].dataset.val) - 1 and block_size == 16
    line = runs.results()["A", 5]
    assert line["loss"] == pytest.approx(nats.sum() / targets.sum(), rel=1e-12)
    assert line["curve"][-1][0] == line["tokens"] == 6 * 4 * 16


# Verdicts on trained models -----------------------------------------------------------------------


def test_a_beside_a_is_identical(tmp_path):
    runs = both(tmp_path / "c")
    train(runs, 1, 2)
    found = judge_once(pairs_of(runs, [1, 2], runs.arms[1]), auto=False, smallest=0.01)
    assert found.state == "identical"


def test_a_shuffled_initialisation_is_no_difference_and_a_hopeless_one_is(tmp_path):
    first, worse = arm(max_iters=30), arm("B", max_iters=30, learning_rate=1e-5)
    runs = PairedRuns(tmp_path / "c", [first, worse, with_shuffled(first)])
    runs.open()
    seeds = [1, 2, 3, 4]
    train(runs, *seeds)
    a, shuffled = (initial_weights(runs, side, 1) for side in (0, 2))
    assert any(a[name] != shuffled[name] for name in a)
    again = pairs_of(runs, seeds, runs.arms[2])
    found = judge_once(pairs_of(runs, seeds, runs.arms[1]), auto=False, smallest=0.2, floor=again)
    assert found.state == "A" and found.floor[1] == "A against A, 4 pairs"
    assert judge_once(again, auto=False, smallest=0.2).state == "equal"


# Kills and resumes --------------------------------------------------------------------------------


def test_a_run_that_was_killed_goes_on_to_the_same_result_and_counts_once(tmp_path, monkeypatch):
    whole = both(tmp_path / "whole", n_layer=2)
    train(whole, 5)

    recorded = Metrics.step

    def die(metrics, state, *rest):
        recorded(metrics, state, *rest)
        if state.step == 4 and metrics.config.model.n_layer == 2:
            raise ZeroDivisionError

    runs = both(tmp_path / "killed", n_layer=2)
    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "step", die)
        with pytest.raises(ZeroDivisionError):
            train(runs, 5)
    assert Run(runs.run_folder(runs.arms[1], 5)).exists()  # it stands at a checkpoint
    runs = both(tmp_path / "killed", n_layer=2)
    assert train(runs, 5) == [("B", 5)]
    assert [line["loss"] for line in runs.results().values()] == [
        line["loss"] for line in whole.results().values()
    ]
    assert train(runs, 5) == []  # nothing is left to do
    assert len((tmp_path / "killed" / "results.jsonl").read_text().splitlines()) == 2


def test_a_line_that_a_kill_cut_short_is_measured_again_and_a_doubled_one_counts_once(tmp_path):
    runs = both(tmp_path / "c")
    train(runs, 5)
    before = runs.results()
    text = runs.ledger.path.read_text(encoding="utf-8")
    first, second = text.splitlines()
    runs.ledger.path.write_text(f"{first}\n{first}\n{second[:40]}", encoding="utf-8")
    assert set(runs.results()) == {("A", 5)}
    assert train(runs, 5) == [("B", 5)]
    found = runs.results()
    timeless = [
        {n: v for n, v in r.items() if n != "tokens_per_second"}
        for results in (before, found)
        for r in results.values()
    ]
    assert timeless[:2] == timeless[2:]


def test_a_stopped_training_ends_the_call_and_nothing_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "train_and_measure", lambda **_: None)
    runs = both(tmp_path / "c")
    assert runs.train(5, lambda *_: None) is False
    assert runs.results() == {}


def test_a_diverged_run_is_a_result_and_is_not_trained_again(tmp_path):
    runs = both(tmp_path / "c", learning_rate=1e30, grad_clip=0.0)
    train(runs, 5)
    assert "not finite" in runs.results()["B", 5]["diverged"]
    assert train(runs, 5) == []


def test_a_folder_of_another_comparison_is_refused(tmp_path, monkeypatch):
    both(tmp_path / "c")
    with pytest.raises(RunError, match="another comparison"):
        both(tmp_path / "c", n_layer=2)
    monkeypatch.setattr(module, "code_now", lambda: "edited")
    with pytest.raises(RunError, match="its recipes, code or text changed"):
        both(tmp_path / "c")


def test_a_length_in_minutes_is_refused(data):
    with pytest.raises(ConfigError, match="measured anew for each run"):
        arm(minutes=1.0, max_iters=None)


# initial_tensors ----------------------------------------------------------------------------------


def test_initial_tensors_that_fit_nothing_are_refused(tmp_path, data):
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"no tensors")
    model = GPT(arm().config.model)
    with pytest.raises(CheckpointError, match=r"not a \.safetensors file"):
        take_initial_tensors(model, path)
    safetensors.torch.save_file({"other": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="no tensor of this model's names and shapes"):
        take_initial_tensors(model, path)
    with pytest.raises(ConfigError, match="use one of the two"):
        build({"initial_tensors": str(path), "init_from": "out/x"})
