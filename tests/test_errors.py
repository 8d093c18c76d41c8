"""The tree of errors: what the page says at its top is what the code does."""

import inspect
import re

import pytest

from gptlab import errors
from gptlab.errors import GPTLabError

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
    assert cls.__doc__ != cls.__bases__[0].__doc__ and cls.__doc__.endswith(".")


def test_an_error_of_the_program_itself_is_not_one_of_ours():
    assert not any(issubclass(cls, (ValueError, OSError, RuntimeError)) for cls in CLASSES)
