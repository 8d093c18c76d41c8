"""Questions: the default, the explanation, the way back, and every wrong answer."""

import io
import os
from pathlib import Path

import pytest

from gptlab.cli.ui import questions
from gptlab.cli.ui.questions import Back, MenuItem
from gptlab.errors import ConfigError

CHOICES = [
    MenuItem("a", "alpha", "the first"),
    MenuItem("b", "beta", "the second"),
    MenuItem("c", "beta max"),
    MenuItem("x", "gone", refusal="gone cannot be had: it is not here."),
]


@pytest.fixture
def answer(monkeypatch, capsys):
    """Type lines, ask, and return (value, what was shown). The window is 60 columns wide."""
    monkeypatch.setenv("COLUMNS", "60")

    def run(lines, ask):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        console = questions.open_console()
        console.width = 60
        value = ask(console)
        return value, capsys.readouterr().out

    return run


def choose(console):
    return questions.select(console, "Which one?", CHOICES, 1, "It does not matter. " * 20)


@pytest.mark.parametrize(
    ("line", "value"),
    [("", "b"), ("1", "a"), ("3", "c"), (" 2 ", "b"), ("alpha", "a"), ("AL", "a"), ("beta", "b"),
     ("beta m", "c")],
)  # fmt: skip
def test_a_choice_is_taken_by_enter_number_name_or_its_beginning(answer, line, value):
    assert answer(f"{line}\n", choose)[0] == value


@pytest.mark.parametrize(
    "line", ["0", "5", "-1", "1.5", "²", "zeta", "be", "1e3", "two words", "%"]
)
def test_a_wrong_choice_is_asked_again_with_a_sentence(answer, line):
    value, shown = answer(f"{line}\n1\n", choose)
    assert value == "a" and "type a number from 1 to 4" in " ".join(shown.split())


def test_a_choice_that_cannot_be_taken_says_why(answer):
    value, shown = answer("4\ngone\n\n", choose)
    assert value == "b" and shown.count("gone cannot be had") == 2


def test_the_explanation_fits_the_window_and_there_are_no_escape_codes(answer):
    value, shown = answer("?\n\n", choose)
    assert value == "b" and shown.count("It does not matter.") >= 15 and "\x1b" not in shown
    lines = shown.replace("[2] > ", "\n").splitlines()  # Enter ended the line of the prompt
    assert max(map(len, lines)) <= 60
    assert "b goes back, q quits" in shown


@pytest.mark.parametrize("line", ["b", "B", "back"])
def test_b_goes_back(answer, line):
    with pytest.raises(Back):
        answer(f"{line}\n", choose)


@pytest.mark.parametrize("line", ["q", "Q", "quit"])
def test_q_quits_with_0(answer, line, capsys):
    with pytest.raises(SystemExit) as ended:
        answer(f"{line}\n", choose)
    assert ended.value.code == 0 and capsys.readouterr().out.endswith("Stopped.\n")


def test_at_the_first_question_b_says_so(answer):
    value, shown = answer("b\n1\n", lambda c: questions.select(c, "?", CHOICES, is_first=True))
    assert value == "a" and "This is the first question; q quits." in shown


def test_the_end_of_the_input_ends_the_program_with_0(answer):
    with pytest.raises(SystemExit) as ended:
        answer("7\n", choose)
    assert ended.value.code == 0


def test_ctrl_c_is_passed_on(monkeypatch, capsys):
    def interrupted(prompt=""):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    with pytest.raises(KeyboardInterrupt):
        choose(questions.open_console())
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize(
    ("convert", "wrong", "right", "value"),
    [
        (questions.whole_number("N", 1, 100), "abc", "7", 7),
        (questions.whole_number("N", 1, 100), "0", "1", 1),
        (questions.whole_number("N", 1, 100), "101", "100", 100),
        (questions.whole_number("N", 1, 100), "-5", "5", 5),
        (questions.whole_number("N", 1, 100), "2.5", "2", 2),
        (questions.whole_number("N", 1, 100), "٣", "3", 3),
        (questions.whole_number("N", 1, 100), "9" * 400, "9", 9),
        (questions.whole_number("N", 1, 10**6), "1e3", "1,000", 1000),
        (questions.number("X", 0.1, 60), "ten", "10", 10.0),
        (questions.number("X", 0.1, 60), "0", "0.1", 0.1),
        (questions.number("X", 0.1, 60), "nan", "0,5", 0.5),
        (questions.number("X", 0.1, 60), "inf", "60", 60.0),
        (questions.number("X", 0.1, 60), "-1", "1", 1.0),
    ],
)
def test_a_number_out_of_place_is_asked_again(answer, convert, wrong, right, value):
    found, shown = answer(
        f"{wrong}\n{right}\n", lambda console: questions.ask(console, "How many?", convert)
    )
    assert found == value and ("not a" in shown or "must lie between" in " ".join(shown.split()))


