"""Training on a mix of datasets: the proportions, the losses, and what is refused."""

import re

import pytest
import torch

from gptlab.analysis.blame import blame
from gptlab.analysis.dataset_runs import runs_on
from gptlab.analysis.replay import replay
from gptlab.checkpoints import read_checkpoint, write_checkpoint
from gptlab.data.mixture import find_mixture_meta, open_mixture, parse_mixture
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.token_files import open_dataset
from gptlab.data.windows import evaluation_windows
from gptlab.errors import ConfigError, DataError, RunError
from gptlab.inference.evaluate import evaluate_loss
from gptlab.reports.run_view import view_run
from gptlab.runs import Run, load_checkpoint


def test_validation_is_each_datasets_loss_and_the_weighted_one_in_one_line(
    train, tmp_path, mixed, capsys
):
    train(dataset=mixed, max_iters=6, eval_interval=6, eval_tokens=320, quiet=False)
    record = [r for r in Run(tmp_path / "run").records() if "val_loss" in r][-1]
    model = load_checkpoint(tmp_path / "run" / "ckpt.pt").model
    for name, tokens in (("tiny", 224), ("more", 96)):  # 70% and 30% of the evaluation's tokens
        val = open_dataset(name).val
        alone = evaluate_loss(model, val, evaluation_windows(len(val), 16, tokens), 16, 4, "cpu")
        assert record["val_losses"][name] == alone
    tiny, more = record["val_losses"]["tiny"], record["val_losses"]["more"]
    assert record["val_loss"] == pytest.approx(0.7 * tiny + 0.3 * more, rel=1e-12)
    shown = capsys.readouterr().out
    assert re.search(rf"step 6: validation loss .* = 0\.7 tiny {tiny:.4f} \+ 0\.3 more", shown)
    assert "Data: tiny 70%, more 30%," in shown
    read = [6 * 4 * share * 16 / len(open_dataset(n).train) for n, share in
            (("tiny", 17 / 24), ("more", 7 / 24))]  # fmt: skip
    assert f"{read[0]:.1f} epochs of tiny and {read[1]:.1f} epochs of more" in shown


def test_the_position_of_each_dataset_is_kept_said_and_held_against_the_order(
    train, tmp_path, mixed, capsys
):
    train(dataset=mixed, max_iters=5)
    path = tmp_path / "run" / "ckpt.pt"
    state = read_checkpoint(path)
    assert state["dataset"]["sequences_seen"] == {"tiny": 14, "more": 6}
    train(resume=True, max_iters=6, quiet=False)
    assert "after step 5; sequences read: 14 of tiny, 6 of more" in capsys.readouterr().out
    state["dataset"]["sequences_seen"] = {"tiny": 13, "more": 7}
    write_checkpoint(state, path)
    with pytest.raises(RunError, match="read its datasets in another order"):
        train(resume=True, max_iters=8)


def test_other_weights_are_other_data(train, mixed):
    train(dataset=mixed, max_iters=2)
    with pytest.raises(
        RunError, match=r"trained on other data than tiny 60%, more 40%.*other weights"
    ):
        train(dataset="tiny:0.6,more:0.4", resume=True, max_iters=4)


def test_without_weights_sizes_count_and_it_is_said(train, tmp_path, mixed, capsys):
    sizes = {name: len(open_dataset(name).train) for name in ("tiny", "more")}
    train(dataset="tiny,more", max_iters=1, quiet=False)
    share = sizes["tiny"] / sum(sizes.values())
    assert f"Data: tiny {100 * share:.3g}%, more" in (out := capsys.readouterr().out)
    assert "(by size)" in out
    data = open_mixture("tiny,more")
    read = data.epochs(10**6, 16).values()
    assert max(read) / min(read) < 1.001  # both are read equally often


def test_a_run_on_a_mix_replays_and_its_text_is_found(train, tmp_path, mixed):
    train(dataset=mixed, max_iters=4, eval_interval=2)
    assert replay(tmp_path / "run", 4).difference is None
    found = blame(tmp_path / "run", 3, top=4)
    assert sorted(window.dataset for window in found.windows) == ["more"] * 2 + ["tiny"] * 2
    for window in found.windows:
        train_part = open_dataset(window.dataset).train
        assert window.tokens == train_part[window.start : window.start + 17].tolist()
        assert f"{window.dataset}.txt" in str(window.places[0])


