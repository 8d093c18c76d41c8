"""The hardware report: readable on a screen, plain in a pipe, whole as JSON."""

import json

import pytest
from rich.console import Console

from gptlab.cli import hardware as command
from gptlab.errors import ConfigError
from gptlab.hardware import Hardware, judge
from gptlab.hardware_probe import DTYPES, DeviceFacts, Facts
from gptlab.hardware_trials import Trial

WORKS = {dtype: Trial(flops=1e11) for dtype in DTYPES}


@pytest.fixture
def fake_machine(monkeypatch) -> Hardware:
    """A report on an H100 with an odd name, in the place of this machine's."""
    card = DeviceFacts("cuda:0", "cuda", "H100 [x]", 80 * 2**30, 79 * 2**30, (9, 0), trials=WORKS)
    processor = DeviceFacts("cpu", "cpu", "Some CPU", trials=WORKS)
    hardware = judge(Facts((card, processor), 16, "Linux", "3.12.1", "2.13.0", triton=True))
    monkeypatch.setattr(command, "detect", lambda: hardware)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return hardware


def test_the_report_is_readable_and_plain_in_a_pipe(fake_machine, capsys):
    assert command.main([]) == 0
    out, err = capsys.readouterr()
    words = [
        "H100 [x]",
        "80.0 GiB, 79.0 GiB free",
        "9.0",
        "Some CPU",
        "16 usable cores",
        "bfloat16",
    ]
    assert [word for word in words if word not in out] == []
    assert "\x1b" not in out and err == ""
    assert 80 < max(map(len, out.splitlines())) <= 100  # no terminal: wide enough to read
    assert out.count("H100 [x]") == 2  # as the title and as the recommendation


def test_a_long_reason_is_wrapped_and_not_cut(fake_machine, capsys):
    command.main([])
    flat = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for precision in fake_machine.device("cpu").precisions:
        assert precision.reason in flat


def test_json_is_the_whole_report(fake_machine, capsys):
    assert command.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(json.dumps(fake_machine.to_dict()))
    assert report["recommended"]["dtype"] == "bfloat16"


def test_recommended_is_the_last_part_alone(fake_machine, capsys):
    assert command.main(["--recommended", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == fake_machine.to_dict()["recommended"]
    assert command.main(["--recommended"]) == 0
    out = capsys.readouterr().out
    assert "cuda:0 is H100" in out and "usable cores" not in out


def test_this_machine_can_be_shown(capsys):
    command.show_hardware()
    assert "cpu" in capsys.readouterr().out


def test_an_unknown_option_is_refused_with_the_nearest(fake_machine):
    with pytest.raises(ConfigError, match="did you mean recommended"):
        command.main(["--recomended"])


def test_a_terminal_gets_colours(fake_machine, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert Console().is_terminal
    command.main([])
    assert "\x1b[" in capsys.readouterr().out
