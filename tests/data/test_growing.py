"""A text that grows: its ids stay, its old tokens stay, and unknown characters are dealt with."""

import dataclasses
import logging
import os
import re
import shlex

import numpy as np
import pytest

from gptlab.cli.main import main
from gptlab.data import versions
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.token_files import open_dataset
from gptlab.errors import ConfigError, TokenizerError

DIARY = "Monday: rain, and a walk by the river.\n" * 60
TODAY = "Today: coffee for 3 €, naïve\n"


@pytest.fixture
def diary(home):
    """Write the text `diary.txt`; its name."""

    def write(text, name="diary.txt"):
        (home / name).write_text(text, encoding="utf-8")
        return name

    return write


def ids_by_character(dataset):
    return {c: i for i, c in enumerate(dataset.tokenizer.characters) if c}


def decoded(dataset):
    return "".join(dataset.tokenizer.decode(part) for part in (dataset.train, dataset.val))


def test_characters_keep_their_ids_in_a_grown_text_and_new_ones_follow(diary):
    first = prepare(diary(DIARY)).dataset
    before, size = ids_by_character(first), first.vocab_size
    done = prepare(diary(DIARY + TODAY))
    after = ids_by_character(done.dataset)
    assert {c: after[c] for c in before} == before
    new = sorted(set(TODAY) - set(DIARY))
    assert [after[c] for c in new] == list(range(size, size + len(new)))
    assert done.dataset.tokenizer.eot_id == first.tokenizer.eot_id
    assert decoded(done.dataset) == DIARY + TODAY
    said = next(note for note in done.notes if note.startswith("New characters: 6"))
    assert f"with ids from {size} on" in said and "'€' (U+20AC)" in said
    # and once more, with a character that sorts before all of them
    third = prepare(diary(DIARY + TODAY + "!")).dataset
    assert {c: i for c, i in ids_by_character(third).items() if c != "!"} == after


def test_a_learned_vocabulary_stays_in_a_grown_text_unless_it_is_overwritten(diary):
    options = PrepareOptions(tokenizer="bpe", vocab_size=300)
    first = prepare(diary(DIARY), options).dataset
    done = prepare(diary(DIARY + "entirely other words, other words\n" * 60), options)
    assert done.dataset.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert any("as it was (bpe" in note and "--overwrite" in note for note in done.notes)
    anew = prepare("diary.txt", dataclasses.replace(options, overwrite=True)).dataset
    assert anew.tokenizer.fingerprint != first.tokenizer.fingerprint


def test_other_options_learn_another_vocabulary(diary):
    prepare(diary(DIARY))
    assert prepare("diary.txt", PrepareOptions(tokenizer="bpe")).dataset.tokenizer.kind == "bpe"


def test_older_versions_stay_and_open_by_their_fingerprint(diary):
    texts = [DIARY, DIARY + TODAY, DIARY + TODAY + "river\n"]
    seen = [prepare(diary(text)).dataset for text in texts]
    assert [dataset.meta["version"] for dataset in seen] == [1, 2, 3]
    for dataset, text in zip(seen, texts, strict=True):
        again = open_dataset("diary", fingerprint=dataset.fingerprint)
        assert again.fingerprint == dataset.fingerprint and again.name == "diary"
        assert decoded(again) == text
    assert len(versions.older_versions(seen[0].folder)) == 2
    back = prepare(diary(DIARY + TODAY)).dataset  # the last words are deleted again
    assert back.fingerprint == seen[1].fingerprint
    assert len(versions.older_versions(back.folder)) == 2
    gone = versions.forget_versions(back.folder, [seen[0].fingerprint])
    assert [path.name for path in gone] == [seen[2].fingerprint[:16]]
    assert decoded(open_dataset("diary", fingerprint=seen[0].fingerprint)) == DIARY
    versions.forget_versions(back.folder, [])
    assert not (back.folder / "versions").exists() and decoded(open_dataset("diary"))


def test_an_old_version_takes_no_space_but_its_own(diary):
    first = prepare(diary(DIARY)).dataset.folder / "train.bin"
    inode = first.stat().st_ino
    second = prepare(diary(DIARY + TODAY)).dataset
    (kept,) = versions.older_versions(second.folder)
    assert (kept / "train.bin").stat().st_ino == inode


def test_without_hard_links_an_old_version_is_copied(diary, monkeypatch):
    first = prepare(diary(DIARY)).dataset

    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    prepare(diary(DIARY + TODAY))
    assert decoded(open_dataset("diary", fingerprint=first.fingerprint)) == DIARY


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_at_any_rename_loses_no_version(diary, home, monkeypatch, renames):
    first = prepare(diary(DIARY)).dataset
    second = prepare(diary(DIARY + TODAY)).dataset
    rename, done = os.replace, []

    def killed(source, target):
        if os.path.isdir(source):
            if len(done) == renames:
                os.replace = dead
                raise SystemExit
            done.append(target)
        return rename(source, target)

    def dead(*_):  # what a killed process does not do any more
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(versions.shutil, "rmtree", lambda *_, **__: None)
        if renames < 2:
            with pytest.raises(SystemExit):
                prepare(diary(DIARY + TODAY + "third\n"))
        else:  # before the former folder is removed
            prepare(diary(DIARY + TODAY + "third\n"))
    wanted = DIARY + TODAY + ("third\n" if renames == 2 else "")
    assert decoded(open_dataset("diary")) == wanted
    for dataset, text in ((first, DIARY), (second, DIARY + TODAY)):
        assert decoded(open_dataset("diary", fingerprint=dataset.fingerprint)) == text
    assert decoded(prepare("diary.txt").dataset) == DIARY + TODAY + "third\n"


