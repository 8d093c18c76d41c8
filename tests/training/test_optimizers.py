"""AdamW, Muon and averaged weights against their formulas, and steps that must change nothing."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gptlab.checkpoints import read_checkpoint, write_checkpoint
from gptlab.errors import CheckpointError
from gptlab.model.arithmetic import count_parameters
from gptlab.model.config import GPTConfig
from gptlab.model.lora import train_only
from gptlab.model.transformer import GPT
from gptlab.training.config import OptimizerOptions, build
from gptlab.training.disk_space import checkpoint_bytes
from gptlab.training.ema import Ema
from gptlab.training.memory import step_memory
from gptlab.training.optimizers.combined import Optimizers
from gptlab.training.optimizers.muon import NS_COEFFICIENTS, Muon, orthogonalize
from gptlab.training.optimizers.table import OPTIMIZERS
from gptlab.training.precision import clip_grad_norm

ROOT = Path(__file__).resolve().parents[2]
RATE, DECAY = 1e-2, 0.3
MODEL = dict(
    vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=8, use_swiglu=False, bias=True,
    use_rms_norm=False,
)  # fmt: skip


def make(optimizer="adamw", seed=0):
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**MODEL))
    config = build(dict(MODEL, optimizer=optimizer, learning_rate=RATE, weight_decay=DECAY))
    return model, Optimizers(model, config, torch.float32)


def give_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def take_steps(model, optimizers, seeds, found_inf=0.0):
    for seed in seeds:
        give_gradients(model, seed)
        optimizers.step(torch.tensor(found_inf))


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def copied(state):
    return {n: {k: v.clone() for k, v in s.items()} for n, s in state.items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Muon ---------------------------------------------------------------------------------------------


def newton_schulz_by_svd(matrix):
    """What the iteration does to a matrix: a polynomial of its singular values, four times."""
    a, b, c = NS_COEFFICIENTS
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(4):
        s = a * s + b * s**3 + c * s**5
    return u @ np.diag(s) @ vt


@pytest.mark.parametrize("shape", [(6, 6), (4, 5), (4, 9), (9, 4), (1, 5), (16, 48)])
def test_orthogonalising_acts_on_singular_values_only(shape):
    matrices = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    found = orthogonalize(torch.from_numpy(matrices), torch.float32).numpy()
    for one, matrix in zip(found, matrices, strict=True):
        np.testing.assert_allclose(one, newton_schulz_by_svd(matrix), atol=2e-5)


def test_singular_values_end_near_one():
    matrices = torch.randn(20, 32, 48, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalize(matrices, torch.float32))
    assert values.min() > 0.6 and values.max() < 1.25


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 1e-5])
def test_low_precision_is_close_enough_to_orthogonal(dtype, size):
    matrices = size * torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(1))
    found = orthogonalize(matrices, dtype)
    assert found.dtype == dtype
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.5 and values.max() < 1.35


def muon_reference(weight, grads, momentum, decay):
    """One matrix at a time, as Jordan et al. 2024 and Liu et al. 2025 write it."""
    weight, buffer = weight.astype(np.float64), np.zeros(weight.shape)
    for grad in grads:
        buffer = momentum * buffer + (1 - momentum) * grad
        ahead = momentum * buffer + (1 - momentum) * grad
        weight = weight * (1 - RATE * decay)
        weight = weight - RATE * 0.2 * np.sqrt(max(weight.shape)) * newton_schulz_by_svd(ahead)
    return weight


def test_muon_in_stacks_equals_a_plain_loop_over_matrices():
    generator = np.random.default_rng(2)
    shapes = [(4, 6), (6, 4), (4, 6), (5, 5)]
    starts = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    grads = [
        [generator.normal(size=shape).astype(np.float32) for _ in range(4)] for shape in shapes
    ]
    parameters = [torch.nn.Parameter(torch.from_numpy(start.copy())) for start in starts]
    options = OptimizerOptions(learning_rate=RATE, muon_momentum=0.9)
    muon = Muon([{"params": parameters, "weight_decay": DECAY}], options, torch.float32)
    for step in range(4):
        for parameter, own in zip(parameters, grads, strict=True):
            parameter.grad = torch.from_numpy(own[step])
        muon.step()
    for parameter, start, own in zip(parameters, starts, grads, strict=True):
        expected = muon_reference(start, own, 0.9, DECAY)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (192, 64)])
def test_muon_moves_weights_as_far_as_adamw_would(shape):
    parameter = torch.nn.Parameter(torch.zeros(shape))
    parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    options = OptimizerOptions(learning_rate=RATE)
    Muon([{"params": [parameter], "weight_decay": 0.0}], options, torch.float32).step()
    rms = parameter.detach().square().mean().sqrt().item()
    assert 0.14 * RATE < rms < 0.24 * RATE  # AdamW's typical update is 0.2 to 0.4 of the rate


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_all_the_rest():
    model, optimizers = make("muon")
    adamw, muon = optimizers.optimizers
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert hidden == {n for n in names.values() if n.startswith("blocks.") and "_proj.weight" in n}
    assert hidden | rest == set(names.values()) and not hidden & rest


def taken_by_muon(model, **options):
    """Names of the parameters that Muon updates, in the order in which it does."""
    optimizers = Optimizers(model, build(dict(optimizer="muon", **options)), torch.float32)
    names = {id(p): name for name, p in model.named_parameters()}
    muon = next(o for o in optimizers.optimizers if isinstance(o, Muon))
    return [names[id(p)] for group in muon.param_groups for p in group["params"]]


@pytest.mark.parametrize(
    "options",
    [
        dict(MODEL, position_encoding="learned"),
        dict(qk_norm=True, tie_weights=False, n_kv_head=1),
        dict(freeze_layers=1),
        dict(lora_rank=2),
        dict(lora_rank=2, lora_targets="q_proj, down_proj", freeze_layers=1, bias=True),
    ],
)
def test_muon_takes_every_matrix_of_the_blocks_that_is_trained_in_the_model_s_order(options):
    tuned = {"init_from": "a run"} if {"lora_rank", "freeze_layers"} & set(options) else {}
    options = {**MODEL, "use_swiglu": True, "use_rms_norm": True, **options, **tuned}
    config = build(options)
    model = GPT(config.model)
    train_only(model, config.trained, 16.0)
    assert taken_by_muon(model, **options) == [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.dim() == 2 and name.startswith("blocks.")
    ]


def test_the_module_of_a_matrix_decides_whether_it_is_hidden():
    model = GPT(GPTConfig(**MODEL))
    before = taken_by_muon(model, **MODEL)
    model.blocks[0].table = torch.nn.Embedding(11, 8)  # looked up, not multiplied
    model.blocks[1].attention.extra = torch.nn.Linear(8, 4)
    model.beside = torch.nn.Linear(8, 4)
    added = set(taken_by_muon(model, **MODEL)) - set(before)
    assert added == {"blocks.1.attention.extra.weight"}


# AdamW --------------------------------------------------------------------------------------------


def adamw_reference(weight, grads, decay, beta1=0.9, beta2=0.95, eps=1e-8):
    """Loshchilov & Hutter 2019, algorithm 2."""
    weight = weight.astype(np.float64)
    mean, square = np.zeros(weight.shape), np.zeros(weight.shape)
    for step, grad in enumerate(grads, start=1):
        mean = beta1 * mean + (1 - beta1) * grad
        square = beta2 * square + (1 - beta2) * grad**2
        corrected, variance = mean / (1 - beta1**step), square / (1 - beta2**step)
        weight = weight - RATE * (corrected / (np.sqrt(variance) + eps) + decay * weight)
    return weight


def test_adamw_follows_its_formula_and_decays_matrices_only():
    model, optimizers = make()
    before, grads = weights(model), {name: [] for name, _ in model.named_parameters()}
    for seed in range(5):
        give_gradients(model, seed)
        for name, parameter in model.named_parameters():
            grads[name].append(parameter.grad.numpy().copy())
        optimizers.step(torch.tensor(0.0))
    for name, parameter in model.named_parameters():
        decay = DECAY if parameter.dim() == 2 else 0.0
        expected = adamw_reference(before[name].numpy(), grads[name], decay)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, atol=1e-6, err_msg=name)
    assert {p.dim() for p in model.parameters()} == {1, 2}  # vectors were among them


def test_the_rate_of_a_step_reaches_every_group():
    model, optimizers = make("muon")
    optimizers.set_learning_rate(0.0)
    before = weights(model)
    take_steps(model, optimizers, range(2))
    assert equal(before, weights(model))


# Steps that must change nothing -------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("skip_at", [0, 3])
def test_a_skipped_step_leaves_no_trace(optimizer, skip_at):
    model, optimizers = make(optimizer)
    plain_model, plain = make(optimizer)
    take_steps(plain_model, plain, range(6))

    take_steps(model, optimizers, range(skip_at))
    before, state = weights(model), copied(optimizers.state_dict())
    for bad in (math.nan, math.inf):
        give_gradients(model, 99)
        next(model.parameters()).grad[0, 0] = bad
        model.blocks[0].mlp.up_proj.weight.grad[0, 0] = bad
        optimizers.step(torch.tensor(1.0))
    assert equal(before, weights(model))
    for name, values in state.items():
        assert equal(values, optimizers.state_dict()[name])
    take_steps(model, optimizers, range(skip_at, 6))
    assert equal(weights(plain_model), weights(model))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_put_back_continues_bitwise(optimizer):
    model, optimizers = make(optimizer)
    take_steps(model, optimizers, range(3))
    other_model, other = make(optimizer, seed=5)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(copied(optimizers.state_dict()))
    for both in ((model, optimizers), (other_model, other)):
        take_steps(*both, range(3, 6))
    assert equal(weights(model), weights(other_model))


def test_state_of_another_optimizer_is_refused():
    with pytest.raises(CheckpointError, match="belongs to another optimizer"):
        make("muon")[1].load_state_dict(make("adamw")[1].state_dict())
    model, optimizers = make("adamw")
    take_steps(model, optimizers, range(1))
    with pytest.raises(CheckpointError, match="belongs to another optimizer"):
        make("muon")[1].load_state_dict(optimizers.state_dict())


WRONG_STATES = {
    "name": (
        lambda s: {"step": s["step"], "exp_avg": s["exp_avg"], "mean": s["exp_avg_sq"]},
        "belongs to another optimizer",
    ),
    "dtype": (
        lambda s: {**s, "exp_avg": s["exp_avg"].double()},
        r"exp_avg .* is float64 of shape \(32, 16\) and must be float32 of shape \(32, 16\)",
    ),
    "shape": (
        lambda s: {**s, "exp_avg_sq": s["exp_avg_sq"][0]},
        r"exp_avg_sq .* is float32 of shape \(16,\) and must be float32 of shape \(32, 16\)",
    ),
    "scalar": (
        lambda s: {**s, "step": s["step"][None]},
        r"step .* is float32 of shape \(1,\) and must be float32 of shape \(\)",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), WRONG_STATES.values(), ids=WRONG_STATES)
def test_a_state_of_wrong_name_shape_or_dtype_is_refused(train, tmp_path, change, sentence):
    train(max_iters=2)
    path = tmp_path / "run" / "ckpt.pt"
    content = read_checkpoint(path)
    name = "blocks.1.mlp.up_proj.weight"
    content["optimizer"][name] = change(content["optimizer"][name])
    write_checkpoint(content, path)
    (tmp_path / "run" / "ckpt.prev.pt").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=sentence) as refused:
        train(resume=True, max_iters=4)
    if "--init_from" in str(refused.value):
        train(out_dir="new", init_from=str(path), max_iters=2)


@pytest.mark.parametrize("state", [{}, None, {"exp_avg": 3.0}, {"exp_avg": [1.0]}])
def test_a_state_without_tensors_is_refused_when_it_is_read(train, tmp_path, state):
    train(max_iters=2)
    path = tmp_path / "run" / "ckpt.pt"
    content = read_checkpoint(path)
    content["optimizer"]["final_norm.weight"] = state
    write_checkpoint(content, path)
    (tmp_path / "run" / "ckpt.prev.pt").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=r"no valid optimizer state of final_norm\.weight"):
        train(resume=True, max_iters=4)


# The table ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_plan_counts_the_values_that_an_optimizer_keeps(optimizer):
    shape = dict(n_layer=4, n_head=2, n_embd=64, vocab_size=700, block_size=8)  # a fifth is table
    config = build(dict(shape, optimizer=optimizer, dtype="float32"))
    model = GPT(config.model)
    optimizers = Optimizers(model, config, torch.float32)
    take_steps(model, optimizers, range(1))
    states = [value for state in optimizers.state_dict().values() for value in state.values()]
    kept = sum(value.nbytes for value in states if value.dim())
    assert step_memory(config, "cpu")["optimizer"] == pytest.approx(kept, rel=0.05)
    assert checkpoint_bytes(config) >= 4 * 4 * count_parameters(config.model) + 3 * kept


LION = '''"""Lion (Chen et al. 2023), its mean in half precision, and a count."""

import torch

from gptlab.training.optimizers.optimizer import Optimizer


class Lion(Optimizer):
    def new_state(self, parameter):
        return {
            "mean": torch.zeros_like(parameter, dtype=torch.bfloat16),
            "steps": torch.zeros(1, dtype=torch.int64),
        }

    @torch.no_grad()
    def step(self, found_inf=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if found_inf is None or found_inf == 0:
                    state, grad, rate = self.state_of(parameter), parameter.grad, group["lr"]
                    ahead = torch.lerp(grad, state["mean"].float(), self.options.beta1).sign()
                    parameter.mul_(1 - rate * group["weight_decay"]).sub_(ahead, alpha=rate)
                    state["mean"].lerp_(grad.bfloat16(), 1 - self.options.beta2)
                    state["steps"] += 1
'''
LION_LINE = '    "lion": OptimizerEntry("gptlab.training.optimizers.lion:Lion", 0.5, "lion"),\n'


def test_a_third_optimizer_is_one_file_and_one_line(prepared_home, tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "gptlab", tmp_path / "gptlab", ignore=ignored)
    folder = tmp_path / "gptlab" / "training" / "optimizers"
    (folder / "lion.py").write_text(LION, encoding="utf-8")
    head, brace, rest = (folder / "table.py").read_text(encoding="utf-8").rpartition("}\n")
    (folder / "table.py").write_text(head + LION_LINE + brace + rest, encoding="utf-8")

    options = dict(
        dataset="tiny", n_layer=2, n_head=2, n_embd=16, block_size=16, batch_size=4, dropout=0.0,
        optimizer="lion", learning_rate=1e-3, warmup_iters=1, lr_decay_iters=6, eval_interval=3,
        eval_tokens=256, device="cpu", dtype="float32", compile_model=False,
    )  # fmt: skip
    asked = [f"--{name}={value}" for name, value in options.items()]
    lines = [
        ["train", *asked, "--out_dir=whole", "--max_iters=6", "--quiet"],
        ["train", *asked, "--out_dir=parts", "--max_iters=3", "--quiet"],
        ["train", "--resume", "--out_dir=parts", "--max_iters=6", "--quiet"],
        ["plan", *asked, "--max_iters=6", "--json"],
    ]
    script = (  # one process for all: it imports torch once
        "import json, sys\n"
        "from gptlab.cli.main import run_command\n"
        "for name, *words in json.loads(sys.argv[1]):\n"
        "    if run_command(name, words):\n"
        "        sys.exit(f'{name} failed')\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script, json.dumps(lines)], cwd=tmp_path, capture_output=True,
        text=True, env={**os.environ, "GPTLAB_HOME": str(prepared_home), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    whole, parts = (read_checkpoint(tmp_path / n / "ckpt.pt") for n in ("whole", "parts"))
    assert equal(whole["model"], parts["model"])
    assert whole["optimizer"].keys() == parts["optimizer"].keys() == whole["model"].keys()
    for name, state in whole["optimizer"].items():
        assert equal(state, parts["optimizer"][name])
        assert state["mean"].dtype == torch.bfloat16 and state["steps"].tolist() == [6]
    parameters = sum(weight.numel() for weight in whole["model"].values())
    plan = json.loads(finished.stdout)
    assert plan["memory"]["optimizer"] == 2 * parameters


# Averaged weights and clipping --------------------------------------------------------------------


def test_averaged_weights_follow_the_corrected_formula():
    model, optimizers = make()
    ema, decay, history = Ema(model, 0.8), 0.8, []
    for step in range(6):
        take_steps(model, optimizers, [step])
        ema.update(model, step)
        history.append(weights(model))
    share = [(1 - decay) * decay ** (5 - i) / (1 - decay**6) for i in range(6)]
    for name, average in ema.weights.items():
        expected = sum(s * h[name].double() for s, h in zip(share, history, strict=True))
        torch.testing.assert_close(average.double(), expected, atol=1e-6, rtol=0)


def test_swapping_averaged_weights_twice_changes_no_bit():
    model, optimizers = make()
    ema = Ema(model, 0.8)
    take_steps(model, optimizers, range(2))
    raw, averaged = weights(model), {n: w.clone() for n, w in ema.weights.items()}
    ema.swap(model)
    assert equal(weights(model), averaged) and equal(ema.weights, raw)
    ema.swap(model)
    assert equal(weights(model), raw) and equal(ema.weights, averaged)


@pytest.mark.parametrize("largest", [0.5, 1e9, 0.0])
def test_gradients_are_clipped_by_their_common_norm(largest):
    model, _ = make()
    give_gradients(model, 0)
    grads = [p.grad.clone() for p in model.parameters()]
    norm = math.sqrt(sum(g.double().square().sum().item() for g in grads))
    assert clip_grad_norm(model, largest).item() == pytest.approx(norm, rel=1e-5)
    scale = min(1.0, largest / norm) if largest else 1.0
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad * scale, rtol=1e-4, atol=1e-6)
