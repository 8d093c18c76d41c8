"""Checks of a training: loss, batches, gradients, precision, and whether a model learns at all."""

import copy
import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F

from gptlab.analysis.check import CheckLine, Subject, uniform_loss, within
from gptlab.analysis.check_model import ROUNDING, apart, logits_of
from gptlab.data import batches
from gptlab.model.proof import computing_plainly
from gptlab.model.transformer import GPT
from gptlab.training import loop
from gptlab.training.building import new_state
from gptlab.training.measuring import NoUpdate
from gptlab.training.parallel import Parallel, compile_blocks
from gptlab.training.precision import MixedPrecision
from gptlab.training.resolving import Resolved
from gptlab.training.setup import Setup

SEQUENCES = 8
BY_HEART = 80  # steps in which a model learns one sequence by heart
UNLEARNABLE = 30  # steps after which a model that sees its targets is far below ln V


def _setup(config, tokens: np.ndarray, loss_mask=None) -> Setup:
    """A setup that trains on these tokens, in this process alone."""
    sequences = batches.Sequences(
        tokens,
        loss_mask,
        vocab_size=config.model.vocab_size,
        block_size=config.model.block_size,
        seed=config.run.seed,
    )
    source = batches.Batches(
        sequences,
        batch_size=config.batch.batch_size,
        sequences_per_step=config.sequences_per_step,
        device=config.machine.device,
    )
    return Setup(Resolved(config, {}), Parallel.alone(config.machine.device), source)


def _ids(config, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(config.model.vocab_size, size=count)


# The batch and its loss ---------------------------------------------------------------------------


def targets_follow(subject: Subject) -> CheckLine:
    """In a text that counts upwards each target is its token plus one, and never the token."""
    config = subject.plain.replace(batch_size=SEQUENCES, gradient_accumulation_steps=1)
    size, V = config.model.block_size, config.model.vocab_size
    setup = _setup(config, np.arange(20 * size + 7) % V)
    micro = next(setup.batches.micro_batches(0))
    equal = (micro.targets == micro.tokens).float().mean().item()
    if equal and V > 1:
        return CheckLine(
            "FAIL", f"{equal:.0%} of the targets are their own input: they are not shifted", equal
        )
    wrong = (micro.targets != (micro.tokens + 1) % V).float().mean().item()
    return within(
        wrong,
        0.0,
        "each target is the token after its input",
        "a share of {} of the targets is not the token after its input",
    )


def loss_is_mean(subject: Subject) -> CheckLine:
    """The page's loss against cross-entropy of its logits, over unmasked targets alone."""
    model, config = subject.narrow, subject.narrow.config
    tokens = subject.tokens(4, config.block_size + 1, config.vocab_size)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[0, 3:] = targets[1, :-5] = -1  # rows with very unequal numbers of targets
    with computing_plainly(model):
        found = torch.stack([model(inputs, targets, reduction=how)[1] for how in ("mean", "sum")])
    logits = logits_of(model, inputs).flatten(0, 1)
    expected = torch.stack(
        [F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction=how)
         for how in ("mean", "sum")]
    )  # fmt: skip
    off = ((found - expected) / expected).abs().max().item()
    return within(
        off,
        1e-4,  # float32 sums of thousands of values
        "the mean over unmasked targets, as torch computes it from the logits (within {})",
        f"{found[0]:.4g} is not the mean over unmasked targets {expected[0]:.4g} (off by {{}})",
    )


