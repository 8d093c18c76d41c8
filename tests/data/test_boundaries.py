"""Cutting a text into documents: nothing is lost, whatever the blocks that it comes in."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data.boundaries import cut_at, cut_paragraphs, documents_of, read_escapes

CUTS = {
    "line": cut_at("\n"),
    "mark": cut_at("|"),
    "long mark": cut_at("ab|"),
    "marks": cut_at("|", "a|b", "ab"),
    "mark or empty lines": cut_at("|", "\n\n"),
    "empty lines": cut_at("\n\n"),
    "paragraph": cut_paragraphs,
}


def documents(cut, blocks):
    return [(lines, "".join(document)) for lines, document in documents_of(cut(blocks))]


@pytest.mark.parametrize("how", CUTS)
@given(st.lists(st.text(alphabet="ab|\n é", max_size=9), max_size=9))
@settings(deadline=None, max_examples=300)
def test_documents_and_separators_are_the_text_whatever_its_blocks(how, blocks):
    cut, text = CUTS[how], "".join(blocks)
    assert "".join(part for part, _ in cut(blocks)) == text
    found = documents(cut, blocks)
    assert found == documents(cut, [text])
    assert found == documents(cut, list(text))
    for lines, document in found:
        start = 0
        for _ in range(lines):
            start = text.index("\n", start) + 1
        assert document in text[start:] and ("mark" in how or text[start:].startswith(document))


@given(st.text(alphabet="ab|\n ", max_size=40))
@settings(deadline=None, max_examples=300)
def test_lines_are_those_of_the_text_without_their_line_ends(text):
    lines = [document for _, document in documents(CUTS["line"], [text])]
    assert lines == (text.removesuffix("\n").split("\n") if text else [])


def test_a_separator_on_a_line_of_its_own_takes_that_line_and_no_more():
    cut = cut_at("<|endoftext|>")
    text = "one\n<|endoftext|>\ntwo\nlines\n<|endoftext|>\nthree"
    assert documents(cut, [text]) == [(0, "one\n"), (2, "two\nlines\n"), (5, "three")]
    assert documents(cut, ["one<|endoftext|>\ntwo"]) == [(0, "one"), (0, "\ntwo")]


def test_paragraphs_end_at_blank_lines_and_keep_their_indentation():
    text = "\n \n  first\nline\n\t\n\n\n  second  \n\n"
    assert documents(cut_paragraphs, [text])[1:] == [(2, "  first\nline"), (7, "  second  ")]


def test_a_text_without_the_separator_streams_by():
    def endless():
        for _ in range(10_000):
            yield "x" * 10_000

    longest = max(len(part) for part, _ in cut_at("<|endoftext|>")(endless()))
    assert longest < 30_000


def test_escapes_are_those_of_a_shell_user():
    assert read_escapes(r"\n\n") == "\n\n" and read_escapes(r"\n---\t") == "\n---\t"
    assert read_escapes("plain") == "plain"
