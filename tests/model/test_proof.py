"""The proof in a checkpoint: small, of these very weights, and made without touching a training."""

import io

import pytest
import torch

from gptlab.checkpoints import model_content, model_from, read_checkpoint
from gptlab.errors import CheckpointError
from gptlab.model import proof, reference
from gptlab.model.arithmetic import Trained
from gptlab.model.building import narrow_copy, parameter_shapes
from gptlab.model.config import GPTConfig, preset
from gptlab.model.lora import train_only
from gptlab.model.transformer import GPT
from gptlab.runs import load_checkpoint

SETTINGS = {
    "llama": dict(n_kv_head=2, rope_theta=1e6, norm_eps=1e-3),
    "qwen3": dict(qk_norm=True, tie_weights=False, head_dim=12, n_kv_head=1),
    "biases": dict(bias=True),
    "gpt2": dict(
        position_encoding="learned", use_rms_norm=False, use_swiglu=False, activation="gelu_tanh",
        bias=True, block_size=300,
    ),
    "classic": dict(position_encoding="learned", use_rms_norm=False, use_swiglu=False),
    "sinusoidal": dict(position_encoding="sinusoidal", use_swiglu=False, activation="relu2",
                       n_embd=33, n_head=3),
    "relu": dict(use_rms_norm=False, use_swiglu=False, activation="relu", bias=True),
    "attention only": dict(intermediate_size=0),
}  # fmt: skip
each_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


@pytest.fixture
def edit(monkeypatch):
    """A function: from now on the code is another one, so that proofs are computed and compared."""
    texts = {"gptlab/model/transformer.py": "edited\n"}
    return lambda: monkeypatch.setattr(proof, "code_texts", lambda: texts)


def changed(model, **settings) -> GPT:
    """A model with the same weights and other settings."""
    other = GPT(GPTConfig(**model.config.to_dict() | settings))
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_a_proof_is_about_10_kb_whatever_the_vocabulary(random_model):
    content = io.BytesIO()
    torch.save(proof.proof_of(random_model(vocab_size=50257, block_size=1024)), content)
    assert len(content.getvalue()) < 14_000


def test_it_tells_an_edited_eps_and_rope_base_from_rounding(random_model):
    model = random_model(block_size=64)
    stored = proof.proof_of(model)
    with torch.no_grad():
        assert proof.difference_from(stored, changed(model)) == ""
        assert "logits differ by up to" in proof.difference_from(stored, changed(model, norm_eps=2))
        assert proof.difference_from(stored, changed(model, rope_theta=5e5))
        model.blocks[1].mlp.down_proj.weight[3, 4] += 1
    assert proof.difference_from(stored, model)


def test_a_shorter_window_is_compared_within_it(random_model):
    model = random_model(block_size=64, position_encoding="learned")
    content = model_content(model, None)
    shorter = model_from(content, "best.pt", block_size=10)
    assert proof.difference_from(content["proof"], shorter) == ""
    with torch.no_grad():
        shorter.position_embedding.weight[9] += 1
    assert proof.difference_from(content["proof"], shorter)


def test_making_one_draws_nothing_and_leaves_the_model_as_it_was(random_model):
    model = random_model(dropout=0.5).train()
    expected = proof.proof_of(model.eval())
    before, number = model.train().state_dict(), torch.random.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        found = proof.proof_of(model)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(found["log_sum_exp"], expected["log_sum_exp"])
    assert torch.equal(torch.random.get_rng_state(), number)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(weight.grad is None for weight in model.parameters())
    # of weights in another precision too it is one of float32
    half = proof.proof_of(model.bfloat16())
    assert half["logits"].dtype == torch.float32 and next(model.parameters()).dtype != torch.float32


