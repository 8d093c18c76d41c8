"""The checks and the workflow that runs them: what they call is there, and takes what it is given.

The workflow cannot run here, and `.ci/run` would run this suite again. So each of their commands is
parsed by its shell and then run in a form that changes nothing.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from gptlab.cli import bootstrap

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
JOBS = WORKFLOW["jobs"]
STEPS = [(name, step) for name, job in JOBS.items() for step in job["steps"]]
RUN_LINES = [
    (job, line, step.get("shell", "bash"))
    for job, step in STEPS
    for line in step.get("run", "").splitlines()
]
# the options with which a tool says something and does nothing
DRY = {
    **dict.fromkeys(("ruff", "mypy", "pip", "pytest"), "--version"),
    **dict.fromkeys(("lint-imports", "venv"), "--help"),
}


def ci_lines() -> list[str]:
    """The commands of .ci/run, after its first lines."""
    lines = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith(("bash ", ".venv/"))]


def run(*words: str) -> str:
    """Run a command to its end in the project's folder; what it prints."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def parse(*words: str) -> None:
    """Let bash parse a line or a file; Windows has another shell, or a bash that needs a Linux."""
    if os.name == "posix":
        run("bash", "-n", *words)


def run_dry(line: str) -> None:
    """Run one command of the workflow or of .ci/run so that it changes nothing."""
    program, *words = shlex.split(line)
    if program == "bash" and words[0] == ".ci/run":
        parse(*words)
    elif program in ("bash", "setup.bat"):
        script = words.pop(0) if program == "bash" else program
        assert "bootstrap.py" in (ROOT / script).read_text(encoding="utf-8")
        assert bootstrap._read_options(words)[0].test
    elif Path(program).name == "python":
        assert words[0] == "-m" and importlib.util.find_spec(words[1])
        run(sys.executable, "-m", words[1], DRY[words[1]])
    else:
        installed = Path(sysconfig.get_path("scripts"), Path(program).name)
        run(str(installed), DRY[installed.name])


@pytest.mark.parametrize(("job", "line", "shell"), RUN_LINES)
def test_each_line_of_the_workflow_runs(job, line, shell):
    line = re.sub(r"\$\{\{.*?\}\}", "x", line)
    if shell == "bash":
        parse("-c", line)
    run_dry(line)


@pytest.mark.parametrize("line", ci_lines())
def test_each_line_of_the_checks_runs(line):
    run_dry(line)


def test_the_checks_begin_with_the_test_command_of_the_readme():
    assert ci_lines()[0] == "bash setup.sh --test"
    assert "bash setup.sh --test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_linux_runs_every_check_and_macos_and_windows_the_tests():
    lines = {(JOBS[job]["runs-on"], line) for job, line, _ in RUN_LINES}
    assert ("ubuntu-latest", "bash .ci/run") in lines
    assert ("macos-latest", "bash setup.sh --test") in lines
    assert ("windows-latest", "setup.bat --test") in lines


def test_the_workflow_may_only_read_and_newer_pushes_cancel_older_ones():
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in JOBS.values())
    assert WORKFLOW["concurrency"]["cancel-in-progress"] is True
    assert set(WORKFLOW[True]) == {"push", "pull_request"}  # YAML 1.1 reads the key `on` as true


def test_each_python_of_the_workflow_is_one_that_torch_has_wheels_for():
    versions = JOBS["linux"]["strategy"]["matrix"]["python"]
    versions = versions + [JOBS[name]["steps"][1]["with"]["python-version"] for name in JOBS]
    for version in versions:
        if "matrix" not in version:
            numbers = tuple(map(int, version.split(".")))
            assert bootstrap.OLDEST_PYTHON <= numbers <= bootstrap.NEWEST_PYTHON


def test_the_files_that_the_cache_depends_on_exist():
    patterns = {step["with"]["cache-dependency-path"] for _, step in STEPS if "cache" in str(step)}
    assert patterns and all(list(ROOT.glob(pattern)) for pattern in patterns)


def test_before_a_commit_the_ruff_of_the_checks_mends_the_style(tmp_path):
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (repo,) = yaml.safe_load(text)["repos"]
    assert repo["repo"] == "local"  # another release of ruff would format in another way
    file = tmp_path / "careless.py"
    file.write_text("import os\nprint( 'x' )\n", encoding="utf-8")
    for hook in repo["hooks"]:
        program, *words = shlex.split(hook["entry"])
        assert (program, hook["language"]) == ("python", "system")
        run(sys.executable, *words, "--no-cache", str(file))
    assert file.read_text(encoding="utf-8") == 'print("x")\n'
