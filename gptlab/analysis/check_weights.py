"""Checks of how a model begins: its weights, its loss, the scale of activations and gradients."""

import math

import torch
from torch import nn

from gptlab.analysis.check import CheckLine, Subject, uniform_loss, within
from gptlab.analysis.check_model import logits_of
from gptlab.model import transformer
from gptlab.model.proof import computing_plainly
from gptlab.training import loop
from gptlab.training.building import new_state
from gptlab.training.measuring import NoUpdate, random_setup


def tied_weights(subject: Subject) -> CheckLine:
    """Tied weights are one tensor, also after steps of training; else they are two."""
    model, config = subject.build(), subject.config.model
    same = model.lm_head.weight is model.token_embedding.weight
    if config.tie_weights and not same:
        return CheckLine("FAIL", "tie_weights is on, but embedding and output head are two tensors")
    if not config.tie_weights and same:
        return CheckLine("FAIL", "tie_weights is off, but embedding and head are one tensor")
    how = "one tensor" if same else "two tensors, as tie_weights is off"
    return CheckLine("PASS", f"embedding and output head are {how}")


def initial_weights(subject: Subject) -> CheckLine:
    """The deviation of each matrix against init_std (Radford et al. 2019), by its name."""
    model, config = subject.build(), subject.config.model
    worst, where = 0.0, ""
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        std = config.init_std
        if name.split(".")[-2] in ("o_proj", "down_proj"):  # they write to the residual stream
            is_zero = config.init_projection == "zero"
            std = 0.0 if is_zero else std / math.sqrt(2 * config.n_layer)
        found, doubt = weight.detach().std().item(), 4 / math.sqrt(2 * weight.numel())
        off = math.log(max(found, 1e-9) / std) if std else found / config.init_std
        off = max(0.0, abs(off) - doubt)  # four deviations of what a draw of this size has
        if off > worst:
            worst, where = off, f"{name} has {found:.2g} for {std:.2g}"
    return within(
        worst,
        0.1,  # 1 / sqrt(2 n_layer), forgotten, is 0.35 and more
        f"drawn as init_std {config.init_std:g} and init_projection {config.init_projection} say",
        f"unlike init_std and init_projection: {where}",
        "WARN",
    )


def initial_loss(subject: Subject) -> CheckLine:
    """The loss of a new model against ln V, on tokens that nobody can predict."""
    config = subject.config.model
    model, expected = subject.build(dropout=0.0), uniform_loss(config)
    tokens = subject.tokens(16, config.block_size + 1, config.vocab_size)
    with computing_plainly(model):
        loss = model(tokens[:, :-1], tokens[:, 1:])[1].item()
    words = f"{loss:.3f}, and ln {config.vocab_size} is {expected:.3f}"
    over = loss - expected
    if not math.isfinite(loss) or over < -0.1:  # random tokens allow no better guess
        why = "random tokens cannot be guessed" if over < 0 else "it is not a number"
        return CheckLine("FAIL", f"{words}: {why}", loss)
    if over > 2:  # the first hundreds of steps would only undo it
        return CheckLine("FAIL", f"{words}: far too sure of itself, init_std is too large", loss)
    if over > 0.3:  # all recipes are below 0.1
        return CheckLine("WARN", f"{words}: the first steps only undo that", loss)
    return CheckLine("PASS", words, loss)


def activations(subject: Subject) -> CheckLine:
    """The root mean square of the stream after each block, and of what each branch reads."""
    model, config = subject.build(dropout=0.0).eval(), subject.config.model
    stream, read = [], {}

    def rms(value: torch.Tensor) -> float:
        return value.detach().float().square().mean().sqrt().item()

    hooks = [b.register_forward_hook(lambda *a: stream.append(rms(a[-1]))) for b in model.blocks]
    for name, module in model.named_modules():
        # every other linear layer reads the stream behind a norm
        if isinstance(module, nn.Linear) and not isinstance(module, transformer.ResidualProjection):
            hooks.append(
                module.register_forward_pre_hook(
                    lambda _, args, name=name: read.update({name: rms(args[0])})
                )
            )
    try:
        logits = logits_of(model, subject.tokens(4, config.block_size, config.vocab_size))
    finally:
        for hook in hooks:
            hook.remove()
    words = ", ".join(f"{value:.2g}" for value in stream)
    worst = max([*stream, rms(logits)], key=lambda value: math.inf if value != value else value)
    if not math.isfinite(worst):
        return CheckLine("FAIL", f"not finite; after each block {words}")
    name = max(read, key=lambda key: abs(math.log(read[key] + 1e-9)))
    if not 0.5 < read[name] < 2:  # a norm makes it 1
        return CheckLine(
            "WARN", f"{name} reads a root mean square of {read[name]:.2g}; norms make it 1",
            read[name],
        )  # fmt: skip
    growth = stream[-1] / stream[0]
    return within(
        growth,
        10.0,  # all recipes and presets are below 2
        f"root mean square after each block {words}; each branch reads {read[name]:.2g}",
        f"grow {{}} times through the blocks: {words}",
        "WARN",
    )


def gradients(subject: Subject) -> CheckLine:
    """Which parameters get no gradient after some steps, or one that is orders away."""
    config = subject.config.replace(dropout=0.0, ema_decay=0.0, warmup_iters=2)
    setup = random_setup(config, 8)
    torch.manual_seed(0)
    state = new_state(subject.build(dropout=0.0), setup.config, False)
    for _ in range(4):  # adapters and zero projections hide what is behind them in the first
        loop.train_step(setup, state)
    state.optimizers = NoUpdate()
    loop.train_step(setup, state)
    sizes = {}
    for name, parameter in state.model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None or (parameter.dim() > 1 and not parameter.grad.any()):
            return CheckLine("FAIL", f"{name} gets no gradient: it is not part of the loss")
        if not parameter.grad.isfinite().all():
            return CheckLine("FAIL", f"the gradient of {name} is not finite")
        if parameter.dim() > 1:  # a bias of keys has none before rotary positions, by softmax
            sizes[name] = parameter.grad.square().mean().sqrt().item()
    typical = sorted(sizes.values())[len(sizes) // 2]
    name = max(sizes, key=lambda key: abs(math.log(sizes[key] / typical)))
    times = sizes[name] / typical
    times = max(times, 1 / times)
    return within(
        times,
        1e4,  # recipes and presets stay below 200, sinusoids beside small embeddings reach 1,100
        f"each of {len(sizes)} matrices has one, within {{}} times of the typical ({name})",
        f"the gradient of {name} is {{}} times away from the typical one",
        "WARN",
    )


WEIGHT_CHECKS = {
    "tied weights": tied_weights,
    "initial weights": initial_weights,
    "initial loss": initial_loss,
    "activations": activations,
    "gradients": gradients,
}
