"""Suggestions for options that are not set: sizes, batches, other options, times."""

import dataclasses
import math

import pytest

from gptlab.errors import ConfigError, DataError
from gptlab.hardware import Choice, CompileSupport, Device, Hardware, Recommendation
from gptlab.model.arithmetic import count_parameters
from gptlab.planning import suggest
from gptlab.planning.planner import Planner, in_millions
from gptlab.training import building, measuring
from gptlab.training.config import OPTIONS, layer
from gptlab.training.memory import TIGHT, needed_memory
from gptlab.training.resolving import Measurements, Situation, TextSize, resolve, situation_of

SHAKESPEARE = TextSize(66, 1_003_854, 111_540)
GB = 1_000_000_000


def size_of(size, text):
    return count_parameters(suggest.model_of(suggest.architecture(size, text), text))


def test_more_text_and_more_time_never_suggest_a_smaller_model():
    seconds = [10, 60, 150, 900, 3600, 36_000, 10**6]
    tokens = [1000, 10**5, 10**6, 10**7, 10**8, 10**9]
    grid = [
        [size_of(suggest.fitting_size(TextSize(66, n, n // 10), s, 60e9), TextSize(66, n, n // 10))
         for s in seconds]
        for n in tokens
    ]  # fmt: skip
    for row in [*grid, *map(list, zip(*grid, strict=True))]:
        assert row == sorted(row)
    assert grid[0][0] == grid[0][-1]  # a small text needs no large model, whatever the time
    assert grid[-1][-1] > 20 * grid[0][0]


def test_a_slow_laptop_gets_a_model_under_a_million_parameters_for_some_minutes():
    for peak in (20e9, 64e9, 200e9):
        assert size_of(suggest.fitting_size(SHAKESPEARE, 150, peak), SHAKESPEARE) < 1_000_000


def test_a_window_fits_both_parts_of_the_text():
    assert TextSize(66, 1000, 257).block_size(256) == 256
    assert TextSize(66, 1000, 256).block_size(256) == 128  # 256 tokens hold no window of 256
    assert TextSize(66, 1000, 9).block_size(256) == 8
    with pytest.raises(DataError, match="8 tokens"):
        TextSize(66, 1000, 8).block_size(256)


@pytest.mark.parametrize("size", [*suggest.PRESET_SIZES, "3x96", "6x288"])
@pytest.mark.parametrize("free", [None, 16 * GB, 6 * GB])
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_a_suggested_batch_fits_the_memory_wherever_the_model_does(size, free, device):
    options = {**suggest.architecture(size, SHAKESPEARE), "optimizer": "muon"}
    if suggest.refusal_of(options, SHAKESPEARE, free, "float32"):
        return
    options |= suggest.batch(options, SHAKESPEARE, device, free, "float32")
    choice = Choice(device, "float32", False, "a test")
    config = resolve(
        layer(command_line={**options, "max_iters": 10}), Situation(choice, 66, 10**6, 10**5)
    ).config
    assert config.tokens_per_step >= 1024
    if free:
        assert needed_memory(config).total < TIGHT * free


def test_what_does_not_fit_is_refused_with_the_numbers():
    options = suggest.architecture("large", SHAKESPEARE)
    assert suggest.refusal_of(options, SHAKESPEARE, None, "float32") == ""
    assert suggest.refusal_of(options, SHAKESPEARE, 64 * GB, "float32") == ""
    refusal = suggest.refusal_of(options, SHAKESPEARE, 1 * GB, "float32")
    assert "GB" in refusal and "1 GB are free" in refusal


def test_the_nearest_shape_that_fits_does_fit_and_one_layer_more_does_not():
    shape = {"n_layer": 400, "n_head": 8, "n_embd": 512}
    words = suggest.nearest_that_fits(shape, SHAKESPEARE, GB, "float32")
    layers = int(words.split()[0])
    for count, fits in ((layers, True), (layers + 1, False)):
        options = suggest.custom_architecture(count, 8, 512, SHAKESPEARE)
        assert (suggest.refusal_of(options, SHAKESPEARE, GB, "float32") == "") is fits
    wide = {"n_layer": 1, "n_head": 16, "n_embd": 16_384}
    assert "width" in suggest.nearest_that_fits(wide, SHAKESPEARE, GB, "float32")


def test_regularisation_follows_the_readings_of_the_text():
    assert suggest.regularisation(0.5) == {"dropout": 0.0, "weight_decay": 0.0}
    dropouts = [suggest.regularisation(epochs)["dropout"] for epochs in (1, 3, 9, 12, 100)]
    assert dropouts == sorted(dropouts) and dropouts[-1] == 0.2
    assert "early_stopping" in suggest.regularisation(20)
    assert "early_stopping" not in suggest.regularisation(5)


def test_the_expectation_of_overfitting_grows_with_the_readings():
    sentences = [suggest.expected_overfitting(epochs, True) for epochs in (0.5, 3, 10, 50)]
    assert len(set(sentences)) == 4
    assert "nothing" in sentences[0] and "validation loss turns" in sentences[3]
    assert "by itself" in sentences[3] and "by itself" not in suggest.expected_overfitting(
        50, False
    )


def test_wider_models_get_a_lower_rate():
    sizes = ("3x96", "6x288", "tiny", "small", "medium", "large")
    rates = [suggest.training(suggest.architecture(s, SHAKESPEARE), SHAKESPEARE)["learning_rate"]
             for s in sizes]  # fmt: skip
    assert rates == sorted(rates, reverse=True) and rates[0] == 1e-2 and rates[-1] <= 2e-3


def test_the_expected_time_is_steps_evaluations_and_savings():
    choice = Choice("cpu", "float32", False, "a test")
    measured = Measurements(step=0.5, eval_token=1e-3, save=2.0)
    config = resolve(
        layer(command_line=dict(max_iters=95, eval_interval=10, eval_tokens=3000,
                                compile_model=False)),
        Situation(choice, 66, 10**6, 10**5, measurements=measured),
    ).config  # fmt: skip
    assert suggest.expected_seconds(config, measured) == pytest.approx(95 * 0.5 + 10 * (3 + 2))


# The planner


@pytest.fixture
def planner(monkeypatch):
    """A planner for a machine whose step takes 2e-8 s per parameter; each model measured once."""
    cpu = Device(
        "cpu", "cpu", "a CPU", 8 * GB, 4 * GB, None, "", (), (), (),
        CompileSupport(True, "g++"), True, "works",
    )  # fmt: skip
    precision = hardware_precision()
    cpu = dataclasses.replace(cpu, precisions=precision)
    machine = Hardware((cpu,), 2, "Linux", "3.12", "2.13", (),
                       Recommendation("cpu", "", "float32", "", True, ""))  # fmt: skip
    seen = []

    def measure(config, choice, world_size, started, seconds):
        seen.append(config)
        step = 2e-8 * count_parameters(config.model) * config.sequences_per_step
        return Measurements(elapsed=9.0, step=step, eval_token=step / 1e4, save=0.01)

    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(building, "settle_torch", lambda device: None)
    choice = Choice("cpu", "float32", False, "cpu")
    found = Planner(machine, choice, "shakespeare", SHAKESPEARE)
    found.seen = seen
    return found


def hardware_precision():
    from gptlab.hardware import Precision

    return tuple(
        Precision(dtype, dtype == "float32", dtype == "float32", "a test")
        for dtype in ("float32", "bfloat16", "float16")
    )


def test_a_plan_says_everything_that_could_change_the_result(planner):
    plan = planner.plan(suggest.architecture("4x128", SHAKESPEARE), max_iters=500)
    assert set(plan.options) <= set(OPTIONS)
    for name in ("max_iters", "seed", "device", "dtype", "compile_model", "batch_size"):
        assert plan.options[name] not in (None, "auto"), name
    situation = situation_of(planner.hardware, planner.choice, SHAKESPEARE)
    assert resolve(layer(command_line=plan.options), situation).config == plan.config


def test_minutes_become_the_steps_that_fit_into_them(planner):
    model = suggest.architecture("4x128", SHAKESPEARE)
    plan = planner.plan(model, minutes=2.0)
    assert "minutes" not in plan.options
    assert 0.85 * 120 < plan.seconds <= 120
    assert planner.plan(model, minutes=4.0).options["max_iters"] > plan.options["max_iters"]
    assert len(planner.seen) == 1  # the same model and batch


def test_changes_lie_over_everything_and_are_measured_anew(planner):
    model = suggest.architecture("4x128", SHAKESPEARE)
    before = planner.plan(model, max_iters=50)
    plan = planner.plan(model, max_iters=50, changed={"batch_size": 4, "dropout": 0.3})
    assert (plan.options["batch_size"], plan.options["dropout"]) == (4, 0.3)
    assert plan.seconds < before.seconds and len(planner.seen) == 2
    with pytest.raises(ConfigError):
        planner.plan(model, max_iters=50, changed={"n_head": 3})


def test_a_long_run_over_a_short_text_gets_dropout_and_stops_at_the_turn(planner):
    planner.text = TextSize(66, 20_000, 2_000)
    plan = planner.plan(suggest.architecture("3x96", planner.text), max_iters=2000)
    assert plan.config.model.dropout == 0.2 and plan.config.evaluation.early_stopping == 3


@pytest.mark.parametrize(
    ("number", "words"), [(55_040, "0.055M"), (824_000, "0.82M"), (7_500_000, "7.5M"),
                          (99_400_000, "99M"), (345_000_000, "345M")],
)  # fmt: skip
def test_parameters_in_millions(number, words):
    assert in_millions(number) == words
    assert math.isclose(float(words[:-1]) * 1e6, number, rel_tol=0.06)