def test_characters_that_a_named_tokenizer_lacks_are_refused_all_at_once(diary, home):
    prepare(diary(DIARY))
    diary(DIARY + TODAY * 2, "d2.txt")
    with pytest.raises(TokenizerError) as caught:
        prepare("d2.txt", PrepareOptions(tokenizer="data/diary"))
    sentence = str(caught.value)
    for character in set(TODAY) - set(DIARY):
        assert repr(character) in sentence
    assert "2 times" in sentence and "--tokenizer bpe" not in sentence
    for way in ("--unknown add", "--unknown drop", "--unknown replace:TEXT"):
        assert way in sentence
    assert sorted(os.listdir(home / "data")) == ["diary"]


def test_the_warning_of_a_changed_text_names_the_command_that_prepares_it(
    diary, home, caplog, monkeypatch
):
    monkeypatch.chdir(home)
    first = prepare(diary(DIARY), PrepareOptions(tokenizer="bpe", vocab_size=300)).dataset
    diary(DIARY + TODAY)
    with caplog.at_level(logging.WARNING, "gptlab"):
        open_dataset("diary")
    (command,) = re.findall(r"`python (.*?)`", caplog.text)
    assert main(shlex.split(command.replace(".py", "", 1))) == 0
    second = open_dataset("diary")
    assert decoded(second) == DIARY + TODAY
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint


@pytest.mark.parametrize(
    ("word", "became"), [("drop", ""), ("replace:?", "?"), ("replace:rain", "rain")]
)
def test_unknown_characters_are_dropped_or_replaced_and_counted(diary, word, became):
    first = prepare(diary(DIARY + "?")).dataset
    diary(DIARY + TODAY + "?", "d2.txt")
    done = prepare("d2.txt", PrepareOptions(tokenizer="data/diary", unknown=word))
    wanted = "".join(c if c in DIARY + "?" else became for c in DIARY + TODAY + "?")
    assert decoded(done.dataset) == wanted
    assert done.dataset.tokenizer.fingerprint == first.tokenizer.fingerprint
    number = sum(c not in DIARY + "?" for c in TODAY)
    assert done.dataset.meta["counts"]["characters that the tokenizer lacks"] == number
    assert any(f"{number:,} ('" in note and "'€' (U+20AC)" in note for note in done.notes)


def test_unknown_characters_get_ids_after_those_of_a_named_tokenizer(diary):
    first = prepare(diary(DIARY)).dataset
    diary(TODAY * 30, "d2.txt")
    options = PrepareOptions(tokenizer="data/diary/tokenizer.json", unknown="add")
    second = prepare("d2.txt", options).dataset
    assert second.tokenizer.extends(first.tokenizer) and decoded(second) == TODAY * 30
    diary(TODAY * 30 + "!\n", "d2.txt")
    third = prepare("d2.txt", options).dataset  # the ids of d2 stay too
    assert third.tokenizer.extends(second.tokenizer) and decoded(third) == TODAY * 30 + "!\n"


def test_a_grown_text_can_keep_its_vocabulary(diary):
    first = prepare(diary(DIARY)).dataset
    diary(DIARY + TODAY)
    second = prepare("diary.txt", PrepareOptions(unknown="drop")).dataset
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    third = prepare("diary.txt").dataset  # and add its new characters later
    assert third.tokenizer.extends(first.tokenizer) and decoded(third) == DIARY + TODAY


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        (dict(unknown="drop"), ConfigError, "learned from the text"),
        (dict(unknown="skip"), ConfigError, "choose add, drop or replace:TEXT"),
        (dict(unknown="drop", tokenizer="data/bpe"), ConfigError, "not one of characters"),
        (dict(unknown="replace:#", tokenizer="data/diary"), TokenizerError, r"'#' \(U\+0023\)"),
    ],
)
def test_an_unknown_without_effect_or_sense_is_refused(diary, home, options, error, sentence):
    prepare(diary(DIARY))
    prepare("diary.txt", PrepareOptions(tokenizer="bpe", dataset="bpe"))
    diary(DIARY + TODAY, "d2.txt")
    with pytest.raises(error, match=sentence):
        prepare("d2.txt", PrepareOptions(**options))
    assert sorted(os.listdir(home / "data")) == ["bpe", "diary"]


def test_ids_are_uint16_beside_grown_ones(diary):
    prepare(diary(DIARY))
    grown = prepare(diary(DIARY + TODAY)).dataset
    assert grown.train.dtype == np.dtype("<u2") and int(grown.val.max()) == grown.vocab_size - 1
