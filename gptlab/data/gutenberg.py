"""The header and the licence that Project Gutenberg puts around a book."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

# What stands between a mark and the end of the file (or the next book) is the licence, of about
# 19 kB; what stands before the mark of the start is the header. More than this is text.
MOST_CHARACTERS = 1 << 16
_LINE = 300  # characters of a mark's line, at most
_START = re.compile(
    r"^[ \t]*(?:\*{3} ?START OF (?:THE|THIS) PROJECT GUTENBERG[^\n]*|"
    r"\*END[ *]*THE SMALL PRINT[^\n]*)\n\s*",
    re.MULTILINE | re.IGNORECASE,
)
_END = re.compile(
    r"^[ \t]*(?:\*{3} ?END OF (?:THE|THIS) PROJECT GUTENBERG|"
    r"End of (?:the )?Project Gutenberg(?:'s| E-?(?:Book|text)))",
    re.MULTILINE | re.IGNORECASE,
)


def without_licence(blocks: Iterable[str], cut: Counter) -> Iterator[tuple[str, bool]]:
    """(text, whether it belongs to the book) in the order of the text, nothing left out.

    cut: receives "headers" and "licences", and "characters" of both.
    """
    held, state = "", "before"
    for block in blocks:
        held += block
        while True:
            if state in ("before", "after"):
                start = _start(held)
                # white space behind the mark may go on in the next block
                if start and start.end() < len(held):
                    yield _cut(held[: start.end()], state, cut), False
                    held, state = held[start.end() :], "book"
                    continue
                if start or len(held) <= MOST_CHARACTERS + _LINE:
                    break
                if state == "after":  # too long for a licence: the text goes on
                    yield held[: MOST_CHARACTERS + _LINE], True
                    held = held[MOST_CHARACTERS + _LINE :]
                state = "book"
                continue
            end = _END.search(held) if "gutenberg" in held.lower() else None
            if end:
                if end.start():
                    yield held[: end.start()], True
                held, state = held[end.start() :], "after"
                continue
            last = max(0, len(held) - _LINE)
            decided = held.rfind("\n", 0, last) + 1 or (last if last > MOST_CHARACTERS else 0)
            if decided:
                yield held[:decided], True
                held = held[decided:]
            break
    if state == "before":
        if start := _start(held):
            yield _cut(held[: start.end()], state, cut), False
            held = held[start.end() :]
        state = "book"
    if state == "book" and (end := _END.search(held)):
        if end.start():
            yield held[: end.start()], True
        held, state = held[end.start() :], "after"
    if state == "after":
        yield _cut(held, state, cut), False
    elif held:
        yield held, True


def _start(text: str) -> re.Match | None:
    """The mark at which a book starts, if it is near enough for what is before to be a header."""
    match = _START.search(text, 0, MOST_CHARACTERS + _LINE)
    return match if match and match.start() <= MOST_CHARACTERS else None


def _cut(text: str, state: str, cut: Counter) -> str:
    cut["headers" if state == "before" else "licences"] += 1
    cut["characters"] += len(text)
    return text
