"""The arithmetic of a training before it starts."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from gptlab.checkpoints import model_content
from gptlab.errors import ConfigError, DataError
from gptlab.files import data_home, write_json
from gptlab.hardware import choose, judge
from gptlab.hardware.probe import DTYPES, DeviceFacts, Facts
from gptlab.hardware.trials import Trial
from gptlab.model.arithmetic import count_parameters, flops_per_token, parameters_by_component
from gptlab.model.config import PRESETS, GPTConfig
from gptlab.model.memory import TIGHT
from gptlab.model.transformer import GPT
from gptlab.planning import gpus
from gptlab.planning.plan import (
    Machine,
    make_plan,
    text_size,
    with_start,
)
from gptlab.runs import Run
from gptlab.training.config import build, layer
from gptlab.training.memory import largest_batch_size, step_memory
from gptlab.training.resolving import COMPILE_SECONDS, COMPILED_STEP

GIGABYTE = 1_000_000_000
SMALL = dict(n_layer=2, n_head=2, n_embd=64, block_size=32, batch_size=4, max_iters=1000)


@pytest.fixture
def machine():
    """A processor with 8 GB free and a peak of 100 GFLOP/s."""
    trials = {dtype: Trial(flops=1e11 if dtype == "float32" else 1e9) for dtype in DTYPES}
    processor = DeviceFacts("cpu", "cpu", "Some CPU", 16 * GIGABYTE, 8 * GIGABYTE, trials=trials)
    report = judge(Facts((processor,), 2, "Linux", "3.12.1", "2.13.0"))
    return Machine(report, choose(report), 1e11)


def plan_of(machine, vocab_size=66, **options):
    overrides = layer(None, {**SMALL, "vocab_size": vocab_size, **options})
    return make_plan(overrides, text_size(overrides), machine)


# Parameters and the text --------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_the_components_add_up_to_the_total(name):
    config = GPTConfig(**PRESETS[name])
    assert sum(parameters_by_component(config).values()) == count_parameters(config)


def test_gpt2_by_component():
    """The shapes of OpenAI's checkpoint, added up by hand."""
    width, layers = 768, 12
    assert parameters_by_component(GPTConfig(**PRESETS["gpt2"], vocab_size=50257)) == {
        "token embedding": 50257 * width,
        "position embedding": 1024 * width,
        "attention": layers * (width * 3 * width + 3 * width + width * width + width),
        "mlp": layers * (width * 4 * width + 4 * width + 4 * width * width + width),
        "norms": (2 * layers + 1) * 2 * width,
        "output head": 0,
    }


def test_gpt2_without_a_text_has_its_own_vocabulary(home):
    size = text_size(layer(None, {"model_preset": "gpt2"}))
    assert (size.vocab_size, size.train_tokens) == (50257, None)
    assert "GPT-2's own" in size.source


def test_a_prepared_text_gives_its_sizes(home):
    size = text_size(layer(None, {"dataset": "plays", "model_preset": "gpt2"}))
    assert (size.vocab_size, size.train_tokens, size.val_tokens) == (66, 1_003_854, 111_540)
    assert size.source == "the dataset plays"


def test_the_default_text_counts_where_it_is_prepared(home):
    assert text_size(layer(None, {"model_preset": "tiny"})).vocab_size == 8192
    sizes = dict(vocab_size=70, train_tokens=900, val_tokens=100)
    meta = {"format_version": 1, "dtype": "uint16", **sizes}
    (data_home() / "shakespeare").mkdir()
    (data_home() / "shakespeare" / "train.bin").write_bytes(b"")
    write_json(data_home() / "shakespeare" / "meta.json", meta)
    assert text_size(layer(None, {"model_preset": "tiny"})).vocab_size == 70
    assert text_size(layer(None, {"vocab_size": 300})).vocab_size == 300


def test_token_files_without_meta_count_by_their_size(home):
    folder = data_home() / "nano"
    folder.mkdir()
    (folder / "train.bin").write_bytes(bytes(2000))
    (folder / "val.bin").write_bytes(bytes(200))
    size = text_size(layer(None, {"dataset": "nano", "vocab_size": 65}))
    assert (size.vocab_size, size.train_tokens, size.val_tokens) == (65, 1000, 100)


def test_a_text_that_was_typed_must_be_there_and_a_recipe_s_is_assumed(home):
    with pytest.raises(DataError, match="No prepared dataset 'nope'"):
        text_size(layer(None, {"dataset": "nope"}))
    size = text_size(layer({"dataset": "nope", "model_preset": "gpt2"}))
    assert size.vocab_size == 50257 and "nope is not prepared" in size.source


def test_a_model_that_is_sized_from_the_text_needs_one(home, machine):
    with pytest.raises(ConfigError, match="model_preset auto is sized from the text"):
        plan_of(machine, model_preset="auto")


