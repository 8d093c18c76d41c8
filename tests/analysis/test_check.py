"""gpt.py check: each planted fault is caught by its line, and sound code shows no false alarm."""

import functools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gptlab import hardware
from gptlab.analysis.check import Subject, run_checks, small_shape, subject_of
from gptlab.analysis.check_files import FILE_CHECKS
from gptlab.analysis.check_model import MODEL_CHECKS
from gptlab.analysis.check_speed import beside_revision
from gptlab.analysis.check_training import COMPILED_CHECKS, TRAINING_CHECKS, WIDTH_CHECKS
from gptlab.analysis.check_weights import WEIGHT_CHECKS
from gptlab.cli.main import main
from gptlab.data.batches import Batches, Sequences
from gptlab.hardware import Choice
from gptlab.inference.decoding import Decoder
from gptlab.interop.write import huggingface
from gptlab.model import transformer
from gptlab.model.config import PRESETS, GPTConfig
from gptlab.model.kv_cache import KVCache
from gptlab.model.transformer import GPT, MLP, Attention, Block, RMSNorm
from gptlab.training.config import build, layer, named_recipes
from gptlab.training.named_config import open_recipe
from gptlab.training.optimizers.adamw import AdamW
from gptlab.training.optimizers.combined import Optimizers

USUAL = {**MODEL_CHECKS, **WEIGHT_CHECKS, **TRAINING_CHECKS, **FILE_CHECKS}
ALL = {**USUAL, **COMPILED_CHECKS, **WIDTH_CHECKS}
ROOT = Path(__file__).resolve().parents[2]
LOOK = functools.cache(hardware.detect)
CPU = Choice("cpu", "float32", False, "")


def subject(precisions=(), **settings) -> Subject:
    """A tiny subject with grouped queries, without a look at the machine."""
    tiny = dict(
        block_size=32, vocab_size=48, n_layer=2, n_head=4, n_kv_head=2, n_embd=32, dropout=0.0,
        device="cpu", dtype="float32", compile_model=False, max_iters=100, eval_interval=10,
        min_lr=1e-4, lr_decay_iters=100, warmup_iters=2, batch_size=4, eval_tokens=100,
    )  # fmt: skip
    config = build(tiny | settings)
    return Subject("tiny", config, config, CPU, precisions)


def line_of(name, **settings):
    """What the check of this name says."""
    return next(run_checks(subject(**settings), {name: ALL[name]}))


# Planted faults -----------------------------------------------------------------------------------

attention = F.scaled_dot_product_attention
FAULTS = []


def fault(name, status="FAIL", **settings):
    """Mark a function that plants a fault: the check `name` must answer with `status`."""

    def mark(plant):
        FAULTS.append(pytest.param(plant, name, status, settings, id=plant.__name__))
        return plant

    return mark


@fault("causality")
def without_a_mask(patch):
    def everything(*args, is_causal=False, **more):
        return attention(*args, **more)

    patch.setattr(F, "scaled_dot_product_attention", everything)


@fault("causality")
def mask_shifted_by_one(patch):
    def ahead(q, k, v, is_causal=False, attn_mask=None, **more):
        mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool).tril(1)
        return attention(q, k, v, attn_mask=mask, **more)

    patch.setattr(F, "scaled_dot_product_attention", ahead)


@fault("cache in chunks")
def mask_in_the_wrong_corner(patch):
    def top_left(q, k, v, is_causal=False, attn_mask=None, **more):
        mask = torch.ones(q.size(2), k.size(2), dtype=torch.bool).tril()
        return attention(q, k, v, attn_mask=mask if q.size(2) > 1 else None, **more)

    patch.setattr(F, "scaled_dot_product_attention", top_left)


@fault("cache in chunks")
def padding_that_is_seen(patch):
    reserve = KVCache.reserve

    def unmasked(cache, length):
        positions = reserve(cache, length)
        if cache.mask is not None and cache.mask.dim() == 4:
            cache.mask = torch.ones_like(cache.mask)
        return positions

    patch.setattr(KVCache, "reserve", unmasked)


@fault("cache by steps")
def cache_position_off_by_one(patch):
    reserve = KVCache.reserve
    patch.setattr(KVCache, "reserve", lambda cache, n: (reserve(cache, n) + 1).clamp_max(31))


@fault("cache by steps", position_encoding="learned")
def cached_tokens_all_at_the_first_position(patch):
    reserve = KVCache.reserve
    patch.setattr(KVCache, "reserve", lambda cache, n: reserve(cache, n) * 0)


