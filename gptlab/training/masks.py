"""The masks of a training step, which are made outside of the model."""

import torch

from gptlab.data.batches import MicroBatch, mix
from gptlab.model import dropout
from gptlab.training.setup import Setup
from gptlab.training.state import TrainState


def dropout_masks(setup: Setup, state: TrainState, micro: MicroBatch) -> list | None:
    """Dropout's masks of a micro-batch, for `GPT.forward`: each sequence has its own.

    A run that began under version 1 gets none: the model draws its own, as a function of the seed,
    the step, the micro-batch and the rank.
    """
    config = setup.config
    model, seed, device = config.model, config.run.seed, config.machine.device
    if state.numerics["dropout"] > 1:
        return dropout.dropout_masks(model, seed, micro.numbers, device)
    if model.dropout:
        drawn = mix(seed, state.step, micro.index, setup.parallel.rank) >> 1
        generator_of(device).manual_seed(drawn)
    return None


def generator_of(device: str):
    """The generator of this device; seeding all devices would take a millisecond."""
    return torch.default_generator if device == "cpu" else torch.get_device_module(device)
