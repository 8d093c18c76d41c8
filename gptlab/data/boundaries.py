"""Where documents begin and end inside a text: at each line, paragraph, or separator.

Texts are cut as they stream by, so a text without any separator needs no more memory than one of
many documents.
"""

import re
from collections.abc import Callable, Iterable, Iterator

# Blank lines end a paragraph. At the beginning of a text they end nothing, but are left out too.
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_FIRST_BLANK_LINES = re.compile(r"\A(?:[^\S\n]*\n)+")

# (text, whether it belongs to a document: what does not is the separator that ends it)
Part = tuple[str, bool]
Cut = Callable[[Iterable[str]], Iterator[Part]]


def cut_at(*separators: str) -> Cut:
    """Cuts a text at each of these separators, which belong to no document.

    A separator that has a line to itself takes the line end behind it along, so that each document
    is made of whole lines.
    """
    longest = max(map(len, separators))
    pattern = re.compile("|".join(map(re.escape, sorted(separators, key=len, reverse=True))))

    def cut(blocks: Iterable[str]) -> Iterator[Part]:
        held, before = "", "\n"  # before: the character in front of `held`
        for block in blocks:
            held += block
            parts, held = _cut_at(pattern, held, before, longest)
            for part in parts:
                before = part[0][-1]
                yield part
        yield from _cut_at(pattern, held, before, 0)[0]

    return cut


def _cut_at(pattern: re.Pattern, text: str, before: str, undecided: int) -> tuple[list[Part], str]:
    """The parts of a text, and its end that only the next block decides: a match that begins in the
    last `undecided` characters may go on there."""
    parts, start = [], 0
    while match := pattern.search(text, start):
        begin, stop = match.span()
        if begin > len(text) - undecided:
            break
        if "\n" not in match.group() and (text[begin - 1] if begin else before) == "\n":
            if stop == len(text) and undecided:
                break
            stop += text.startswith("\n", stop)
        if begin > start:
            parts.append((text[start:begin], True))
        parts.append((text[begin:stop], False))
        start = stop
    end = len(text) - undecided
    if end > start:
        parts.append((text[start:end], True))
        start = end
    return parts, text[start:]


def cut_paragraphs(blocks: Iterable[str]) -> Iterator[Part]:
    """Cuts a text at blank lines: those that are empty or hold only white space."""
    held, at_start = "", True
    for block in blocks:
        held += block
        decided = len(held.rstrip())  # white space may go on as blank lines
        if not decided:
            continue
        yield from _cut_paragraphs(held[:decided], at_start)
        held, at_start = held[decided:], False
    spaces, line_end, rest = held.partition("\n")
    if spaces:
        yield spaces, True
    if line_end:
        yield line_end + rest, False


def _cut_paragraphs(text: str, at_start: bool) -> Iterator[Part]:
    start = 0
    if at_start and (first := _FIRST_BLANK_LINES.match(text)):
        start = first.end()
        yield text[:start], False
    for match in _BLANK_LINES.finditer(text, start):
        if match.start() > start:
            yield text[start : match.start()], True
        yield match.group(), False
        start = match.end()
    yield text[start:], True


def documents_of(parts: Iterable[Part]) -> Iterator[tuple[int, Iterator[str]]]:
    """(number of line ends before it, its blocks) of each document; read each before the next.

    Two separators in a row have an empty document between them.
    """
    parts, lines = iter(parts), 0

    def blocks(text: str, is_text: bool) -> Iterator[str]:
        nonlocal lines
        while True:
            lines += text.count("\n")
            if not is_text:
                return
            yield text
            text, is_text = next(parts, ("", False))

    for text, is_text in parts:
        yield lines, blocks(text, is_text)


def read_escapes(text: str) -> str:
    r"""`\n`, `\r`, `\t` and `\f` as the characters that they stand for."""
    characters = {"n": "\n", "r": "\r", "t": "\t", "f": "\f"}
    return re.sub(r"\\([nrtf])", lambda match: characters[match[1]], text)
