"""nanoGPT's meta.pkl: the characters of a dataset, read without running any code in it."""

import io
import pickle
from pathlib import Path

from gptlab.errors import ConfigError
from gptlab.files import display


class _PlainUnpickler(pickle.Unpickler):
    """Reads dicts, lists, text and numbers; whatever would import anything is refused."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_characters(path) -> list[str]:
    """The characters of nanoGPT's meta.pkl in the order of their ids."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"There is no {display(path)}", "check the path of --meta")
    try:
        content = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a damaged pickle may raise anything
        raise ConfigError(
            f"{display(path)} was refused: it does not hold plain values only ({error})."
        ) from None
    ids = content.get("stoi") if isinstance(content, dict) else None
    if (
        not isinstance(ids, dict)
        or not all(isinstance(c, str) and len(c) == 1 for c in ids)
        or not all(isinstance(i, int) for i in ids.values())
        or sorted(ids.values()) != list(range(len(ids)))
    ):
        raise ConfigError(f"{display(path)} holds no vocabulary of characters (no stoi).")
    return sorted(ids, key=ids.get)
