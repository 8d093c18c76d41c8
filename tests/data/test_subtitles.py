"""Subtitles and transcripts of meetings, films and songs."""

import pytest

from gptlab.data.corpora import find
from gptlab.data.text_files import Reading


def read(path):
    reading = Reading()
    source = find([str(path)], None, lambda _: None, how=reading)
    return "".join(next(source.documents(reading)))


MEETING = "WEBVTT\n\n" + "".join(
    f"4f{i}a-b-0\n00:0{i}:01.000 --> 00:0{i}:02.000\n<v Ann Smith>sentence {i}</v>\n\n"
    for i in range(3)
)
ALPHA = "[Script Info]\nTitle: x\n\n[Events]\nFormat: Layer, Start, End, Text\n" + "".join(
    f"Dialogue: 0,0:00:0{i}.00,0:00:09.00,Default,,0,0,0,,{{\\i1}}Well, line {i}\\Nnext {i}\n"
    for i in range(2)
)
LYRICS = "[ti:A song]\n[00:01.00]line one\n[00:02.50][00:09.00]chorus\n[00:03]\n[01:04.00]end\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (MEETING, "Ann Smith: sentence 0\nAnn Smith: sentence 1\nAnn Smith: sentence 2\n"),
        (ALPHA, "Well, line 0\nnext 0\nWell, line 1\nnext 1\n"),
        (LYRICS, "line one\nchorus\nend\n"),
        ("[ti:A poem]\nno times\nin here\n", "[ti:A poem]\nno times\nin here\n"),
    ],
)
def test_what_is_said_or_sung_is_read_without_times_and_names_of_cues(tmp_path, content, expected):
    path = tmp_path / "x.txt"
    path.write_bytes(content.replace("\n", "\r\n").encode("utf-8-sig"))
    assert read(path) == expected
    path.write_bytes(content.encode("utf-16"))
    assert read(path) == expected
