"""sample_interval: a person sees the text improve, and the run is the same as without."""

import io
import sys

import pytest

from gptlab.errors import ConfigError, TokenizerError
from gptlab.runs import Run
from gptlab.training import evaluation
from gptlab.training.config import build
from gptlab.training.metrics import Metrics
from gptlab.training.parallel import Parallel
from gptlab.training.units import TextUnits

TIMING = ("time", "tokens_per_second", "mfu", "data_share", "sample")


def records_of(folder, *without):
    without = (*TIMING, *without)
    return [{k: v for k, v in r.items() if k not in without} for r in Run(folder).records()]


def samples_of(folder):
    return {r["step"]: r["sample"] for r in Run(folder).records() if "sample" in r}


def test_samples_change_nothing_in_the_run(train, tmp_path):
    settings = dict(eval_interval=5, dropout=0.1, ema_decay=0.9)
    train("without", **settings)
    train("with", sample_interval=5, **settings)
    assert samples_of(tmp_path / "without") == {}
    assert len(samples_of(tmp_path / "with")) == 4
    assert records_of(tmp_path / "with") == records_of(tmp_path / "without")


def test_a_resumed_run_writes_the_same_samples_once(train, tmp_path):
    settings = dict(eval_interval=5, sample_interval=5)
    train("whole", **settings)
    train("broken", stop_at=10, **settings)
    train("broken", resume=True)
    assert samples_of(tmp_path / "broken") == samples_of(tmp_path / "whole")
    assert sum("sample" in r for r in Run(tmp_path / "broken").records()) == 4


def test_samples_come_at_evaluations_at_a_multiple_and_at_the_end(train, tmp_path, capsys):
    train(eval_interval=4, sample_interval=8, sample_prompt="to be", quiet=False)
    found = samples_of(tmp_path / "run")
    assert list(found) == [8, 16, 20]
    assert all(text.startswith("to be") for text in found.values())
    first_line = found[8].splitlines()[0]
    assert f"  | {first_line}\n" in capsys.readouterr().out


def test_a_prompt_that_the_vocabulary_cannot_spell_is_refused_before_the_first_step(
    train, tmp_path
):
    with pytest.raises(TokenizerError, match="U\\+20AC"):
        train(sample_interval=5, sample_prompt="to €")
    assert not (tmp_path / "run").exists()


def test_a_sample_that_fails_is_a_warning(train, tmp_path, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError("no sample")

    monkeypatch.setattr(evaluation, "Generator", broken)
    assert train(sample_interval=5, eval_interval=5).step == 20
    assert "no sample" in caplog.text and samples_of(tmp_path / "run") == {}


def test_a_negative_interval_is_refused():
    with pytest.raises(ConfigError, match="sample_interval"):
        build({"sample_interval": -1})


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_console_that_cannot_show_a_character_ends_nothing(monkeypatch, encoding):
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", console)
    metrics = Metrics(build({}), None, TextUnits(None), parallel=Parallel.alone("cpu"), peak=None)
    metrics.evaluation(5, 1.0, None, True, "smörgås 😀\x1b[2J\x07\nname\tten\n")
    shown = console.buffer.getvalue().decode(encoding).replace("\r", "")
    assert "sm" in shown and "  | name\tten\n" in shown
    assert "\x1b" not in shown and "\x07" not in shown
    assert ("😀" in shown) == (encoding == "utf-8")
