"""Checkpoints in shards, read from files as other programs would write them, whole and damaged."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from gptlab import sharded_checkpoints
from gptlab.checkpoints import model_content
from gptlab.cli.main import main
from gptlab.data.tokenizer import char_tokenizer
from gptlab.errors import CheckpointError
from gptlab.model.config import GPTConfig
from gptlab.model.transformer import GPT
from gptlab.runs import Run, load_checkpoint


def tensors_in(value, path=""):
    """{path: tensor} of a nested content, and the content without them."""
    found, plain = {}, {}
    for name, each in value.items():
        if isinstance(each, torch.Tensor):
            found[f"{path}{name}"] = each.clone()
        elif isinstance(each, dict):
            below, plain[name] = tensors_in(each, f"{path}{name}/")
            found |= below
        else:
            plain[name] = each
    return found, plain


def save_shards(folder, content, shards=3):
    """A content as `shards` processes would have written it."""
    folder.mkdir(parents=True)
    tensors, plain = tensors_in(content)
    files = {}
    for rank in range(shards):
        rows, offsets = {}, {}
        for name, value in tensors.items():
            parts = value.chunk(shards) if value.dim() else [value]
            if rank < len(parts):
                rows[name] = parts[rank].contiguous()
                first = sum(len(part) for part in parts[:rank])
                offset = [first] + [0] * (value.dim() - 1) if value.dim() else []
                offsets[name] = {"saved_offsets": offset}
        file = folder / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"
        save_file(rows, file, metadata={"DCP_SHARDING_INFO": json.dumps(offsets)})
        files[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    forms = {
        name: {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        for name, value in tensors.items()
    }
    state = {"format_version": 1, "content": plain, "tensors": forms, "sha256": files}
    (folder / "state.json").write_text(json.dumps(state))


@pytest.fixture(scope="module")
def content():
    torch.manual_seed(0)
    tokenizer = char_tokenizer("abcdefg ")
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=8))
    return model_content(model.eval(), tokenizer, step=7, val_loss=1.5)


@pytest.fixture
def folder(tmp_path, content):
    folder = tmp_path / "out" / "run" / "best"
    save_shards(folder, content)
    return folder


def test_a_model_in_shards_is_the_model_of_one_file(folder, content):
    loaded = load_checkpoint(folder).model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in content["model"].items())


def test_the_first_command_that_reads_a_run_writes_its_best_as_one_file(folder, content):
    run = Run(folder.parent)
    assert run.best == folder
    assert load_checkpoint(run.folder).path == run.folder / "best.pt"
    assert not folder.exists()
    loaded = load_checkpoint(run.folder).model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in content["model"].items())


def test_a_run_that_trains_keeps_its_shards(folder):
    run = Run(folder.parent)
    run.begin(resume=True)
    try:
        assert load_checkpoint(run.folder).path == folder
    finally:
        run.end()
    assert folder.exists()


def test_the_best_before_is_the_best_where_a_kill_came_between_two_renames(folder):
    before = folder.rename(folder.with_name("best.prev"))
    assert Run(folder.parent).best == before
    assert load_checkpoint(folder.parent).step == 7


@pytest.mark.parametrize("at", [8, 200, -1])
def test_a_changed_byte_of_a_shard_is_named(folder, at):
    file = sorted(folder.glob("shard-*"))[1]
    damaged = bytearray(file.read_bytes())
    damaged[at] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=f"{file.name} is damaged"):
        sharded_checkpoints.open_shards(folder)


def test_a_missing_shard_is_named(folder):
    file = sorted(folder.glob("shard-*"))[2]
    file.unlink()
    with pytest.raises(CheckpointError, match=f"{file.name} is missing"):
        sharded_checkpoints.open_shards(folder)


def edited(state, path, value):
    *groups, name = path
    for group in groups:
        state = state[group]
    state[name] = value


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (["format_version"], 99, "update gptlab"),
        (["tensors"], None, "damaged"),
        (["tensors", "model/lm_head.weight", "shape"], [900, 8], "lacks rows"),
        (["tensors", "model/lm_head.weight", "dtype"], "load", "damaged"),
        (["tensors", "model/other", ], {"dtype": "float32", "shape": [2]}, "lacks rows"),
        (["sha256"], {}, "lacks rows"),
    ],
)  # fmt: skip
def test_a_state_that_does_not_fit_its_shards_is_one_sentence(
    folder, capsys, path, value, what, content
):
    state = json.loads((folder / "state.json").read_text())
    if "model/lm_head.weight" not in state["tensors"]:
        path = [part.replace("lm_head", "token_embedding") for part in path]
    edited(state, path, value)
    (folder / "state.json").write_text(json.dumps(state))
    assert main(["sample", "--checkpoint", str(folder), "--prompt", "a"]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert "Traceback" not in error


def test_a_shard_without_its_offsets_is_one_sentence(folder):
    file = sorted(folder.glob("shard-*"))[0]
    save_file({"x": torch.zeros(1)}, file)
    state = json.loads((folder / "state.json").read_text())
    state["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match="damaged"):
        sharded_checkpoints.open_shards(folder)


def test_weights_in_shards_that_are_not_finite_are_refused(tmp_path, content):
    from gptlab.checkpoints import check_finite, open_checkpoint

    weights = {name: weight.clone() for name, weight in content["model"].items()}
    weights["token_embedding.weight"][-1, -1] = torch.nan
    save_shards(tmp_path / "ckpt", {**content, "model": weights})
    with pytest.raises(CheckpointError, match="not finite"):
        check_finite(open_checkpoint(tmp_path / "ckpt"), tmp_path / "ckpt")


def test_commands_take_a_checkpoint_in_shards_by_its_path(folder, capsys, monkeypatch):
    monkeypatch.setenv("GPTLAB_HOME", str(folder.parents[2]))
    elsewhere = shutil.copytree(folder, folder.parents[2] / "step10")
    for argv in (
        ["sample", "--checkpoint", str(elsewhere), "--prompt", "a", "--max_tokens", "3"],
        ["export", str(elsewhere), "--format", "hf"],
        ["export", str(folder.parent), "--format", "hf"],
    ):
        assert main(argv) == 0, capsys.readouterr().err
    assert elsewhere.exists()
    assert not list(elsewhere.glob("*hf*"))


def test_a_checkpoint_that_a_training_replaces_while_it_is_read_is_read_anew(
    folder, content, monkeypatch
):
    run = Run(folder.parent)
    run.begin(resume=True)  # it trains, so nothing is consolidated
    hash_file, seen = sharded_checkpoints.sha256_file, []

    def replacing(path):
        if not seen:
            seen.append(path)
            shutil.rmtree(folder)
            weights = {name: weight + 1 for name, weight in content["model"].items()}
            save_shards(folder, {**content, "model": weights, "step": 9})
        return hash_file(path)

    monkeypatch.setattr(sharded_checkpoints, "sha256_file", replacing)
    try:
        assert load_checkpoint(run.folder).step == 9
    finally:
        run.end()
