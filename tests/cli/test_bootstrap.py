"""The installer: what it decides from which facts, and the scripts that hand over to it."""

import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gptlab.cli import bootstrap
from gptlab.cli.bootstrap import CPU_INDEX, TESTS_AT_ONCE, Offer, SetupError

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path("the/python")
SMALL, LARGE = Offer("2.13.0+cpu", False), Offer("2.13.0", True)


def report(version="2.13.0", requires=(), name="torch"):
    metadata = {"name": name, "version": version, "requires_dist": list(requires)}
    return json.dumps({"version": "1", "install": [{"metadata": metadata}]})


# which torch


@pytest.mark.parametrize(
    ("driver", "default", "cpu", "source", "words", "asked"),
    [
        ("NVIDIA", LARGE, SMALL, "", "driver for NVIDIA", []),
        ("AMD", LARGE, SMALL, "", "driver for AMD", []),
        ("", SMALL, None, "", "2.13.0+cpu", ["default"]),
        ("", LARGE, SMALL, CPU_INDEX, CPU_INDEX, ["default", "cpu"]),
        ("", LARGE, None, "", "several GB", ["default", "cpu"]),
        ("", LARGE, LARGE, "", "several GB", ["default", "cpu"]),
        ("", None, SMALL, "", "torch from the default index", ["default"]),
    ],
)
def test_a_machine_without_an_accelerator_gets_the_small_torch_where_there_is_one(
    driver, default, cpu, source, words, asked
):
    questions = []
    chosen, sentence = bootstrap.torch_source(
        driver,
        lambda: questions.append("default") or default,
        lambda: questions.append("cpu") or cpu,
    )
    assert (chosen, questions) == (source, asked)
    assert words in sentence


ON_LINUX = 'platform_system == "Linux"'


@pytest.mark.parametrize(
    ("platform", "text", "offer"),
    [
        ("linux", report("2.13.0+cpu", ["sympy>=1.13", "filelock"]), SMALL),
        ("linux", report("2.13.0", ["sympy", f"nvidia-cudnn-cu13==9; {ON_LINUX}"]), LARGE),
        ("linux", report("2.13.0", [f"cuda-toolkit[cublas]==13.0.3; {ON_LINUX}"]), LARGE),
        ("win32", report("2.13.0", [f"nvidia-cudnn-cu13==9; {ON_LINUX}"]), Offer("2.13.0", False)),
        ("linux", report("2.13.0", ['nvidia-x; extra == "gpu"']), Offer("2.13.0", False)),
        ("linux", report(name="numpy"), None),
        ("linux", json.dumps({"install": []}), None),
    ],
)
def test_a_torch_is_large_when_it_brings_an_accelerators_libraries(
    monkeypatch, platform, text, offer
):
    monkeypatch.setattr(sys, "platform", platform)
    assert bootstrap.read_offer(text) == offer


def test_a_question_that_fails_is_no_offer(monkeypatch):
    def answer(code, text):
        done = subprocess.CompletedProcess([], code, stdout=text)
        monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
        return bootstrap.ask_offer(PYTHON, "torch~=2.13.0")

    assert answer(0, report("2.13.0+cpu")) == SMALL
    assert answer(1, report("2.13.0+cpu")) is None
    assert answer(0, "no JSON") is None
    assert answer(0, "{}") is None


def test_the_requirement_of_torch_is_found_among_its_namesakes():
    text = "# torch\ntorch-extra==1\ntorchvision\ntorch~=2.13.0  # tested\n"
    assert bootstrap.requirement("torch", text) == "torch~=2.13.0"
    with pytest.raises(SetupError, match="torch"):
        bootstrap.requirement("torch", "numpy\n")
    real = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert bootstrap.requirement("torch", real).startswith("torch")


# what is done already


