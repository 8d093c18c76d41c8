"""Overrides in layers, and what every "auto" resolves to."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gptlab.errors import ConfigError
from gptlab.hardware import Choice
from gptlab.model.config import PRESETS
from gptlab.training.config import (
    GROUPS,
    OPTIONS,
    START_OPTIONS,
    build,
    layer,
    plan_numbers,
    read_recipe,
)
from gptlab.training.resolving import (
    COMPILE_SECONDS,
    ENDLESS,
    EVALUATIONS,
    PLOT_SECONDS,
    Measurements,
    Situation,
    resolve,
    size_from_text,
)
from gptlab.training.run_recipe import as_recipe
from gptlab.training.sharding import shards_of

CPU = Choice("cpu", "float32", False, "there is no accelerator")
CARD = Choice("cuda:0", "bfloat16", False, "cuda:0 is a card")
DATA = dict(vocab_size=65, train_tokens=1_000_000, val_tokens=100_000)
CAN = (True, "a compiler is there")
STAYS_OPEN = {
    "out_dir",
    "minutes",
    "epochs",
    "activation",
    "initial_tensors",
    "teacher",
}  # None says "not this" there


def resolved(command_line=None, recipe=None, **arguments):
    return resolve(layer(recipe, command_line), Situation(**{"choice": CPU, **DATA, **arguments}))


def values(command_line=None, recipe=None, **arguments):
    return resolved(command_line, recipe, **arguments).config.flat()


# Layers -------------------------------------------------------------------------------------------


def test_each_layer_overrides_the_one_below_and_is_named_as_the_source():
    overrides = layer(
        {"model_preset": "small", "n_layer": 3, "batch_size": 7}, {"n_layer": 2}, "config/own.py"
    )
    assert overrides.values["n_layer"] == 2 and overrides.sources["n_layer"] == "command line"
    assert (
        overrides.values["batch_size"] == 7 and overrides.sources["batch_size"] == "config/own.py"
    )
    assert overrides.values["n_embd"] == PRESETS["small"]["n_embd"]
    assert overrides.sources["n_embd"] == "preset small"
    assert "learning_rate" not in overrides.values  # nobody said it
    assert build(overrides.values).optimizer.learning_rate == OPTIONS["learning_rate"].default


def test_a_preset_on_the_command_line_replaces_the_recipe_s_preset_below_the_recipe():
    overrides = layer({"model_preset": "small", "n_layer": 3}, {"model_preset": "tiny"})
    assert overrides.values["n_layer"] == 3
    assert overrides.values["n_embd"] == PRESETS["tiny"]["n_embd"]


@pytest.mark.parametrize("name", [*PRESETS, "auto"])
def test_every_preset_builds(name):
    config = resolved({"model_preset": name}).config
    assert config.model.vocab_size == 65
    for option, value in PRESETS.get(name, {}).items():
        assert getattr(config.model, option) == value


def test_an_unknown_preset_is_refused_with_those_that_exist():
    with pytest.raises(ConfigError, match=r"no preset 'huge'.*tiny.*gpt2-xl"):
        layer({"model_preset": "huge"})


def test_new_heads_drop_the_key_value_heads_of_the_layer_below():
    assert values({"model_preset": "small", "n_head": 4})["n_kv_head"] == 4
    assert values({"model_preset": "small", "n_head": 4, "n_kv_head": 2})["n_kv_head"] == 2
    assert values({"n_head": 4}, {"n_head": 8, "n_kv_head": 1, "n_embd": 32})["n_kv_head"] == 4
    assert values()["n_kv_head"] == 3


def test_new_swiglu_drops_the_activation_of_the_layer_below():
    assert values({"model_preset": "gpt2", "use_swiglu": True})["activation"] is None
    with pytest.raises(ConfigError, match=r"activation relu.*--use_swiglu false"):
        values({"activation": "relu"})


def test_of_max_iters_and_minutes_the_later_layer_wins():
    measured = Measurements(step=0.1)
    by_steps = values({"max_iters": 7}, {"minutes": 5.0}, measurements=measured)
    assert (by_steps["max_iters"], by_steps["minutes"]) == (7, None)
    by_time = values({"minutes": 5.0}, {"max_iters": 7}, measurements=measured)
    assert by_time["minutes"] == 5.0 and by_time["max_iters"] > 1000
    with pytest.raises(ConfigError, match="command line sets both max_iters and minutes"):
        layer({}, {"max_iters": 7, "minutes": 5.0})
    with pytest.raises(ConfigError, match=r"own\.py sets both max_iters and minutes"):
        layer({"max_iters": 7, "minutes": 5.0}, {}, "own.py")


def test_epochs_become_the_steps_that_read_the_text_so_often():
    sizes = {"batch_size": 8, "block_size": 100, "gradient_accumulation_steps": 5}  # 4,000 a step
    found = resolved({"epochs": 3.0, **sizes})
    assert found.config.batch.max_iters == 750  # of a text of 1,000,000 tokens
    assert found.reasons["max_iters"] == "3 epochs of 1,000,000 tokens at 4,000 a step"
    assert plan_numbers(found.config, DATA["train_tokens"])["epochs"] == 3.0
    assert values({"epochs": 0.001, **sizes})["max_iters"] == 1  # a part of a step is a step
    assert values({"epochs": 0.0041, **sizes})["max_iters"] == 2
    assert values({"epochs": 3.0, **sizes}, decided={"max_iters": 9})["max_iters"] == 9
    assert values({"epochs": 3.0, **sizes}, {"max_iters": 7, "minutes": None})["max_iters"] == 750
    assert values({"max_iters": 7}, {"epochs": 3.0})["epochs"] is None
    with pytest.raises(ConfigError, match="command line sets both max_iters and epochs"):
        layer({}, {"max_iters": 7, "epochs": 5.0})
    with pytest.raises(ConfigError, match="epochs counts how often the text is read, and there is"):
        resolved({"epochs": 3.0}, train_tokens=ENDLESS)


# Recipes ------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "own.py"
        path.write_text(text, encoding="utf-8")
        return read_recipe(path)

    return write


def test_a_recipe_is_python_and_its_values_take_the_option_s_own_type(recipe):
    overrides = recipe(
        '"""Words."""\nimport math\n_rows = 4\nbatch_size = _rows * 2\nmax_iters = 1e3\n'
        'def helper():\n    return 1\nlearning_rate = "3e-4"\nbias = "false"\n'
        "use_swiglu = 1\nout_dir = None\ndropout = 0\n"
    )
    assert overrides == dict(
        batch_size=8, max_iters=1000, dropout=0.0, learning_rate=3e-4, bias=False, use_swiglu=True,
        out_dir=None,
    )  # fmt: skip
    assert isinstance(overrides["dropout"], float) and isinstance(overrides["max_iters"], int)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("batchsize = 8", r"Unknown option batchsize in .*own\.py: did you mean batch_size\?"),
        ("n_layers = 8", r"did you mean n_layer\?"),
        ("lr = 1", r"Unknown option lr"),
        ("batch_size = 'many'", r"batch_size cannot be 'many': it takes a whole number"),
        ("batch_size = 1.5", r"batch_size cannot be 1\.5"),
        ("batch_size = True", r"batch_size cannot be True"),
        ("optimizer = 'sgd'", r"optimizer cannot be 'sgd': choose from adamw, muon"),
        ("batch_size = 1 / 0", r"own\.py cannot be run: ZeroDivisionError: division by zero"),
        ("batch_size = = 1", r"own\.py cannot be run: SyntaxError"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_a_sentence_with_its_name(recipe, text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        recipe(text)


def test_a_missing_recipe_is_a_sentence():
    with pytest.raises(ConfigError, match=r"no recipe config/none\.py"):
        read_recipe("config/none.py")


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (dict(batch_size=0), "batch_size is 0: it must be at least 1"),
        (dict(gradient_accumulation_steps=0), "gradient_accumulation_steps is 0"),
        (dict(max_iters=0), "max_iters is 0"),
        (dict(eval_interval=0), "eval_interval is 0"),
        (dict(log_interval=0), "log_interval is 0"),
        (dict(eval_tokens=0), "eval_tokens is 0"),
        (dict(minutes=0.0), "minutes is 0.0: it must be above 0"),
        (dict(epochs=0.0), "epochs is 0.0: it must be above 0"),
        (dict(epochs=1e9), "the most is 1,000,000"),
        (dict(minutes=math.inf), "minutes is inf: it must be a finite number"),
        (dict(learning_rate=0.0), "learning_rate is 0.0: it must be above 0"),
        (dict(learning_rate=math.nan), "learning_rate is nan: it must be a finite number"),
        (dict(grad_clip=-1.0), "grad_clip is -1.0: it cannot be negative"),
        (dict(warmup_iters=-1), "warmup_iters is -1"),
        (dict(early_stopping=-1), "early_stopping is -1"),
        (dict(beta2=1.0), "beta2 is 1.0: it must be at least 0 and below 1"),
        (dict(ema_decay=1.0), "ema_decay is 1.0"),
        (dict(decay_fraction=0.0), "decay_fraction is 0.0"),
        (dict(decay_fraction=1.5), "decay_fraction is 1.5"),
        (dict(min_lr=0.1, learning_rate=0.01), "min_lr 0.1 is above learning_rate 0.01"),
        (dict(resume=True, overwrite=True), "resume continues a run and overwrite deletes it"),
        (dict(n_head=5, n_embd=384), "n_embd 384 does not divide into n_head 5 heads"),
        (dict(n_head=4, n_kv_head=3), "n_head 4 is not a multiple of n_kv_head 3"),
        (dict(dropout=1.0), "dropout 1.0 must be at least 0 and below 1"),
        (dict(block_size=0), "block_size is 0"),
        (dict(tie_weights=True, init_projection="zero"), "--tie_weights false"),
        (dict(vocab_size=66), "vocab_size 66 does not fit the dataset"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_an_impossible_value_or_combination_is_refused_by_name(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        resolved(overrides, measurements=Measurements(step=0.1))


# Resolving ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"model_preset": "auto"},
        {"model_preset": "gpt2"},
        {"max_iters": 1},
        {"minutes": 3.0},
        {"minutes": 0.001},
        {"max_iters": 7, "eval_interval": 100, "compile_model": True},
        {"max_iters": None, "warmup_iters": None, "min_lr": None, "eval_tokens": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("choice", [CPU, CARD], ids=["cpu", "card"])
def test_every_auto_and_none_is_replaced_with_a_reason(overrides, choice):
    result = resolved(
        overrides, choice=choice, can_compile=CAN, measurements=Measurements(5.0, 0.1, 1e-5, 0.1)
    )
    open_ones = {name for name, v in result.config.flat().items() if v is None or v == "auto"}
    assert open_ones <= STAYS_OPEN
    filled = [n for n in OPTIONS if OPTIONS[n].default in (None, "auto") and n not in STAYS_OPEN]
    model = {field.name for field in dataclasses.fields(GROUPS["model"])}
    for name in set(filled) - model:
        if overrides.get(name) is None:
            assert result.reasons[name], name
    assert result == resolved(
        overrides, choice=choice, can_compile=CAN, measurements=Measurements(5.0, 0.1, 1e-5, 0.1)
    )


def test_values_that_are_not_set_follow_from_the_length_of_the_run():
    short, long = values({"max_iters": 100}), values({"max_iters": 100_000})
    assert (short["warmup_iters"], long["warmup_iters"]) == (5, 100)
    assert (short["lr_decay_iters"], long["lr_decay_iters"]) == (100, 100_000)
    assert (short["eval_interval"], long["eval_interval"]) == (10, 10_000)
    assert values({"learning_rate": 0.02})["min_lr"] == pytest.approx(0.002)
    assert values()["max_iters"] == 2000
    overrides = dict(max_iters=50, warmup_iters=0, lr_decay_iters=40, min_lr=0.0, eval_interval=7)
    assert overrides.items() <= values(overrides).items()


@pytest.mark.parametrize("known", ["measurements", "estimate"])
def test_evaluations_that_take_long_are_fewer_and_the_cost_is_the_reason(known):
    run = dict(max_iters=100, batch_size=1, block_size=128)
    for token, save, number in ((0.0, 13.0, 9), (0.0, 60.0, 2), (0.25, 1.0, 1), (0.0, 900.0, 1)):
        times = Measurements(step=5.0, eval_token=token, save=save)  # 500 s; a quarter is 125 s
        found = resolved(run, **{known: times})
        assert found.config.evaluation.eval_interval == math.ceil(100 / number)
        reason = found.reasons["eval_interval"]
        assert reason.startswith(f"{number} evaluation{'s' if number > 1 else ''} in the run, bec")
    # in a run of seconds they cost seconds, whatever their share is
    times = Measurements(step=0.01, eval_token=0.0, save=0.4)
    assert resolved(run, **{known: times}).config.evaluation.eval_interval == 10
    kept = resolved(run | dict(eval_interval=1), **{known: Measurements(step=0.1, save=900.0)})
    assert kept.config.evaluation.eval_interval == 1


def test_an_evaluation_costs_a_tenth_of_the_training_and_has_an_upper_limit():
    large = dict(vocab_size=65, train_tokens=10**9, val_tokens=10**8)
    run = dict(max_iters=1000, batch_size=8, block_size=128, eval_interval=100)
    found = values(run, **large)
    trained = 1000 * 8 * 128
    # a forward pass is a third of a training step
    assert found["eval_tokens"] * 10 / 3 == pytest.approx(0.1 * trained, rel=0.01)
    assert values(run | dict(eval_interval=1000), **large)["eval_tokens"] == 131072
    assert values(run | dict(max_iters=1, batch_size=1), **large)["eval_tokens"] == 4 * 128
    whole = resolved(run | dict(max_iters=10**6), **DATA | dict(val_tokens=5000))
    assert whole.config.evaluation.eval_tokens == 4999
    assert whole.reasons["eval_tokens"] == "the whole validation split"
    assert values(run | dict(eval_tokens=77), **large)["eval_tokens"] == 77


@pytest.mark.parametrize("n_head", [None, 2, 4])
@pytest.mark.parametrize("tokens", [0, 50_000, 200_000, 10**6, 10**9])
def test_auto_sizes_the_model_from_the_text_and_keeps_overrides(tokens, n_head):
    overrides = {"model_preset": "auto"} | ({"n_head": n_head} if n_head else {})
    found = values(overrides, **DATA | dict(train_tokens=tokens))
    assert found["n_layer"] == size_from_text(tokens)["n_layer"]
    assert found["n_head"] == (n_head or size_from_text(tokens)["n_head"])
    assert found["n_kv_head"] == found["n_head"]


def test_larger_texts_get_larger_models():
    sizes = [size_from_text(tokens)["n_embd"] for tokens in (0, 10**5, 10**6, 10**7)]
    assert sizes == sorted(sizes) and len(set(sizes)) == 4


# Many processes -----------------------------------------------------------------------------------


def parallelism(command_line=None, **situation):
    """(what the processes have of the model, why)."""
    found = resolved(command_line, **situation)
    return found.config.machine.parallelism, found.reasons.get("parallelism", "")


def test_auto_shards_only_what_does_not_fit_and_says_why():
    assert parallelism() == ("ddp", "there is one process")
    assert parallelism(processes=4) == ("ddp", "the whole model fits in each process")
    apart = parallelism(processes=4, fits_whole=False)
    assert apart == ("fsdp", "the whole model does not fit in one process")
    for kind in ("ddp", "fsdp", "hsdp"):  # what is set is set, with no reason of ours
        for fits in (True, False):
            assert parallelism({"parallelism": kind}, processes=4, fits_whole=fits) == (kind, "")


def test_a_run_that_goes_on_with_other_processes_decides_anew():
    for decided in ({"max_iters": 7}, {"max_iters": 7, "parallelism": "fsdp"}):
        assert parallelism(processes=1, decided=decided)[0] == "ddp"
    set_before = {"parallelism": "hsdp"}
    assert parallelism(set_before, processes=1) == ("ddp", "there is one process")


def test_adapters_are_never_sharded():
    tuned = {"lora_rank": 4, "init_from": "out/base"}
    why = "adapters train beside the whole model"
    assert parallelism(tuned, processes=2, fits_whole=False) == ("ddp", why)
    for kind in ("fsdp", "hsdp"):
        with pytest.raises(ConfigError, match=r"lora_rank.*use --parallelism ddp"):
            parallelism({**tuned, "parallelism": kind}, processes=2)
        whole = {**tuned, "lora_rank": 0, "parallelism": kind}  # what the refusal advises
        assert parallelism(whole, processes=2)[0] == kind
    assert parallelism({**tuned, "parallelism": "ddp"}, processes=2)[0] == "ddp"
    assert parallelism({**tuned, "parallelism": "fsdp"}, processes=1)[0] == "ddp"


@pytest.mark.parametrize(
    ("processes", "of_each_machine", "group"),
    [(4, 4, 2), (6, 6, 3), (8, 4, 4), (16, 8, 8), (6, 2, 2), (4, 1, 2), (5, 5, 0), (2, 2, 0),
     (3, 3, 0), (9, 2, 0)],
)  # fmt: skip
def test_hybrid_sharding_divides_the_processes_into_equal_groups(processes, of_each_machine, group):
    among = SimpleNamespace(world_size=processes, local_size=of_each_machine)
    assert (shards_of("ddp", among), shards_of("fsdp", among)) == (1, processes)
    if group:
        assert shards_of("hsdp", among) == group
        return
    with pytest.raises(ConfigError, match=f"{processes} processes do not divide"):
        shards_of("hsdp", among)


# Compiling ----------------------------------------------------------------------------------------


def compiles(overrides, can_compile=CAN, choice=CPU, **measured):
    measurements = Measurements(**measured) if measured else None
    result = resolved(overrides, choice=choice, can_compile=can_compile, measurements=measurements)
    return result.config.machine.compile_model


def test_auto_compiles_only_where_that_saves_more_than_it_takes():
    cost = COMPILE_SECONDS["cpu"]
    assert not compiles({"max_iters": 1000}, step=cost / 1000)  # saves a quarter of that
    assert compiles({"max_iters": 1000}, step=10 * cost / 1000)
    assert not compiles({"max_iters": 1000})  # not measured: too short to be worth it
    assert not compiles({"minutes": 1.0}, step=0.1)
    assert compiles({"minutes": 60.0}, step=0.1)


def test_auto_never_compiles_where_it_cannot_and_an_explicit_choice_is_kept():
    cannot = (False, "there is no C++ compiler here")
    assert not compiles({"minutes": 600.0}, can_compile=cannot, step=0.1)
    reasons = resolved({"max_iters": 10}, can_compile=cannot).reasons
    assert reasons["compile_model"] == "there is no C++ compiler here"
    for minutes_or_steps in ({"minutes": 1.0}, {"max_iters": 10}):
        assert compiles({"compile_model": True} | minutes_or_steps, cannot, step=0.1)
        assert not compiles({"compile_model": False} | minutes_or_steps, step=100.0)


# The time budget ----------------------------------------------------------------------------------


def seconds_of(config, measured, compiled):
    """(seconds of a run by these measurements, start and compilation included; of an evaluation)"""
    iters, interval = config.batch.max_iters, config.evaluation.eval_interval
    evaluations = math.ceil(iters / interval)
    step = measured.step * (0.72 if compiled else 1)
    each = config.evaluation.eval_tokens * measured.eval_token + measured.save
    return measured.elapsed + iters * step + evaluations * each + 45 * compiled, each


@example(
    minutes=1.0, step=0.1875, eval_share=0.5, save=0.0, elapsed=0.0, interval=250, available=False
)  # a second evaluation would not fit
@given(
    minutes=st.floats(1, 60),
    step=st.floats(0.005, 0.5),
    eval_share=st.floats(0.2, 0.5),
    save=st.floats(0, 0.3),
    elapsed=st.floats(0, 15),
    interval=st.sampled_from([None, 50, 250]),
    available=st.booleans(),
)
def test_a_run_in_minutes_takes_its_time_and_hardly_more_or_less(
    minutes, step, eval_share, save, elapsed, interval, available
):
    overrides = {"minutes": minutes, "batch_size": 16, "block_size": 128}
    if interval:
        overrides["eval_interval"] = interval
    # one token costs a forward pass, which is a third of a step or more
    measured = Measurements(elapsed, step, step / (16 * 128) * eval_share, save)
    config = resolved(overrides, can_compile=(available, "why"), measurements=measured).config
    taken, each = seconds_of(config, measured, config.machine.compile_model)
    # what is kept free: pictures, the last save, and an evaluation that one more step would bring
    assert taken <= 60 * minutes + step
    assert 60 * minutes - taken <= PLOT_SECONDS + 2 * save + 1.1 * each + 2 * step
    assert config.schedule.lr_decay_iters == config.batch.max_iters


def test_a_budget_that_is_already_spent_still_takes_one_step():
    assert values({"minutes": 0.01}, measurements=Measurements(9.0, 1.0))["max_iters"] == 1


def test_a_budget_without_a_measurement_is_an_error():
    with pytest.raises(ConfigError, match="needs a measurement"):
        values({"minutes": 1.0})


def test_a_resume_keeps_what_the_first_start_decided():
    first = resolved({"minutes": 10.0}, can_compile=CAN, measurements=Measurements(5, 0.1)).config
    names = ("max_iters", "compile_model", "warmup_iters", "eval_interval", "eval_tokens")
    decided = {name: first.flat()[name] for name in names}
    again = resolved({"minutes": 10.0}, can_compile=CAN, decided=decided).config
    assert again == first
    longer = resolved({"max_iters": 10**6}, can_compile=CAN, decided=decided).config
    assert longer.batch.max_iters == longer.schedule.lr_decay_iters == 10**6
    assert longer.evaluation.eval_interval == first.evaluation.eval_interval
    assert longer.schedule.warmup_iters == first.schedule.warmup_iters


def test_a_slow_precision_is_used_on_request_with_a_warning():
    slow = Choice("cpu", "bfloat16", False, "bfloat16 is 90 times slower here", slow=True)
    assert resolved(choice=slow).warning == "bfloat16 is 90 times slower here"
    assert resolved().warning == ""
    assert resolved(choice=dataclasses.replace(CARD, use_scaler=True)).use_scaler


# A run as a recipe --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        {"max_iters": 30, "dropout": 0.0, "bias": True, "learning_rate": 1e-2},
        {"model_preset": "small", "n_head": 4},
        {"model_preset": "gpt2", "use_swiglu": True},
        {"model_preset": "auto"},
        {"minutes": 3.0, "out_dir": "somewhere", "overwrite": True, "quiet": True},
        {"dataset": 'a "quoted" näme', "compile_model": False, "minutes": None},
    ],
    ids=str,
)
def test_a_run_written_as_a_recipe_gives_the_same_run(tmp_path, overrides):
    measured = Measurements(5.0, 0.1, 1e-5, 0.1)
    first = layer(None, overrides)
    situation = Situation(CPU, **DATA, measurements=measured)
    result = resolve(first, situation)
    path = tmp_path / "config.py"
    path.write_text(as_recipe(first, result), encoding="utf-8")
    recipe = read_recipe(path)
    kept = {name: v for name, v in first.values.items() if name not in START_OPTIONS}
    assert recipe == kept
    again = resolve(layer(recipe), situation).config
    assert again.replace(**{n: OPTIONS[n].default for n in START_OPTIONS}) == result.config.replace(
        **{n: OPTIONS[n].default for n in START_OPTIONS}
    )
    text = path.read_text(encoding="utf-8")
    assert "command line" in text and f"# lr_decay_iters = {again.batch.max_iters}  (max_it" in text
    assert "out_dir" not in text


def test_flat_names_are_unique_and_a_copy_changes_only_the_given_values():
    config = build({})
    assert len(config.flat()) == sum(len(dataclasses.fields(group)) for group in GROUPS.values())
    copy = config.replace(n_layer=2, batch_size=9)
    assert (copy.model.n_layer, copy.batch.batch_size) == (2, 9)
    assert copy.replace(n_layer=config.model.n_layer, batch_size=32) == config
    assert config.tokens_per_step == 32 * 256 and config.sequences_per_step == 32
    assert EVALUATIONS == 10
