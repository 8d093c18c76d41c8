"""Rehearsals: steps of the model on random tokens, to time them or to see whether they fit."""

import dataclasses
import logging
import time
from collections.abc import Callable

import numpy as np
import torch

from gptlab import hardware
from gptlab.data.batches import Batches, Sequences
from gptlab.training.building import new_state
from gptlab.training.config import TrainConfig
from gptlab.training.distillation import Teacher
from gptlab.training.loop import train_step
from gptlab.training.memory import fitting_batch_size
from gptlab.training.parallel import Parallel, compile_blocks
from gptlab.training.precision import MixedPrecision
from gptlab.training.resolving import Measurements, Resolved
from gptlab.training.setup import Setup
from gptlab.training.sharding import trained_model
from gptlab.training.state import TrainState
from gptlab.training.times import saving_seconds
from gptlab.training.units import duration

logger = logging.getLogger(__name__)

MEASURE_SECONDS = 3.0


def rehearsal(
    config: TrainConfig, choice, sequences: int, micro_batches: int = 1, teacher=None
) -> tuple[Setup, TrainState]:
    """A training of random weights on random tokens: `sequences` in each micro-batch."""
    torch.manual_seed(0)
    setup = random_setup(config, sequences, micro_batches, teacher)
    model = trained_model(config, setup.parallel)
    return setup, new_state(model, config, choice.use_scaler)


def random_setup(
    config: TrainConfig, sequences: int, micro_batches: int = 1, teacher: Teacher | None = None
) -> Setup:
    """Steps on random tokens, in this process alone: `sequences` in each micro-batch."""
    config = config.replace(batch_size=sequences, gradient_accumulation_steps=micro_batches)
    block_size, vocab_size = config.model.block_size, config.model.vocab_size
    tokens = np.random.default_rng(0).integers(vocab_size, size=(2 * sequences + 2) * block_size)
    batches = Batches(
        Sequences(tokens, vocab_size=vocab_size, block_size=block_size, seed=0),
        batch_size=sequences,
        sequences_per_step=config.sequences_per_step,
        device=config.machine.device,
    )
    separator = 0 if config.batch.document_mask else None
    alone = Parallel.alone(config.machine.device)
    return Setup(Resolved(config, {}), alone, batches, separator=separator, teacher=teacher)


def measure(
    config: TrainConfig, choice, world_size: int, started: float,
    seconds: float = MEASURE_SECONDS, teacher: Teacher | None = None,
) -> Measurements:  # fmt: skip
    """Time a few steps of this model for some seconds, with random weights and tokens.

    started: time.perf_counter() when the process began.
    """
    device = choice.device
    own = -(-config.sequences_per_step // world_size)
    # at most about a second per pass, however large the model and the batch are
    peak = hardware.peak_flops(device, choice.dtype).value
    affordable = peak / (config.flops_per_token * config.model.block_size)
    sequences = max(1, min(config.batch.batch_size, own, int(affordable)))
    setup, state = rehearsal(config, choice, sequences, teacher=teacher)

    def timed(work) -> float:
        begin = time.perf_counter()
        work()
        hardware.synchronize(device)
        return time.perf_counter() - begin

    steps, end = [], time.perf_counter() + seconds
    while len(steps) < 4 or (time.perf_counter() < end and len(steps) < 50):
        steps.append(timed(lambda: train_step(setup, state)))
        if time.perf_counter() > end + 2 * seconds and len(steps) > 1:
            break
    step = _median(steps[1:])  # the first warms up
    if own > sequences:  # several passes share one update
        update = _median([timed(lambda: _update(state)) for _ in range(3)])
        step = update + max(0.0, step - update) * own / sequences
    tokens = next(setup.batches.micro_batches(0))
    with torch.no_grad(), state.precision.autocast():
        forward = _median(
            [timed(lambda: state.model(tokens.tokens, tokens.targets)) for _ in range(3)]
        )
    return Measurements(
        elapsed=time.perf_counter() - started,
        step=step,
        eval_token=forward / (sequences * config.model.block_size),
        save=saving_seconds(config),
    )


def _update(state: TrainState) -> None:
    """An optimizer step without forward and backward passes."""
    for parameter in state.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    state.optimizers.step(torch.zeros((), device=next(state.model.parameters()).device))
    state.optimizers.zero_grad()


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def fit_micro_batch(
    config: TrainConfig, choice, free: int | None, parallel: Parallel, shards: int = 1,
    teacher: Teacher | None = None,
) -> int:  # fmt: skip
    """The largest micro-batch that fits on this device, in each of the processes that train.

    shards: the processes among which the model is divided; then it is not tried, because one
    process would need the whole.
    """
    kind = choice.device.partition(":")[0]
    if kind == "cpu" and free is not None:
        free //= parallel.local_size  # the processes of a machine share its memory

    def attempt(sequences: int) -> None:
        if kind != "cpu" and shards == 1:  # a CPU swaps, or kills the process, without an error
            train_step(*rehearsal(config, choice, sequences, teacher=teacher))

    return fitting_batch_size(config, kind, free, parallel.world_size, attempt, shards)


class NoUpdate:
    """Takes the place of the optimizers and leaves the weights as they are."""

    optimizers = ()

    def set_learning_rate(self, rate: float) -> None:
        """Do nothing."""

    def step(self, found_inf: torch.Tensor) -> None:
        """Do nothing."""

    def zero_grad(self) -> None:
        """Do nothing: the caller drops the gradients."""


def compile_if_wanted(setup: Setup, state: TrainState, say: Callable[[str], None]) -> None:
    """Compile the blocks and try them on a step's shapes; after a failure, stay eager."""
    machine = setup.config.machine
    if not machine.compile_model:
        return
    if machine.device == "cpu":  # otherwise two threads give other weights in each run
        torch.use_deterministic_algorithms(True)
    trial = dataclasses.replace(
        state,
        optimizers=NoUpdate(),
        precision=MixedPrecision(machine.device, machine.dtype, False),
        ema=None,
    )
    setup = random_setup(setup.config, setup.config.batch.batch_size)
    say("Compiling the model (once, tens of seconds) ...")
    begin = time.perf_counter()
    failure = compile_blocks(state.model, lambda: train_step(setup, trial))
    state.optimizers.zero_grad()
    if failure:
        logger.warning("torch.compile does not work here (%s): training without it.", failure)
    else:
        say(f"Compiled in {duration(time.perf_counter() - begin)}.")