def test_where_something_must_be_typed_enter_is_no_answer(answer):
    value, shown = answer("\n\nx\n", lambda console: questions.ask(console, "What?", str))
    assert value == "x" and shown.count("Please type an answer") == 2


def test_an_error_of_the_file_system_is_a_sentence_and_the_question_again(answer, tmp_path):
    (tmp_path / "there").write_text("text", encoding="utf-8")
    value, shown = answer(
        f"{tmp_path}/nowhere\n{tmp_path}/there\n",
        lambda console: questions.ask(
            console, "File?", lambda line: Path(line).read_text(encoding="utf-8")
        ),
    )
    assert value == "text" and "does not exist" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("line", "default", "value"),
    [("", True, True), ("", False, False), ("y", False, True), ("No", True, False)],
)
def test_a_yes_or_no(answer, line, default, value):
    assert answer(f"{line}\n", lambda c: questions.confirm(c, "Sure?", default))[0] is value


def test_neither_yes_nor_no_is_asked_again(answer):
    value, shown = answer("perhaps\ny\n", lambda c: questions.confirm(c, "Sure?"))
    assert value is True and "neither yes nor no" in shown


# Going back


def steps_that(log, *verdicts):
    """Steps that write their number, and go back as often as their verdict says."""
    left = dict(enumerate(verdicts))

    def step(number):
        log.append(number)
        if left[number]:
            left[number] -= 1
            raise Back

    return [lambda number=number: step(number) for number in left]


def test_going_back_asks_the_question_before_and_then_goes_on():
    log = []
    questions.walk(steps_that(log, 0, 1, 1))
    assert log == [0, 1, 0, 1, 2, 1, 2]


def test_before_the_first_question_there_is_none():
    log = []
    questions.walk(steps_that(log, 2, 0))
    assert log == [0, 0, 0, 1]
    with pytest.raises(Back):
        questions.walk(steps_that([], 1), can_leave=True)


# Nobody there


def test_without_a_terminal_a_sentence_says_what_to_write(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n"))
    with pytest.raises(ConfigError, match="write this instead"):
        questions.refuse_without_terminal("write this instead")


# Paths


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working and home folder with files of odd names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("plain.txt", "two words.txt", "it's.txt", "näme.txt", "other.txt"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    (tmp_path / "books").mkdir()
    return tmp_path


@pytest.mark.skipif(os.name == "nt", reason="backslashes separate folders there")
@pytest.mark.parametrize(
    ("line", "paths"),
    [
        ("plain.txt", ["plain.txt"]),
        ("  plain.txt  ", ["plain.txt"]),
        ("two words.txt", ["two words.txt"]),
        ("'two words.txt'", ["two words.txt"]),
        ('"two words.txt"', ["two words.txt"]),
        (r"two\ words.txt", ["two words.txt"]),
        (r"it\'s.txt", ["it's.txt"]),
        ("it's.txt", ["it's.txt"]),
        ("näme.txt", ["näme.txt"]),
        ("plain.txt other.txt", ["plain.txt", "other.txt"]),
        ("'two words.txt' plain.txt ", ["two words.txt", "plain.txt"]),
        ("~/plain.txt", ["{home}/plain.txt"]),
        ("file://{home}/two%20words.txt", ["{home}/two words.txt"]),
        ("books/", ["books"]),
        ("books/*.txt", ["books/*.txt"]),
        ("hf:owner/name:subset", ["hf:owner/name:subset"]),
        ("not there.txt", ["not there.txt"]),
        ("don't know.txt", ["don't know.txt"]),
        ("'two words.txt", ["two words.txt"]),
        ("shakespeare", ["shakespeare"]),
    ],
)
def test_a_path_is_read_as_terminals_write_it(place, line, paths):
    filled = [path.replace("{home}", str(place)) for path in paths]
    assert questions.typed_paths(line.replace("{home}", str(place))) == filled


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("pl", ["plain.txt"]),
        ("bo", ["books/"]),
        ("two w", ["two words.txt"]),
        ("'two w", ["'two words.txt'"]),
        ("'bo", ["'books/"]),
        ("~/pl", ["~/plain.txt"]),
        ("nowhere/x", []),
        ("", ["books/", "it's.txt", "näme.txt", "other.txt", "plain.txt", "two words.txt"]),
    ],
)
def test_the_tab_key_completes_names(place, typed, found):
    (place / ".hidden").write_text("", encoding="utf-8")
    completed = []
    while (name := questions.complete_path(typed, len(completed))) is not None:
        completed.append(name)
    assert completed == found


def test_completion_is_restored_after_the_question():
    readline = pytest.importorskip("readline")
    before = readline.get_completer(), readline.get_completer_delims()
    with questions.path_completion():
        assert readline.get_completer() is questions.complete_path
    assert (readline.get_completer(), readline.get_completer_delims()) == before