def accumulation(subject: Subject) -> CheckLine:
    """A step in 1, 2 and 8 micro-batches has the gradient of the mean over all its targets."""
    model = copy.deepcopy(subject.narrow)
    # the use of experts adds to the gradient what is not the loss's
    model.config = dataclasses.replace(model.config, expert_balance=0.0)
    base = subject.plain.replace(**model.config.to_dict(), grad_clip=0.0)
    size = base.model.block_size
    tokens = _ids(base, (SEQUENCES + 2) * size)
    # sequences with unequal numbers of targets: a mean of means would weigh them differently
    mask = np.random.default_rng(1).random(len(tokens)) < np.linspace(0.05, 1, len(tokens))
    expected = worst = None
    for parts in (1, 2, SEQUENCES):
        config = base.replace(batch_size=SEQUENCES // parts, gradient_accumulation_steps=parts)
        setup = _setup(config, tokens, mask)
        if expected is None:
            micro = next(setup.batches.micro_batches(0))
            logits = model(micro.tokens)[0].flatten(0, 1)
            F.cross_entropy(logits.float(), micro.targets.flatten(), ignore_index=-1).backward()
            expected, worst = _gradient(model), 0.0
            model.zero_grad()
        state = dataclasses.replace(new_state(model, config, False), optimizers=NoUpdate())
        loop.train_step(setup, state)
        off = apart(_gradient(model), expected)
        model.zero_grad()
        if not off <= ROUNDING:
            return CheckLine(
                "FAIL",
                f"a step of {parts} x {SEQUENCES // parts} sequences: its gradient is not that of "
                f"the mean over unmasked targets (off by {off:.2g} of the largest)",
                off,
            )
        worst = max(worst, off)
    return CheckLine(
        "PASS", f"1 x 8, 2 x 4 and 8 x 1 sequences: the gradient of the mean (within {worst:.1g})",
        worst,
    )  # fmt: skip


def _gradient(model) -> torch.Tensor:
    """All gradients, one after the other."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# Learning -----------------------------------------------------------------------------------------


def _teaching(subject: Subject):
    """The small configuration with a rate that suits it, from the first step to the last."""
    config = subject.plain
    rate = max(config.optimizer.learning_rate, 3e-3)  # large models have less, for their size
    return config.replace(
        learning_rate=rate, min_lr=rate, warmup_iters=2, schedule="wsd", spike_rollback=0.0,
        weight_decay=0.0, gradient_accumulation_steps=1,
    )  # fmt: skip


def learns_by_heart(subject: Subject) -> CheckLine:
    """One sequence of random tokens, again and again, with the options' own optimizer."""
    config = _teaching(subject).replace(batch_size=1, dtype=subject.choice.dtype)
    setup = _setup(config, _ids(config, config.model.block_size + 1))
    torch.manual_seed(0)
    state = new_state(subject.build(dropout=0.0), config, subject.choice.use_scaler)
    started = loss = loop.train_step(setup, state).loss.item()
    while state.step < BY_HEART and loss > 0.1:
        loss = loop.train_step(setup, state).loss.item()
    words = f"one sequence by heart with {config.optimizer.optimizer}: loss {started:.2f}"
    words = f"{words} to {loss:.2f} in {state.step} steps"
    # recipes and presets fall below 0.1 within these steps
    if not loss < 0.5 * uniform_loss(config.model):
        return CheckLine("FAIL", f"{words}: it does not learn", loss)
    return CheckLine("PASS" if loss <= 0.5 else "WARN", words, loss)


def nothing_to_guess(subject: Subject) -> CheckLine:
    """On new random tokens in every step no loss below ln V can be reached, unless targets leak."""
    config = _teaching(subject).replace(batch_size=SEQUENCES)
    expected, size = uniform_loss(config.model), config.model.block_size
    if config.model.vocab_size < 4:
        return CheckLine("SKIP", "too few ids to tell")
    setup = _setup(config, _ids(config, (SEQUENCES * (UNLEARNABLE + 5) + 2) * size))
    torch.manual_seed(0)
    state = new_state(subject.build(dropout=0.0), config, False)
    for _ in range(UNLEARNABLE):
        loss = loop.train_step(setup, state).loss.item()
    under = expected - loss
    words = (
        f"random tokens: loss {loss:.3f} after {UNLEARNABLE} steps, ln {config.model.vocab_size}"
    )
    return within(
        under,
        0.1,  # of 512 tokens the mean of -log p varies by 0.02
        f"{words} is {expected:.3f}: no target is seen",
        f"{words} is {expected:.3f}: {{}} below what is possible, so a target is seen (a shift?)",
    )


# Precision, compilation, decoding -----------------------------------------------------------------


def _loss_and_gradient(model, subject: Subject, dtype: str):
    """The loss of fixed tokens and its gradient, in a precision."""
    config = model.config
    tokens = subject.tokens(4, config.block_size + 1, config.vocab_size)
    model.zero_grad()
    with MixedPrecision(subject.device, dtype, False).autocast():
        loss = model(tokens[:, :-1], tokens[:, 1:])[1]
    loss.backward()
    return loss.item(), _gradient(model)


def lower_precisions(subject: Subject) -> CheckLine:
    """Loss and gradient in each lower precision that is fast on this device, against float32."""
    if not subject.precisions:
        return CheckLine("SKIP", f"{subject.device} would choose float32: nothing lower is fast")
    model = subject.build(init_projection="scaled", dropout=0.0).train()  # no branch is zero
    exact, gradient = _loss_and_gradient(model, subject, "float32")
    worst, words = 0.0, []
    for dtype in subject.precisions:
        loss, found = _loss_and_gradient(model, subject, dtype)
        if not (math.isfinite(loss) and found.isfinite().all()):
            return CheckLine("FAIL", f"{dtype}: loss {loss:.3g} or its gradient is not finite")
        unlike = 1 - F.cosine_similarity(found.double(), gradient.double(), dim=0).item()
        worst = max(worst, abs(loss - exact) / exact, unlike)
        words.append(f"{dtype} loss {loss:.4f}, gradient {unlike:.1g} from parallel")
    return within(
        worst,
        0.05,  # bfloat16 has 8 bits, and rounding adds up over layers
        f"float32 loss {exact:.4f}; {'; '.join(words)}",
        f"unlike float32 (loss {exact:.4f}): {'; '.join(words)}",
        "WARN",
    )


def compiled(subject: Subject) -> CheckLine:
    """Loss and gradient of compiled blocks against the same blocks run eagerly."""
    model = subject.build_narrow(n_layer=2).train()
    exact, gradient = _loss_and_gradient(model, subject, "float32")
    found = []
    failure = compile_blocks(
        model, lambda: found.append(_loss_and_gradient(model, subject, "float32"))
    )
    if failure:
        return CheckLine("WARN", f"cannot be compiled ({failure}): training stays eager")
    loss, compiled_gradient = found[0]
    return within(
        max(abs(loss - exact) / exact, apart(compiled_gradient, gradient)),
        1e-2 if subject.device != "cpu" else ROUNDING,  # TF32 on a GPU
        "loss and gradient of the eager model (within {})",
        "compiled, loss or gradient differ from the eager model's by {}",
    )


def native_decoder(subject: Subject) -> CheckLine:
    """The CPU's decoder, native.cpp, against the module, as sampling compares them."""
    from gptlab.inference.native import NativeDecoder, library

    if subject.device != "cpu":
        return CheckLine("SKIP", f"it is for CPUs, and this is {subject.device}")
    if library() is None:
        return CheckLine("SKIP", "there is no C++ compiler that works here")
    if subject.config.model.n_expert:
        return CheckLine("SKIP", "native.cpp has no experts: torch decodes")
    decoder, reason = NativeDecoder.compared(subject.build().eval(), "float32")
    if decoder is None:
        return CheckLine("WARN", f"native.cpp computes something else ({reason}): torch decodes")
    return CheckLine("PASS", "native.cpp has the logits of the module")


def widths(subject: Subject) -> CheckLine:
    """Activations after some steps at three widths, at one learning rate (Yang et al. 2022)."""
    config = _teaching(subject).replace(batch_size=4)
    narrowest = dataclasses.replace(
        config.model, head_dim=min(config.model.head_dim, 16), n_layer=2, init_projection="scaled"
    )
    found = {}
    for times in (1, 2, 4):
        wider = {
            name: getattr(narrowest, name) * times
            for name in ("n_head", "n_kv_head", "n_embd", "intermediate_size", "expert_size")
        }
        each = config.replace(**{**narrowest.to_dict(), **wider})
        setup = _setup(each, _ids(each, (SEQUENCES + 2) * each.model.block_size))
        torch.manual_seed(0)
        state = new_state(GPT(each.model).to(subject.device), each, False)
        for _ in range(5):
            loop.train_step(setup, state)
        tokens = next(setup.batches.micro_batches(0)).tokens
        found[each.model.n_embd] = logits_of(state.model, tokens).square().mean().sqrt().item()
    sizes = list(found.values())
    words = ", ".join(f"{size:.2g} at {width}" for width, size in found.items())
    return within(
        max(sizes) / min(sizes),
        2.0,  # a square root of four: growth with the width itself is above it
        f"root mean square of logits after 5 steps: {words} channels ({{}} times apart)",
        f"root mean square of logits after 5 steps: {words} channels, {{}} times apart: a learning "
        "rate for one width does not suit another",
        "WARN",
    )


TRAINING_CHECKS = {
    "targets": targets_follow,
    "loss": loss_is_mean,
    "micro-batches": accumulation,
    "nothing to guess": nothing_to_guess,
    "learns by heart": learns_by_heart,
    "lower precisions": lower_precisions,
    "native decoder": native_decoder,
}
COMPILED_CHECKS = {"compiled": compiled}
WIDTH_CHECKS = {"widths": widths}
