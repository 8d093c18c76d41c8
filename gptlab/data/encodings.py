"""Encodings of text by name, and which of them bytes are likely to be in."""

import codecs

from gptlab.errors import ConfigError


def is_foreign_to_utf8(encoding: str) -> bool:
    """Whether text in this encoding, beyond ASCII, is hardly ever valid UTF-8."""
    return not known_encoding(encoding).startswith(("utf", "ascii"))


def known_encoding(name: str) -> str:
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except LookupError:
        raise ConfigError(
            f"--encoding {name} is not a text encoding that Python knows",
            "try utf-8, cp1252, latin-1, utf-16, cp1251, gb18030, big5, shift_jis or euc_kr",
            sep="; ",
        ) from None


# Candidates for text that is not UTF-8: (name, stricter codec to try, first and last letter of its
# script, smallest share of letters in that range). Han comes last: most East Asian codecs decode
# random bytes to Han.
_SCRIPTS = (
    ("cp1251", "cp1251", "\u0430", "\u044f", 0.7),  # lower-case Cyrillic
    ("koi8_r", "koi8_r", "\u0430", "\u044f", 0.7),
    ("shift_jis", "shift_jis", "\u3040", "\u30ff", 0.3),  # kana
    ("euc_jp", "euc_jp", "\u3040", "\u30ff", 0.3),
    ("euc_kr", "euc_kr", "\uac00", "\ud7a3", 0.8),  # Hangul
    ("gb18030", "gb2312", "\u4e00", "\u9fff", 0.7),  # Han
    ("big5", "big5", "\u4e00", "\u9fff", 0.7),
)


def likely_encoding(sample: bytes) -> str:
    """The encoding in which a sample's bytes above 127 look like text; cp1252 if none fits."""
    if sum(byte > 127 for byte in sample) < 0.25 * len(sample):
        return "cp1252"  # single accented letters between ASCII ones
    for name, codec, first, last, least in _SCRIPTS:
        letters = [c for c in sample.decode(codec, errors="replace") if c > "\x7f"]
        share = sum(first <= c <= last for c in letters) / max(1, len(letters))
        if share >= least:
            return name
    return "cp1252"
