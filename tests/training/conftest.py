"""A tiny prepared text and runs on it that take about a second."""

import random
import signal

import pytest

from gptlab import hardware
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.training import trainer
from gptlab.training.config import MODEL_OPTIONS
from gptlab.training.metrics import Metrics
from gptlab.training.picture import Picture

WORDS = "to be or not that is the question whether tis nobler in mind suffer slings".split()


def generated_text(n_words: int) -> str:
    """Sentences in which each word depends on the one before, so that there is much to learn."""
    source, words, place = random.Random(7), [], 0
    for _ in range(n_words):
        # only random() is promised to give the same numbers in every version of Python
        place = (3 * place + 1 + int(source.random() * 3)) % len(WORDS)
        words.append(WORDS[place] + (".\n" if source.random() < 0.1 else " "))
    return "".join(words)


@pytest.fixture(scope="session")
def prepared_home(tmp_path_factory):
    """A home with the dataset "tiny": about 30,000 characters, 22 ids."""
    home = tmp_path_factory.mktemp("home")
    (home / "tiny.txt").write_text(generated_text(6000), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_HOME", str(home))
        prepare(str(home / "tiny.txt"), PrepareOptions(tokenizer="char"))
    return home


@pytest.fixture(scope="session")
def mixed(prepared_home):
    """A mix of "tiny" and of "more", of the same tokenizer."""
    (prepared_home / "more.txt").write_text(generated_text(9000)[30_000:], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTLAB_HOME", str(prepared_home))
        prepare(
            str(prepared_home / "more.txt"),
            PrepareOptions(tokenizer=str(prepared_home / "data" / "tiny")),
        )
    return "tiny:0.7,more:0.3"


@pytest.fixture(scope="session")
def measured_hardware():
    """The report on this machine and its peak, measured once: (detect, peak_flops)."""
    report, peak = hardware.detect(), hardware.peak_flops("cpu", "float32")
    return lambda only=None: report, lambda device, dtype: peak


@pytest.fixture(autouse=True)
def quiet_surroundings(prepared_home, measured_hardware, monkeypatch):
    """The prepared home, and no torchrun."""
    monkeypatch.setenv("GPTLAB_HOME", str(prepared_home))
    for name, measured in zip(("detect", "peak_flops"), measured_hardware, strict=True):
        monkeypatch.setattr(hardware, name, measured)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def pictures():
    """Let `train` draw loss.png, which takes longer than all the rest."""


@pytest.fixture
def train(request, tmp_path, monkeypatch):
    """`gptlab.train` with a model of a few thousand weights; out_dir is a name below tmp_path.

    stop_at: SIGINT, as Ctrl-C sends it, when that step is recorded; die_at: an error without any
    goodbye. Pictures are drawn only for a test with the fixture `pictures`.
    """
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(Picture, "draw", lambda *_: None)

    def run(out_dir="run", stop_at=None, die_at=None, **options):
        small = dict(
            dataset="tiny", n_layer=2, n_head=2, n_embd=16, block_size=16, dropout=0.0,
            batch_size=4, max_iters=20, eval_tokens=256, log_interval=1, quiet=True,
            device="cpu", dtype="float32", compile_model=False,
        )  # fmt: skip
        if options.get("resume"):
            small = dict(quiet=True)
        if "init_from" in options:
            small = {n: v for n, v in small.items() if n not in MODEL_OPTIONS}
        options = {**small, **options, "out_dir": str(tmp_path / out_dir)}
        with monkeypatch.context() as patch:
            recorded = Metrics.step

            def step(metrics, state, *rest):
                recorded(metrics, state, *rest)
                if state.step == stop_at:
                    signal.raise_signal(signal.SIGINT)
                if state.step == die_at:
                    raise ZeroDivisionError

            patch.setattr(Metrics, "step", step)
            return trainer.train(**options)

    return run
