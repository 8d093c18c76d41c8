"""The hardware report: readable on a screen, plain in a pipe, whole as JSON."""

import io
import json

import pytest
from rich.console import Console

from gptlab.cli.commands import hardware as command
from gptlab.cli.ui import questions
from gptlab.errors import ConfigError
from gptlab.hardware import Hardware, judge
from gptlab.hardware.probe import DTYPES, DeviceFacts, Facts
from gptlab.hardware.trials import Trial

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
    assert 60 < max(map(len, out.splitlines())) <= 80  # no terminal: as wide as most windows
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


def test_what_is_not_here_is_named_with_the_reason(fake_machine, capsys):
    command.main([])
    shown = capsys.readouterr().out.split("Not available here")[1].split("usable cores")[0]
    for kind in ("ROCm", "Intel XPU", "Apple MPS"):
        assert kind in shown
    assert "CUDA" not in shown and "only Macs with Apple silicon" in shown


def test_the_speed_is_measured_and_reported_in_a_line(capsys, monkeypatch):
    monkeypatch.setattr(command, "measure_flops", lambda device, dtype: 62.5e9)
    command.show_hardware()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "Measured" in line]
    assert "62.5 GFLOP/s" in line


def test_a_speed_that_cannot_be_measured_ends_nothing(fake_machine, capsys):
    assert command.main([]) == 0  # the card is not really there
    assert "cuda:0 in bfloat16 could not be measured" in capsys.readouterr().out


def test_devices_can_be_chosen_and_measured_one_after_the_other(fake_machine, capsys, monkeypatch):
    monkeypatch.setattr(questions, "at_terminal", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("?\nnone\ncpu\n3\n1\n"))
    monkeypatch.setattr(command, "measure_flops", lambda device, dtype: 2e12)
    assert command.main(["--interactive"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "does the multiplications" in shown and "'none' is not one of the answers" in shown
    assert shown.count("Some CPU (CPU)") == 2
    assert "cpu multiplies matrices in float32 at 2 TFLOP/s" in shown
    assert "cpu multiplies matrices in float16" not in shown  # it cannot train in it
    assert shown.count("train.py --device cpu --dtype float32") == 2  # each time


def test_choosing_needs_a_terminal(fake_machine, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n"))
    with pytest.raises(ConfigError, match="--json"):
        command.main(["--interactive"])
