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


class Rows:
    """(place, row) for each row of a dataset on the hub, streamed and never stored.

    position: where to go on, as an earlier one had it. Iterating raises DownloadError within
    seconds if the hub does not answer, DataError for a dataset, subset or split that does not
    exist.
    """

    def __init__(self, word: str, position: dict | None = None):
        self._word, self._name = word, HubName.parse(word)
        position = position or {}
        self._number, self._state = position.get("rows", 0), position.get("state")
        self._revision = position.get("revision")
        self._stream = None

    @property
    def position(self) -> dict:
        """Where the rows so far end, as JSON: their number, the revision of the dataset."""
        state = self._stream.state_dict() if self._stream else self._state
        return {"rows": self._number, "revision": self._revision, "state": state}

    def __iter__(self) -> Iterator[tuple[str, dict]]:
        if reason := why_unreachable():
            raise DownloadError(
                f"{self._word} needs {address()}, which cannot be reached ({reason})",
                "download the text elsewhere and prepare the file",
                sep="; ",
            )
        os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(TIMEOUT_S))
        try:
            if self._revision is None:
                self._revision = newest_revision(self._name.repository)
            self._stream = open_stream(self._name, self._revision)
            if self._state:
                self._stream.load_state_dict(self._state)
            for row in self._stream:
                self._number += 1
                yield f"{self._word} row {self._number:,}", row
        except Exception as error:  # the hub's clients and file readers raise errors of many kinds
            reason = " ".join(str(error).split()).rstrip(".")
            raise DataError(f"{self._word} cannot be read: {reason[:300]}.") from error


def newest_revision(repository: str) -> str | None:
    """The commit that a repository of the hub now stands at."""
    import huggingface_hub

    return huggingface_hub.HfApi(address()).dataset_info(repository).sha


def open_stream(name: HubName, revision: str | None):
    """The rows of a split, one dict each, as they come: an `IterableDataset` of `datasets`."""
    import datasets

    return datasets.load_dataset(
        name.repository, name.subset, split=name.split, streaming=True, revision=revision
    )


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