def test_with_adapters_it_is_that_of_the_merged_weights(random_model):
    model = random_model()
    train_only(model, Trained(lora_rank=2, lora_targets=("q_proj", "down_proj")), alpha=4.0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("lora_B"):
                weight.normal_()
    merged = model_content(model, None, "merged")
    beside = model_content(model, None, lora_alpha=4.0)
    for content in (merged, beside):
        assert proof.difference_from(content["proof"], model_from(content, "best.pt")) == ""


def test_nothing_is_computed_under_the_same_code(random_model, home, monkeypatch):
    run = written(random_model(), home)
    monkeypatch.setattr(proof, "difference_from", lambda *_: pytest.fail("computed"))
    load_checkpoint(run)


def written(model, home, **more):
    from gptlab.runs import Run

    run = Run(home / "out" / "run")
    run.begin()
    run.save_best(model_content(model, None, **more))
    run.end()
    return run.folder


@pytest.mark.parametrize(
    "damage",
    [
        7, {}, dict(code={}), dict(code={1: "x"}), dict(log_sum_exp=None), dict(positions=[0]),
        dict(positions=torch.zeros(8)), dict(logits=torch.zeros(2, 2)),
        dict(log_sum_exp=torch.zeros(16, dtype=torch.int64)),
    ],
    ids=str,
)  # fmt: skip
def test_a_malformed_proof_is_a_sentence(random_model, home, edit, damage):
    model = random_model()
    whole = proof.proof_of(model)
    damaged = whole | damage if damage and isinstance(damage, dict) else damage
    run = written(model, home, proof=damaged)
    edit()
    if damage == dict(code={}):  # a proof all the same
        load_checkpoint(run)
        return
    with pytest.raises(CheckpointError, match=r"best\.pt holds a proof that cannot be read"):
        load_checkpoint(run)


def test_a_file_without_a_proof_is_read_as_before(random_model, home, edit, caplog):
    run = written(random_model(), home, proof=None)
    edit()
    load_checkpoint(run)
    assert caplog.text == "" and read_checkpoint(run / "best.pt")["proof"] is None


def test_other_settings_that_were_asked_for_are_not_held_against_it(
    random_model, home, edit, caplog
):
    run = written(random_model(), home)
    edit()
    load_checkpoint(run, norm_eps=0.5)
    assert caplog.text == ""
    load_checkpoint(run, dropout=0.5, block_size=5)
    assert "which computes the same" in caplog.text


# The description, and small copies ----------------------------------------------------------------


@each_setting
def test_the_reference_computes_every_setting_of_the_live_module(random_model, settings):
    model = random_model(**dict(block_size=40) | settings)
    assert reference.disagreement(model) == ""
    narrow = narrow_copy(model)
    tokens = proof.probe_tokens(narrow.config.block_size, narrow.config.vocab_size)
    with torch.no_grad():
        expected = narrow.double()(tokens[None])[0][0]
        weights = {name: value.double() for name, value in narrow.state_dict().items()}
        found = reference.logits(narrow.config, weights, tokens)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert expected.abs().max() > 3  # opinions strong enough for a cap to show


@each_setting
def test_shapes_by_formula_and_of_the_module_on_no_memory_are_those_of_the_module(settings):
    config = GPTConfig(**dict(n_embd=48, n_head=4) | settings)
    expected = {name: tuple(value.shape) for name, value in GPT(config).named_parameters()}
    assert parameter_shapes(config) == expected == reference.shapes(config)


def test_parameters_are_counted_without_the_compiler_and_without_memory():
    import subprocess
    import sys

    code = """if True:
        import math, sys
        from gptlab.model.building import parameter_shapes
        from gptlab.model.config import GPTConfig, preset
        for name in ("gpt2-xl", "large"):
            shapes = parameter_shapes(GPTConfig(**preset(name), vocab_size=50257))
            print(sum(map(math.prod, shapes.values())))
        print("torch._dynamo" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "1557611200"  # as published
    assert done.stdout.split()[2] == "False"


def test_a_narrow_copy_draws_nothing_and_has_the_switches_of_the_model():
    torch.manual_seed(3)
    model = GPT(GPTConfig(**preset("tiny"), vocab_size=300, qk_norm=True))
    before = torch.random.get_rng_state()
    narrow = narrow_copy(model)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert narrow.config.qk_norm and narrow.config.n_head == 5 and narrow.config.n_embd == 40
    assert sum(weight.numel() for weight in narrow.parameters()) < 200_000
    assert all(weight.std() > 0.1 for weight in narrow.parameters())


def test_every_file_of_the_model_is_hashed_but_those_that_only_count_or_compare():
    files = {path.removeprefix("gptlab/model/") for path in proof.code_hashes()}
    assert {"config.py", "kv_cache.py", "lora.py", "transformer.py"} <= files
    assert files == {path.name for path in proof.CODE.glob("*.py")} - proof.BESIDE_THE_MODEL
