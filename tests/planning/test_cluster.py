"""A training on many GPUs, on paper."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from gptlab.cli.main import main
from gptlab.cli.ui.cluster_plan import verdict
from gptlab.errors import ConfigError
from gptlab.model.config import PRESETS
from gptlab.planning.cluster import Cluster, gpu_memory, ring_seconds, setting, sizes, traffic
from gptlab.planning.cluster_choice import plan_on
from gptlab.planning.gpus import GPUS, find_gpu
from gptlab.training.config import build, layer, read_recipe
from gptlab.training.memory import step_memory
from gptlab.training.resolving import TextSize

GPT2 = 124_439_808  # parameters
TEXT = TextSize(50257, None, None, "GPT-2's own")


def cluster_of(gpus=8, gpu="h100", **changed):
    gpu = find_gpu(gpu)
    made = Cluster(gpu, gpus, 8, gpu.network, gpu.dollars_per_hour)
    return dataclasses.replace(made, **changed)


def config_of(**options):
    values = {**PRESETS["gpt2"], "vocab_size": 50257, "device": "cuda", "dtype": "bfloat16"}
    return build({**values, "max_iters": 100, **options})


def plan_of(cluster, text=TEXT, **options):
    return plan_on(cluster, layer(None, {"model_preset": "gpt2", **options}), text)


# Communication ------------------------------------------------------------------------------------


def test_a_ring_passes_all_pieces_but_one_over_each_link():
    """Four processes, each with a GB of four: three times a GB goes over each link of 1 GB/s."""
    assert ring_seconds(4e9, 4, 1e9) == pytest.approx(3.0, rel=1e-4)
    assert ring_seconds(4e9, 1, 1e9) == 0


def test_ddp_sums_each_gradient_once_in_a_step_whatever_the_micro_batches():
    for micro_batches in (1, 5):
        sent = traffic(config_of(), cluster_of(8), "ddp", micro_batches)
        assert (sent.gathered, sent.scattered, sent.reduced) == (0, 0, 4 * GPT2)


def test_hsdp_sums_an_eighth_between_machines_and_gathers_inside_them():
    sent = traffic(config_of(), cluster_of(64), "hsdp", 2)
    assert (sent.group, sent.replicas) == (8, 8)
    assert sent.reduced == sizes(config_of().model, 8).total // 8
    assert sent.gathered > 2 * 4 * GPT2


def test_one_gpu_sends_nothing():
    assert traffic(config_of(), cluster_of(1), "ddp", 4).sent == 0
    one = setting(config_of(batch_size=8), cluster_of(1), "ddp", False, 8)
    assert one.exposed == one.communication == 0


def test_a_slower_network_makes_steps_longer_and_links_inside_a_machine_do_not_care():
    def step(network, gpus):
        cluster = cluster_of(gpus, network=network)
        return setting(config_of(batch_size=64), cluster, "ddp", False, 64 // gpus).step

    assert step(1e8, 16) > step(5e10, 16)
    assert step(1e8, 8) == step(5e10, 8)


# Memory -------------------------------------------------------------------------------------------


def test_shards_of_weights_gradients_and_moments_shrink_with_the_processes():
    config = config_of(batch_size=8, gradient_accumulation_steps=4)
    whole = gpu_memory(config, cluster_of(1), "ddp")
    parts = gpu_memory(config, cluster_of(64), "fsdp")
    assert parts["optimizer"] == pytest.approx(whole["optimizer"] / 64, rel=0.03)
    assert parts["gradients"] == pytest.approx(whole["gradients"] / 64, rel=0.03)
    assert parts["activations"] == whole["activations"]
    assert whole == step_memory(config, "cuda")


def test_hsdp_holds_an_eighth_in_each_process_of_eight_machines():
    config = config_of(batch_size=8)
    assert (
        gpu_memory(config, cluster_of(64), "hsdp")["optimizer"]
        == gpu_memory(config, cluster_of(8), "fsdp")["optimizer"]
    )


# The choice ---------------------------------------------------------------------------------------


def test_the_chosen_micro_batch_is_the_largest_that_fits():
    plan = plan_of(cluster_of(8, "rtx4090"), batch_size=32, gradient_accumulation_steps=16)
    best = plan.chosen
    assert plan.has_room(best) and best.micro_batches > 1
    larger = setting(plan.config, plan.cluster, "ddp", False, 64)
    assert 64 > best.batch_size and not plan.has_room(larger)


def test_a_step_keeps_the_sequences_that_the_options_ask_for():
    plan = plan_of(cluster_of(16), batch_size=12, gradient_accumulation_steps=40, max_iters=10)
    options = plan.options
    assert options["batch_size"] * options["gradient_accumulation_steps"] == 480
    assert plan.notes == []


def test_sequences_that_do_not_divide_are_said_with_the_numbers_that_would():
    (sentence,) = plan_of(cluster_of(64), batch_size=100, max_iters=10).notes
    assert "100 sequences" in sentence and "128 or 64 would be" in sentence


def test_sharding_is_chosen_where_the_whole_model_does_not_fit():
    options = dict(n_layer=32, n_head=32, n_embd=4096, block_size=2048, position_encoding="rope")
    plan = plan_of(cluster_of(64), **options, max_iters=10)
    assert not plan.has_room(plan.settings[0])
    assert plan.chosen.parallelism in ("fsdp", "hsdp")


def test_what_fits_nowhere_is_said_and_no_recipe_is_written(home_of_words, capsys):
    words = ["plan", "--gpus", "2", "--gpu", "rtx3090", "--model_preset", "gpt2-xl"]
    words += ["--n_layer", "200"]
    assert main(words) == 0
    assert "does not fit" in capsys.readouterr().out
    assert main([*words, "--output", "big.py"]) == 2
    assert not (home_of_words / "big.py").exists()


def test_a_plan_names_the_price_that_it_was_given():
    cheap, dear = (plan_of(cluster_of(8, dollars_per_hour=price)) for price in (1.0, 3.0))
    assert dear.takes(dear.chosen)[1] == pytest.approx(3 * cheap.takes(cheap.chosen)[1])


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def home_of_words(tmp_path, monkeypatch):
    """An empty home, which is the working directory too."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_recipe_of_a_plan_repeats_its_choice(home_of_words, capsys):
    words = ["plan", "--gpus", "16", "--gpu", "a100", "--model_preset", "gpt2"]
    assert main([*words, "--json"]) == 0
    chosen = json.loads(capsys.readouterr().out)["chosen"]
    assert main([*words, "--output", "many.py"]) == 0
    out = capsys.readouterr().out
    assert "torchrun --nnodes 2" in out and "many.py" in out
    recipe = read_recipe(home_of_words / "many.py")
    assert recipe["model_preset"] == "gpt2"
    for name, value in chosen.items():
        assert recipe[name] == value


