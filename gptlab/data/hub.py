"""Stream datasets from the Hugging Face hub: `hf:OWNER/NAME[:SUBSET][:SPLIT]`."""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from gptlab.errors import DataError, DownloadError

TIMEOUT_S = 5
# The hub's names of repositories. A path such as ../x is refused: it could be a local folder.
REPOSITORY = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """The parts of an `hf:` name."""

    repository: str
    subset: str | None
    split: str

    @property
    def short(self) -> str:
        """The name without its owner, for the prepared dataset."""
        return self.repository.rsplit("/", 1)[-1]

    @staticmethod
    def parse(word: str) -> "HubName":
        """Read `hf:OWNER/NAME[:SUBSET][:SPLIT]`; the default split is "train".

        Raises DataError for any other form.
        """
        parts = word.removeprefix("hf:").split(":")
        if not REPOSITORY.fullmatch(parts[0]) or len(parts) > 3 or not all(parts):
            raise DataError(f"{word} is not of the form hf:OWNER/NAME[:SUBSET][:SPLIT].")
        subset = parts[1] if len(parts) > 1 else None
        return HubName(parts[0], subset, parts[2] if len(parts) > 2 else "train")


def rows(word: str) -> Iterator[tuple[str, dict]]:
    """(place, row) for each row of a dataset on the hub, streamed and never stored.

    Raises DownloadError within seconds if the hub does not answer, DataError for a dataset, subset
    or split that does not exist.
    """
    name = HubName.parse(word)
    if reason := why_unreachable():
        raise DownloadError(
            f"{word} needs {address()}, which cannot be reached ({reason})",
            "download the text elsewhere and prepare the file",
            sep="; ",
        )
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(TIMEOUT_S))
    import datasets

    try:
        stream = datasets.load_dataset(
            name.repository, name.subset, split=name.split, streaming=True
        )
        for number, row in enumerate(stream, 1):
            yield f"{word} row {number:,}", row
    except Exception as error:  # the hub's clients and file readers raise errors of many kinds
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{word} cannot be read: {reason[:300]}.") from error


def address() -> str:
    """The URL of the hub."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def why_unreachable() -> str:
    """Why the hub does not answer, or "" if it does; the hub's own client retries for minutes."""
    try:
        urllib.request.urlopen(address(), timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return ""  # an HTTP error is an answer too
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return ""
