"""Every command is declared and there, and every error is a sentence and an exit code."""

import errno
import importlib
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gptlab
from gptlab import errors
from gptlab.cli import stderr
from gptlab.cli.declarations import COMMANDS
from gptlab.cli.main import GROUPS, main, run_command
from gptlab.cli.reference import quick_reference
from gptlab.options import options_of

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def behaving(monkeypatch):
    """A function: let the command "train" do this instead."""

    def behave(work):
        fake = type(sys)("fake")
        fake.main = work
        monkeypatch.setitem(sys.modules, "fake", fake)
        fake_command = COMMANDS["train"]._replace(module="fake")
        monkeypatch.setitem(COMMANDS, "train", fake_command)

    return behave


def fail_with(error):
    def work(argv):
        raise error

    return work


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_without_a_command_there_is_a_menu_that_opens_with_an_example(argv, capsys):
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert out.startswith("python gpt.py train ") and err == ""
    lines = out.splitlines()
    assert len(lines) <= 21 and max(map(len, lines)) <= 79  # a window of 24 lines keeps the first
    groups = {line.split()[0] for line in lines[2:] if line[0] != " "}
    assert groups <= set(GROUPS) and len(groups) >= 4
    for command in COMMANDS.values():
        row = f" {command.name:9} {command.sentence}"
        assert sum(line.endswith(row) for line in lines) == bool(command.group), command.name


@pytest.mark.parametrize("name", [*COMMANDS, "sample"])
def test_every_command_has_a_main_and_its_own_help(name, capsys):
    command = COMMANDS["generate" if name == "sample" else name]
    assert callable(importlib.import_module(command.module).main)
    with pytest.raises(SystemExit) as end:
        run_command(name, ["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(command.example.rstrip()) and command.summary.strip() in out
    for option in options_of(*command.option_classes()):
        assert f"--{option}" in out


def test_the_commands_that_ask_have_a_main_too():
    asking = [command for command in COMMANDS.values() if command.asking]
    assert {command.name for command in asking} == {"train", "generate"}
    for command in asking:
        assert callable(importlib.import_module(command.asking).main)


def test_every_command_is_declared_once_and_in_the_reference():
    """One module, one declaration; what asks instead of another command has none."""
    package = importlib.import_module("gptlab.cli.commands")
    files = {path.stem for path in Path(package.__path__[0]).glob("*.py")} - {"__init__"}
    modules = [command.module for command in COMMANDS.values()]
    asking = {command.asking for command in COMMANDS.values()}
    declared = modules + [name for name in asking if name.startswith(package.__name__)]
    assert sorted(declared) == sorted(f"{package.__name__}.{stem}" for stem in files)
    headings = [line for line in quick_reference().splitlines() if line.startswith("## ")]
    for command in COMMANDS.values():
        ending = f": {command.sentence}"
        found = [h for h in headings if h.startswith(f"## {command.program}") and ending in h]
        assert len(found) == 1, command.name


def test_every_script_of_the_repository_runs_a_command():
    scripts = {command.script for command in COMMANDS.values() if command.script}
    own = {path.name for path in REPOSITORY.glob("*.py")} - {"setup.py"}  # pip's, not the user's
    assert own == scripts | {"gpt.py"}


def test_the_menu_imports_no_command_and_nothing_heavy():
    code = (
        "import sys; from gptlab.cli.main import main; main([]); "
        "heavy = {'torch', 'numpy', 'rich', 'tqdm', 'argparse', 'dataclasses', 'logging'}; "
        "commands = {m for m in sys.modules if m.startswith('gptlab.cli.commands')}; "
        "print(heavy & set(sys.modules) | commands, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"


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


def test_ctrl_c_prints_one_word_and_returns_130(behaving, capsys):
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


def test_output_is_utf_8_in_any_locale(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    stderr.configure_output()
    print("naïve 日本語")
    sys.stdout.flush()
    assert raw.getvalue().decode("utf-8").strip() == "naïve 日本語"


# Installed ----------------------------------------------------------------------------------------


def unpack_wheel(folder):
    """Build the wheel from a copy, and unpack it as pip does."""
    source = folder / "source"
    for name in ("gptlab", "config"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    words = ["setup.py", "--quiet", "bdist_wheel", "--dist-dir", str(folder / "dist")]
    done = subprocess.run([sys.executable, *words], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next((folder / "dist").glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    shipped = {path.name for path in (folder / "gptlab" / "config").glob("*.py")}
    assert shipped == {path.name for path in (REPOSITORY / "config").glob("*.py")}


def test_without_the_scripts_every_message_names_the_installed_command(tmp_path):
    """The package as pip lays it down: from its wheel, beside no script, with the recipes in it."""
    unpack_wheel(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a b.txt").write_text("text", encoding="utf-8")
    code = (
        "from gptlab.cli.main import COMMANDS, main\n"
        "def call(*words):\n"
        "    try:\n        main(list(words))\n    except SystemExit:\n        pass\n"
        "call()\n"
        "for name in COMMANDS:\n    call(name, '--help')\n"
        "call('train', 'a b.txt')\n"
        "call('generate', '--prompt', 'a')\n"
        "call('config', 'show', 'quick_test', '--dataset', 'nothing')\n"
        "call('config', 'diff', 'quick_test', 'config/own_text.py')\n"
    )
    environment = {n: v for n, v in os.environ.items() if n != "GPTLAB_HOME"}
    done = subprocess.run(
        [sys.executable, "-c", code], text=True, encoding="utf-8", capture_output=True,
        cwd=tmp_path / "here", env=environment | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert not re.search(r"(train|prepare|sample|gpt)\.py", said)
    for command in ("train", "prepare", "sample", "plan", "export"):
        assert f"gptlab {command}" in said
    assert "prepare it first: gptlab prepare 'a b.txt'" in " ".join(said.split())
    assert "There is no trained model in out" in said  # where the user stands
    assert "`gptlab prepare YOUR_TEXT.txt --dataset nothing` prepares one" in " ".join(said.split())
    assert "Different in" in said  # both recipes were found