def test_a_plan_from_a_model_has_its_architecture_and_its_vocabulary(home, machine):
    """GPT-2's table has more rows than its tokenizer has ids: here 70 for a text of 66."""
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=32, block_size=16, vocab_size=70))
    first = Run(home / "out" / "first")
    first.folder.mkdir(parents=True)
    first.save_best(model_content(model, None, step=7))
    options = {"dataset": "plays", "init_from": str(first.folder), "max_iters": 10}
    overrides, vocab_size = with_start(layer(None, options))
    plan = make_plan(overrides, text_size(overrides, vocab_size), machine)
    assert plan.total_parameters == sum(p.numel() for p in model.parameters())
    with pytest.raises(ConfigError, match=r"n_layer 5 differs from 1, which init_from .* has"):
        with_start(layer(None, {**options, "n_layer": 5}))
    with pytest.raises(ConfigError, match=r"not here yet.* gpt\.py import gpt2"):
        with_start(layer(None, {**options, "init_from": "gpt2"}))


# Work and time ------------------------------------------------------------------------------------


def test_tokens_flops_epochs_and_the_optimum(home, machine):
    overrides = layer(None, {**SMALL, "dataset": "plays"})
    plan = make_plan(overrides, text_size(overrides), machine)
    assert plan.tokens == 1000 * 4 * 32
    assert plan.epochs == pytest.approx(128_000 / 1_003_854)
    assert plan.optimal_tokens == 20 * plan.total_parameters
    report = plan.to_dict()
    assert report["flops"]["total"] == plan.tokens * flops_per_token(plan.config.model)
    assert report["chinchilla"]["steps"] * 128 >= plan.optimal_tokens
    assert json.loads(json.dumps(report)) == report


def test_the_time_is_that_of_the_flops_at_a_share_of_the_peak(home, machine):
    plan = plan_of(machine, eval_interval=1000, eval_tokens=32)
    expected = plan.tokens * plan.flops_per_token / (0.4 * 1e11)
    assert plan.seconds == pytest.approx(expected, rel=0.02)
    assert "estimated" in plan.time_basis and "100 GFLOP/s" in plan.time_basis
    config = plan.config
    twice = dataclasses.replace(machine, peak=2e11)
    assert twice.estimate(config).step == machine.estimate(config).step / 2


def test_compiling_costs_its_time_and_makes_steps_shorter(home, machine):
    eager, compiled = (plan_of(machine, compile_model=c, max_iters=10**6) for c in (False, True))
    saved = (1 - COMPILED_STEP["cpu"]) * eager.seconds
    assert compiled.seconds == pytest.approx(
        eager.seconds - saved + COMPILE_SECONDS["cpu"], rel=0.02
    )
    short = plan_of(machine, compile_model=True, max_iters=1)
    assert short.seconds > COMPILE_SECONDS["cpu"]


def test_minutes_become_steps(home, machine):
    plan = plan_of(machine, max_iters=None, minutes=2.0)
    assert plan.config.batch.max_iters > 1000
    assert plan.seconds == pytest.approx(120, rel=0.1)


def test_a_measurement_replaces_the_estimate(home, machine, monkeypatch):
    from gptlab.training import building, measuring
    from gptlab.training.resolving import Measurements

    monkeypatch.setattr(measuring, "measure", lambda *_: Measurements(0.0, 0.25, 1e-6, 0.0))
    monkeypatch.setattr(building, "settle_torch", lambda device: None)
    overrides = layer(None, {**SMALL, "vocab_size": 66})
    plan = make_plan(overrides, text_size(overrides), machine, measure=True)
    assert plan.time_basis == "measured: 0.25 s a step"
    assert plan.seconds == pytest.approx(250, rel=0.02)


def test_few_and_many_tokens_per_parameter_are_reported(home, machine):
    assert any("are few" in note for note in plan_of(machine).notes)
    many = plan_of(machine, max_iters=100_000)
    assert any("are many" in note for note in many.notes)


def test_where_the_text_is_read_often_the_plan_warns_of_overfitting(home, machine):
    overrides = layer(None, {**SMALL, "dataset": "plays", "n_embd": 512, "max_iters": 80_000})
    notes = make_plan(overrides, text_size(overrides), machine).notes
    assert not any("are few" in note for note in notes)
    assert any(note.startswith("10.2 epochs: The model will memorise some of it") for note in notes)


# Memory -------------------------------------------------------------------------------------------


def test_on_a_gpu_gradients_take_the_place_of_activations_in_a_step_of_one_micro_batch():
    one, two = (
        step_memory(build(dict(SMALL, gradient_accumulation_steps=n, dtype="float32")), "cuda")
        for n in (1, 2)
    )
    assert sum(two.values()) - sum(one.values()) == two["gradients"]


