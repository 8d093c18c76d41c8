"""What a text holds that its reader may not know of: marks, invisible characters, two spellings."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from gptlab.data.cleaning import invisible, name_all, respelled
from gptlab.data.text_store import TextStore
from gptlab.data.tokenizer import CharTokenizer, Tokenizer

# <|endoftext|> and its like anywhere; </s> only at the end of a line, or it may be HTML
_MARK = re.compile(r"<\|[A-Za-z][\w ]{1,30}\|>|<(?:eos|bos|eot|sep)>|</s>$", re.MULTILINE)
_LONGEST_MARK = 36
# A line of one mark, as people draw it between two texts; fortune files have a lone %.
_RULE = re.compile(r"(?<=\n)(?:([=\-*_~#%+])\1{2,30}|%)(?=\n)")
# A letter of two bytes of UTF-8, or a quotation mark of three, read as Latin-1 or cp1252.
_DECODED_TWICE = re.compile("[\u00c2\u00c3][\x80-\xbf]|\u00e2(?:\u20ac.|\x80[\x80-\xbf])")
_MANY = 10  # fewer may be meant
_SHORT_LINE, _MANY_LINES = 30, 100  # characters on average, in so many lines: names, words
_IN_CHATS = re.compile(r"<\|(?:im_|user|assistant|system|start_header|end_header|eot_id)")


@dataclass(frozen=True)
class Survey:
    """characters: how often each occurs. marks: of documents or chats, written out in the text.
    decomposed: letters that are written as a letter and its marks, or as an old twin of a letter.
    decoded_twice: what UTF-8 looks like where it was read as another encoding. rules: lines of one
    repeated mark. blank_lines, documents: how many there are.
    """

    characters: Counter = field(default_factory=Counter)
    marks: Counter = field(default_factory=Counter)
    decomposed: Counter = field(default_factory=Counter)
    decoded_twice: Counter = field(default_factory=Counter)
    rules: Counter = field(default_factory=Counter)
    blank_lines: int = 0
    documents: int = 1


def survey(store: TextStore, progress: Callable[[int], None] = lambda _: None) -> Survey:
    """Read the whole text once; progress is called with the bytes done since the last call."""
    codes = np.zeros(0x110000, np.int64)
    marks, decomposed, twice, rules = Counter(), Counter(), Counter(), Counter()
    before, blank = "", 0
    for text in store.texts():
        found = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        codes += np.bincount(found, minlength=len(codes))
        decomposed += respelled(text)
        if not text.isascii():
            twice.update(_DECODED_TWICE.findall(text))
        whole = before + text
        rules.update(m[0] for m in _RULE.finditer(whole) if m.end() >= len(before))
        blank += text.count("\n\n") + (text[:1] == "\n" == before[-1:])
        if "<" in whole:
            marks.update(m[0] for m in _MARK.finditer(whole) if m.end() > len(before))
        before = text[-_LONGEST_MARK:]
        progress(len(text.encode()))
    characters = {chr(code): int(codes[code]) for code in np.flatnonzero(codes)}
    return Survey(
        Counter(characters), marks, decomposed, twice, rules, blank, documents=store.documents
    )


def remarks(found: Survey, separators: tuple[str, ...] = ()) -> list[str]:
    """A line for each kind of thing that was found, with the option that mends it."""
    lines = []
    marks = Counter({mark: n for mark, n in found.marks.items() if mark not in separators})
    if marks:
        lines.append(_marks_remark(marks, separators))
    elif not separators:
        lines += _documents_remarks(found)
    if hidden := invisible(found.characters):
        lines.append(f"Invisible characters in the text: {name_all(hidden)}; --clean drops them.")
    if found.decoded_twice.total() >= _MANY:
        sample, number = found.decoded_twice.most_common(1)[0]
        lines.append(
            "Letters that look decoded twice (UTF-8 read as another encoding): "
            f"{found.decoded_twice.total():,}, such as {sample!r} ({number:,} times); correct the "
            "text first, or the model learns them like this."
        )
    if found.decomposed:
        lines.append(_spelling_remark(found))
    return lines


def _marks_remark(marks: Counter, separators: tuple[str, ...]) -> str:
    frequent = marks.most_common(4)
    named = ", ".join(f"{number:,} {mark}" for mark, number in frequent)
    if len(marks) > len(frequent):
        named += f" and {len(marks) - len(frequent)} others"
    remark = f"The text contains marks, which are learned as plain characters: {named}"
    ends = [mark for mark, _ in frequent if not _IN_CHATS.match(mark)]
    if not ends:
        return f"{remark}; a chat is prepared from rows with messages (docs/FINETUNE.md)."
    options = " ".join(f"--separator '{mark}'" for mark in [*separators, *ends])
    return f"{remark}; {options} makes what is between them a document."


def _documents_remarks(found: Survey) -> Iterator[str]:
    """What the lines of a text show of its documents, with the option that cuts there."""
    rule, number = next(iter(found.rules.most_common(1)), ("", 0))
    lines, characters = found.characters["\n"], found.characters.total()
    if number >= _MANY:
        yield (
            f"Lines of {rule} stand in the text: {number:,}; --separator '\\n{rule}\\n' makes a "
            "document of what stands between them."
        )
    elif (
        lines >= max(_MANY_LINES, 20 * found.documents)
        and characters <= _SHORT_LINE * lines
        and not found.blank_lines
    ):
        yield (
            f"The text is {lines:,} short lines, {characters / lines:.0f} characters on average, "
            "without a blank one; if each stands for itself, as names do, --document line makes "
            "each line a document."
        )


def _spelling_remark(found: Survey) -> str:
    spelled, number = found.decomposed.most_common(1)[0]
    composed = {unicodedata.normalize("NFC", each) for each in found.decomposed}
    others = sum(found.characters[each] for each in composed)
    codes = " + ".join(f"U+{ord(character):04X}" for character in spelled)
    remark = (
        f"Letters that are not in Unicode's composed form: {found.decomposed.total():,}, such as "
        f"{unicodedata.normalize('NFC', spelled)} as {codes} ({number:,} times)"
    )
    if others:
        remark += f"; {others:,} of the same letters are composed, so each is learned twice"
    return f"{remark}. --normalize nfc composes all of them, as keyboards do."


def unknown_characters(found: Survey, tokenizer: Tokenizer) -> Counter:
    """The characters of the text that a tokenizer of characters lacks, with their counts."""
    if not isinstance(tokenizer, CharTokenizer):
        return Counter()
    known = set(tokenizer.alphabet)
    return Counter({c: number for c, number in found.characters.items() if c not in known})
