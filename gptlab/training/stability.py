"""Detect skipped steps, a diverging loss and spikes, and roll back."""

import logging
import math

import torch

from gptlab.errors import TrainingError
from gptlab.files import display
from gptlab.model.shards import place
from gptlab.training.evaluation import checkpoint_is_planned
from gptlab.training.loss_band import LossBand
from gptlab.training.metrics import Metrics
from gptlab.training.setup import Setup
from gptlab.training.state import TrainState

logger = logging.getLogger(__name__)

MAX_BAD_IN_A_ROW = 5  # steps that were skipped or whose loss diverged
MAX_BAD_WITH_SCALER = 30  # float16 begins with a large scale and halves it until it fits
DIVERGED = 10  # times the loss of the uniform baseline: finite, but beyond recovery
MAX_ROLL_BACKS = 10  # per start


class Stability:
    """Counts steps that were skipped or whose loss diverged, and looks for spikes."""

    def __init__(self, metrics: Metrics):
        self.metrics = metrics
        self.pending = []  # [skipped, diverged, loss] of steps, not yet read from the device
        self.bad_in_a_row = 0  # steps that were skipped or whose loss diverged
        self.is_diverged = False  # whether the loss of the newest step has
        self.roll_backs = 0  # in this start

    def find_spike(self, setup: Setup, state: TrainState, result) -> float | None:
        """The loss of a step that left the band of `spike_rollback`, or None.

        Reading numbers waits for an accelerator, so that happens at log_interval only. Raises
        TrainingError when steps keep being skipped or the loss stays diverged.
        """
        config = setup.config
        uniform_loss = math.log(max(2, config.model.vocab_size))
        diverged = torch.isnan(result.loss) | (result.loss >= DIVERGED * uniform_loss)
        if state.precision.scaler is None:  # with one, too large a scale is the usual reason
            diverged = diverged | (result.skipped > 0)
        self.pending.append(torch.stack((result.skipped, diverged.float(), result.loss)))
        is_logged = state.step % config.evaluation.log_interval == 0
        if not (
            is_logged or checkpoint_is_planned(config, state) or config.machine.device == "cpu"
        ):
            return None
        spike = None
        for was_skipped, was_diverged, loss in torch.stack(self.pending).tolist():
            state.skipped_steps += int(was_skipped)
            self.bad_in_a_row = self.bad_in_a_row + 1 if was_skipped or was_diverged else 0
            self.is_diverged = bool(was_diverged)
            if leaves_band(state, loss, config.optimizer.spike_rollback):
                spike = loss
        self.pending.clear()
        limit = MAX_BAD_IN_A_ROW if state.precision.scaler is None else MAX_BAD_WITH_SCALER
        if self.bad_in_a_row >= limit or (self.is_diverged and state.is_finished):
            self._give_up(setup, state, loss, bool(was_skipped), uniform_loss)
        return spike

    def _give_up(self, setup, state, loss: float, was_skipped: bool, uniform_loss: float) -> None:
        what = f"The loss is {loss:.3g} (the uniform baseline has {uniform_loss:.3g})"
        if was_skipped:
            what = "The loss or its gradient is not finite"
        kept = "there is no checkpoint yet"
        if setup.run.checkpoint.exists():
            kept = f"{display(setup.run.checkpoint)} is the last good checkpoint"
        self.metrics.diverged(state.step, loss)
        lower = setup.config.optimizer.learning_rate / 10
        raise TrainingError(
            f"{what} at step {state.step}, and it did not recover ({self.bad_in_a_row} steps in a "
            f"row); {kept}. Try --learning_rate {lower:g}, --grad_clip 1, a longer --warmup_iters "
            "or --dtype float32."
        )


def leaves_band(state: TrainState, loss: float, limit: float) -> bool:
    """Whether a loss lies `limit` deviations above the band; otherwise the band takes it in."""
    if not limit:
        return False
    if state.band is None:
        state.band = LossBand()
    deviations = state.band.deviations(loss)
    if math.isnan(deviations) or deviations >= limit:
        return True
    state.band.add(loss)
    return False


def roll_back(setup: Setup, state: TrainState, observers, loss: float) -> bool:
    """Go back to the last checkpoint and skip the sequences since; False without a checkpoint.

    As Chowdhery et al. 2022 (PaLM, section 5.1) did by hand: the same text with other weights
    seldom spikes, and other text with the same weights does not. loss: of the spike.
    """
    with setup.parallel.watch.paused():
        observers.saving.wait()
    if not setup.parallel.from_first(setup.run.checkpoint.exists):
        logger.warning(
            "The loss jumped to %.3g at step %d, and there is no checkpoint to go back to.",
            loss,
            state.step,
        )
        return False
    stability = observers.stability
    stability.roll_backs += 1
    if stability.roll_backs > MAX_ROLL_BACKS:
        raise TrainingError(
            f"The loss jumped to {loss:.3g} at step {state.step} and went back to the last "
            f"checkpoint {MAX_ROLL_BACKS} times already; {display(setup.run.checkpoint)} is the "
            f"last good one. Try --learning_rate {setup.config.optimizer.learning_rate / 10:g} "
            "or --spike_rollback 0."
        )
    step, seen = state.step, state.sequences_seen
    best = state.best_val_loss, state.best_step
    stored = setup.parallel.from_first(setup.run.load)
    for name, parameter in state.model.named_parameters():
        place(parameter, stored["model"][name])
    state.restore(stored)
    state.best_val_loss, state.best_step = best
    first, state.sequences_seen = state.sequences_seen, seen
    stability.bad_in_a_row, stability.is_diverged = 0, False
    if setup.parallel.is_first:
        setup.run.cut(state.step, with_evaluation=True)
    observers.metrics.rolled_back(state.step, step, loss, (first, seen))
    return True
