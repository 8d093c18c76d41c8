"""A training that changes a part of a pretrained model: adapters, frozen layers, what is kept."""

import json

import pytest
import torch

from gptlab.checkpoints import model_from, read_checkpoint, write_checkpoint
from gptlab.errors import CheckpointError, ConfigError
from gptlab.model.config import GPTConfig
from gptlab.model.lora import has_adapters, is_adapter
from gptlab.runs import Run, load_checkpoint
from gptlab.training.config import build
from gptlab.training.disk_space import checkpoint_bytes
from gptlab.training.memory import step_memory

LORA = dict(lora_rank=4, lora_alpha=8.0, learning_rate=1e-2, max_iters=8, eval_interval=4)


def weights(folder, name="best.pt"):
    return read_checkpoint(folder / name)["model"]


@pytest.fixture
def pretrained(train, tmp_path):
    """A run to start from; its path."""
    train(out_dir="base", max_iters=10, dropout=0.0)
    return tmp_path / "base"


def test_lora_trains_adapters_and_leaves_the_weights_bitwise(train, pretrained, tmp_path):
    outcome = train(out_dir="lora", init_from=str(pretrained), **LORA)
    base, state = weights(pretrained), read_checkpoint(tmp_path / "lora" / "ckpt.pt")
    adapters = {name for name in state["model"] if is_adapter(name)}
    assert len(adapters) == 2 * 7 * 2  # A and B of seven projections in two blocks
    assert set(state["optimizer"]) == adapters
    for name, before in base.items():
        assert torch.equal(state["model"][name], before)
    first = next(r["val_loss"] for r in Run(pretrained).records()[::-1] if "val_loss" in r)
    assert outcome.best_val_loss < first


def test_both_checkpoints_are_ordinary_models_and_compute_the_same(train, pretrained, tmp_path):
    train(out_dir="lora", init_from=str(pretrained), **LORA)
    folder = tmp_path / "lora"
    best, last = (load_checkpoint(folder / name).model for name in ("best.pt", "ckpt.pt"))
    assert not has_adapters(last) and not has_adapters(best)  # merged: for sample, export, evaluate
    tokens = torch.randint(best.config.vocab_size, (3, 16))
    if read_checkpoint(folder / "best.pt")["step"] != 8:
        pytest.skip("the best step is not the last")
    beside = model_from(read_checkpoint(folder / "ckpt.pt"), "ckpt.pt", keep_adapters=True)
    assert has_adapters(beside)
    for model in (best, last):
        torch.testing.assert_close(model(tokens)[0], beside(tokens)[0], atol=1e-5, rtol=0)
    # and a next training may start from either
    train(out_dir="more", init_from=str(folder / "ckpt.pt"), max_iters=2)


@pytest.mark.parametrize(
    "options", [LORA, dict(freeze_layers=1), LORA | dict(freeze_layers=1, ema_decay=0.8)]
)
def test_a_resumed_training_of_a_part_ends_bitwise_as_an_unbroken_one(
    train, pretrained, tmp_path, options
):
    options = dict(init_from=str(pretrained), dropout=0.1, eval_interval=4) | options
    train(out_dir="whole", **options | dict(max_iters=8))
    train(out_dir="broken", **options | dict(max_iters=8), stop_at=5)
    train(out_dir="broken", resume=True)
    whole, broken = (read_checkpoint(tmp_path / n / "ckpt.pt") for n in ("whole", "broken"))
    for name, wanted in whole["model"].items():
        assert torch.equal(broken["model"][name], wanted), name


def test_checkpoints_of_adapters_are_small_and_belong_to_one_base(train, pretrained, tmp_path):
    train(out_dir="lora", init_from=str(pretrained), **LORA)
    folder = tmp_path / "lora"
    for name in ("ckpt.pt", "ckpt.prev.pt", "best.pt"):
        stored = torch.load(folder / name, weights_only=True)["model"]
        assert stored and all(map(is_adapter, stored))
    # the base is another name of the file, so it takes no space and outlives it
    assert (folder / "base.pt").samefile(pretrained / "best.pt")
    before = load_checkpoint(folder).model.state_dict()
    train(out_dir="base", resume=True, max_iters=20, learning_rate=0.1)
    assert not (folder / "base.pt").samefile(pretrained / "best.pt")
    for name, weight in load_checkpoint(folder).model.state_dict().items():
        assert torch.equal(weight, before[name])
    (folder / "base.pt").unlink()
    sentence = r"best\.pt holds adapters, and .*base\.pt is not the model that they belong to"
    with pytest.raises(CheckpointError, match=sentence):
        load_checkpoint(folder)
    (folder / "base.pt").hardlink_to(pretrained / "ckpt.pt")
    with pytest.raises(CheckpointError, match="is not the model that they belong to"):
        train(out_dir="lora", resume=True, max_iters=10)
    (folder / "base.pt").unlink()
    (folder / "base.pt").hardlink_to(folder / "best.pt")
    with pytest.raises(CheckpointError, match="is not the model that they belong to"):
        load_checkpoint(folder)