def test_baselines_of_a_mix_are_those_of_its_parts_by_bytes(train, tmp_path, mixed):
    metas = [find_mixture_meta(name) for name in ("tiny", "more")]
    both = find_mixture_meta(mixed)
    for name, value in both["baselines"].items():  # one byte a token in both
        expected = 0.7 * metas[0]["baselines"][name] + 0.3 * metas[1]["baselines"][name]
        assert value == pytest.approx(expected, rel=1e-6)
    train(dataset=mixed, max_iters=2)
    assert view_run(tmp_path / "run").baselines


def test_datasets_of_other_tokenizers_are_refused_with_commands_that_work(
    train, tmp_path, prepared_home, monkeypatch
):
    from gptlab.cli.main import run_command

    monkeypatch.chdir(prepared_home)
    for name, text in (
        ("abc", "abc cab bca " * 300),
        ("ab", "ab ba aab " * 300),
        ("xy", "x y " * 900),
    ):
        (prepared_home / f"{name}.txt").write_text(text, encoding="utf-8")
        prepare(f"{name}.txt", PrepareOptions(tokenizer="char"))
    for word in ("ab,abc", "abc:0.5,xy:0.5"):
        with pytest.raises(DataError, match="different tokenizers") as refused:
            train(dataset=word, max_iters=1)
        for command in re.findall(r"`python prepare\.py (.*?)`", refused.value.fix):
            assert run_command("prepare", command.split()) == 0
        assert train(dataset=word, max_iters=1, out_dir=word).step == 1


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("tiny:0.7,more", "gives more no weight"),
        ("tiny:0,more:1", "weight of tiny is 0"),
        ("tiny:much,more:1", "weight of tiny is much"),
        ("tiny:nan,more:1", "weight of tiny is nan"),
        ("tiny,tiny", "names tiny twice"),
        ("tiny,,more", "a part without a name"),
    ],
)
def test_a_mix_that_cannot_be_read_is_a_sentence(mixed, word, problem):
    with pytest.raises(ConfigError, match=problem):
        parse_mixture(word)


def test_a_short_dataset_of_a_mix_is_named(train, mixed, prepared_home):
    (prepared_home / "short.txt").write_text("to be or not. " * 20, encoding="utf-8")
    prepare(
        str(prepared_home / "short.txt"),
        PrepareOptions(tokenizer=str(prepared_home / "data" / "tiny")),
    )
    with pytest.raises(DataError, match=r"val part of short has .* tokens"):
        train(dataset="tiny,short", block_size=64)


def test_an_unfinished_run_keeps_the_version_of_each_dataset_that_it_began_with(
    train, tmp_path, mixed, prepared_home, capsys
):
    text = prepared_home / "diary.txt"
    options = PrepareOptions(tokenizer=str(prepared_home / "data" / "tiny"))
    text.write_text("to be or not to be, that is the question.\n".replace(",", "") * 100)
    prepare(str(text), options)
    settings = dict(dataset="tiny:0.5,diary:0.5", max_iters=8, eval_interval=4)
    train("whole", **settings)
    train("run", **settings, stop_at=3)
    text.write_text(text.read_text() + "tis nobler in mind.\n" * 100)
    prepare(str(text), options)
    train("run", resume=True, quiet=False)
    shown = capsys.readouterr().out
    assert "diary 50% as it was when the run began (version 1 of diary; the text has" in shown
    whole, resumed = (read_checkpoint(tmp_path / name / "ckpt.pt") for name in ("whole", "run"))
    assert whole["dataset"] == resumed["dataset"]
    for name, weight in whole["model"].items():
        assert torch.equal(weight, resumed["model"][name])
    assert blame(tmp_path / "run", 8).count == 4
    assert [run.fingerprint for run in runs_on(prepared_home / "data" / "diary")] == [
        resumed["dataset"]["fingerprint"].split(",")[1].partition(":")[0]
    ] * 2
