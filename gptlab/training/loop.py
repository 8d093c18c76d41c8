"""The training loop and its step."""

from typing import NamedTuple

import torch

from gptlab.training.evaluation import evaluate, evaluation_is_due, is_overfitting
from gptlab.training.inside import record_inside
from gptlab.training.masks import masks_of
from gptlab.training.observers import Observers
from gptlab.training.precision import clip_grad_norm
from gptlab.training.saving import save
from gptlab.training.schedules import learning_rate
from gptlab.training.setup import Setup
from gptlab.training.stability import roll_back
from gptlab.training.state import TrainState


class StepResult(NamedTuple):
    """What a step found: loss and norm of the whole batch, and whether the update was skipped."""

    loss: torch.Tensor  # nats per unmasked target
    grad_norm: torch.Tensor  # before clipping
    skipped: torch.Tensor  # 1.0 where the gradient was not finite, else 0.0
    learning_rate: float


def train_loop(setup: Setup, state: TrainState, observers: Observers) -> bool:
    """Train until state.end or an early stop; True where a signal or the clock stopped it first."""
    metrics, clock, stability = observers.metrics, observers.clock, observers.stability
    while state.step < state.end:
        with clock.timing_a_step():
            result = train_step(setup, state)
        spike = stability.find_spike(setup, state, result)
        if spike is not None and roll_back(setup, state, observers, spike):
            continue
        metrics.step(state, result, setup.batches.seconds)
        observers.trace.step(setup, state, result)
        record_inside(setup, state, metrics)
        stopping, saving = setup.parallel.any(
            observers.must_stop(state), clock.checkpoint_is_due(state)
        )
        if not (stopping or saving):
            continue
        with metrics.paused():
            save(setup, state, observers)
            if evaluation_is_due(setup.config, state) and not stopping:
                evaluate(setup, state, metrics)
                observers.picture.draw_if_due(setup)
        if stopping:
            return True
        if is_overfitting(setup, state, metrics):
            break
    return False


def train_step(setup: Setup, state: TrainState) -> StepResult:
    """Take one optimizer step on the next batch; its loss is the mean over all unmasked targets."""
    config, batches, parallel = setup.config, setup.batches, setup.parallel
    model, optimizers, precision = state.model, state.optimizers, state.precision
    targets = batches.count_targets(state.sequences_seen)  # of all micro-batches and processes
    losses = []
    for micro in batches.micro_batches(state.sequences_seen):
        masks = masks_of(setup, state, micro)
        with parallel.micro_batch(model, micro.is_last) as call, precision.autocast():
            _, loss = call(micro.tokens, micro.targets, reduction="sum", **masks)
        precision.backward(loss / targets)
        losses.append(loss.detach() / targets)
    precision.unscale(optimizers)
    grad_norm = clip_grad_norm(model, config.optimizer.grad_clip)
    rate = learning_rate(config, state.schedule_step)
    optimizers.set_learning_rate(rate)
    skipped = precision.step(optimizers, grad_norm)
    optimizers.zero_grad()
    if state.ema is not None:
        state.ema.update(model, state.step)
    state.step += 1
    state.sequences_seen += config.sequences_per_step
    return StepResult(parallel.sum(losses), grad_norm, skipped, rate)
