"""What a tokenizer cannot spell: characters by name and count, and the refusal that names them."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from gptlab.errors import TokenizerError


def name_characters(characters: Counter, place: str = "") -> str:
    """Characters by their code points, each with its count; at most 20.

    place: of the first one, "" if it is unknown.
    """
    named = [f"{c!r} (U+{ord(c):04X})" for c in characters]
    named[0] += f" at {place}" if place else ""
    named = [
        name if number == 1 else f"{name}, {number:,} times"
        for name, number in zip(named, characters.values(), strict=True)
    ]
    more = f"; and {len(named) - 20:,} others" if len(named) > 20 else ""
    return "; ".join(named[:20]) + more


def unknown_in_text(
    characters: Counter,
    alphabet: str,
    place: str,
    letters: Sequence[str] = (),
    ways: str = "",
) -> TokenizerError:
    """The refusal of a text whose characters a tokenizer lacks, each with its count.

    characters: the first of the text comes first. alphabet: what the tokenizer knows. place: of the
    first one, "" if it is unknown. letters: what they are part of, such as a letter with a mark.
    ways: what to do about them.
    """
    noun, verb = ("character", "is") if len(characters) == 1 else ("characters", "are")
    problem = (
        f"The {noun} {name_characters(characters, place)} {verb} not among the "
        f"{len(alphabet):,} characters that this tokenizer knows"
    )
    fix = "leave {} out, or prepare the text with --tokenizer bpe, which can encode any text"
    fix = ways or fix.format("it" if len(characters) == 1 else "them")
    if spelling := _other_spelling([*characters, *letters], alphabet):
        fix = f"{spelling}; else {fix}"
    return TokenizerError(problem, fix, sep="; ")


def _other_spelling(letters: Iterable[str], alphabet: str) -> str:
    """How the tokenizer's own text spells one of these letters, "" where it spells none."""
    known = set(alphabet)
    for letter in letters:
        for form in ("NFC", "NFD", "NFKC"):
            other = unicodedata.normalize(form, letter)
            if other == letter or not set(other) <= known:
                continue
            codes = " + ".join(f"U+{ord(c):04X}" for c in other)
            ways = f"spell it so (Unicode {form})"
            if form == "NFD":
                ways += ", or prepare that text with --normalize nfc and train again"
            composed = unicodedata.normalize("NFC", letter)
            return f"the text that it learned from spells {composed} as {codes}: {ways}"
    return ""


def not_unicode(text: str, error: UnicodeEncodeError) -> TokenizerError:
    """The refusal of a text with a lone surrogate."""
    return TokenizerError(
        f"The text is not valid Unicode at position {error.start:,} (the lone surrogate "
        f"U+{ord(text[error.start]):04X})",
        "leave it out",
        sep="; ",
    )
