"""The benchmark for accelerators runs without one: the same code, tiny, on a CPU."""

import json

import pytest
import torch


def test_the_tiny_form_measures_everything_and_ends_with_json(tmp_path, capsys):
    import gpu

    assert gpu.main(["--tiny", "--json", str(tmp_path / "found.json")]) == 0
    output = capsys.readouterr().out
    results = json.loads(output.splitlines()[-1])
    kept = json.loads((tmp_path / "found.json").read_text())
    assert kept.pop("machine") and kept == results
    programs = results["training"]["programs"]
    assert set(programs) == {"gptlab adamw", "gptlab muon"}
    assert all(row["tokens_per_second"] > 0 and row["mfu"] > 0 for row in programs.values())
    assert 0 < results["training"]["muon_share_of_step"]
    assert set(results["decoding"]) == {"1 text", "2 texts"}
    assert all(row["share_of_bandwidth"] > 0 for row in results["decoding"].values())
    planned = {name: row["planned_bytes"] for name, row in results["checkpointing"].items()}
    assert planned["with"] < planned["without"]
    assert "| gptlab muon |" in output and "| 1 text |" in output


def test_our_step_of_the_benchmark_learns():
    import gpu

    machine = gpu.Machine("cpu", "float32", False)
    tokens = gpu.batch_of(machine, gpu.TINY)
    step = gpu.OurStep(machine, gpu.TINY, "adamw", tokens)

    def loss():
        with torch.no_grad():
            return step.model(step.inputs, step.targets)[1].item()

    before = loss()
    for _ in range(20):
        step()
    assert loss() < before


def test_the_full_form_is_gpt2s_size_of_nanogpts_benchmark():
    import gpu

    from gptlab.model.arithmetic import count_parameters
    from gptlab.model.config import GPTConfig

    config = GPTConfig(**gpu.FULL.shape)
    # nanoGPT prints 123.59M for its bench.py, which leaves the 1024 x 768 positions out
    assert round((count_parameters(config) - 1024 * 768) / 1e6, 2) == 123.59


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator here")
def test_without_an_accelerator_it_says_so(capsys):
    import gpu

    assert gpu.main([]) == 2
    assert "--tiny" in capsys.readouterr().err
