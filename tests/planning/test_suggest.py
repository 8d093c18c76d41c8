"""Suggestions for options that are not set: sizes, batches, other options, times."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptlab.errors import ConfigError, DataError
from gptlab.hardware import (
    Choice,
    CompileSupport,
    Device,
    Hardware,
    Precision,
    Recommendation,
    choose,
)
from gptlab.hardware.probe import DTYPES
from gptlab.model.arithmetic import count_parameters
from gptlab.model.memory import TIGHT
from gptlab.planning import suggest
from gptlab.planning.plan import Machine, expected_overfitting, expected_seconds
from gptlab.planning.planner import Planner, in_millions
from gptlab.training import building, measuring
from gptlab.training.config import OPTIONS, layer
from gptlab.training.memory import memory_warning
from gptlab.training.resolving import Measurements, Situation, TextSize, resolve, situation_of

SHAKESPEARE = TextSize(66, 1_003_854, 111_540)
GB = 1_000_000_000


def machine_with(free, device="cpu", dtype="float32", peak=60e9):
    """A machine with so many bytes free on a device that trains in any precision."""
    name = {"cpu": "cpu", "mps": "mps", "xpu": "xpu:0"}.get(device, "cuda:0")
    support = tuple(Precision(each, True, each == dtype, "a test") for each in DTYPES)
    found = Device(
        name, device, "a device", free and 2 * free, free, None, "", (), support, (),
        CompileSupport(True, "g++"), True, "works",
    )  # fmt: skip
    recommended = Recommendation(name, "", dtype, "", True, "")
    report = Hardware((found,), 2, "Linux", "3.12", "2.13", (), recommended)
    return Machine(report, choose(report, name, dtype), peak)


def size_of(size, text):
    return count_parameters(suggest.model_of(suggest.architecture(size, text), text))


def test_more_text_and_more_time_never_suggest_a_smaller_model():
    seconds = [10, 60, 150, 900, 3600, 36_000, 10**6]
    tokens = [1000, 10**5, 10**6, 10**7, 10**8, 10**9]
    grid = [
        [size_of(suggest.fitting_size(TextSize(66, n, n // 10), s, machine_with(None)),
                 TextSize(66, n, n // 10))
         for s in seconds]
        for n in tokens
    ]  # fmt: skip
    for row in [*grid, *map(list, zip(*grid, strict=True))]:
        assert row == sorted(row)
    assert grid[0][0] == grid[0][-1]  # a small text needs no large model, whatever the time
    assert grid[-1][-1] > 20 * grid[0][0]


def test_a_slow_laptop_gets_a_model_under_a_million_parameters_for_some_minutes():
    for peak in (20e9, 64e9, 200e9):
        machine = machine_with(None, peak=peak)
        assert size_of(suggest.fitting_size(SHAKESPEARE, 150, machine), SHAKESPEARE) < 1_000_000


def test_a_window_fits_both_parts_of_the_text():
    assert TextSize(66, 1000, 257).block_size(256) == 256
    assert TextSize(66, 1000, 256).block_size(256) == 128  # 256 tokens hold no window of 256
    assert TextSize(66, 1000, 9).block_size(256) == 8
    with pytest.raises(DataError, match="8 tokens"):
        TextSize(66, 1000, 8).block_size(256)


def test_what_does_not_fit_is_refused_with_the_numbers():
    options = suggest.architecture("large", SHAKESPEARE)
    assert suggest.refusal_of(options, SHAKESPEARE, machine_with(None)) == ""
    assert suggest.refusal_of(options, SHAKESPEARE, machine_with(64 * GB)) == ""
    refusal = suggest.refusal_of(options, SHAKESPEARE, machine_with(1 * GB))
    assert "GB" in refusal and "but 1 GB are free" in refusal


def test_the_nearest_shape_that_fits_does_fit_and_one_layer_more_does_not():
    shape, machine = {"n_layer": 400, "n_head": 8, "n_embd": 512}, machine_with(GB)
    words = suggest.nearest_that_fits(shape, SHAKESPEARE, machine)
    layers = int(words.split()[0])
    for count, fits in ((layers, True), (layers + 1, False)):
        options = suggest.custom_architecture(count, 8, 512, SHAKESPEARE)
        assert (suggest.refusal_of(options, SHAKESPEARE, machine) == "") is fits
    wide = {"n_layer": 1, "n_head": 16, "n_embd": 16_384}
    assert "width" in suggest.nearest_that_fits(wide, SHAKESPEARE, machine)


# Memory

SHAPES = st.one_of(
    st.sampled_from([*suggest.PRESET_SIZES, "3x96", "6x288"]),
    st.builds(
        lambda n_layer, n_head, per_head: (n_layer, n_head, n_head * per_head),
        st.integers(1, 80), st.integers(1, 24), st.integers(1, 64).map(lambda n: 2 * n),
    ),
)  # fmt: skip
TEXTS = st.builds(
    lambda vocab_size, exponent, val: TextSize(vocab_size, int(10**exponent), val),
    st.sampled_from([10, 66, 512, 513, 8192, 50257, 200_000]),
    st.floats(2, 10),
    st.integers(9, 10**8),
)
DEVICES = st.sampled_from(["cpu", "cuda", "rocm", "mps", "xpu"])
PRECISIONS = st.sampled_from(DTYPES)


def tight_machine(options, text, device, dtype, factor):
    """A machine with so many times the memory that training this model takes at the least."""
    least = suggest.least_memory(options, text, machine_with(None, device, dtype))
    return machine_with(int(factor * least / TIGHT), device, dtype)


@given(
    shape=SHAPES, text=TEXTS, device=DEVICES, dtype=PRECISIONS,
    factor=st.floats(0.5, 8), epochs=st.sampled_from([0.5, 3, 50]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_what_is_suggested_is_never_warned_about_and_what_is_refused_is(
    shape, text, device, dtype, factor, epochs
):
    """By `memory_warning`, which training asks before its first step."""
    if isinstance(shape, str):
        options = suggest.architecture(shape, text)
    else:
        options = suggest.custom_architecture(*shape, text)
    machine = tight_machine(options, text, device, dtype, factor)

    def warning(**batch):
        suggested = suggest.training(options, text) | suggest.regularisation(epochs) | batch
        situation = situation_of(machine.report, machine.choice, text)
        overrides = layer(command_line={**options, **suggested, "max_iters": 10})
        config = resolve(overrides, situation).config
        assert config.tokens_per_step >= 512
        return memory_warning(config, machine.free)

    if suggest.refusal_of(options, text, machine):
        assert warning(batch_size=1, gradient_accumulation_steps=1024, dropout=0.2)
    else:
        assert not warning(**suggest.batch(options, text, machine))


@given(
    text=TEXTS, device=DEVICES, dtype=PRECISIONS, other=st.none() | PRECISIONS,
    factor=st.floats(1.01, 30), seconds=st.floats(0, 7), max_iters=st.sampled_from([20, 10**6]),
)  # fmt: skip
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_what_the_planner_proposes_is_never_warned_about(
    monkeypatch, text, device, dtype, other, factor, seconds, max_iters
):
    smallest = suggest.architecture(suggest.SMALLEST, text)
    machine = tight_machine(smallest, text, device, dtype, factor)
    planner = make_planner(monkeypatch, machine, text)
    model = planner.fitted_model(10**seconds)
    changed = {"dtype": other} if other else {}
    proposal = planner.propose(model, max_iters=max_iters, changed=changed)
    here = machine_with(machine.free, device, other or dtype)
    if not suggest.refusal_of(model, text, here):  # the model was chosen for another precision
        assert not memory_warning(proposal.config, machine.free)
    else:
        assert other not in (None, dtype)


def test_regularisation_follows_the_readings_of_the_text():
    assert suggest.regularisation(0.5) == {"dropout": 0.0, "weight_decay": 0.0}
    dropouts = [suggest.regularisation(epochs)["dropout"] for epochs in (1, 3, 9, 12, 100)]
    assert dropouts == sorted(dropouts) and dropouts[-1] == 0.2
    assert "early_stopping" in suggest.regularisation(20)
    assert "early_stopping" not in suggest.regularisation(5)


def test_the_expectation_of_overfitting_grows_with_the_readings():
    sentences = [expected_overfitting(epochs, True) for epochs in (0.5, 3, 10, 50)]
    assert len(set(sentences)) == 4
    assert "cannot memorise" in sentences[0] and "validation loss turns" in sentences[3]
    assert "by itself" in sentences[3] and "by itself" not in expected_overfitting(50, False)


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
    assert expected_seconds(config, measured) == pytest.approx(95 * 0.5 + 10 * (3 + 2))


# The planner


@pytest.fixture
def planner(monkeypatch):
    """A planner for a CPU whose step takes 2e-8 s per parameter; each model measured once."""
    return make_planner(monkeypatch, machine_with(4 * GB))


def make_planner(monkeypatch, machine, text=SHAKESPEARE):
    seen = []

    def measure(config, choice, world_size, started, seconds):
        seen.append(config)
        step = 2e-8 * count_parameters(config.model) * config.sequences_per_step
        return Measurements(elapsed=9.0, step=step, eval_token=step / 1e4, save=0.01)

    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(building, "settle_torch", lambda device: None)
    found = Planner(machine, "shakespeare", text)
    found.seen = seen
    return found


def test_a_plan_says_everything_that_could_change_the_result(planner):
    plan = planner.propose(suggest.architecture("4x128", SHAKESPEARE), max_iters=500)
    assert set(plan.options) <= set(OPTIONS)
    for name in ("max_iters", "seed", "device", "dtype", "compile_model", "batch_size"):
        assert plan.options[name] not in (None, "auto"), name
    situation = situation_of(planner.machine.report, planner.machine.choice, SHAKESPEARE)
    assert resolve(layer(command_line=plan.options), situation).config == plan.config


def test_minutes_become_the_steps_that_fit_into_them(planner):
    model = suggest.architecture("4x128", SHAKESPEARE)
    plan = planner.propose(model, minutes=2.0)
    assert "minutes" not in plan.options
    assert 0.85 * 120 < plan.seconds <= 120
    assert planner.propose(model, minutes=4.0).options["max_iters"] > plan.options["max_iters"]
    assert len(planner.seen) == 1  # the same model and batch


def test_changes_override_everything_and_are_measured_again(planner):
    model = suggest.architecture("4x128", SHAKESPEARE)
    before = planner.propose(model, max_iters=50)
    plan = planner.propose(model, max_iters=50, changed={"batch_size": 4, "dropout": 0.3})
    assert (plan.options["batch_size"], plan.options["dropout"]) == (4, 0.3)
    assert plan.seconds < before.seconds and len(planner.seen) == 2
    with pytest.raises(ConfigError):
        planner.propose(model, max_iters=50, changed={"n_head": 3})


def test_a_long_run_over_a_short_text_gets_dropout_and_stops_at_the_turn(planner):
    planner.text = TextSize(66, 20_000, 2_000)
    plan = planner.propose(suggest.architecture("3x96", planner.text), max_iters=2000)
    assert plan.config.model.dropout == 0.2 and plan.config.evaluation.early_stopping == 3


@pytest.mark.parametrize(
    ("number", "words"), [(55_040, "0.055M"), (824_000, "0.82M"), (7_500_000, "7.5M"),
                          (99_400_000, "99M"), (345_000_000, "345M")],
)  # fmt: skip
def test_parameters_in_millions(number, words):
    assert in_millions(number) == words
    assert math.isclose(float(words[:-1]) * 1e6, number, rel_tol=0.06)
