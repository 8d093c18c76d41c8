"""What is changed in a text is asked for, counted and named; nothing else is changed."""

import random
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab.data import gutenberg
from gptlab.data.boundaries import documents_of
from gptlab.data.cleaning import name_all, normalized, respelled, without_invisible
from gptlab.data.documents import places
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.errors import ConfigError, TokenizerError

LETTERS = "aé e\u0301\u0327\u0323\u1100\u1161\u11a8\u30cf\u3099\n森Å\u212b\u0627\u0654"
BLOCKS = st.lists(st.text(alphabet=LETTERS, max_size=5), max_size=12)
START = "*** START OF THE PROJECT GUTENBERG EBOOK TITLE ***\n\n"
END = "*** END OF THE PROJECT GUTENBERG EBOOK TITLE ***\n"
FRENCH = "Le café était fermé à Noël, où l'été finit; ça va là-bas, naïve élève.\n" * 60


def decoded(dataset):
    return "".join(dataset.tokenizer.decode(part) for part in (dataset.train, dataset.val))


@pytest.mark.parametrize("form", ["nfc", "nfkc"])
@given(BLOCKS)
@settings(deadline=None, max_examples=400)
def test_blocks_are_normalised_and_counted_as_one_text(form, blocks):
    text, counts, at_once = "".join(blocks), Counter(), Counter()
    found = "".join(normalized(blocks, form, counts))
    assert found == unicodedata.normalize(form.upper(), text)
    list(normalized([text], form, at_once))
    assert counts == at_once and (found == text) == (not counts)


@given(st.lists(st.text(alphabet="a\n\t\x00\x07\u00ad\u200b\u200d\ufeff", max_size=9)))
def test_what_is_dropped_and_what_is_kept_is_the_text(blocks):
    dropped = Counter()
    kept = Counter("".join(without_invisible(blocks, dropped)))
    assert kept + dropped == Counter("".join(blocks))
    assert set(kept) <= set("a\n\t\u200d")


def test_letters_of_two_spellings_are_counted_and_made_one(write):
    half = unicodedata.normalize("NFD", FRENCH[:2000]) + FRENCH[2000:]
    write("mixed.txt", half)
    mixed = prepare("mixed.txt")
    said = next(note for note in mixed.notes if "composed form" in note)
    assert f"{sum(respelled(half).values()):,}" in said and "U+0065 + U+0301" in said
    assert "learned twice" in said and "--normalize nfc" in said
    assert decoded(mixed.dataset) == half  # nothing is changed unasked
    one = prepare("mixed.txt", PrepareOptions(normalize="nfc"))
    assert decoded(one.dataset) == FRENCH
    assert not any("composed form" in note for note in one.notes)
    count = one.dataset.meta["counts"]["letters spelled otherwise (normalised)"]
    assert count == sum(respelled(half).values())
    assert prepare("mixed.txt", PrepareOptions(normalize="nfc")).skipped


def test_a_prompts_letter_names_the_other_spelling_of_the_text(write):
    write("mac.txt", unicodedata.normalize("NFD", FRENCH))
    with pytest.raises(TokenizerError, match=r"spells é as U\+0065 \+ U\+0301: .*normalize nfc"):
        prepare("mac.txt").dataset.tokenizer.encode("café")
    write("pc.txt", FRENCH)
    with pytest.raises(TokenizerError, match=r"spells é as U\+00E9: spell it so \(Unicode NFC\)"):
        prepare("pc.txt").dataset.tokenizer.encode("cafe\u0301")


def test_invisible_characters_are_counted_by_name_wherever_they_stand_and_dropped(write):
    text = "plain text of some length\n" * 5000
    dirty = text[:70_000] + "\0" + text[70_000:80_000] + "\u200b\u00ad\u00ad" + text[80_000:]
    write("dirty.txt", dirty)
    kept = prepare("dirty.txt")
    said = next(note for note in kept.notes if note.startswith("Invisible characters"))
    assert "2 SOFT HYPHEN (U+00AD), 1 ZERO WIDTH SPACE (U+200B); --clean" in said
    assert decoded(kept.dataset) == dirty.replace("\0", "")  # which no text has, so it goes always
    assert kept.dataset.meta["counts"] == {"NUL characters removed": 1}
    clean = prepare("dirty.txt", PrepareOptions(clean=True))
    assert decoded(clean.dataset) == text
    assert clean.dataset.meta["counts"] == {
        "NUL characters removed": 1, "invisible characters dropped": 3,
    }  # fmt: skip
    assert any("dropped: 2 SOFT HYPHEN" in note for note in clean.notes)


def test_marks_in_a_text_are_named_with_the_option_that_cuts_there(write):
    write("s.txt", "\n<|endoftext|>\n".join(f"story {i} is short" for i in range(60)))
    notes = prepare("s.txt").notes
    said = next(note for note in notes if "contains marks" in note)
    assert "59 <|endoftext|>;" in said and "--separator '<|endoftext|>'" in said
    again = prepare("s.txt", PrepareOptions(separator=("<|endoftext|>",)))
    assert not any("contains marks" in note for note in again.notes)
    assert again.dataset.meta["documents"] == 60


@pytest.mark.parametrize("rule", ["=====", "---", "%", "* * *"])
def test_lines_that_people_draw_between_texts_are_named_with_the_option(write, rule):
    write("s.txt", f"\n{rule}\n".join(f"Story {i} is of\ntwo lines.\n" for i in range(60)))
    said = [note for note in prepare("s.txt").notes if note.startswith("Lines of")]
    if " " in rule:  # not one mark
        assert not said
        return
    assert said == [
        f"Lines of {rule} stand in the text: 59; --separator '\\n{rule}\\n' makes a document of "
        "what stands between them."
    ]
    again = prepare("s.txt", PrepareOptions(separator=(f"\\n{rule}\\n",), overwrite=True))
    assert not any(note.startswith("Lines of") for note in again.notes)
    assert again.dataset.meta["documents"] == 60


