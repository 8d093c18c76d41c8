"""Numbers that go wrong: steps that are skipped, a loss out of all bounds, spikes."""

import logging
import math

import torch

from gptlab.errors import TrainingError
from gptlab.files import display
from gptlab.training.loss_band import LossBand
from gptlab.training.session import Session, restore

logger = logging.getLogger(__name__)

MAX_BAD_IN_A_ROW = 5  # steps that were skipped or whose loss is hopeless
MAX_BAD_WITH_SCALER = 30  # float16 begins with a large scale and halves it until it fits
DIVERGED = 10  # times the loss of a blind guess: finite, and yet hopeless
MAX_ROLL_BACKS = 10  # of one start


def watch(session: Session, skipped: torch.Tensor, loss: torch.Tensor, is_due: bool) -> None:
    """Count steps that were skipped or whose loss is hopeless; TrainingError when they persist.

    is_due: whether an accelerator may be asked now, which waits for it.
    """
    uniform_loss = math.log(max(2, session.config.model.vocab_size))
    diverged = ~(loss < DIVERGED * uniform_loss)  # true for a loss that is not a number
    if session.precision.scaler is None:  # whose scale is the usual reason for skipping
        diverged = diverged | (skipped > 0)
    session.unread_verdicts.append(torch.stack((skipped, diverged.float(), loss)))
    if not (is_due or session.config.machine.device == "cpu"):
        return
    for was_skipped, was_diverged, value in torch.stack(session.unread_verdicts).tolist():
        session.skipped_steps += int(was_skipped)
        session.bad_in_a_row = session.bad_in_a_row + 1 if was_skipped or was_diverged else 0
        session.is_diverged = bool(was_diverged)
        _look_for_spike(session, value)
    session.unread_verdicts.clear()
    limit = MAX_BAD_IN_A_ROW if session.precision.scaler is None else MAX_BAD_WITH_SCALER
    if session.bad_in_a_row < limit and not (session.is_diverged and session.is_finished):
        return
    what = f"The loss is {float(loss):.3g} where a blind guess has {uniform_loss:.3g}"
    if was_skipped:
        what = "The loss or its gradient is not finite"
    kept = "there is no checkpoint yet"
    if session.run.checkpoint.exists():
        kept = f"{display(session.run.checkpoint)} is the last good checkpoint"
    session.metrics.diverged(session.step, float(loss))
    lower = session.config.optimizer.learning_rate / 10
    raise TrainingError(
        f"{what} at step {session.step}, and it did not recover ({session.bad_in_a_row} steps in a "
        f"row); {kept}. Try --learning_rate {lower:g}, --grad_clip 1, a longer --warmup_iters or "
        "--dtype float32."
    )


def _look_for_spike(session: Session, loss: float) -> None:
    limit = session.config.optimizer.spike_rollback
    if not limit:
        return
    if session.band is None:
        session.band = LossBand()
    if not session.band.deviations(loss) < limit:  # so that a loss that is no number is one
        session.spike = loss
    else:
        session.band.add(loss)


def roll_back(session: Session) -> bool:
    """Go back to the last checkpoint, and past the sequences since; False where there is none.

    As Chowdhery et al. 2022 (PaLM, section 5.1) did by hand: the same text with other weights
    seldom spikes, and other text with the same weights does not.
    """
    loss, session.spike = session.spike, None
    if not session.parallel.from_first(session.run.checkpoint.exists):
        logger.warning(
            "The loss jumped to %.3g at step %d, and there is no checkpoint to go back to.",
            loss,
            session.step,
        )
        return False
    session.roll_backs += 1
    if session.roll_backs > MAX_ROLL_BACKS:
        raise TrainingError(
            f"The loss jumped to {loss:.3g} at step {session.step} and went back to the last "
            f"checkpoint {MAX_ROLL_BACKS} times already; {display(session.run.checkpoint)} is the "
            f"last good one. Try --learning_rate {session.config.optimizer.learning_rate / 10:g} "
            "or --spike_rollback 0."
        )
    step, seen = session.step, session.sequences_seen
    best = session.best_val_loss, session.best_step
    state = session.parallel.from_first(session.run.load)
    session.model.load_state_dict(state["model"], strict=False)  # tied weights are stored once
    restore(session, state)
    session.best_val_loss, session.best_step = best
    first, session.sequences_seen = session.sequences_seen, seen
    session.bad_in_a_row, session.is_diverged = 0, False
    if session.parallel.is_first:
        session.run.cut(session.step, with_evaluation=True)
    session.metrics.rolled_back(session.step, step, loss, (first, seen))
    return True
