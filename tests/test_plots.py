"""loss.png: a picture of any records; a failure keeps the former picture."""

import numpy as np
import pytest
from matplotlib.image import imread

from gptlab import plots
from gptlab.plots import AVERAGED, TRAIN, VALIDATION, plot_loss

RECORDS = [{"step": s, "loss": 3.0 - s / 100} for s in range(1, 101)] + [
    {"step": 50, "val_loss": 2.6, "ema_val_loss": 2.55},
    {"step": 100, "val_loss": 2.2, "ema_val_loss": 2.15},
]


def colours(path):
    """How many pixels of a picture have each of the curves' colours."""
    pixels = np.round(imread(path)[..., :3] * 255).astype(int)

    def count(colour):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return int((abs(pixels - wanted).max(axis=-1) <= 2).sum())

    return [count(colour) for colour in (TRAIN, VALIDATION, AVERAGED)]


def test_each_kind_of_loss_has_its_curve(tmp_path):
    path = tmp_path / "loss.png"
    plot_loss(RECORDS, path, title="run on text", levels={"lzma": 2.4, "5-gram": 2.0})
    assert all(count > 200 for count in colours(path))
    plot_loss(RECORDS[:100], path, title="run on text", levels={})
    train, validation, averaged = colours(path)
    assert train > 200 and validation == averaged == 0


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"step": 1, "loss": 2.0}],
        [{"step": 1, "loss": None}, {"step": 1, "val_loss": None, "ema_val_loss": None}],
        [{"step": 5, "val_loss": 2.0}],
        [{"step": 1, "loss": 4.0}, {"step": 2, "loss": 1e9}, {"step": 3, "val_loss": 3.0}],
        [{"step": 1, "loss": 0.0}, {"step": 2, "loss": 0.0}],
    ],
    ids=["none", "one", "not finite", "validation only", "a spike", "zero"],
)
def test_any_records_give_a_picture(tmp_path, records):
    path = tmp_path / "loss.png"
    plot_loss(records, path, title="naïve _$%{}", levels={"unigram": 3.0})
    assert imread(path).shape[:2] == (624, 1080)


def test_a_failure_leaves_the_former_picture_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "loss.png"
    path.write_bytes(b"former")

    def fail(*args, **kwargs):
        raise OSError(5, "broken disk")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="broken disk"):
        plot_loss(RECORDS, path, title="", levels={})
    assert path.read_bytes() == b"former" and [p.name for p in tmp_path.iterdir()] == ["loss.png"]


def test_no_window_system_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "nope")
    plot_loss(RECORDS, tmp_path / "loss.png", title="", levels={})
    assert (tmp_path / "loss.png").exists() and plots.__doc__
