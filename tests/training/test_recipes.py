"""Every recipe builds, starts from a uniform prediction, and says what it is for."""

import math
from pathlib import Path

import pytest
import torch

from gptlab.hardware import Choice
from gptlab.model.arithmetic import count_parameters
from gptlab.model.transformer import GPT
from gptlab.training.config import layer, read_recipe
from gptlab.training.resolving import Situation, resolve

RECIPES = sorted((Path(__file__).resolve().parents[2] / "config").glob("*.py"))
VOCABULARIES = {"shakespeare": 66, "shakespeare_bpe": 1024, "openwebtext": 50257}


def resolved_config(recipe):
    overrides = layer(recipe)
    vocab_size = VOCABULARIES.get(overrides.values.get("dataset"), 66)
    choice = Choice("cpu", "float32", False, "a test")
    return resolve(overrides, Situation(choice, vocab_size, 1_000_000, 100_000)).config


def test_the_recipes_that_the_readme_names_are_there():
    names = {path.stem for path in RECIPES}
    assert names >= {
        "shakespeare_char", "speedrun", "shakespeare_bpe", "gpt2_124m", "quick_test", "own_text",
        "shakespeare_long",
    }  # fmt: skip


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_builds_the_model_that_it_promises(path):
    config = resolved_config(read_recipe(path))
    with torch.device("meta"):
        model = GPT(config.model)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == count_parameters(config.model)
    promised = [line for line in path.read_text(encoding="utf-8").splitlines() if "Trains" in line]
    for word in promised[0].split():
        if word.endswith("M") and word[:-1].replace(".", "").isdigit():
            assert found / 1e6 == pytest.approx(float(word[:-1]), rel=0.1, abs=0.05)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_what_it_trains_on_what_how_long_and_to_what_loss(path):
    opening = path.read_text(encoding="utf-8").split('"""')[1]
    for word in ("Trains", "On", "Takes", "Expect"):
        assert any(line.startswith(f"{word} ") for line in opening.splitlines()), word


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_training_starts_from_the_uniform_baseline(path):
    config = resolved_config(read_recipe(path))
    assert count_parameters(config.model) < 125e6
    torch.manual_seed(0)
    model = GPT(config.model).eval()
    window = min(64, config.model.block_size)
    tokens = torch.randint(config.model.vocab_size, (256 // window, window + 1))
    with torch.no_grad():
        loss = model(tokens[:, :-1], tokens[:, 1:])[1].item()
    uniform = math.log(config.model.vocab_size)
    assert uniform - 0.05 < loss < uniform + 0.25