def test_adapters_on_merged_adapters_or_on_a_shorter_window_have_a_base_of_their_own(
    train, pretrained, tmp_path
):
    train(out_dir="lora", init_from=str(pretrained), **LORA)
    train(out_dir="more", init_from=str(tmp_path / "lora"), **LORA | dict(lora_rank=2))
    merged = load_checkpoint(tmp_path / "lora").model.state_dict()
    for name, weight in read_checkpoint(tmp_path / "more" / "base.pt")["model"].items():
        assert torch.equal(weight, merged[name])
    options = dict(LORA, init_from=str(pretrained), block_size=8)
    train(out_dir="whole", **options)
    train(out_dir="short", **options, stop_at=5)
    train(out_dir="short", resume=True)
    whole, short = (weights(tmp_path / name, "ckpt.pt") for name in ("whole", "short"))
    for name, wanted in whole.items():
        assert torch.equal(short[name], wanted), name


def test_frozen_layers_stay_bitwise_and_the_others_move(train, pretrained, tmp_path):
    train(out_dir="part", init_from=str(pretrained), freeze_layers=1, max_iters=4)
    before, after = weights(pretrained), weights(tmp_path / "part", "ckpt.pt")
    for name, value in after.items():
        stays = name.startswith(("blocks.0.", "token_embedding"))
        assert torch.equal(value, before[name]) == stays, name


def test_lora_on_the_compiled_model_trains_the_same(train, pretrained, tmp_path):
    for name, compiled in (("eager", False), ("compiled", True)):
        train(
            out_dir=name, init_from=str(pretrained), compile_model=compiled,
            **LORA | dict(max_iters=3, freeze_layers=1),
        )  # fmt: skip
    eager, compiled = (weights(tmp_path / name, "ckpt.pt") for name in ("eager", "compiled"))
    for name in eager:
        torch.testing.assert_close(compiled[name], eager[name], atol=1e-5, rtol=1e-3)


def test_muon_trains_adapters_too(train, pretrained, tmp_path):
    train(out_dir="muon", init_from=str(pretrained), optimizer="muon", **LORA)
    state = read_checkpoint(tmp_path / "muon" / "ckpt.pt")["optimizer"]
    assert state and all(is_adapter(name) and set(s) == {"momentum"} for name, s in state.items())


def test_a_shorter_window_is_tuned_and_a_longer_one_refused(train, pretrained, tmp_path):
    train(out_dir="short", init_from=str(pretrained), block_size=8, max_iters=2)
    assert load_checkpoint(tmp_path / "short").model.config.block_size == 8
    with pytest.raises(CheckpointError, match="use --block_size 16 or less"):
        train(out_dir="long", init_from=str(pretrained), block_size=32, max_iters=2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(lora_rank=4), "starts from scratch: name the model with --init_from"),
        (dict(freeze_layers=1), "starts from scratch"),
        (dict(init_from="x", freeze_layers=2), "use 1 or less"),
        (dict(init_from="x", lora_rank=4, lora_targets="q_proj, c_attn"), "'c_attn' is not a proj"),
        (dict(init_from="x", lora_rank=4, lora_targets=""), "choose from q_proj"),
        (dict(init_from="x", lora_rank=4, lora_alpha=0.0), "lora_alpha is 0.0"),
        (dict(init_from="x", lora_rank=-1), "cannot be negative"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_a_sentence(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build(dict(n_layer=2) | options)


def test_a_resume_does_not_change_what_is_trained(train, pretrained):
    train(out_dir="lora", init_from=str(pretrained), **LORA)
    with pytest.raises(ConfigError, match="lora_rank cannot change at a resume"):
        train(out_dir="lora", resume=True, lora_rank=8, max_iters=10)


def test_half_an_adapter_is_a_damaged_checkpoint(train, pretrained, tmp_path):
    train(out_dir="lora", init_from=str(pretrained), **LORA)
    path = tmp_path / "lora" / "ckpt.pt"
    whole = read_checkpoint(path)
    name = "blocks.0.attention.q_proj.lora_B"
    for damage in (
        lambda state: state["model"].pop(name),
        lambda state: state["model"].update({name: torch.zeros(16, 5)}),
        lambda state: state["model"].update({name: torch.zeros(16, 4).long()}),
        lambda state: state["model"].update({"token_embedding.lora_A": torch.zeros(4, 16)}),
        lambda state: state.update(lora_alpha=float("nan")),
        lambda state: state.pop("lora_alpha"),
    ):
        state = {**whole, "model": dict(whole["model"])}
        damage(state)
        write_checkpoint(state, path)
        with pytest.raises(CheckpointError, match="no whole adapter of"):
            load_checkpoint(path)


def test_a_new_training_in_the_folder_removes_the_old_adapter(train, pretrained, tmp_path):
    train(out_dir="lora", init_from=str(pretrained), **LORA)
    folder = tmp_path / "lora" / "adapter"
    assert {p.name for p in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
    train(out_dir="lora", overwrite=True, max_iters=2)
    assert not folder.exists()


def test_the_plan_counts_gradients_and_moments_of_the_adapters_only():
    model = GPTConfig(n_layer=4, n_head=4, n_embd=128, vocab_size=1000, block_size=64).to_dict()
    full = build(model | dict(init_from="x"))
    tuned = full.replace(lora_rank=8, lora_targets="q_proj,v_proj")
    adapters = 4 * 8 * (2 * (128 + 128))
    rows = step_memory(tuned, "cpu")
    assert rows["gradients"] == 4 * adapters and rows["optimizer"] == 8 * adapters
    assert rows["weights"] == step_memory(full, "cpu")["weights"] + 4 * adapters
    assert checkpoint_bytes(tuned) < checkpoint_bytes(full) / 2
    frozen = step_memory(full.replace(freeze_layers=3), "cpu")
    assert frozen["activations"] < step_memory(full, "cpu")["activations"] / 2
