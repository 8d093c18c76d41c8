"""What stands in a JSON file has its types, or the field that has another one is named."""

import json
from typing import TypedDict

import pytest

from gptlab.errors import RunError
from gptlab.files import write_json
from gptlab.typed_json import Count, Number, misfit, read_form


class Shape(TypedDict):
    size: Count
    share: Number
    places: list[tuple[str, Count]]


GOOD = {"size": 5, "share": 0.5, "places": [["a", 1]]}


@pytest.mark.parametrize(
    "changed",
    [{"size": 0}, {"size": (1 << 63) - 1}, {"share": 5}, {"share": -1e300}, {"places": []},
     {"what a later release adds": [float("nan"), {}, "\ud800"]}],
)  # fmt: skip
def test_what_fits(changed):
    assert misfit({**GOOD, **changed}, Shape) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("size", odd) for odd in (5.0, True, -1, 1 << 63, "5", None, [], float("nan"))),
        *(("share", odd) for odd in (float("nan"), float("inf"), False, "0.5", 10**400, {})),
        *(("places", odd) for odd in ({}, "ab", [["a"]], [["a", 1, 2]], [[1, "a"]], ["a"])),
    ],
)
def test_a_value_of_another_type_is_named_with_its_place(name, value):
    assert f"`$.{name}" in misfit({**GOOD, name: value}, Shape)


def test_a_lone_surrogate_and_a_missing_field_are_named_as_well():
    assert "surrogates" in misfit({**GOOD, "places": "\ud800"}, Shape)
    assert "`share`" in misfit({"size": 5, "places": []}, Shape)


class File(TypedDict, total=False):
    format_version: int
    name: str
    inner: dict[str, str]


def read(path):
    return read_form(path, "documents", File, RunError, "delete it")


def test_a_file_is_read_with_what_this_release_does_not_know_and_null_is_nothing(tmp_path):
    content = {"format_version": 1, "name": None, "inner": {"a": "b"}, "more": [1]}
    write_json(tmp_path / "a.json", content)
    assert read(tmp_path / "a.json") == {"format_version": 1, "inner": {"a": "b"}, "more": [1]}
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", r"a\.json is not valid JSON \(.*\); delete it\.$"),
        ("[1]", r"a\.json holds list, not a JSON object; delete it\.$"),
        ({"name": 5}, r"a\.json is not a documents of gptlab"),
        ({"format_version": 2, "name": 5}, r"a\.json is a documents of format version 2"),
        ({"format_version": 1, "name": 5}, r"a\.json is damaged \(.*`\$\.name`\); delete it\.$"),
        ({"format_version": 1, "inner": {"a": 1}}, r"damaged \(.*`\$\.inner\[.*\); delete it\.$"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_sentence_that_says_what_to_do(tmp_path, content, sentence):
    path = tmp_path / "a.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=sentence):
        read(path)