def test_the_stamp_knows_changed_and_missing_files(tmp_path):
    stamp = tmp_path / "stamp"
    main, test = tmp_path / "requirements.txt", tmp_path / "requirements-test.txt"
    main.write_text("torch\n", encoding="utf-8")
    test.write_text("pytest\n", encoding="utf-8")
    assert not bootstrap.is_installed(stamp, [main])
    bootstrap.write_stamp(stamp, [main])
    assert bootstrap.is_installed(stamp, [main])
    assert not bootstrap.is_installed(stamp, [main, test])
    bootstrap.write_stamp(stamp, [main, test])
    assert bootstrap.is_installed(stamp, [main, test]) and bootstrap.is_installed(stamp, [main])
    main.write_text("torch\nnumpy\n", encoding="utf-8")
    assert not bootstrap.is_installed(stamp, [main, test])
    for damaged in ("", "[]", "{"):
        stamp.write_text(damaged, encoding="utf-8")
        assert not bootstrap.is_installed(stamp, [main])


@pytest.fixture
def commands(monkeypatch):
    """The commands that would have been run, each ending with `codes` or 0."""
    seen = []

    def run(command):
        seen.append([str(word) for word in command])
        return commands_codes.pop(0) if commands_codes else 0

    commands_codes = []
    run.codes, run.seen = commands_codes, seen
    monkeypatch.setattr(bootstrap, "run_process", run)
    return run


@pytest.fixture
def environment(tmp_path, commands, monkeypatch):
    """An environment that exists, a requirements file and an index with the large torch."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("torch~=2.13.0\nnumpy\n", encoding="utf-8")
    monkeypatch.setattr(bootstrap, "pip_version", lambda python: (26, 1))
    monkeypatch.setattr(bootstrap, "accelerator_driver", lambda: "")
    offers = lambda python, torch, *words: SMALL if CPU_INDEX in words else LARGE  # noqa: E731
    monkeypatch.setattr(bootstrap, "ask_offer", offers)
    return python, [requirements]


def test_the_small_torch_comes_first_and_the_second_time_nothing_does(environment, commands):
    python, files = environment
    bootstrap.install(python, files)
    torch, rest = commands.seen
    assert {"--no-deps", "--index-url", CPU_INDEX, "torch~=2.13.0"} < set(torch)
    assert rest[-2:] == ["-r", str(files[0])] and CPU_INDEX not in rest
    bootstrap.install(python, files)
    assert len(commands.seen) == 2


def test_an_old_pip_is_updated_before_it_is_asked(environment, commands, monkeypatch):
    monkeypatch.setattr(bootstrap, "pip_version", lambda python: (22, 0))
    bootstrap.install(*environment)
    assert commands.seen[0][-2:] == ["--upgrade", "pip"]


def test_a_failed_installation_is_a_sentence_and_is_tried_again(environment, commands):
    commands.codes[:] = [0, 1]
    with pytest.raises(SetupError, match="pip could not install"):
        bootstrap.install(*environment)
    bootstrap.install(*environment)
    assert len(commands.seen) == 4


# the environment


@pytest.mark.parametrize("version", [(3, 9), (3, 15), (2, 7)])
def test_a_python_without_wheels_is_refused(version):
    with pytest.raises(SetupError, match=r"Python 3\.10 to 3\.14, 64-bit"):
        bootstrap.check_python(version, True)
    with pytest.raises(SetupError, match="32-bit"):
        bootstrap.check_python((3, 12), False)
    for minor in range(10, 15):
        bootstrap.check_python((3, minor, 0, "final", 0), True)


def test_the_package_with_ensurepip_is_named():
    assert "`sudo apt install python3.11-venv`" in bootstrap.without_ensurepip((3, 11), True)
    assert "apt" not in bootstrap.without_ensurepip((3, 11), False)


@pytest.mark.parametrize(
    ("works", "wanted"),
    [
        ({"version", "pip"}, []),
        ({"version"}, ["ensurepip"]),
        ({"own"}, ["venv", "--clear"]),
    ],
)
def test_an_environment_is_used_mended_or_made(tmp_path, monkeypatch, commands, works, wanted):
    def runs(python, code):
        if str(python) == sys.executable:
            return "own" in works
        return ("version" if "version" in code else "pip") in works

    monkeypatch.setattr(bootstrap, "_runs", runs)
    python = bootstrap.make_environment(tmp_path / "with space")
    assert python.is_relative_to(tmp_path / "with space")
    assert [command[2 : 2 + len(wanted)] for command in commands.seen] == (
        [wanted] if wanted else []
    )


def test_a_python_that_cannot_make_environments_is_refused(tmp_path, monkeypatch, commands):
    monkeypatch.setattr(bootstrap, "_runs", lambda python, code: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(SetupError, match=rf"sudo apt install python3\.{sys.version_info[1]}-venv"):
        bootstrap.make_environment(tmp_path / ".venv")
    assert commands.seen == []


# the command


@pytest.fixture
def installed(monkeypatch, tmp_path, commands):
    """Everything is installed; the home is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTLAB_HOME", "home")
    monkeypatch.setattr(bootstrap, "make_environment", lambda folder: PYTHON)
    monkeypatch.setattr(bootstrap, "install", lambda python, files: names.extend(files))
    names = commands.files = []
    return tmp_path / "home"