def test_names_one_a_line_are_noticed_and_verse_is_not(write):
    names = [f"Anna {i}" for i in range(300)]
    write("names.txt", "\n".join(names) + "\n")
    assert any("300 short lines, 9 characters" in note for note in prepare("names.txt").notes)
    done = prepare("names.txt", PrepareOptions(document="line", overwrite=True))
    assert done.dataset.meta["documents"] == 300
    assert not any("short lines" in note for note in done.notes)
    write("verse.txt", "\n\n".join("\n".join(names[i : i + 4]) for i in range(0, 300, 4)))
    assert not any("short lines" in note for note in prepare("verse.txt").notes)


def test_all_unknown_characters_are_named_at_once_with_their_counts(write, home):
    write("a.txt", "plain words\n" * 60)
    prepare("a.txt", PrepareOptions(tokenizer="char"))
    write("b.txt", "plain words\n" * 60 + "3 € § 33")
    with pytest.raises(TokenizerError) as refusal:
        prepare("b.txt", PrepareOptions(tokenizer="data/a"))
    for part in (
        "The characters '3' (U+0033) at b.txt:61, 3 times;",
        "'€' (U+20AC)",
        "'§' (U+00A7)",
    ):
        assert part in str(refusal.value)
    assert [p.name for p in (home / "data").iterdir() if p.name[0] != "."] == ["a"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"normalize": "nfc"}, "--normalize has no effect: the text is spelled so already"),
        ({"clean": True}, "--clean has no effect: no character of the text is invisible"),
        ({"gutenberg": "keep"}, "--gutenberg keep has no effect: the text has no header"),
    ],
)
def test_a_cleaning_without_effect_is_refused(write, options, sentence):
    write("t.txt", FRENCH)
    with pytest.raises(ConfigError, match=sentence):
        prepare("t.txt", PrepareOptions(**options))


# Project Gutenberg --------------------------------------------------------------------------------


def test_headers_and_licences_are_cut_and_the_lines_stay_true(write):
    book = "".join(f"line {i} of the book\n" for i in range(1, 300))
    header, licence = "The eBook of Title\n" * 20, "You may copy it\n" * 900
    write("pg.txt", header + START + book + END + licence)
    done = prepare("pg.txt")
    assert decoded(done.dataset) == book and done.dataset.meta["documents"] == 1
    cut = len(header + START + END + licence)
    assert any(
        note == f"Project Gutenberg: 1 header and 1 licence cut ({cut:,} characters); "
        "--gutenberg keep leaves them in."
        for note in done.notes
    )
    assert str(places(done.dataset, [0])[0]) == "pg.txt:23"
    assert prepare("pg.txt").skipped
    kept = prepare("pg.txt", PrepareOptions(gutenberg="keep"))
    assert decoded(kept.dataset) == header + START + book + END + licence


def test_books_in_one_file_are_documents_without_what_stands_between(write):
    books = [f"book {i}\n" * 200 for i in range(3)]
    write("all.txt", "".join("header\n" + START + book + END + "licence\n" * 50 for book in books))
    dataset = prepare("all.txt").dataset
    assert decoded(dataset) == "".join(books) and dataset.meta["documents"] == 3


def test_a_text_that_goes_on_after_the_mark_is_kept(write):
    text = "a line of a diary that quotes much\n" * 3000
    write("diary.txt", text[:35_000] + END + text[35_000:])
    assert decoded(prepare("diary.txt").dataset) == text[:35_000] + END + text[35_000:]


def test_any_blocks_of_a_text_give_the_same_books_and_lose_nothing(monkeypatch):
    monkeypatch.setattr(gutenberg, "MOST_CHARACTERS", 400)
    rng = random.Random(0)
    for _ in range(500):
        lines = ["some line of text\n" * rng.randint(1, 40), START, END, "x\n"]
        text = "".join(rng.choices(lines, k=rng.randint(1, 6)))
        cuts = sorted(rng.choices(range(len(text)), k=8))
        blocks = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        results = []
        for given_blocks in (blocks, [text]):
            counts = Counter()
            parts = list(gutenberg.without_licence(given_blocks, counts))
            assert "".join(part for part, _ in parts) == text
            assert counts["characters"] == sum(len(part) for part, is_text in parts if not is_text)
            results.append(([(n, "".join(d)) for n, d in documents_of(parts)], counts))
        assert results[0] == results[1]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_sequences_for_a_terminal_are_dropped_whole(size):
    text = "\x1b[1;31mred\x1b[0m plain\x1b[K [0m stays\x1b"
    dropped = Counter()
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    assert "".join(without_invisible(blocks, dropped)) == "red plain [0m stays"
    assert dropped == {"\x1b[": 3, "\x1b": 1}
    assert "3 SEQUENCE FOR A TERMINAL" in name_all(dropped)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_text_that_was_decoded_twice_is_said(write, encoding):
    text = "Grüße an Zoë \u2013 schön\n" * 60
    write("x.txt", text.encode().decode(encoding).encode())
    notes = prepare("x.txt", PrepareOptions()).notes
    assert any("decoded twice" in note and "'Ã" in note for note in notes), notes
    write("y.txt", (text + "«café» NÃO Â»\n") * 3)
    assert not any("twice" in note for note in prepare("y.txt", PrepareOptions()).notes)
