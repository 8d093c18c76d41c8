"""A recipe and two small texts, for the commands that train several runs."""

import pytest

from gptlab import hardware
from gptlab.analysis import paired_runs
from gptlab.data.prepare import PrepareOptions, prepare
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
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
