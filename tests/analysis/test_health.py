"""Each check finds its fault, and says nothing where there is none."""

import importlib.metadata
import shutil
import sys

import numpy as np
import pytest
from packaging.requirements import Requirement

from gptlab import hardware
from gptlab.analysis import health
from gptlab.checkpoints import model_content
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.hardware import Choice, CompileSupport, Device
from gptlab.model.arithmetic import count_parameters
from gptlab.model.config import GPTConfig
from gptlab.runs import Run
from gptlab.training.config import build

CPU = Choice("cpu", "float32", False, "cpu, because there is no accelerator")


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A prepared dataset "words"; its folder."""
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    text = "".join(f"line {n} of a small text\n" for n in range(300))
    (tmp_path / "words.txt").write_text(text, encoding="utf-8")
    return prepare("words.txt", PrepareOptions(tokenizer="char")).dataset.folder


# Packages


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("2.13.0", "~=2.13.0", True),
        ("2.13.4+cpu", "~=2.13.0", True),
        ("2.14.0", "~=2.13.0", False),
        ("2.12.9", "~=2.13.0", False),
        ("2.1.3", ">=2.0,<3", True),
        ("3.0", ">=2.0,<3", False),
        ("1.26.4", ">=2.0,<3", False),
        ("5", ">=4.0,<6", True),
        ("6.0.1", ">=4.0,<6", False),
        ("0.22.2.post1", ">=0.21,<1", True),
        ("1.0", "", True),
        ("1.0.5", "==1.0", False),
        ("1.0.5", "==1.0.*", True),
        ("1.0.5", "!=1.0.*", False),
        ("2", ">2", False),
        ("1.9", "<=1.9", True),
        ("2026.2.dev3", ">=2026.1,<2027", True),
    ],
)
def test_releases_are_compared_as_pip_does(monkeypatch, version, wanted, fits):
    monkeypatch.setattr(importlib.metadata, "version", {"torch": version}.__getitem__)
    check = health.check_versions([Requirement(f"torch{wanted}")])
    assert check.ok is fits
    assert fits or f"torch is {version}, but" in check.detail


def test_this_environment_has_the_tested_releases_and_others_are_named():
    found = health.read_requirements()
    tested = {requirement.name: str(requirement.specifier) for requirement in found}
    assert tested["torch"].startswith("~=") and len(found) >= 9
    assert health.check_versions(found).ok
    check = health.check_versions([Requirement("numpy<1"), Requirement("no-such-package-here>=1")])
    assert not check.ok and "pip install -r requirements.txt" in check.fix
    assert "numpy is" in check.detail and "no-such-package-here is missing" in check.detail


def test_an_installed_package_knows_its_requirements_without_those_of_its_extras(monkeypatch):
    monkeypatch.setattr(health, "__file__", "/nowhere/gptlab/analysis/health.py")
    lines = ["numpy<3,>=2.0", 'onnx>=1.18; extra == "onnx"', 'tzdata; sys_platform == "none"']
    monkeypatch.setattr(importlib.metadata, "requires", {"gptlab": lines}.get)
    assert [requirement.name for requirement in health.read_requirements()] == ["numpy"]


# Places


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    check = health.check_writable("out_dir", tmp_path / "not" / "yet", "--out_dir")
    assert check.ok and list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a read-only file system")
def test_a_read_only_place_is_found_also_by_root():
    check = health.check_writable("out_dir", "/sys/kernel/gptlab", "--out_dir")
    assert not check.ok and "/sys/kernel" in check.detail and "--out_dir" in check.fix


def test_a_file_in_the_way_is_found(tmp_path):
    (tmp_path / "out").write_text("", encoding="utf-8")
    check = health.check_writable("out_dir", tmp_path / "out" / "run", "--out_dir")
    assert not check.ok and "file" in check.detail


def test_disk_space_is_compared_with_the_checkpoints_of_this_model(tmp_path, monkeypatch):
    config = build({"n_layer": 2, "n_embd": 96, "n_head": 3, "max_iters": 10})
    parameters = count_parameters(config.model)
    assert health.checkpoint_bytes(config) == 4 * parameters * (3 * 3 + 1)
    averaged = build({"n_layer": 2, "n_embd": 96, "n_head": 3, "ema_decay": 0.9})
    assert health.checkpoint_bytes(averaged) == 4 * parameters * (3 * 4 + 1)
    needed = health.checkpoint_bytes(config) + health.SPACE_TO_SPARE
    usage = shutil.disk_usage(tmp_path)
    for free, ok in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        check = health.check_space(config, tmp_path / "out" / "run")
        assert check.ok is ok and bool(check.fix) is not ok


def test_a_checkpoint_is_no_larger_than_estimated(tmp_path):
    import torch

    from gptlab.model.transformer import GPT
    from gptlab.training.optimizers.combined import Optimizers

    config = build(
        dict(n_layer=2, n_head=2, n_embd=64, vocab_size=100, block_size=16, optimizer="adamw",
             warmup_iters=1, lr_decay_iters=2, min_lr=0.0, max_iters=2)
    )  # fmt: skip
    model = GPT(config.model)
    optimizers = Optimizers(model, config, torch.float32)
    model(torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1, 8, dtype=torch.int64))[1].backward()
    optimizers.step(torch.zeros(()))
    run = Run(tmp_path)
    state = model_content(model, None, step=1, optimizer=optimizers.state_dict())
    run.save(state)
    size = run.checkpoint.stat().st_size
    assert (
        0.8 * health.checkpoint_bytes(config) < 3.33 * size < 1.3 * health.checkpoint_bytes(config)
    )


# The machine


def device(available=True, reason="g++ is there", kind="cpu", fix="apt-get install g++"):
    return Device(
        "cpu", kind, "a CPU", 8 << 30, 4 << 30, None, "", (), (), (),
        CompileSupport(available, reason, fix), True, "works",
    )  # fmt: skip


def test_a_missing_compiler_is_found_with_the_command_that_brings_it():
    check = health.check_compiler(device(False, "there is no C++ compiler here (g++)"))
    assert not check.ok and "no C++ compiler" in check.detail
    assert check.fix == "apt-get install g++, or use --compile_model false"
    assert health.check_compiler(device()).ok
    assert health.check_compiler(device(False, "none"), wanted=False).ok
    assert health.check_compiler(device(False, "it is young", kind="mps")).ok  # nothing to mend


def test_a_plan_that_does_not_fit_the_memory_is_found():
    config = build(dict(n_layer=12, n_head=12, n_embd=1536, block_size=1024, batch_size=64,
                        max_iters=10, device="cpu", dtype="float32"))  # fmt: skip
    check = health.check_device(CPU, device(), config)
    assert not check.ok and "GB" in check.detail and "--batch_size" in check.fix
    small = build(dict(n_layer=1, n_head=2, n_embd=32, block_size=32, batch_size=2, max_iters=10,
                       device="cpu", dtype="float32"))  # fmt: skip
    assert health.check_device(CPU, device(), small).ok


def test_attention_is_tried_here_and_a_leak_is_found(monkeypatch):
    assert health.check_attention(CPU).ok
    monkeypatch.setattr(hardware, "attention_is_causal", lambda *args, **more: False)
    check = health.check_attention(CPU)
    assert not check.ok and "leak" in check.detail and "float32" in check.fix


# Files of ours


def test_a_whole_dataset_passes(words):
    check = health.check_dataset("words")
    assert check.ok and "as its meta.json says" in check.detail


def test_a_truncated_train_bin_is_found(words):
    data = (words / "train.bin").read_bytes()
    (words / "train.bin").write_bytes(data[:-10])
    check = health.check_dataset("words")
    assert not check.ok and "train.bin" in check.detail and "prepare" in check.fix


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_one_changed_byte_is_found_also_in_a_file_too_large_for_the_check_at_opening(
    words, monkeypatch, limit
):
    from gptlab.data import token_files

    data = bytearray((words / "val.bin").read_bytes())
    data[100] ^= 1
    (words / "val.bin").write_bytes(data)
    monkeypatch.setattr(token_files, "VERIFY_BYTES", limit)
    monkeypatch.setattr(health, "VERIFY_BYTES", limit)
    check = health.check_dataset("words")
    assert not check.ok and "val.bin has changed" in check.detail


def test_an_id_outside_the_vocabulary_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    folder = tmp_path / "data" / "ids"
    folder.mkdir(parents=True)
    np.array([1, 2, 70] * 50, "<u2").tofile(folder / "train.bin")
    np.array([1, 2] * 50, "<u2").tofile(folder / "val.bin")
    check = health.check_dataset("ids", vocab_size=65)
    assert not check.ok and "70" in check.detail and "65" in check.detail


def test_a_missing_dataset_is_found_with_the_command_that_prepares_it(words):
    check = health.check_dataset("nope")
    assert not check.ok and "words" in check.detail and "prepare.py" in check.fix


@pytest.fixture
def run(tmp_path):
    """A run with ckpt.pt, ckpt.prev.pt and best.pt of a small model."""
    import torch

    from gptlab.model.transformer import GPT

    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, vocab_size=20, block_size=8))
    state = model_content(model, None, step=7, optimizer={})
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    run.save(state)
    run.save(state)
    run.save_best(model_content(model, None, step=5))
    return run


def failures(run):
    return {check.name: check for check in health.check_run(run.folder) if not check.ok}


def test_whole_checkpoints_pass(run):
    checks = list(health.check_run(run.folder))
    assert [check.name for check in checks] == ["run/ckpt.pt", "run/ckpt.prev.pt", "run/best.pt"]
    assert failures(run) == {} and "step 7" in checks[0].detail


@pytest.mark.parametrize("name", ["ckpt.pt", "best.pt"])
@pytest.mark.parametrize("how", ["cut", "changed", "empty", "text"])
def test_a_corrupt_checkpoint_is_found(run, name, how):
    path = run.folder / name
    data = path.read_bytes()
    path.unlink()  # ckpt.prev.pt may be the same file
    middle = data.index(b"token_embedding.weight") + 3
    damaged = {
        "cut": data[:-100],
        "changed": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :],
        "empty": b"",
        "text": b"not a checkpoint",
    }[how]
    path.write_bytes(damaged)
    found = failures(run)
    assert set(found) == {f"run/{name}"}
    check = found[f"run/{name}"]
    assert name in check.detail and not check.detail.endswith(".")
    assert ("--resume" in check.fix) == (name == "ckpt.pt")


def test_weights_that_are_not_numbers_are_found(run):
    import torch

    content = torch.load(run.checkpoint, weights_only=True)
    next(iter(content["model"].values())).view(-1)[0] = float("nan")
    run.save(content)
    assert "not finite" in failures(run)["run/ckpt.pt"].detail