@fault("cache at the edge")
def last_slot_never_used(patch):
    features = GPT.features

    def shorter(model, tokens, cache=None):
        if cache and tokens.size(1) + cache.lengths[0] == model.config.block_size:
            raise transformer.GenerationError("full")
        return features(model, tokens, cache)

    patch.setattr(GPT, "features", shorter)


@fault("cache at the edge")
def window_that_slides_by_another_rule(patch):
    def slide(decoder):
        if decoder.cache.lengths[0] == decoder.cache.block_size:
            decoder.contexts = [context[-4:] for context in decoder.contexts]
            decoder.cache, _ = decoder._prefill(decoder.contexts)

    patch.setattr(Decoder, "_slide_full_rows", slide)


@fault("rows of a batch")
def rows_of_a_batch_mixed(patch):
    forward = Block.forward
    patch.setattr(Block, "forward", lambda block, x, *a: forward(block, x - x.mean(0), *a))


@fault("positions")
def rotary_on_the_wrong_half(patch):
    def quarter(x, cos, sin):
        return torch.addcmul(x * cos, x.roll(x.size(-1) // 4, dims=-1), sin)

    patch.setattr(transformer, "rotate", quarter)


@fault("positions")
def rotary_on_queries_only(patch):
    rotate, calls = transformer.rotate, []

    def every_other(x, cos, sin):
        calls.append(0)
        return rotate(x, cos, sin) if len(calls) % 2 else x

    patch.setattr(transformer, "rotate", every_other)


@fault("positions")
def no_positions_at_all(patch):
    patch.setattr(transformer, "rotate", lambda x, cos, sin: x)


@fault("architecture", "WARN")
def rotary_that_turns_backwards(patch):
    rotate = transformer.rotate
    patch.setattr(transformer, "rotate", lambda x, cos, sin: rotate(x, cos, -sin))


@fault("grouped queries")
def heads_interleaved_wrongly(patch):
    def interleaved(q, k, v, enable_gqa=False, **more):
        times = q.size(1) // k.size(1)
        return attention(q, k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1), **more)

    patch.setattr(F, "scaled_dot_product_attention", interleaved)


@fault("repeatable")
def dropout_left_on(patch):
    patch.setattr(nn.Dropout, "forward", lambda module, x: F.dropout(x, module.p, True))


@fault("repeatable", "WARN")
def dropout_forgotten(patch):
    patch.setattr(nn.Dropout, "forward", lambda module, x: x)


@fault("tied weights")
def tied_weights_untied(patch):
    begin = GPT.init_weights

    def untied(model, seed):
        begin(model, seed)
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())

    patch.setattr(GPT, "init_weights", untied)


@fault("initial weights", "WARN")
def residual_projections_without_their_scale(patch):
    begin = GPT.init_weights

    def unscaled(model, seed):
        begin(model, seed)
        for module in model.modules():
            if isinstance(module, transformer.ResidualProjection):
                module.weight.data *= math.sqrt(2 * len(model.blocks))

    patch.setattr(GPT, "init_weights", unscaled)


@fault("initial loss", tie_weights=False)
def embeddings_of_unit_variance(patch):
    begin = GPT.init_weights

    def large(model, seed):
        begin(model, seed)
        model.lm_head.weight.data *= 50

    patch.setattr(GPT, "init_weights", large)


@fault("activations", "WARN")
def norm_removed(patch):
    patch.setattr(transformer, "norm", lambda config: nn.Identity())


