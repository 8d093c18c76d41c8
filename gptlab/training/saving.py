"""Save a training. All processes call `save`; the first one writes, or each one its shards."""

import logging

from gptlab.checkpoints import model_content
from gptlab.training.observers import Observers
from gptlab.training.setup import Setup
from gptlab.training.state import TrainState

logger = logging.getLogger(__name__)


def save(setup: Setup, state: TrainState, observers: Observers) -> None:
    """Write the full training state, unless the loss diverged. All processes fail, or none."""
    if observers.stability.is_diverged:
        if setup.parallel.is_first:
            logger.warning("Step %d was not saved: its loss diverged.", state.step)
        return

    def made() -> dict:
        content = model_content(
            state.model,
            setup.data.tokenizer,
            "adapters" if state.base else "whole",
            **state.content(),
            **setup.content(state.sequences_seen),
        )
        if setup.config.finetune.lora_rank:
            content["lora_alpha"] = setup.config.finetune.lora_alpha
        return content

    run, parallel, keep = setup.run, setup.parallel, setup.config.evaluation.keep_checkpoints
    with observers.clock.timing_a_save(), setup.apart(state.model):
        parallel.from_first(observers.trace.flush)  # a checkpoint must not be ahead of the trace
        if parallel.is_sharded:
            saving = observers.saving
            saving.start(made(), lambda *content: run.save_shards(*content, keep), parallel)
        else:
            parallel.from_first(lambda: run.save(made(), keep))
    observers.clock.save_seconds += observers.saving.seconds
