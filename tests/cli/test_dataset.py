"""`gpt.py dataset`: list, prepare, add, view, delete."""

import io
import re
import shutil

import pytest

from gptlab.cli.commands import dataset as command
from gptlab.cli.main import main, run_command
from gptlab.cli.ui import questions
from gptlab.data.token_files import list_datasets, open_dataset

LINES = "the quick brown fox jumps over the lazy dog, and line {n} is about something else {m}\n"


@pytest.fixture
def words(home, capsys):
    """A text of its own, prepared as "words"."""
    text = "".join(LINES.format(n=n * 7919, m=n * n) for n in range(200))
    (home / "words.txt").write_text(text, encoding="utf-8")
    assert main(["dataset", "add", "words.txt"]) == 0
    capsys.readouterr()
    return home


@pytest.fixture
def at_terminal(monkeypatch):
    """Type these lines; a person is at the terminal."""

    def at_terminal(*lines):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr(questions, "at_terminal", lambda: True)

    return at_terminal


@pytest.mark.parametrize("word", [["add"], ["prepare"], []])
def test_a_text_is_prepared_with_or_without_the_word(home, capsys, word):
    (home / "a text.txt").write_text("so it goes, on and on and on\n" * 40, encoding="utf-8")
    argv = ["dataset", *word, "a text.txt", "--tokenizer", "char", "--dataset", "mine"]
    assert main(argv) == 0
    assert "data/mine" in capsys.readouterr().out
    assert open_dataset("mine").tokenizer.kind == "char"


def test_the_list_shows_size_and_source(words, capsys):
    assert main(["dataset", "list"]) == 0
    listed = capsys.readouterr().out
    assert main(["dataset", "--list"]) == 0
    assert capsys.readouterr().out == listed
    assert re.search(r"words .* tokens +char", listed) and "words.txt" in listed


@pytest.mark.parametrize(
    ("argv", "words_of_it"),
    [
        (["add"], "needs a text"),
        (["view"], "prepared here: words"),
        (["view", "nope"], "words"),
        (["view", "words", "nope"], "takes one name"),
        (["delete", "nope", "--yes"], "words"),
        (["delete", "../words", "--yes"], "no prepared dataset"),
        (["delete", "words"], "--yes"),
        (["view", "words", "--tokenizer", "char"], "--tokenizer"),
        (["add", "words.txt", "--yes"], "--yes"),
        (["view", "words", "--top", "-1"], "from 0 on"),
        (["add", "nowhere.txt"], "does not exist"),
        ([], "dataset list"),
        (["view", "words", "--topp", "3"], "did you mean top"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_changes_nothing(words, capsys, argv, words_of_it):
    assert main(["dataset", *argv]) == 2
    error = capsys.readouterr().err
    assert words_of_it in error and "Traceback" not in error
    assert [name for name, _ in list_datasets()] == ["words"]


def test_the_view_says_numbers_tokens_and_excerpts(words, capsys):
    assert main(["dataset", "view", "words", "--top", "3", "--excerpts", "2"]) == 0
    shown = capsys.readouterr().out
    dataset = open_dataset("words")
    for part in (f"{len(dataset.train):,} tokens", f"{dataset.vocab_size} ids", "bytes per token",
                 "lzma", "Excerpt 2", "Validation:"):  # fmt: skip
        assert part in shown, part
    assert shown.count("Excerpt") == 2 and "\x1b" not in shown
    frequent = re.findall(r"│ +\d+ │ (.+?) +│ +[\d,]+ │ +[\d.]+% │", shown)
    assert len(frequent) == 3 and frequent[0] == "␣"


def test_excerpts_read_as_the_text_and_colours_show_the_tokens_of_bpe(
    words, home, capsys, monkeypatch
):
    view = ["dataset", "view", "words", "--top", "0", "--excerpts", "1"]
    main(view)
    plain = capsys.readouterr().out
    excerpt = plain[plain.index("Excerpt 1") :].split("\n\n")[0].splitlines()[1:]
    assert len(excerpt) > 1
    for line in excerpt:
        assert line.startswith("  ") and line.strip() in (home / "words.txt").read_text()
    main(["dataset", "add", "words.txt", "--dataset", "pieces", "--tokenizer", "bpe"])
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "90")
    main(view)
    assert "103m" not in capsys.readouterr().out  # each character is a token: no colours
    main(["dataset", "view", "pieces", "--top", "0", "--excerpts", "1"])
    coloured = capsys.readouterr().out
    neighbours = re.findall(r"\x1b\[30;(\d+)m[^\x1b]+\x1b\[0m(?=\x1b\[30;(\d+)m)", coloured)
    assert neighbours and all(first != second for first, second in neighbours)
    monkeypatch.setenv("NO_COLOR", "1")
    main(["dataset", "view", "pieces", "--top", "0", "--excerpts", "1"])
    assert "103m" not in capsys.readouterr().out


def test_characters_in_parts_are_shown_whole(home, capsys):
    """A BPE of 260 ids has no token for a Chinese character, only its bytes."""
    (home / "zh.txt").write_text("天气很好。我们去公园。\n" * 200, encoding="utf-8")
    main(["dataset", "add", "zh.txt", "--tokenizer", "bpe", "--vocab_size", "260"])
    main(["dataset", "view", "zh", "--top", "0"])
    shown = capsys.readouterr().out
    assert "天气很好。我们去公园。" in shown


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b" the", "␣the"),
        (b"\n\t\r", "↵⇥␍"),
        ("é".encode(), "é"),
        ("🌲".encode()[:2], "<F0><9F>"),
        (b"\x00\x1b[31m", "<U+0000><U+001B>[31m"),
        ("\u200b".encode(), "<U+200B>"),
        (b"[bold]", "[bold]"),
    ],
)
def test_a_token_is_shown_so_that_every_byte_can_be_seen(data, shown):
    assert command.shown_token(data) == shown