def test_test_runs_pytest_with_what_follows_and_passes_its_code_on(installed, commands):
    commands.codes[:] = [5]
    assert bootstrap.main(["--test", "-k", "a or b", "--maxfail=1"]) == 5
    expected = [str(PYTHON), "-m", "pytest", *TESTS_AT_ONCE, "-k", "a or b", "--maxfail=1"]
    assert commands.seen == [expected]
    assert [file.name for file in commands.files] == ["requirements.txt", "requirements-test.txt"]
    assert Path.cwd() == ROOT


def test_a_relative_home_keeps_its_meaning(installed, commands):
    bootstrap.main(["--yes"])
    assert os.environ["GPTLAB_HOME"] == str(installed)


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as refusal:
        bootstrap.main(["--dmeo"])
    assert refusal.value.code == 2 and "--dmeo" in capsys.readouterr().err


def test_an_error_is_one_sentence_and_code_2(installed, monkeypatch, capsys):
    def fail(folder):
        raise SetupError("no luck.")

    monkeypatch.setattr(bootstrap, "make_environment", fail)
    assert bootstrap.main([]) == 2
    assert capsys.readouterr().err == "setup: no luck.\n"


class Keyboard(io.StringIO):
    """A terminal with one line typed."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("argv", "stdin", "prepares"),
    [
        ([], Keyboard("y\n"), True),
        ([], Keyboard("\n"), True),
        ([], Keyboard("n\n"), False),
        ([], Keyboard(""), False),
        ([], io.StringIO("y\n"), False),
        (["--yes"], io.StringIO(""), True),
    ],
)
def test_data_is_prepared_when_the_person_agrees(
    installed, commands, monkeypatch, capsys, argv, stdin, prepares
):
    monkeypatch.setattr(sys, "stdin", stdin)
    assert bootstrap.main(argv) == 0
    assert commands.seen == ([[str(PYTHON), *bootstrap.PREPARE]] if prepares else [])
    err = capsys.readouterr().err
    assert ("[Y/n]" in err) == isinstance(stdin, Keyboard)
    assert f"python {' '.join(bootstrap.TRAIN if prepares else bootstrap.PREPARE)}" in err


def scripts(commands):
    """Which scripts ran, and whether with --resume."""
    return [(words[1], "--resume" in words) for words in commands.seen]


BEFORE = [("train.py", False), ("prepare.py", False)]


def test_the_demo_trains_once_and_then_only_samples(installed, commands, capsys):
    run = installed / "out" / "demo"
    run.mkdir(parents=True)
    assert bootstrap.main(["--demo"]) == 0
    assert scripts(commands) == [*BEFORE, ("train.py", False), ("sample.py", False)]
    assert all("--out_dir" in words for words in commands.seen[2:])
    assert str(run) in commands.seen[2] and str(run) in commands.seen[3]
    (run / "best.pt").touch()
    (run / "ckpt.pt").touch()
    commands.seen.clear()
    assert bootstrap.main(["--demo"]) == 0
    assert scripts(commands) == [("sample.py", False)]


def test_an_interrupted_demo_passes_the_code_on_and_resumes(installed, commands):
    run = installed / "out" / "demo"
    run.mkdir(parents=True)
    (run / "best.pt").touch()
    (run / "ckpt.pt").touch()
    commands.codes[:] = [0, 0, 130]
    for code in (130, 0):
        commands.seen.clear()
        assert bootstrap.main(["--demo"]) == code
        assert scripts(commands)[:3] == [*BEFORE, ("train.py", True)]
    assert scripts(commands)[3:] == [("sample.py", False)]


# the scripts at the root; each test here starts one process


def fake_python(folder, name, suits, has_ensurepip, then="exit 9"):
    """A program called `name` that answers the two questions of setup.sh, else does `then`."""
    body = f"""#!{shutil.which("bash")}
