"""Adapters alone: peft puts them on the exported base model and computes what we compute."""

import json

import pytest
import torch

from gptlab.interop.write.adapter import write_adapter
from gptlab.interop.write.export import export
from gptlab.model.arithmetic import Trained, projections
from gptlab.model.lora import LoRALinear, is_adapter, train_only

GPT2 = dict(
    position_encoding="learned", use_rms_norm=False, use_swiglu=False, activation="gelu_tanh",
    bias=True,
)  # fmt: skip
LLAMA = dict(n_kv_head=2)


def adapted(random_model, targets, freeze_layers=0, **settings):
    """A random model with random adapters, and one without."""
    models = [random_model(**settings) for _ in range(2)]
    targets = targets or tuple(projections(models[0].config))
    train_only(models[0], Trained(freeze_layers, 3, targets), alpha=5.0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in models[0].named_parameters():
            if is_adapter(name):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    return models


CASES = pytest.mark.parametrize(
    ("settings", "targets", "freeze_layers"),
    [
        (LLAMA, (), 0),
        (LLAMA | dict(qk_norm=True), ("q_proj", "down_proj"), 1),
        (GPT2, (), 0),
        (GPT2, ("k_proj",), 1),
        (GPT2, ("q_proj", "v_proj", "o_proj"), 0),
    ],
    ids=["llama", "qwen3", "gpt2", "gpt2 keys", "gpt2 q v o"],
)


@CASES
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_peft_computes_the_same_from_the_base_and_the_adapter(
    settings, targets, freeze_layers, random_model, make_run, bpe, tmp_path
):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model, plain = adapted(random_model, targets, freeze_layers, **settings)
    export(make_run(plain, bpe), "hf", tmp_path / "base")
    assert write_adapter(model, tmp_path / "adapter", "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peer = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert set(peer.peft_config["default"].target_modules)
    tokens = torch.randint(400, (2, 50))
    with torch.no_grad():
        wanted, found = model(tokens)[0], peer(tokens).logits
    assert (wanted - plain(tokens)[0]).abs().max() > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@CASES
def test_the_files_hold_every_adapter_under_the_names_of_the_export(
    settings, targets, freeze_layers, random_model, make_run, bpe, tmp_path
):
    """As a skipped peft would read them: W + alpha / r * B A of each exported matrix."""
    from safetensors.torch import load_file

    model, plain = adapted(random_model, targets, freeze_layers, **settings)
    export(make_run(plain, bpe), "hf", tmp_path / "base")
    write_adapter(model, tmp_path / "adapter", "base")
    export(make_run(model, bpe, name="merged", lora_alpha=5.0), "hf", tmp_path / "merged")
    before, after = (load_file(tmp_path / n / "model.safetensors") for n in ("base", "merged"))
    adapters = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    stems = {name.removesuffix(".lora_A.weight") for name in adapters if "lora_A" in name}
    assert {f"{stem.removeprefix('base_model.model.')}.weight" for stem in stems} == changed
    for stem in stems:
        a, b = adapters[f"{stem}.lora_A.weight"], adapters[f"{stem}.lora_B.weight"]
        name = stem.removeprefix("base_model.model.")
        end = name.split(".", 3)[3]
        assert end in config["target_modules"]
        rank = config["rank_pattern"].get(end, config["r"])
        alpha = config["alpha_pattern"].get(end, config["lora_alpha"])
        assert len(a) == rank
        added = alpha / rank * b @ a
        added = added.T if config["fan_in_fan_out"] else added
        torch.testing.assert_close(
            after[f"{name}.weight"] - before[f"{name}.weight"], added, atol=1e-5, rtol=1e-4
        )


def test_a_model_that_nobody_else_can_read_has_no_adapter_files(random_model, tmp_path):
    model, _ = adapted(random_model, ("q_proj",), position_encoding="sinusoidal")
    assert any(isinstance(module, LoRALinear) for module in model.modules())
    assert not write_adapter(model, tmp_path / "adapter", "base")
    assert not (tmp_path / "adapter").exists()
