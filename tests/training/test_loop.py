"""The loop stays what a reader takes in at once."""

import dataclasses
import inspect
import re

import pytest

from gptlab.training.loop import train_loop, train_step
from gptlab.training.setup import Setup


def test_the_loop_and_its_step_are_sixty_lines_together_in_one_file():
    assert inspect.getsourcefile(train_loop) == inspect.getsourcefile(train_step)
    lines = [inspect.getsource(function).splitlines() for function in (train_loop, train_step)]
    assert sum(map(len, lines)) <= 60


@pytest.mark.parametrize("word", ["rank", "scaler", "device", "world_size", "hasattr"])
def test_neither_mentions_processes_or_machines(word):
    code = inspect.getsource(train_loop) + inspect.getsource(train_step)
    assert not re.search(rf"\b{word}\b", code)


def test_a_setup_cannot_change_while_training():
    setup = Setup(None, None, None)
    for field in dataclasses.fields(setup):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(setup, field.name, None)
