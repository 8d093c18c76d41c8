"""Encodings of text by name, and which of them bytes are likely to be in."""

import codecs
import contextlib
import re
import unicodedata

from gptlab.errors import ConfigError


def is_foreign_to_utf8(encoding: str) -> bool:
    """Whether text in this encoding, beyond ASCII, is hardly ever valid UTF-8."""
    return not known_encoding(encoding).startswith(("utf", "ascii"))


def known_encoding(name: str) -> str:
    """Python's name of an encoding of text. Raises ConfigError for one that it does not know."""
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except LookupError:
        raise ConfigError(
            f"--encoding {name} is not a text encoding that Python knows",
            "try utf-8, cp1252, latin-1, utf-16, cp1251, gb18030, big5, cp932 or cp949",
            sep="; ",
        ) from None


# Candidates for text that is not UTF-8: (name, stricter codec to try, letters that are frequent in
# its languages, the usual share of these among the letters beyond ASCII).
_LATIN = (
    ("cp1252", "cp1252", "éèàùâêîôûçëïüäöåøæñãõáíóúßÉÀœ", 1.0),
    ("cp1250", "cp1250", "ąćęłńóśźżčďěňřšťůžýáíéúôőűţăâîşđŁŚŻŠŽČ", 1.0),
    ("cp1254", "cp1254", "ığşçöüİĞŞÇÖÜâ", 1.0),
    ("cp1257", "cp1257", "āčēģīķļņšūžąęėįų", 1.0),
)
_HAN = "一不了在人有我他中大上和地到出可也你生而子那得下自之年作里用成方日分所如前然定同行"
_OTHERS = (
    *((name, name, "оеаинтсрвлкм", 0.78) for name in ("cp1251", "koi8_r", "cp866", "iso8859_5")),
    ("cp1253", "cp1253", "αοιετσνηρκπυςάίόέ", 0.85),
    ("cp1255", "cp1255", "יוהלאמרתבנש", 0.8),
    ("cp1256", "cp1256", "اليمنوترهبع", 0.75),
    ("cp874", "cp874", "านรกเงอยลมดทส่้ิั", 0.6),
    *(
        (name, codec, "".join(map(chr, [*range(0x3041, 0x3097), *range(0x30A1, 0x30FB)])), 0.5)
        for name, codec in (("cp932", "shift_jis"), ("euc_jp", "euc_jp"))
    ),
    (
        "cp949",
        "euc_kr",
        "이다는을가에의고한로하지도기사를은서인어리나라아시자대스일그해",
        0.4,
    ),
    ("gb18030", "gb2312", f"{_HAN}的是们这个来为国以说时要就会对能于着过发后学么种经当", 0.25),
    ("big5", "big5", f"{_HAN}的是們這個來為國以說時要就會對能於著過發後學麼種經當", 0.25),
)


_WORDS = re.compile(rb"[A-Za-z\x80-\xff]+")


def _category(character: str) -> str:
    return unicodedata.category(character)[0]


def likely_encoding(sample: bytes) -> str:
    """The encoding in which a sample's bytes above 127 look most like a language."""
    # in Latin script most letters of a word are ASCII, in others none; markup has no other letters
    words = [word for word in _WORDS.findall(sample) if not word.isascii()]
    is_latin = sum(byte > 127 for word in words for byte in word) < 0.7 * sum(map(len, words))
    best, best_score = "cp1252", 0.0
    for name, codec, frequent, usual in _LATIN if is_latin else _OTHERS:
        decoded = sample.decode(codec, errors="replace")
        letters = [c for c in decoded if c > "\x7f" and (_category(c) in "LM" or c == "\ufffd")]
        score = sum(c in frequent for c in letters) / max(1, len(letters)) / usual
        if score > best_score:
            best, best_score = name, score
    return best


# In the first tag of an XML file, or in the head of an HTML page.
_DECLARED = re.compile(
    rb"<\?xml[^>]*\sencoding\s*=\s*[\"']([\w.-]+)|<meta[^>]*\bcharset\s*=\s*[\"']?([\w.-]+)", re.I
)


def declared_encoding(head: bytes) -> str | None:
    """The encoding that XML or HTML says it is in, where that is none of Unicode's; else None."""
    found = _DECLARED.search(head[:2048]) if head.lstrip().startswith(b"<") else None
    if found is None:
        return None
    name = (found[1] or found[2]).decode()
    with contextlib.suppress(ConfigError):
        return name.lower() if is_foreign_to_utf8(name) else None
    return None
