"""Text that must not be written: found by its bytes, whichever tokens spell it."""

from hypothesis import given
from hypothesis import strategies as st

from gptlab.inference.token_bias import BannedText

short = st.text("ab\u00e9", max_size=5)


@given(st.lists(short.filter(bool), min_size=1, max_size=3), short, st.lists(st.binary(max_size=3)))
def test_a_banned_word_is_seen_when_its_last_byte_comes_and_never_before(words, before, pieces):
    banned, text = BannedText(words, before.encode()), before.encode()
    for piece in pieces:
        ends = {n for w in words for n in range(len(text) + 1, len(text + piece) + 1)
                if (text + piece)[:n].endswith(w.encode())}  # fmt: skip
        assert banned.would_appear(piece) == bool(ends)
        banned.add(piece)
        text += piece


@given(st.lists(short.filter(bool), min_size=1, max_size=3), short)
def test_a_text_without_the_words_is_never_stopped(words, text):
    banned = BannedText(words)
    free = not any(word in text for word in words)
    seen = False
    for character in text:
        seen |= banned.would_appear(character.encode())
        banned.add(character.encode())
    assert seen != free
