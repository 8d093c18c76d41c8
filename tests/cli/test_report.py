"""The report command: where the page goes, and what is refused."""

import pytest

from gptlab.cli.commands import report as command
from gptlab.errors import ConfigError, RunError
from gptlab.runs import Run


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs under out/, "b" the newer; the working directory is beside them."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("a", "b"):
        run = Run(tmp_path / "out" / name)
        run.folder.mkdir(parents=True)
        run.append({"step": 1, "loss": 2.0, "learning_rate": 1e-3, "tokens_per_second": 10.0})
        run.append({"step": 2, "val_loss": 1.5})
        run.best.write_bytes(b"")
    return tmp_path


def test_the_page_of_a_run_lies_in_its_folder(runs, capsys):
    assert command.main(["a"]) == 0
    page = (runs / "out" / "a" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "1.5" in page
    assert "report.html" in capsys.readouterr().out


def test_without_a_name_it_is_the_newest_run(runs, monkeypatch):
    import os

    os.utime(runs / "out" / "b" / "best.pt", (2e9, 2e9))
    command.main([])
    assert (runs / "out" / "b" / "report.html").is_file()


def test_the_page_of_several_runs_lies_beside_them(runs):
    command.main(["a", str(runs / "out" / "b")])
    assert (runs / "out" / "report.html").is_file()
    assert not list((runs / "here").iterdir()) and not list((runs / "out").glob("*/report.html"))


def test_the_page_of_runs_that_lie_in_a_checkout_lies_in_the_first(runs):
    (runs / "out" / "gpt.py").write_text("")
    command.main(["a", "b"])
    assert (runs / "out" / "a" / "report.html").is_file()
    assert not (runs / "out" / "report.html").exists()


def test_output_names_the_file(runs):
    command.main(["a", "--output", "mine.html"])
    assert (runs / "here" / "mine.html").is_file()


def test_a_folder_as_output_a_run_named_twice_and_a_missing_run_are_refused(runs):
    with pytest.raises(ConfigError, match="is a folder: name a file"):
        command.main(["a", "--output", str(runs)])
    with pytest.raises(ConfigError, match="named twice"):
        command.main(["a", str(runs / "out" / "a")])
    with pytest.raises(RunError, match="no run 'c'"):
        command.main(["c"])


def test_a_page_that_cannot_be_written_leaves_nothing(runs):
    with pytest.raises(OSError, match="none"):
        command.main(["a", "--output", str(runs / "none" / "page.html")])
    assert not (runs / "none").exists()
