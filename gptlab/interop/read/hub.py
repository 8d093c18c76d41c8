"""Models of the Hugging Face hub: the copy that is here already, else a download."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from gptlab.data.hub import REPOSITORY, TIMEOUT_S, address, why_unreachable
from gptlab.errors import CheckpointError, ConfigError, DownloadError
from gptlab.interop.weights import SAFETENSORS_INDEX

SHORT_NAMES = {
    name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
}
# what an import reads; weights as pickles are never fetched
FILES = ("*.json", "*.safetensors", "*.jinja", "LICENSE*")


def hub_name(word: str) -> str:
    """OWNER/NAME of "hf:OWNER/NAME" or of a short name."""
    name = SHORT_NAMES.get(word) or word.removeprefix("hf:")
    name = SHORT_NAMES.get(name, name)
    if not REPOSITORY.fullmatch(name) or "/" not in name:
        raise ConfigError(f"{word} is not of the form hf:OWNER/NAME.")
    return name


def hub_folder(word: str, note: Callable[[str], None]) -> Path:
    """The folder of a model of the hub, from its cache on this machine or downloaded into it.

    Raises DownloadError within seconds where there is neither, CheckpointError for a model that
    has no safetensors.
    """
    name = hub_name(word)
    from huggingface_hub import snapshot_download

    short = [name.split("/")[-1]] if name in SHORT_NAMES.values() else []
    for known in (name, *short):
        if folder := _kept_folder(known):
            return folder
    _check_reachable(word)
    note(f"Downloading {name} from the Hugging Face hub.")
    try:
        folder = Path(snapshot_download(name, allow_patterns=list(FILES), etag_timeout=TIMEOUT_S))
    except Exception as error:  # whatever the hub's client raises
        reason = " ".join(str(error).split()).rstrip(".")
        raise DownloadError(f"{word} cannot be downloaded: {reason[:300]}.") from error
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{word} has no .safetensors weights, and others could run somebody's code when they "
            "are loaded",
            "choose another copy of the model",
        )
    return folder


def _kept_folder(name: str) -> Path | None:
    """The copy of a model in the hub's cache on this machine, if all that is read is in it.

    Not snapshot_download(local_files_only=True): it misses files that nobody needs.
    """
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    files = ["tokenizer.json", "model.safetensors"]
    if (folder / SAFETENSORS_INDEX).is_file():
        with contextlib.suppress(ValueError, LookupError, AttributeError, TypeError):
            index = json.loads((folder / SAFETENSORS_INDEX).read_text(encoding="utf-8"))
            files = ["tokenizer.json", *set(index["weight_map"].values())]
    return folder if all((folder / file).is_file() for file in files) else None


def _check_reachable(word: str) -> None:
    """DownloadError where the hub may not be asked, or does not answer."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    if reason := "HF_HUB_OFFLINE is set" if offline else why_unreachable():
        raise DownloadError(
            f"{word} is not on this machine, and {address()} cannot be reached ({reason})",
            "download the folder elsewhere and import it by its path",
        )