def test_markup_in_a_text_is_shown_as_it_is(home, capsys):
    (home / "m.txt").write_text("[bold red]x[/bold red] [link] :smile:\n" * 60, encoding="utf-8")
    main(["dataset", "add", "m.txt", "--tokenizer", "bpe", "--vocab_size", "300"])
    capsys.readouterr()
    assert main(["dataset", "view", "m"]) == 0
    shown = capsys.readouterr().out
    assert ":smile:" in shown and "[link" in shown.replace("|", "")


def test_validation_text_in_the_training_text_is_a_warning(home, capsys):
    text = "".join(LINES.format(n=n * 7919, m=n * n) for n in range(60))
    (home / "twice.txt").write_text(text * 2, encoding="utf-8")
    main(["dataset", "add", "twice.txt", "--tokenizer", "char"])
    capsys.readouterr()
    assert main(["dataset", "view", "twice"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    found = re.search(r"of the validation tokens \((.*)%\) stand in passages of 64 char", shown)
    assert float(found[1]) > 98


def test_documents_that_repeat_are_counted(home, capsys):
    (home / "books").mkdir()
    for number in range(12):
        text = LINES.format(n=number % 5, m=0) * 20
        (home / "books" / f"{number}.txt").write_text(text, encoding="utf-8")
    main(["dataset", "add", "books", "--split", "document"])
    capsys.readouterr()
    main(["dataset", "view", "books"])
    assert "Repeated documents: 7 of 12" in " ".join(capsys.readouterr().out.split())


def test_a_damaged_dataset_is_refused_with_its_name(words, capsys):
    (words / "data" / "words" / "train.bin").write_bytes(b"12")
    assert main(["dataset", "view", "words"]) == 2
    assert "train.bin" in capsys.readouterr().err


# Deleting


@pytest.mark.parametrize(("line", "stays"), [("", True), ("n", True), ("y", False)])
def test_a_dataset_is_deleted_only_after_a_yes(words, at_terminal, capsys, line, stays):
    at_terminal(line)
    assert main(["dataset", "delete", "words"]) == int(stays)
    assert (words / "data" / "words" / "train.bin").exists() is stays
    assert not stays or "Nothing was deleted" in capsys.readouterr().out


def test_with_yes_nothing_is_asked_and_nothing_is_left(words):
    assert main(["dataset", "delete", "words", "--yes"]) == 0
    assert list_datasets() == []
    assert not any("words" in path.name for path in (words / "data").iterdir())


def test_files_of_others_are_named_before_they_go(words, at_terminal, capsys):
    (words / "data" / "words" / "notes.txt").write_text("mine", encoding="utf-8")
    at_terminal("n")
    main(["dataset", "delete", "words"])
    assert "notes.txt" in capsys.readouterr().out


def test_of_a_link_only_the_link_is_deleted(words, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "words"
    shutil.move(words / "data" / "words", elsewhere)
    (words / "data" / "words").symlink_to(elsewhere)
    assert main(["dataset", "delete", "words", "--yes"]) == 0
    assert (elsewhere / "train.bin").exists() and list_datasets() == []


# Asking


def test_the_questions_add_a_dropped_file_view_it_and_leave(home, at_terminal, capsys):
    (home / "my text.txt").write_text("it goes on and on\n" * 60, encoding="utf-8")
    at_terminal("add", "no such file", "'my text.txt'", "view", "1", "view", "b", "1")
    assert main(["dataset"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "does not exist" in shown and "Most frequent tokens" in shown
    assert [name for name, _ in list_datasets()] == ["my_text"]


def test_with_nothing_prepared_there_is_nothing_to_view(home, at_terminal, capsys):
    at_terminal("view", "leave")
    assert main(["dataset"]) == 0
    assert "Nothing is prepared yet" in " ".join(capsys.readouterr().out.split())


def test_the_root_script_never_asks(words, capsys):
    assert run_command("prepare", ["words.txt"]) == 0
    assert "nothing to do" in capsys.readouterr().out
