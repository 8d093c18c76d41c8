"""The tree of errors: what the page says at its top is what the code does."""

import ast
import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest

from gptlab import errors
from gptlab.data.messages import NoConversationError
from gptlab.data.mixture import TaskError
from gptlab.data.opening import NotTextError
from gptlab.errors import GPTLabError

PACKAGE = Path(errors.__file__).parent

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and value.__module__ == errors.__name__
]


def test_every_error_is_public():
    assert sorted(cls.__name__ for cls in CLASSES) == errors.__all__ == sorted(errors.__all__)


def test_the_drawn_tree_is_the_real_one():
    """The parent of a name is the last name above it that stands further to the left."""
    drawn, open_branches = {}, []
    for line in errors.__doc__.splitlines():
        match = re.match(r"^([│├└─ ]*)(\w+Error)\b", line)
        if not match:
            continue
        depth, name = len(match[1]), match[2]
        open_branches = [(d, parent) for d, parent in open_branches if d < depth]
        drawn[name] = open_branches[-1][1] if open_branches else "Exception"
        open_branches.append((depth, name))
    assert drawn == {cls.__name__: cls.__bases__[0].__name__ for cls in CLASSES}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_exit_code_is_the_documented_one(cls):
    documented = dict(re.findall(r"(\w+Error) +exit code (\d)", errors.__doc__))
    expected = documented.get(cls.__name__, documented["GPTLabError"])
    assert cls("x").exit_code == int(expected)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_is_its_sentence_and_says_what_it_is_for(cls):
    assert issubclass(cls, GPTLabError) and str(cls("Do this.")) == "Do this."
    assert cls.__doc__ != cls.__bases__[0].__doc__ and cls.__doc__.rstrip().endswith(".")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("The text is empty", "bring more"), "The text is empty: bring more."),
        (("The text is empty.", "bring more."), "The text is empty: bring more."),
        (("Unknown option x", "did you mean y?"), "Unknown option x: did you mean y?"),
        (("The text is empty",), "The text is empty."),
    ],
)
def test_the_sentence_is_the_problem_and_its_fix(arguments, sentence):
    error = GPTLabError(*arguments)
    assert str(error) == sentence
    assert error.problem == arguments[0].removesuffix(".")
    assert error.fix == "".join(arguments[1:]).removesuffix(".")


def every_error(cls=GPTLabError):
    yield cls
    for below in cls.__subclasses__():
        yield from every_error(below)


def test_every_error_survives_pickling_and_copying(tmp_path):
    """Processes of one training tell each other what went wrong."""
    errors = [cls("It is damaged", "fetch it again", sep="; ") for cls in CLASSES]
    errors.append(NotTextError(tmp_path / "a.pdf", "a PDF", "save its text"))
    errors.append(NoConversationError("line 3 has no messages"))
    errors.append(TaskError("sums is a task"))
    assert {type(error) for error in errors} == set(every_error())
    for error in errors:
        for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
            assert type(again) is type(error) and vars(again) == vars(error)
            assert str(again) == str(error) and again.exit_code == error.exit_code


def test_no_code_takes_a_sentence_apart():
    """Code that wants the problem or the fix reads the attribute."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.ExceptHandler) and call.name and catches_ours(call.type):
                found += [f"{path.name}:{node.lineno}" for node in taken_apart(call)]
    assert found == []


def catches_ours(caught) -> bool:
    names = {node.id for node in ast.walk(caught) if isinstance(node, ast.Name)}
    return bool(names & {cls.__name__ for cls in every_error()})


def taken_apart(handler):
    """The places that call a method of `str(error)`."""
    for node in ast.walk(handler):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == f"str({handler.name})":
            yield node


def test_an_error_of_the_program_itself_is_not_one_of_ours():
    assert not any(issubclass(cls, (ValueError, OSError, RuntimeError)) for cls in CLASSES)
