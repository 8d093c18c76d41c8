"""The command table: every command is there, and every error is a sentence and an exit code."""

import errno
import importlib
import io
import logging
import sys

import pytest

import gptlab
from gptlab import errors
from gptlab.cli import main as module
from gptlab.cli.main import ASKING, COMMANDS, SCRIPTS, main, run_command


@pytest.fixture
def behaving(monkeypatch):
    """A function: let the command "train" do this instead."""

    def behave(work):
        fake = type(sys)("fake")
        fake.main = work
        monkeypatch.setitem(sys.modules, "fake", fake)
        monkeypatch.setitem(COMMANDS, "train", ("fake", "a test"))

    return behave


def fail_with(error):
    def work(argv):
        raise error

    return work


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_command_there_is_a_menu_that_opens_with_an_example(argv, capsys):
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert out.startswith("python gpt.py train\n") and err == ""
    for name, (_, summary) in COMMANDS.items():
        assert any(line.split() == [name, *summary.split()] for line in out.splitlines())


@pytest.mark.parametrize("name", sorted({*COMMANDS, *SCRIPTS}))
def test_every_command_has_a_main_and_its_own_help(name, capsys):
    path = SCRIPTS.get(name) or COMMANDS[name][0]
    assert callable(importlib.import_module(path).main)
    with pytest.raises(SystemExit) as end:
        run_command(name, ["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "python " in out and len(out.splitlines()) > 3


def test_the_commands_that_ask_have_a_main_too():
    for name, path in ASKING.items():
        assert name in COMMANDS and callable(importlib.import_module(path).main)


@pytest.mark.skipif("version" not in COMMANDS, reason="the command version is not there yet")
def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert gptlab.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "hint"), [("trian", "did you mean train?"), ("xyz", "choose from")]
)
def test_an_unknown_command_is_a_sentence_with_the_nearest(word, hint, capsys):
    assert main([word]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"no command '{word}'" in err and hint in err


ERRORS = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_of_the_tree_is_one_sentence_on_stderr_and_its_exit_code(
    kind, behaving, capsys
):
    behaving(fail_with(kind("This is wrong: do that.")))
    assert run_command("train", []) == (1 if kind is errors.TrainingError else 2)
    assert capsys.readouterr() == ("", "gptlab: This is wrong: do that.\n")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left", "run/ckpt.pt"),
            "The disk is full while writing run",
        ),
        (PermissionError(errno.EACCES, "denied", "data"), "No permission for data"),
        (FileNotFoundError(errno.ENOENT, "missing", "x.txt"), "x.txt does not exist"),
    ],
    ids=["full", "denied", "missing"],
)
def test_an_error_of_the_file_system_is_one_sentence(error, words, behaving, capsys):
    behaving(fail_with(error))
    assert run_command("train", []) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and words in err


def test_ctrl_c_is_a_word_and_130(behaving, capsys):
    behaving(fail_with(KeyboardInterrupt()))
    assert run_command("train", []) == 130
    assert capsys.readouterr() == ("", "gptlab: Interrupted.\n")


def test_a_mistake_of_ours_keeps_its_traceback(behaving):
    behaving(fail_with(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        run_command("train", [])


def test_the_exit_code_of_a_command_is_passed_on(behaving):
    behaving(lambda argv: len(argv))
    assert run_command("train", ["a", "b"]) == 2


def test_warnings_of_the_package_are_lines_on_stderr_once(behaving, capsys):
    def work(argv):
        logging.getLogger("gptlab.training").warning("%s is slow.", "This")
        return 0

    behaving(work)
    run_command("train", [])
    run_command("train", [])
    assert capsys.readouterr() == ("", "gptlab: This is slow.\n" * 2)


def test_other_processes_of_a_training_keep_their_warnings_to_themselves(
    behaving, capsys, monkeypatch
):
    monkeypatch.setenv("RANK", "3")
    behaving(lambda argv: logging.getLogger("gptlab").warning("slow") or 0)
    run_command("train", [])
    assert capsys.readouterr() == ("", "")


def test_output_is_utf_8_whatever_the_locale_says(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    module.configure_output()
    print("naïve 日本語")
    sys.stdout.flush()
    assert raw.getvalue().decode("utf-8").strip() == "naïve 日本語"
