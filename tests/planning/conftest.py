"""A home with a prepared dataset, as its meta.json tells it."""

import pytest

from gptlab.files import write_json


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with the dataset "plays", as meta.json alone."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    folder = tmp_path / "data" / "plays"
    folder.mkdir(parents=True)
    (folder / "train.bin").write_bytes(b"")
    sizes = {"vocab_size": 66, "train_tokens": 1_003_854, "val_tokens": 111_540}
    write_json(folder / "meta.json", {"format_version": 1, "dtype": "uint16", **sizes})
    return tmp_path
