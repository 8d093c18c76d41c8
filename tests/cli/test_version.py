"""The releases that run here."""

import importlib.metadata
import platform
import sys

import pytest

import gptlab
from gptlab.cli.commands import version
from gptlab.cli.main import main
from gptlab.errors import ConfigError


@pytest.mark.parametrize("words", [["version"], ["--version"]])
def test_the_releases_are_those_that_are_installed(words, capsys):
    assert main(words) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["gptlab"] == gptlab.__version__
    assert lines["python"] == "{}.{}.{}".format(*sys.version_info)
    assert lines["torch"] == importlib.metadata.version("torch")
    assert platform.machine() in lines["platform"]


def test_a_missing_torch_is_reported(monkeypatch, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    version.main([])
    assert "not installed: bash setup.sh installs it" in capsys.readouterr().out


def test_an_option_is_refused():
    with pytest.raises(ConfigError, match="--what"):
        version.main(["--what"])