def test_the_largest_batch_is_the_last_that_fits():
    config = build(dict(SMALL, dtype="float32"))
    free = 2 * GIGABYTE
    largest = largest_batch_size(config, "cpu", free)

    def needed(size):
        return sum(step_memory(config.replace(batch_size=size), "cpu").values())

    assert needed(largest) <= TIGHT * free < needed(largest + 1)
    assert largest_batch_size(config, "cpu", free, most=5) == 5
    assert largest_batch_size(config, "cpu", 10_000_000) == 0


def test_what_does_not_fit_is_reported_with_what_would(home, machine):
    plan = plan_of(machine, batch_size=64, n_layer=12, n_embd=1024, n_head=16, block_size=1024)
    assert plan.needed > plan.free
    assert plan.largest_batch_size < 64
    assert "--batch_size 32 --gradient_accumulation_steps 2" in plan.notes[0]


def test_the_cache_and_the_texts_that_fit(home, machine):
    plan = plan_of(machine, n_kv_head=1, max_iters=10)
    assert plan.kv_bytes_per_token == 2 * 2 * 1 * 32 * 4  # k and v, layers, heads, channels, bytes
    window = plan.kv_bytes_per_token * 32
    weights = 4 * plan.total_parameters
    assert plan.most_generated == int((TIGHT * plan.free - weights) // window)


SIZES = {
    "10M": dict(
        n_layer=6, n_head=5, n_embd=320, block_size=256, vocab_size=8192, batch_size=2
    ),
    "25M": dict(
        n_layer=8, n_head=8, n_kv_head=2, n_embd=512, block_size=512, vocab_size=8192, batch_size=1
    ),
    "3M": dict(
        n_layer=4, n_head=4, n_embd=256, block_size=256, vocab_size=66, batch_size=8
    ),
}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read from /proc")
@pytest.mark.parametrize("size", ["3M", "10M", pytest.param("25M", marks=pytest.mark.slow)])
def test_the_memory_is_that_of_a_process_after_its_third_step(size):
    # a heap lies in other pieces in each process: one says too little or much
    processes = 1 if size == "10M" else 3
    found = [measure_three_steps(dict(SIZES[size], dropout=0.0)) for _ in range(processes)]
    measured = statistics.median(each["measured"] for each in found)
    assert found[0]["planned"] == pytest.approx(measured, rel=0.15), found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read from /proc")
def test_training_a_part_saves_the_memory_that_the_plan_says():
    """Many weights and few activations, so that the heap's pieces matter little."""
    whole = dict(
        n_layer=6, n_head=8, n_embd=512, vocab_size=8192, block_size=128, batch_size=2,
        dropout=0.0, init_from="somewhere",
    )  # fmt: skip
    full = measure_three_steps(whole)
    for part in (dict(lora_rank=8), dict(freeze_layers=4)):
        less = measure_three_steps(whole | part)
        planned, measured = (full[key] - less[key] for key in ("planned", "measured"))
        assert planned > 190e6
        assert planned == pytest.approx(measured, rel=0.25), (part, full, less)


def measure_three_steps(options):
    script = Path(__file__).with_name("memory_of_three_steps.py")
    result = subprocess.run(
        [sys.executable, str(script), json.dumps(options)],
        capture_output=True, text=True, check=True,
        env=dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2])),
    )  # fmt: skip
    return json.loads(result.stdout)


# GPUs ---------------------------------------------------------------------------------------------


def test_the_gpus_are_known_and_dated():
    for gpu in gpus.GPUS:
        found = gpus.estimate(gpu, GPTConfig(**PRESETS["gpt2"], vocab_size=50257), 1e9, 8)
        assert found.seconds > 0 and found.dtype == (
            "float16" if gpu.name in ("T4", "V100") else "bfloat16"
        )
        assert found.dollars == pytest.approx(found.seconds / 3600 * gpu.dollars_per_hour)
        assert gpu.seen[:2] == "20"


def test_gpt2_on_an_a100_takes_as_long_as_others_report():
    """nanoGPT: 300B tokens in about 4 days on 8 A100, so 32 days of one, loading included."""
    a100 = next(gpu for gpu in gpus.GPUS if gpu.name.startswith("A100"))
    config = GPTConfig(**PRESETS["gpt2"], vocab_size=50257)
    days = gpus.estimate(a100, config, 300e9, 12).seconds / 86400
    assert 16 < days < 32


def test_a_narrow_model_reaches_less_of_a_gpu():
    shares = [gpus.assumed_share(GPTConfig(n_embd=n, n_head=4)) for n in (16, 128, 384, 768, 1536)]
    assert shares == sorted(shares) and shares[-2:] == [0.4, 0.4]
    assert shares[2] == pytest.approx(0.1) and shares[0] == gpus.LEAST_SHARE


def test_a_model_that_no_card_holds_has_no_batch(home, machine):
    plan = plan_of(machine, n_layer=60, n_head=64, n_embd=8192, block_size=2048, max_iters=10)
    assert [gpu.batch_size for gpu in plan.gpus] == [0] * len(gpus.GPUS)
    assert plan.largest_batch_size == 0
