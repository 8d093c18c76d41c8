"""Words in any script: what is one, and what is not."""

import random
import re

import pytest

from gptlab.data.words import spellings_of, whole_words, word_runs, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, O'Neil's 'tis ROMEO: 3 of_them", "don't stop o'neil's tis romeo 3 of them"),
        ("naïve e\u0301te\u0301 Straße", "naïve e\u0301te\u0301 strasse"),
        ("हिन्दी में लिखा है।", "हिन्दी में लिखा है"),
        ("می\u200cخواهم، خوب؟", "می\u200cخواهم خوب"),  # noqa: RUF001
        ("한국어 문장입니다.", "한국어 문장입니다"),
        ("用Python写,你好。", "用 python 写 你 好"),
        ("東京タワーで、ﾃﾚﾋﾞ", "東 京 タ ワ ー で ﾃ ﾚ ﾋ ﾞ"),
        ("ab 👩‍👩‍👧 cd '' …", "ab cd"),
        ("", ""),
    ],
)
def test_words_are_runs_of_letters_marks_and_digits_or_single_characters(text, words):
    assert words_of(text) == words.split(" ") * bool(words)


def test_plain_text_has_the_words_that_a_regular_expression_finds():
    draw = random.Random(3)
    text = "".join(draw.choices("abcXYZ019éß ,.\n-", k=3000))
    assert words_of(text) == re.findall(r"[^\W_]+", text.casefold())


def test_what_is_known_of_a_script_without_spaces_are_neighbours():
    assert spellings_of(word_runs("我喜欢猫, 'cats' 猫")) == ["我喜", "喜欢", "欢猫", "cats", "猫"]


@pytest.mark.parametrize(
    ("text", "begin", "whole"),
    [
        ("one two thr", False, "one two "),
        ("one two.", False, "one two."),
        ("ne two thr", True, " two "),
        ("alone", True, "alone"),
        ("我喜欢", True, "我喜欢"),
        ("", True, ""),
    ],
)
def test_a_cut_text_keeps_its_whole_words(text, begin, whole):
    assert whole_words(text, begin) == whole