@fault("activations", "WARN")
def norm_without_its_root(patch):
    def squared(norm, x):
        return x / (x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight

    patch.setattr(RMSNorm, "forward", squared)


@fault("gradients")
def detached_parameter(patch):
    def detached(mlp, x):
        up = F.linear(x, mlp.up_proj.weight.detach())
        return mlp.down_proj(F.silu(mlp.gate_proj(x)) * up)

    patch.setattr(MLP, "forward", detached)


@fault("gradients", "WARN")
def gradient_orders_away(patch):
    forward = Attention.forward

    def scaled(module, x, rotary, cache):
        return forward(module, x * 1e-6 + x.detach() * (1 - 1e-6), rotary, cache)

    patch.setattr(Attention, "forward", scaled)
    small = MLP.forward
    patch.setattr(MLP, "forward", lambda mlp, x: small(mlp, x) * 1e-7)


@fault("targets")
def target_not_shifted(patch):
    windows = Sequences.windows

    def same(batches, numbers):
        tokens, _ = windows(batches, numbers)
        return tokens, tokens

    patch.setattr(Sequences, "windows", same)


@fault("targets")
def target_shifted_twice(patch):
    windows = Sequences.windows

    def later(batches, numbers):
        tokens, targets = windows(batches, numbers)
        return tokens, targets[:, [*range(1, targets.shape[1]), 0]]

    patch.setattr(Sequences, "windows", later)


@fault("nothing to guess")
def model_shifts_the_targets_back(patch):
    forward = GPT.forward

    def shifted(model, tokens, targets=None, **more):
        return forward(model, tokens, None if targets is None else tokens, **more)

    patch.setattr(GPT, "forward", shifted)


@fault("loss")
def loss_averaged_twice(patch):
    forward = GPT.forward

    def twice(model, tokens, targets=None, cache=None, reduction="mean"):
        logits, loss = forward(model, tokens, targets, cache, reduction)
        return logits, loss / len(tokens) if targets is not None else None

    patch.setattr(GPT, "forward", twice)


@fault("loss")
def padding_counted_in_the_mean(patch):
    forward = GPT.forward

    def padded(model, tokens, targets=None, cache=None, reduction="mean"):
        logits, loss = forward(model, tokens, targets, cache, "sum")
        if targets is not None and reduction == "mean":
            loss = loss / targets.numel()
        return logits, loss

    patch.setattr(GPT, "forward", padded)


@fault("micro-batches")
def padding_counted_in_a_step(patch):
    patch.setattr(Batches, "count_targets", lambda batches, first: 8 * batches.sequences.block_size)


@fault("micro-batches")
def mean_of_the_means_of_micro_batches(patch):
    forward = GPT.forward

    def averaged(model, tokens, targets=None, cache=None, reduction="mean"):
        if targets is None:
            return forward(model, tokens, None, cache)
        mean = forward(model, tokens, targets, cache, "mean")[1]
        return None, mean * len(tokens) / 8

    patch.setattr(GPT, "forward", averaged)
    patch.setattr(Batches, "count_targets", lambda batches, first: 1)


@fault("micro-batches")
def last_micro_batch_forgotten(patch):
    micro_batches = Batches.micro_batches

    def fewer(batches, first):
        found = list(micro_batches(batches, first))
        yield from found[: max(1, len(found) - 1)]

    patch.setattr(Batches, "micro_batches", fewer)


@fault("learns by heart")
def optimizer_that_stands_still(patch):
    patch.setattr(AdamW, "step", lambda *_: None)


@fault("learns by heart")
def optimizer_that_climbs(patch):
    step = Optimizers.set_learning_rate
    patch.setattr(Optimizers, "set_learning_rate", lambda self, rate: step(self, -rate))


@fault("lower precisions", precisions=("bfloat16",))
def overflow_of_a_lower_precision(patch):
    forward = MLP.forward

    def overflowing(mlp, x):
        hidden = forward(mlp, x)
        high = hidden.dtype == torch.float32
        return hidden if high else hidden * (hidden.half() * 0 + 1e5).half().to(hidden.dtype)

    patch.setattr(MLP, "forward", overflowing)


@fault("lower precisions", "WARN", precisions=("bfloat16",))
def lower_precision_that_computes_something_else(patch):
    forward = MLP.forward

    def cut(mlp, x):
        return forward(mlp, x) if x.dtype == torch.float32 else forward(mlp, x) * 50

    patch.setattr(MLP, "forward", cut)


@fault("native decoder", "WARN")
def module_that_native_code_does_not_know(patch):
    patch.setattr(F, "silu", lambda x: F.gelu(x))


@fault("save and load")
def state_that_no_checkpoint_has(patch):
    begin, forward = Attention.__init__, Attention.forward

    def with_gain(module, *args):
        begin(module, *args)
        module.gain = torch.rand(())  # neither a parameter nor a buffer

    patch.setattr(Attention, "__init__", with_gain)
    patch.setattr(Attention, "forward", lambda m, *args: forward(m, *args) * m.gain)


@fault("resume")
def moments_that_are_not_restored(patch):
    def forgotten(optimizers, saved):
        for optimizer in optimizers.optimizers:
            optimizer.state.clear()

    patch.setattr(Optimizers, "load_state_dict", forgotten)


@fault("export and import")
def weights_that_an_export_swaps(patch):
    names = huggingface.to_peer

    def swapped(weights, config, naming):
        found = names(weights, config, naming)
        q = "model.layers.{}.self_attn.q_proj.weight"
        found[q.format(0)], found[q.format(1)] = found[q.format(1)], found[q.format(0)]
        return found

    patch.setattr(huggingface, "to_peer", swapped)


@pytest.mark.parametrize(("plant", "name", "status", "settings"), FAULTS)
def test_a_planted_fault_is_caught_by_its_line(monkeypatch, plant, name, status, settings):
    plant(monkeypatch)
    line = line_of(name, **settings)
    assert (line.status, line.name) == (status, name), line.sentence


def test_without_a_fault_every_line_passes():
    found = run_checks(subject(precisions=("bfloat16",)), USUAL)
    assert {line.name: line.sentence for line in found if line.status != "PASS"} == {}


# No false alarm -----------------------------------------------------------------------------------

RECIPES = {path.stem: open_recipe(path).overrides for path in named_recipes().values()}
SHAPES = {name: layer(None, {"model_preset": name}) for name in PRESETS}
VARIANTS = {
    "no rotary": dict(position_encoding="sinusoidal", n_head=2, n_kv_head=1, head_dim=9, n_embd=33),
    "one of each": dict(n_layer=1, n_head=1, n_kv_head=1, n_embd=8, block_size=8, vocab_size=5),
    "relu2": dict(use_swiglu=False, activation="relu2", qk_norm=True, bias=True, dropout=0.3),
    "attention only": dict(intermediate_size=0),
    "zero": dict(init_projection="zero", tie_weights=False, gradient_checkpointing=True),
    "muon": dict(
        optimizer="muon", learning_rate=1e-2, ema_decay=0.9, gradient_accumulation_steps=3
    ),
}


def alarms(subject):
    """The lines that fail or warn."""
    found = run_checks(subject, USUAL)
    return {line.name: line.sentence for line in found if line.status in ("WARN", "FAIL")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [*RECIPES.values(), *SHAPES.values()], ids=[*RECIPES, *SHAPES]
)
def test_no_recipe_and_no_preset_has_a_false_alarm(home, overrides):
    assert alarms(subject_of("it", overrides, "cpu")) == {}


@pytest.mark.slow
@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_no_variant_of_the_settings_has_a_false_alarm(settings):
    assert alarms(subject(**settings)) == {}


def test_the_small_shape_of_a_preset_keeps_what_its_settings_do():
    for name, settings in PRESETS.items():
        model = GPTConfig(**settings)
        small = small_shape(model)
        assert (small.n_head > small.n_kv_head) == (model.n_head > model.n_kv_head), name
        assert small.n_head * small.head_dim == small.n_embd, name
        assert small.intermediate_size / small.n_embd == pytest.approx(
            model.intermediate_size / model.n_embd, rel=0.05
        ), name
        kept = ("use_swiglu", "bias", "position_encoding", "qk_norm", "dropout", "init_std")
        assert all(getattr(small, option) == getattr(model, option) for option in kept), name
    other = small_shape(GPTConfig(n_head=6, n_kv_head=6, head_dim=96, n_embd=384))
    assert other.n_head * other.head_dim > other.n_embd  # heads wider than the stream, as before


# The command --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick_look(monkeypatch):
    """The machine is looked at once for all tests."""
    monkeypatch.setattr(hardware, "detect", LOOK)


def few(monkeypatch, *names):
    """Let the command run these checks only."""
    for table in (MODEL_CHECKS, WEIGHT_CHECKS, TRAINING_CHECKS, FILE_CHECKS):
        for name in set(table) - set(names):
            monkeypatch.delitem(table, name)


def test_the_command_says_each_line_and_a_verdict_in_a_narrow_window(home, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("gptlab.cli.ui.console.PLAIN_WIDTH", 60)
    assert main(["check", "quick_test", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 60
    assert [name for name in USUAL if f"  {name}: " not in out] == []
    assert out.rstrip().splitlines()[-1].startswith("Nothing is wrong: ")
    assert "small shape" in out  # the default vocabulary is larger


def test_a_failure_is_exit_code_1_and_named_in_json(home, monkeypatch, capsys):
    few(monkeypatch, "causality", "targets")
    without_a_mask(monkeypatch)
    assert main(["check", "--json", "--device", "cpu", "--n_layer", "2"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "FAIL" and found["counts"]["FAIL"] == 1
    by_name = {line["name"]: line for line in found["checks"]}
    assert by_name["causality"]["status"] == "FAIL" and by_name["causality"]["number"] > 0.01
    assert by_name["targets"]["status"] == "PASS"


def test_code_that_raises_is_a_failure_and_the_next_line_follows(monkeypatch):
    monkeypatch.setattr(MLP, "forward", lambda mlp, x: x.view(3))
    found = list(run_checks(subject(), {n: ALL[n] for n in ("causality", "targets")}))
    assert [line.status for line in found] == ["FAIL", "PASS"]
    assert found[0].sentence.startswith("cannot be computed: RuntimeError ")


def test_a_number_that_is_not_finite_is_null_in_json(home, monkeypatch, capsys):
    few(monkeypatch, "initial loss")
    forward = GPT.forward

    def infinite(model, *args, **more):
        logits, loss = forward(model, *args, **more)
        return logits, None if loss is None else loss * math.inf

    monkeypatch.setattr(GPT, "forward", infinite)
    assert main(["check", "--json", "--device", "cpu"]) == 1
    (line,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["checks"]
    assert line["number"] is None and "inf" in line["sentence"]


def test_a_check_leaves_threads_random_numbers_and_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    list(run_checks(subject(), {**FILE_CHECKS, "repeatable": ALL["repeatable"]}))
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["nowhere"], "no run 'nowhere'"),
        (["nowhere.py"], "no recipe"),
        (["a", "b"], "one run or recipe"),
        (["--against", "no-such-revision"], "revision"),
        (["--n_head", "7"], "does not divide"),
        (["--device", "warp"], "no device 'warp'"),
        (["--max_iters", "5"], "max_iters"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(home, capsys, argv, says):
    assert main(["check", *argv]) == 2
    found = capsys.readouterr()
    assert found.out == "" and says in found.err and found.err.count("\n") == 1


def test_the_weights_of_a_run_are_whole_or_damaged_or_trained_by_other_code(
    train, monkeypatch, capsys
):
    few(monkeypatch)
    folder = train(max_iters=1)

    def said():
        code = main(["check", str(folder), "--json", "--device", "cpu"])
        return code, json.loads(capsys.readouterr().out)["checks"][0]["sentence"]

    assert said() == (
        0,
        "best.pt, step 1: whole, finite, and with the logits that it was saved with",
    )
    with monkeypatch.context() as patch:
        forward = RMSNorm.forward
        patch.setattr(RMSNorm, "forward", lambda norm, x: 2 * forward(norm, x))
        code, sentence = said()
    assert code == 1 and "logits differ" in sentence
    for path in folder.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-100])
    code, sentence = said()
    assert code == 1 and "damaged" in sentence


def test_options_that_do_not_fit_the_model_of_init_from_are_refused(train, home, capsys):
    folder = train(max_iters=1)
    recipe = home / "after.py"
    recipe.write_text(f"init_from = {str(folder)!r}\nn_layer = 5\n", encoding="utf-8")
    assert main(["check", str(recipe), "--device", "cpu"]) == 2
    assert "n_layer 5 differs from 1" in capsys.readouterr().err
    recipe.write_text("init_from = 'elsewhere'\nlora_rank = 2\n", encoding="utf-8")
    subject = subject_of("it", open_recipe(recipe).overrides, "cpu")
    assert subject.notes[0].startswith("elsewhere, which init_from names, is not here")


# On request ---------------------------------------------------------------------------------------


def test_widths_name_the_logits_of_three_widths():
    line = line_of("widths", vocab_size=16, block_size=16)
    assert all(f" at {width}" in line.sentence for width in (32, 64, 128))
    assert math.isfinite(line.number) and line.number >= 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler asks tensors for it
def test_compiled_blocks_are_compared_with_eager_ones():
    line = line_of("compiled")
    assert line.status == "PASS", line.sentence


IN_A_CLONE = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git clone")


@pytest.mark.slow
@IN_A_CLONE
def test_speed_beside_a_revision_is_a_ratio(home, tmp_path, monkeypatch, capsys):
    few(monkeypatch)
    shape = ["--n_layer", "1", "--n_head", "1", "--n_embd", "16", "--block_size", "16"]
    main(["check", *shape, "--against", "HEAD", "--json", "--device", "cpu"])
    (line,) = json.loads(capsys.readouterr().out)["checks"]
    assert line["name"] == "beside HEAD" and line["status"] in ("PASS", "WARN")
    assert 0.2 < line["number"] < 5 and "tokens/s" in line["sentence"]


@pytest.mark.slow
def test_a_revision_that_cannot_take_these_steps_is_skipped_with_its_reason(home, tmp_path):
    (tmp_path / "gptlab").mkdir()
    (tmp_path / "gptlab" / "__init__.py").write_text("raise ValueError('older than this')")
    line = next(run_checks(subject(), {"beside it": beside_revision("it", tmp_path)}))
    assert line.status == "SKIP" and "ValueError: older than this" in line.sentence


@pytest.mark.slow
@IN_A_CLONE
def test_ctrl_c_leaves_no_checkout_behind(home, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, ROOT / "gpt.py", "check", "--against", "HEAD", "--device", "cpu"],
        env={**os.environ, "TMPDIR": str(temporary)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline().startswith("Checking")
    assert list(temporary.iterdir())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and not list(temporary.iterdir())
