"""The plan as tables and as JSON, from options, a recipe or a run."""

import json
import re

import pytest

from gptlab.checkpoints import model_content
from gptlab.cli.commands import plan as command
from gptlab.errors import ConfigError
from gptlab.hardware import choose, judge
from gptlab.hardware.probe import DTYPES, DeviceFacts, Facts
from gptlab.hardware.trials import Trial
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.planning import plan as planning
from gptlab.planning.gpus import GPUS
from gptlab.planning.plan import Machine
from gptlab.runs import Run
from gptlab.training.config import layer
from gptlab.training.run_recipe import as_recipe
from gptlab.training.units import in_dollars, in_short, in_time


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """An empty home, and a processor of 100 GFLOP/s with 8 GB free in place of this machine."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    trials = {dtype: Trial(flops=1e11 if dtype == "float32" else 1e9) for dtype in DTYPES}
    processor = DeviceFacts("cpu", "cpu", "Some CPU [x]", 16 * 10**9, 8 * 10**9, trials=trials)
    report = judge(Facts((processor,), 2, "Linux", "3.12.1", "2.13.0"))

    def look(overrides):
        return Machine(report, choose(report), 1e11)

    monkeypatch.setattr(planning, "this_machine", look)
    return tmp_path


def test_gpt2_has_its_own_number_of_parameters(capsys):
    assert command.main(["--model_preset", "gpt2"]) == 0
    out, err = capsys.readouterr()
    assert "124,439,808 parameters" in out and "GPT-2's own" in " ".join(out.split())
    for words in ("token embedding", "38,597,376", "compute-optimal", "2.49G tokens", "optimizer",
                  "largest batch_size that fits", "KV cache", "Some CPU [x]", "H100"):  # fmt: skip
        assert words in out, words
    assert "\x1b" not in out and err == ""
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("size", [1, 64])
def test_the_verdict_stands_first_and_the_tables_stay_true_in_a_narrow_window(
    monkeypatch, capsys, width, size
):
    monkeypatch.setenv("COLUMNS", str(width))
    command.main(["--model_preset", "gpt2", "--batch_size", str(size)])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= width and "…" not in out
    verdict = next(n for n, line in enumerate(lines) if line.startswith("  It"))
    assert verdict < lines.index("The training") < 20
    assert lines[verdict].startswith(
        f"  It {'fits' if size == 1 else 'does not fit'}: a step needs"
    )
    words = " ".join(out.split())
    assert "It takes about" in words and "The cheapest rented GPU" in words
    for gpu in GPUS:
        row = next(line for line in lines if line.startswith(f" {gpu.name} "))
        assert f"{gpu.memory >> 30} GB" in row and re.search(r"\$\d", row)
        assert f"{gpu.name} {gpu.dollars_per_hour:.2f} ({gpu.seen})" in words


def test_a_terminal_gets_colour_unless_it_wants_none(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    command.main(["--model_preset", "tiny"])
    assert "\x1b[1m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    command.main(["--model_preset", "tiny"])
    assert "\x1b[3" not in capsys.readouterr().out


def test_json_has_the_same_numbers(capsys):
    command.main(["--model_preset", "gpt2", "--batch_size", "2", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["parameters"]["total"] == 124_439_808
    assert plan["run"]["batch_size"] == 2 and plan["run"]["max_iters"] == 2000
    parts = {k: v for k, v in plan["memory"].items() if isinstance(v, int)}
    total, free = parts.pop("total"), parts.pop("free")
    assert parts.pop("largest_batch_size") > 2 and free == 8 * 10**9
    assert sum(parts.values()) == total


def test_the_command_line_overrides_a_recipe_in_the_plan(tmp_path, capsys):
    recipe = tmp_path / "own.py"
    recipe.write_text("n_layer = 3\nn_head = 2\nn_embd = 32\nmax_iters = 7\n", encoding="utf-8")
    plans = []
    for words in (["--config", str(recipe)], [str(recipe)]):
        command.main([*words, "--max_iters", "9", "--vocab_size", "50", "--json"])
        plans.append(json.loads(capsys.readouterr().out))
    assert plans[0] == plans[1]
    assert plans[0]["model"]["n_layer"] == 3 and plans[0]["run"]["max_iters"] == 9


def test_a_run_is_planned_as_it_was_resolved_although_its_text_is_gone(surroundings, capsys):
    overrides = layer(None, dict(dataset="gone", minutes=5.0, n_layer=2, n_head=2, n_embd=32))
    text = planning.TextSize(77, 10_000, 1_000, "then")
    machine = planning.this_machine(overrides)
    resolved, _ = planning.resolve_here(overrides, text, machine, machine.estimate)
    run = Run(surroundings / "out" / "mine")
    run.folder.mkdir(parents=True)
    run.recipe.write_text(as_recipe(overrides, resolved), encoding="utf-8")
    capsys.readouterr()
    command.main(["mine", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["run"]["max_iters"] == resolved.config.batch.max_iters
    assert plan["model"]["vocab_size"] == 77


def test_a_device_that_this_machine_lacks_is_noted_and_replaced_in_the_plan(monkeypatch):
    from gptlab import hardware

    report = planning.this_machine(None).report
    monkeypatch.undo()
    monkeypatch.setattr(hardware, "detect", lambda: report)
    monkeypatch.setattr(hardware, "peak_flops", lambda *_: hardware.PeakFlops(1e11, "measured"))
    machine = planning.this_machine(layer(None, {"device": "cuda"}))
    assert machine.choice.device == "cpu" and "no device 'cuda'" in machine.note
    plan = planning.make_plan(
        layer(None, {"device": "cuda", "vocab_size": 50}),
        planning.TextSize(50, None, None, "said"),
        machine,
    )
    assert plan.device == "cpu" and plan.notes[0] == machine.note


def test_a_fine_tuning_is_planned_for_the_model_that_it_starts_from(surroundings, capsys):
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=99))
    run = Run(surroundings / "base")
    run.begin()
    run.save_best(model_content(model, None))
    run.end()
    words = ["--init_from", str(run.folder), "--lora_rank", "4", "--max_iters", "10"]
    assert command.main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["model"]["n_embd"], plan["model"]["vocab_size"]) == (32, 99)
    assert plan["parameters"]["total"] == sum(p.numel() for p in model.parameters())
    assert plan["parameters"]["trained"] == 2 * 4 * sum(
        sum(linear.weight.shape)
        for linear in model.blocks[0].modules()
        if hasattr(linear, "in_features")
    )
    assert plan["memory"]["gradients"] == 4 * plan["parameters"]["trained"]
    assert command.main(words) == 0
    out = capsys.readouterr().out
    assert "adapters, trained" in out and "a smaller model" not in out
    with pytest.raises(ConfigError, match="is not here yet"):
        command.main(["--init_from", "smollm2-135m"])


def test_teachers_are_in_the_time_and_the_memory_of_the_plan(surroundings, capsys):
    model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=99))
    run = Run(surroundings / "taught")
    run.begin()
    run.save_best(model_content(model, None))
    run.end()
    words = ["--vocab_size", "99", "--n_layer", "2", "--n_head", "2", "--n_embd", "32"]
    words += ["--block_size", "64", "--max_iters", "10", "--eval_interval", "10", "--json"]
    plans = []
    for more in ([], ["--teacher", f"{run.folder},{run.folder}"]):
        assert command.main([*words, *more]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    plain, taught = plans
    # two forward passes of the model's own size: two thirds of a step each time
    steps = plain["flops"]["total"] / (0.4 * plain["time"]["peak_flops"])
    assert taught["time"]["seconds"] - plain["time"]["seconds"] == pytest.approx(
        2 / 3 * steps, rel=0.05
    )
    assert taught["memory"]["teachers"] == 2 * 4 * sum(p.numel() for p in model.parameters())
    assert any("40% of a step's FLOPs" in note for note in taught["notes"])
    with pytest.raises(ConfigError, match="teacher smollm2-135m is not here yet"):
        command.main(["--teacher", "smollm2-135m"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["a", "b"], "plan takes one run or recipe, not 2"),
        (["a", "--config", "b.py"], "plan takes one run or recipe"),
        (["--batchsize", "3"], "did you mean batch_size"),
        (["nothing.py"], "no recipe nothing.py"),
    ],
)
def test_a_wrong_command_line_is_refused(words, sentence):
    with pytest.raises(Exception, match=sentence) as refused:
        command.main(words)
    assert isinstance(refused.value, ConfigError)


def test_figures_are_short():
    assert [in_short(n) for n in (950, 2_048_000, 3.1e10, 5.2e16)] == [
        "950", "2.05M", "31G", "5.2e+16",
    ]  # fmt: skip
    assert in_time(0.01) == "< 0.1 s"
    assert [in_time(s) for s in (3.2, 65, 40 * 3600, 3 * 86400)] == [
        "3.2 s", "1 min 05 s", "40 h 00 min", "3.0 days",
    ]  # fmt: skip
    assert [in_dollars(d) for d in (0.001, 0.42, 1234.5)] == ["< $0.01", "$0.42", "$1,234"]
