"""Characters that nobody sees, and letters with two spellings: counted by name, dropped, made one.

Joiners (U+200C, U+200D) are left alone: Persian, Indic scripts and emoji are spelled with them.
"""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

# Control characters but for tab and line ends, marks of direction, fillers, marks inside a text.
INVISIBLE = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb"
)
# A terminal's colours and moves, with the letters behind the escape (ECMA-48, 5.4).
_SEQUENCE = r"\x1b\[[0-?]*[ -/]*[@-~]"
_INVISIBLE = re.compile(f"{_SEQUENCE}|[{INVISIBLE}]")
_CUT_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*)?\Z")
_CONTROLS = {0: "NUL", 7: "BEL", 8: "BACKSPACE", 11: "LINE TABULATION", 12: "FORM FEED"}
_CONTROLS |= {26: "SUBSTITUTE", 27: "ESCAPE", 127: "DELETE", 133: "NEXT LINE"}
# A text may be normalised in pieces that begin with one of these: nothing in front changes them.
_SAFE = re.compile(
    "[\x00-\u02ff\u0400-\u0482\u3400-\u9fff](?=[^\x00-\u02ff\u0400-\u0482\u3400-\u9fff]*\\Z)"
)
_LETTER_AND_MARKS: re.Pattern | None = None


def character_name(character: str) -> str:
    """Such as `SOFT HYPHEN (U+00AD)`."""
    if len(character) > 1:
        return "SEQUENCE FOR A TERMINAL (ESC [)"
    name = unicodedata.name(character, _CONTROLS.get(ord(character), "control character"))
    return f"{name} (U+{ord(character):04X})"


def name_all(counts: Counter, most: int = 8) -> str:
    """Each character with its count, the most frequent first: `3 NUL (U+0000), ...`."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{number:,} {character_name(character)}" for character, number in ordered[:most]]
    more = f" and {len(ordered) - most:,} others" if len(ordered) > most else ""
    return ", ".join(named) + more


def without_invisible(blocks: Iterable[str], dropped: Counter) -> Iterator[str]:
    """Blocks without INVISIBLE characters and sequences, which are counted in `dropped`."""
    held = ""
    for block in itertools.chain(blocks, [None]):
        text, held = held + (block or ""), ""
        if block is not None and (cut := _CUT_SEQUENCE.search(text)):
            text, held = text[: cut.start()], cut[0]
        found = _INVISIBLE.findall(text)
        dropped.update(each if len(each) == 1 else "\x1b[" for each in found)
        if text or block is not None:
            yield _INVISIBLE.sub("", text) if found else text


def invisible(counts: Counter) -> Counter:
    """Those of these characters that are invisible."""
    return Counter({c: number for c, number in counts.items() if _INVISIBLE.match(c)})


def normalized(blocks: Iterable[str], form: str, changed: Counter) -> Iterator[str]:
    """Blocks in a normal form of Unicode, "nfc" or "nfkc", as if the text were one block.

    changed: receives each letter or sequence of letter and marks that is spelled otherwise there.
    """
    held, form = "", form.upper()
    for block in blocks:
        held += block
        cut = _SAFE.search(held, max(0, len(held) - 4096)) or _SAFE.search(held)
        if cut and cut.start():
            yield _normalized(held[: cut.start()], form, changed)
            held = held[cut.start() :]
    yield _normalized(held, form, changed)


def _normalized(text: str, form: str, changed: Counter) -> str:
    if unicodedata.is_normalized(form, text):
        return text
    changed.update(respelled(text, form))
    return unicodedata.normalize(form, text)


def respelled(text: str, form: str = "NFC") -> Counter:
    """How often each letter, or letter with marks, occurs that this form spells otherwise."""
    if unicodedata.is_normalized(form, text):
        return Counter()
    found = Counter(_letter_and_marks().findall(text))
    return Counter(
        {s: number for s, number in found.items() if not unicodedata.is_normalized(form, s)}
    )


def _letter_and_marks() -> re.Pattern:
    """A letter with the marks behind it, the parts of a Hangul syllable, or a single character."""
    global _LETTER_AND_MARKS
    if _LETTER_AND_MARKS is None:
        marks = "".join(c for c in map(chr, range(0x300, 0x1F000)) if unicodedata.combining(c))
        _LETTER_AND_MARKS = re.compile(
            f"[\u1100-\u1112][\u1161-\u1175][\u11a8-\u11c2]?|[^{marks}]?[{marks}]+|[^\x00-\x7f]"
        )
    return _LETTER_AND_MARKS
