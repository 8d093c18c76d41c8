"""What is said in subtitles and transcripts: SubRip, WebVTT, SubStation Alpha, timed lyrics."""

import re
from collections.abc import Iterator
from pathlib import Path

from gptlab.data.text_files import Reading, lines, text_blocks

_TIME = r"(?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3}"
_CUE = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}")
_CUE_TAGS = re.compile(r"</?(?:[ibuc]|font|v|lang|ruby|rt|\d)\b[^<>]*>|\{\\[^{}]*\}|<\d[\d:.]*>")
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^<>]+)>")  # who speaks, in WebVTT
_LYRICS = re.compile(r"\[\d{1,3}:\d{2}(?:[.:]\d{1,3})?\]")
_ALPHA = "Dialogue:"
_ALPHA_FIELDS = 9  # before the text of a dialogue


def looks_like_subtitles(head: str) -> bool:
    """Whether a text begins as such files do."""
    first = [line.strip() for line in head[:4000].split("\n") if line.strip()]
    if not first or first[0].startswith("WEBVTT") or first[0] == "[Script Info]":
        return bool(first)
    if first[0].isdigit() and len(first) > 1:
        return bool(_CUE.match(first[1]))
    lyrics = [line for line in first if not re.match(r"\[[a-z#]+:", line)]
    return len(lyrics) > 2 and all(map(_LYRICS.match, lyrics[:-1]))  # the last may be cut


def subtitle_blocks(path: Path, reading: Reading, name: str = "") -> Iterator[str]:
    """What is said, a line each, without times, styles and lines that repeat the last one."""
    reading.counts["files of subtitles read without their time codes"] += 1
    source = lines(text_blocks(path, reading, name))
    first = next(source, "")
    if first.strip() == "[Script Info]":
        said = _of_alpha(source)
    elif first.startswith("[") and not _CUE.match(first):
        said = (_LYRICS.sub("", line) for line in [first, *source] if _LYRICS.match(line))
    else:
        said = _of_cues(first, source)
    before = ""
    for line in said:
        text = _CUE_TAGS.sub("", _VOICE.sub(r"\1: ", line)).strip()
        if text and text == before:
            reading.counts["subtitle lines that repeat the one before left out"] += 1
        elif text:
            before = text
            yield text + "\n"


def _of_alpha(source: Iterator[str]) -> Iterator[str]:
    """The texts of SubStation Alpha (.ass, .ssa)."""
    for line in source:
        fields = line.split(",", _ALPHA_FIELDS)
        if line.startswith(_ALPHA) and len(fields) > _ALPHA_FIELDS:
            yield from re.split(r"\\[Nn]", fields[-1])


def _of_cues(first: str, source: Iterator[str]) -> Iterator[str]:
    """The lines of SubRip or WebVTT without times, names of cues and what is above the first."""
    held = None  # a line that names a cue if a time follows: a number, or behind an empty line
    is_header = first.startswith("WEBVTT")
    is_after_blank = True
    for line in source if is_header else [first, *source]:
        line = line.strip()
        if _CUE.match(line):
            held, is_header, is_after_blank = None, False, False
            continue
        if not line:
            is_header, is_after_blank = False, True
            continue
        if is_after_blank and line.split(" ")[0] in ("NOTE", "STYLE", "REGION"):
            is_header = True
        if held is not None:
            yield held
            held = None
        if not is_header:
            held = line if is_after_blank or line.isdigit() else None
            if held is None:
                yield line
        is_after_blank = False
    if held is not None:
        yield held
