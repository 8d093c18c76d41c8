"""A recipe and two small texts, for the commands that train several runs; kills."""

import functools
import os
import random
import signal
import sys
import traceback

import pytest

from gptlab import hardware
from gptlab.analysis import paired_runs
from gptlab.cli.main import main
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.training.metrics import Metrics
from gptlab.training.picture import Picture

RECIPE = """
dataset = "tiny"
n_layer, n_head, n_embd, block_size, batch_size = 1, 2, 16, 16, 4
max_iters, log_interval, learning_rate, dropout = 6, 1, 1e-2, 0.0
device, dtype = "cpu", "float32"
"""


@pytest.fixture(scope="session")
def two_datasets(tmp_path_factory):
    """A home with the datasets "tiny" and "other"."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_HOME", str(home))
        for name, text in (("tiny", "to be or not to be, " * 200), ("other", "and so on, " * 400)):
            (home / f"{name}.txt").write_text(text, encoding="utf-8")
            prepare(str(home / f"{name}.txt"), PrepareOptions(tokenizer="char"))
    return home / "data"


@pytest.fixture(scope="session")
def measured_once():
    """The report on this machine and its peak, measured once."""
    report, peak = hardware.detect(), hardware.peak_flops("cpu", "float32")
    return {"detect": lambda only=None: report, "peak_flops": lambda device, dtype: peak}


@pytest.fixture
def here(two_datasets, measured_once, home, monkeypatch):
    """An empty home with these datasets and the recipe a.py; runs of milliseconds."""
    (home / "data").symlink_to(two_datasets, target_is_directory=True)
    (home / "a.py").write_text(RECIPE, encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(Picture, "draw", lambda *_: None)
    monkeypatch.setattr(paired_runs, "CURVE_POINTS", 2)
    for name, function in measured_once.items():
        monkeypatch.setattr(hardware, name, function)
    return home


@pytest.fixture
def in_home(trained, monkeypatch):
    """The working directory is that of the run; colours are neither asked for nor refused."""
    monkeypatch.setenv("GPTLAB_HOME", str(trained))
    monkeypatch.chdir(trained)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def killed():
    """Types a command again and again, and kills it (SIGKILL) before a step or a change of the
    disk, until it ends; returns how often it was killed.

    Each time is a fork of this process, which saves the seconds of `import torch`.
    """

    def run_until(argv, last):
        left = [last]

        def before(owner, name):
            function = getattr(owner, name)

            @functools.wraps(function)
            def counting(*args, **options):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **options)

            setattr(owner, name, counting)

        code = 1
        try:
            signal.alarm(120)
            sys.stdout = sys.stderr = open(os.devnull, "w")
            for owner, name in ((os, "fsync"), (os, "replace"), (Metrics, "step")):
                before(owner, name)
            code = main(argv)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)

    def run(argv, most=90):
        draw, kills = random.Random(0), 0
        while True:
            last = draw.randint(1, most)
            child = os.fork()
            if not child:
                run_until(argv, last)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code != -signal.SIGKILL:
                assert code == 0
                return kills
            kills += 1

    if not hasattr(os, "fork"):
        pytest.skip("the attempts are forks")
    return run