def test_the_recipe_of_one_gpu_needs_no_torchrun(home_of_words, capsys):
    words = ["plan", "--gpus", "1", "--model_preset", "tiny", "--output", "one.py"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "python train.py --config one.py" in out and "parallelism" not in out
    assert "parallelism" not in read_recipe(home_of_words / "one.py")
    assert main(["config", "show", "one.py"]) == 0
    assert "one.py" in capsys.readouterr().out


@pytest.mark.parametrize("size", [[], ["--n_embd", "4800"]], ids=["small", "large"])
@pytest.mark.parametrize("width", [60, 80])
def test_nothing_is_cut_off_on_a_narrow_screen(width, size, home_of_words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["plan", "--gpus", "64", "--gpu", "a100", "--model_preset", "gpt2-xl", *size]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    for row in ("ddp", "fsdp", "hsdp"):
        cells = [line.split("  ") for line in lines if line.startswith(f" {row}")]
        found = sum(len(list(filter(str.strip, each))) - 1 for each in cells)
        assert found == (4 if "too large" in str(cells) else 8), cells


PAGE = (Path(__file__).parents[2] / "docs" / "SCALE.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "table"), re.findall(r"```text\n\$ python gpt.py (.*)\n(Each[^`]*)```", PAGE)
)
def test_the_page_shows_what_the_command_prints(command, table, home_of_words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(command.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert table.rstrip() in "\n".join(line.rstrip() for line in lines)


def test_more_than_a_whole_micro_batch_is_not_promised():
    seven, eight = (plan_of(cluster_of(gpus), model_preset="gpt2-xl") for gpus in (7, 8))
    assert "of up to 14 sequences" in verdict(seven)[0]
    assert "micro-batches of 16 sequences" in verdict(eight)[0]


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.word)
def test_every_gpu_is_found_by_its_word(gpu):
    assert find_gpu(gpu.word) == find_gpu(gpu.word.upper()) == gpu


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gpu", "h100"], "--gpu has no effect"),
        (["--gpus", "8", "--gpu", "h101"], "No figures of a GPU 'h101'"),
        (["--gpus", "12"], "plan for 8 or 16"),
        (["--gpus", "8", "--network", "100"], "network has no effect"),
        (["--gpus", "8", "--price", "-1"], "above 0"),
        (["--gpus", "-8"], "above 0"),
        (["--gpus", "8", "--measure"], "measure times steps here"),
        (["--gpus", "8", "--minutes", "5"], "minutes says how long"),
        (["--gpus", "8", "--dtype", "float32"], "dtype has no effect"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(words, says, home_of_words, capsys):
    assert main(["plan", "--model_preset", "gpt2", *words]) == 2
    assert says in capsys.readouterr().err


def test_a_length_that_nothing_sets_is_twenty_tokens_per_parameter():
    plan = plan_of(cluster_of(8))
    assert plan.tokens == pytest.approx(20 * GPT2, rel=1e-3)
    with pytest.raises(ConfigError, match="epochs counts how often the text is read"):
        plan_of(cluster_of(8), epochs=2)
