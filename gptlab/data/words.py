"""The words of a text in any script.

A word is a run of letters, marks and digits; case does not count. In scripts that are written
without spaces (Chinese, Japanese, Thai ...) each character is one. Their words would need a
dictionary; whether one is known is asked of pairs of neighbouring characters instead, because a
single character nearly always is.
"""

import unicodedata
from collections.abc import Iterable

INSIDE = "'\u2019\u200c\u200d"  # belong to a word where they stand inside it
WITHOUT_SPACES = {
    "CJK", "HIRAGANA", "IDEOGRAPHIC", "KATAKANA", "KATAKANA-HIRAGANA", "KHMER", "LAO", "MYANMAR",
    "THAI",
}  # fmt: skip


class _Kinds(dict):
    """For str.translate: a character of a word, one of a script without spaces between NULs, and a
    space for any other."""

    def __missing__(self, code: int) -> str:
        character, kind = chr(code), " "
        if unicodedata.category(character)[0] in "LMN":
            script = unicodedata.name(character, "").split(" ")[:2]
            kind = f"\0{character}\0" if WITHOUT_SPACES & set(script) else character
        elif character in INSIDE:
            kind = character
        self[code] = kind
        return kind


_KINDS = _Kinds()


def word_runs(text: str) -> list[str]:
    """The words of a text; characters of scripts without spaces that are neighbours are one run."""
    marked = text.casefold().translate(_KINDS)
    return marked.replace("\0\0", "").replace("\0", " ").split()


def has_no_spaces(run: str) -> bool:
    """Whether a run is of a script without spaces."""
    return _KINDS[ord(run[0])][0] == "\0"


def words_of(text: str) -> list[str]:
    """The words of a text in order."""
    words = []
    for run in word_runs(text):
        if has_no_spaces(run):
            words += run
        elif word := run.strip(INSIDE):
            words.append(word)
    return words


def spellings_of(runs: Iterable[str]) -> list[str]:
    """Each word, or each pair of neighbours in a script without spaces."""
    found = []
    for run in runs:
        if has_no_spaces(run):
            found += [run[i : i + 2] for i in range(max(1, len(run) - 1))]
        elif word := run.strip(INSIDE):
            found.append(word)
    return found


def whole_words(text: str, cut_begin: bool = False) -> str:
    """A text without the words that its end, and perhaps its beginning, cuts."""

    def is_cut(character: str) -> bool:
        return _KINDS[ord(character)] == character and not character.isspace()

    begin, end = 0, len(text)
    while end and is_cut(text[end - 1]):
        end -= 1
    while cut_begin and begin < end and is_cut(text[begin]):
        begin += 1
    return text[begin:end] or text
