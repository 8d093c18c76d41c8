"""Checks on real processes: one launch of torchrun for all that need the same number of them.

`check_*` functions in checks_*.py take a `World` (worker.py). Their attributes: `sizes`, the
numbers of processes, (2, 4) without it; `slow`, True for the slow suite; `seconds`, that they may
take. A check is a promise by its name, and each is a test of its own.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LAUNCH_SECONDS = 300


def launch(size: int, results: Path, checks: list[str], seconds: float = LAUNCH_SECONDS) -> str:
    """Run checks ("FILE:NAME") in one group of `size` processes; what the launcher printed."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
    process = subprocess.Popen(
        [sys.executable, *torchrun, str(HERE / "worker.py"), str(results), *checks],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])},
    )  # fmt: skip
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # torchrun ends its workers
        return process.communicate(timeout=60)[0] + f"\nended after {seconds} s"


def all_checks():
    """(module, function) of each check, in the order of files and lines."""
    if str(HERE) not in sys.path:  # where worker.py finds a file that another one imports
        sys.path.append(str(HERE))
    for file in sorted(HERE.glob("checks_*.py")):
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield from ((file.stem, f) for name, f in vars(module).items() if name.startswith("check_"))


def pytest_generate_tests(metafunc):
    """A test for each check and number of processes."""
    if "check" not in metafunc.fixturenames:
        return
    found = [
        pytest.param(
            size,
            f"{stem}.{function.__name__}",
            id=f"{stem.removeprefix('checks_')}-{function.__name__.removeprefix('check_')}-{size}",
            marks=[pytest.mark.slow] if getattr(function, "slow", False) else [],
        )
        for size in (2, 4)
        for stem, function in all_checks()
        if size in getattr(function, "sizes", (2, 4))
    ]
    metafunc.parametrize(("size", "check"), found)


@pytest.fixture(scope="session")
def results_of(request, tmp_path_factory):
    """results_of(size): {check: {"value", "failures", "seconds"}} of one launch, and its output."""
    launched = {}

    def results(size: int) -> tuple[dict, str]:
        if size not in launched:
            params = [getattr(item, "callspec", None) for item in request.session.items]
            params = [each.params for each in params if each and "check" in each.params]
            names = [each["check"].split(".") for each in params if each["size"] == size]
            file = tmp_path_factory.mktemp("processes") / f"{size}.json"
            output = launch(size, file, [f"{HERE / stem}.py:{name}" for stem, name in names])
            found = json.loads(file.read_text()) if file.exists() else {}
            launched[size] = found, output
        return launched[size]

    return results


@pytest.fixture
def launch_checks():
    """The function `launch`."""
    return launch