case "$*" in
    *"-c import ensurepip"*) exit {0 if has_ensurepip else 1} ;;
    *"-c import sys"*) exit {0 if suits else 1} ;;
esac
{then}
"""
    path = folder / name
    path.write_text(body, encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def clone(tmp_path):
    """A copy of what setup.sh needs in a folder with a space, and a PATH without any Python."""
    if os.name == "nt" or not shutil.which("bash"):
        pytest.skip("needs bash")
    clone, path = tmp_path / "my clone", tmp_path / "bin"
    shutil.copytree(ROOT / "gptlab", clone / "gptlab")
    shutil.copy(ROOT / "setup.sh", clone)
    path.mkdir()
    (path / "dirname").symlink_to(shutil.which("dirname"))

    def setup(*words):
        return subprocess.run(
            [shutil.which("bash"), str(clone / "setup.sh"), *words],
            env={"PATH": str(path)},
            cwd=tmp_path,
            capture_output=True,
            encoding="utf-8",
        )

    return setup, path


def test_setup_takes_the_newest_python_that_really_runs(clone):
    setup, path = clone
    fake_python(path, "python3.14", suits=False, has_ensurepip=True)  # found, yet does not run
    fake_python(path, "python3.13", suits=True, has_ensurepip=False)  # cannot make environments
    # -S: no site-packages, so this also proves that the bootstrap needs the standard library alone
    fake_python(path, "python3.12", True, True, then=f'exec "{sys.executable}" -S "$@"')
    fake_python(path, "python3.11", suits=True, has_ensurepip=True)
    done = setup("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--demo" in done.stdout and "--yes" in done.stdout


def test_setup_without_any_python_says_which_are_wanted(clone):
    setup, path = clone
    fake_python(path, "python3", suits=False, has_ensurepip=True)
    done = setup("--demo")
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"setup: .*Python 3\.10 to 3\.14.*python\.org.*\n", done.stderr)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_command_that_a_signal_ends_has_the_code_that_shells_give():
    assert bootstrap.run_process([shutil.which("sh"), "-c", "kill -9 $$"]) == 137


def test_both_scripts_and_the_bootstrap_want_the_same_pythons():
    newest = bootstrap.NEWEST_PYTHON[1]
    versions = [f"3.{minor}" for minor in range(newest, bootstrap.OLDEST_PYTHON[1] - 1, -1)]
    bash = (ROOT / "setup.sh").read_text(encoding="utf-8")
    batch = (ROOT / "setup.bat").read_text(encoding="utf-8")
    assert f"for name in {' '.join(f'python{v}' for v in versions)} python3 python;" in bash
    assert f"in ({' '.join(versions)}) do" in batch
    for text in (bash, batch):
        assert f"(3, 10) <= sys.version_info[:2] <= (3, {newest})" in text
        assert f"Python 3.10 to 3.{newest}" in text


def test_the_batch_file_hands_over_with_its_words_and_its_code():
    batch = (ROOT / "setup.bat").read_text(encoding="utf-8")
    assert '%python% -I "%~dp0gptlab\\cli\\bootstrap.py" %*' in batch.splitlines()
    assert batch.splitlines()[-1] == "exit /b %errorlevel%"
    labels = re.findall(r"goto (\w+)", batch)
    assert labels and all(f":{label}" in batch.splitlines() for label in labels)
    attributes = (ROOT / ".gitattributes").read_text(encoding="utf-8").splitlines()
    assert "*.bat text eol=crlf" in attributes and "*.sh text eol=lf" in attributes
