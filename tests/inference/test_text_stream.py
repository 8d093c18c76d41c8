import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.inference.text_stream import TextStream


def cut(data: bytes, places) -> list[bytes]:
    """`data` in pieces, cut at these places."""
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def streamed(pieces, stops=()) -> list[str]:
    stream = TextStream(tuple(stops))
    return [stream.feed(piece) for piece in pieces] + [stream.close()]


def stopped_by_hand(text: str, stops) -> str:
    """One character after the other, until the text ends in a stop string."""
    for end in range(1, len(text) + 1):
        matches = [stop for stop in stops if text[:end].endswith(stop)]
        if matches:
            return text[: end - max(map(len, matches))]
    return text


@given(st.text(max_size=30), st.lists(st.integers(0, 200)))
@settings(max_examples=100, deadline=None)
def test_any_cut_of_any_text_streams_to_the_text(text, places):
    pieces = streamed(cut(text.encode(), places))
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text


@given(st.binary(max_size=30), st.lists(st.integers(0, 200)))
@settings(max_examples=200, deadline=None)
def test_bytes_that_are_no_text_become_replacement_marks_as_in_a_whole_decode(data, places):
    # the final letter decides all bytes before it
    pieces = streamed(cut(data + b"x", places))
    assert "".join(pieces) == (data + b"x").decode("utf-8", errors="replace")


def test_half_a_character_at_the_end_is_not_shown():
    flag = "🏳️‍🌈"
    for end in range(len(flag.encode())):
        text = "".join(streamed([bytes([b]) for b in flag.encode()[:end]]))
        assert flag.startswith(text) and "\ufffd" not in text


@given(
    st.text(alphabet="ab\n", max_size=20),
    st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 200)),
)
@settings(max_examples=200, deadline=None)
def test_text_ends_exactly_before_a_stop_string_however_it_is_cut(text, stops, places):
    assert "".join(streamed(cut(text.encode(), places), stops)) == stopped_by_hand(text, stops)


def test_nothing_of_a_stop_string_is_shown_while_it_is_undecided():
    stream = TextStream(("\n\nEND", "\nB"))
    assert [stream.feed(c.encode()) for c in "a\n\nEN"] == ["a", "", "", "", ""]
    assert stream.feed(b"x") == "\n\nENx"
    assert not stream.stopped
    assert stream.feed(b"y\nB") == "y" and stream.stopped
    assert stream.feed(b"more") == "" and stream.close() == ""


def test_a_beginning_that_stays_one_is_shown_at_the_end():
    assert streamed([b"Hello EN"], ["END"]) == ["Hello ", "EN"]


def test_the_stop_string_that_is_complete_first_counts_also_inside_one_piece():
    assert streamed([b"xabcdy"], ["abcd", "bc"]) == ["xa", ""]
    assert streamed([b"xabcdy"], ["bcd", "abcd"]) == ["x", ""]
