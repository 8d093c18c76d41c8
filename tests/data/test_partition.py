"""What validates is the user's to say, or the folder's."""

import pytest

from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.errors import ConfigError, DataError

TRAIN = "".join(f"training line {i}\n" for i in range(300))
VALID = "".join(f"valid line {i}\n" for i in range(40))
TEST = "".join(f"TEST LINE {i}\n" for i in range(40))


def parts(dataset):
    return tuple(dataset.tokenizer.decode(ids) for ids in (dataset.train, dataset.val))


def test_a_named_file_validates_and_nothing_of_it_trains(write):
    write("train.txt", TRAIN)
    write("valid.txt", VALID)
    done = prepare("train.txt", PrepareOptions(val="valid.txt"))
    assert parts(done.dataset) == (TRAIN, VALID)
    split = done.dataset.meta["split"]
    assert (split["how"], split["val"]) == ("file", "valid.txt")
    assert [file["bytes"] for file in done.dataset.meta["source"]["files"]] == [
        len(TRAIN),
        len(VALID),
    ]
    assert prepare("train.txt", PrepareOptions(val="valid.txt")).skipped
    write("valid.txt", VALID + "more\n")
    again = prepare("train.txt", PrepareOptions(val="valid.txt"))
    assert parts(again.dataset) == (TRAIN, VALID + "more\n")


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
        ("train-00000-of-00001.txt", "validation-00000-of-00001.txt", "test-00000-of-00001.txt"),
        ("train/a.txt", "dev/a.txt", "test/a.txt"),
    ],
)
def test_a_folders_own_files_are_what_their_names_say(write, names):
    for name, text in zip(names, (TRAIN, VALID, TEST), strict=True):
        write(f"wiki/{name}", text)
    write("wiki/README.md", "what this is")
    done = prepare("wiki")
    assert parts(done.dataset) == (TRAIN, VALID)
    said = next(note for note in done.notes if note.startswith("By their names: "))
    assert all(f"wiki/{name}" in said for name in [*names, "README.md"]) and "--val none" in said
    assert done.dataset.meta["counts"]["files left out because of their names"] == 2
    assert prepare("wiki").skipped
    everything = prepare("wiki", PrepareOptions(val="none")).dataset
    assert everything.meta["documents"] == 4 and everything.meta["split"]["how"] == "tail"


def test_test_text_is_left_out_where_no_file_validates(write):
    write("wiki/train.txt", TRAIN)
    write("wiki/test.txt", TEST)
    dataset = prepare("wiki").dataset
    assert "".join(parts(dataset)) == TRAIN and dataset.meta["split"]["how"] == "tail"


def test_a_file_of_the_folder_itself_can_be_named(write):
    for name, text in (("train", TRAIN), ("valid", VALID), ("test", TEST), ("notes", "notes\n")):
        write(f"books/{name}.txt", text)
    everything = prepare("books")  # one file has a name of its own: names mean nothing
    assert everything.dataset.meta["documents"] == 4
    said = next(note for note in everything.notes if note.startswith("All files are taken"))
    assert "books/valid.txt" in said and "books/notes.txt" in said and "--val FILE" in said
    train, val = parts(prepare("books", PrepareOptions(val="books/test.txt")).dataset)
    assert val == TEST and len(train) == len(TRAIN + VALID + "notes\n")


def test_a_files_name_changes_what_it_is_for_and_prepares_again(write, home):
    for name, text in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        write(f"wiki/{name}.txt", text)
    prepare("wiki")
    (home / "wiki/test.txt").rename(home / "wiki/x")
    (home / "wiki/valid.txt").rename(home / "wiki/test.txt")
    (home / "wiki/x").rename(home / "wiki/valid.txt")
    again = prepare("wiki")
    assert not again.skipped and parts(again.dataset) == (TRAIN, TEST)


def test_validation_documents_that_also_train_are_counted(write):
    write("train.txt", TRAIN)
    write("valid.txt", "training line 1\ntraining line 2\nnew\n")
    done = prepare("train.txt", PrepareOptions(val="valid.txt", document="line"))
    assert any("documents that are in the training text too: 2" in note for note in done.notes)
    assert done.dataset.meta["val_documents"] == 3 and done.dataset.meta["train_documents"] == 300


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"val": "valid.txt", "split": "tail"}, ConfigError, "--split has no effect: valid.txt is"),
        ({"val": "valid.txt", "val_fraction": 0.2}, ConfigError, "--val_fraction has no effect"),
        ({"val": "valid.txt", "seed": 1}, ConfigError, "--seed has no effect"),
        ({"val": "none"}, ConfigError, "--val none has no effect here"),
        ({"val": "train.txt"}, DataError, "nothing is left to train on"),
        ({"val": "nothing.txt"}, DataError, r"nothing\.txt does not exist"),
        ({"val": "blank.txt"}, DataError, r"blank\.txt holds no text"),
    ],
)
def test_a_validation_text_that_cannot_be_is_refused_and_leaves_nothing(
    write, home, options, error, sentence
):
    for name, text in (("train", TRAIN), ("valid", VALID), ("blank", "\n \n")):
        write(f"{name}.txt", text)
    with pytest.raises(error, match=sentence):
        prepare("train.txt", PrepareOptions(**options))
    assert not list((home / "data").glob("[!.]*"))


@pytest.mark.parametrize("words", [["train.txt", "valid.txt", "test.txt"], ["*.txt"]])
def test_files_that_are_named_one_by_one_are_what_their_names_say(write, words):
    for name, text in (("train", TRAIN), ("valid", VALID), ("test", TEST)):
        write(f"{name}.txt", text)
    done = prepare(words, PrepareOptions(dataset="wiki"))
    assert parts(done.dataset) == (TRAIN, VALID)
    assert any("test.txt left out (test text)" in note for note in done.notes)
