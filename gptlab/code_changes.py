"""Where code differs from what it was: by file and line."""

import difflib
import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class CodeChange:
    """A changed place of a file: its line now (where it was, for one that is gone)."""

    path: str
    line: int
    before: str
    after: str


def changed_code(
    hashes: dict[str, str], texts: dict[str, str], now: dict[str, str]
) -> tuple[list[CodeChange], list[str]]:
    """(changed places, files that changed but whose former text is unknown).

    hashes and texts: of the files as they were; now: the texts of today.
    """
    places, unread = [], []
    for path in sorted({*hashes, *now}):
        text = now.get(path, "")
        if path in hashes and hashlib.sha256(text.encode()).hexdigest() == hashes[path]:
            continue
        if path in hashes and path not in texts:
            unread.append(path)
            continue
        places += _changed_places(path, texts.get(path, ""), text)
    return places, unread


def _changed_places(path: str, before: str, after: str) -> list[CodeChange]:
    old, new = before.splitlines(), after.splitlines()
    places = []
    for kind, i, i_end, j, j_end in difflib.SequenceMatcher(
        None, old, new, autojunk=False
    ).get_opcodes():
        if kind != "equal":
            first = [next(filter(str.strip, part), "") for part in (old[i:i_end], new[j:j_end])]
            places.append(CodeChange(path, j + 1, *map(str.strip, first)))
    return places


def code_in_words(
    hashes: dict[str, str], texts: dict[str, str], now: dict[str, str], most: int = 3
) -> str:
    """The changed places as a part of a sentence, at most so many; "" where nothing changed.

    A text that does not have its hash is ignored.
    """
    texts = {
        path: text
        for path, text in texts.items()
        if hashlib.sha256(text.encode()).hexdigest() == hashes.get(path)
    }
    places, unread = changed_code(hashes, texts, now)
    words = [f"{p.path}:{p.line} was {p.before!r} and is {p.after!r}" for p in places]
    words += [f"{path} changed" for path in unread]
    if len(words) > most:
        words[most:] = [f"{len(words) - most} more such places"]
    return "; ".join(words)
