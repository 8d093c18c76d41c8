"""What a training step gives to the model beside text: masks and a criterion, made outside."""

import torch

from gptlab.data.batches import MicroBatch, mix
from gptlab.model.documents import document_mask
from gptlab.model.dropout import dropout_masks
from gptlab.training.setup import Setup
from gptlab.training.state import TrainState


def masks_of(setup: Setup, state: TrainState, micro: MicroBatch) -> dict:
    """Arguments of `GPT.forward` for a micro-batch: `documents`, who attends to whom, `masks`,
    dropout's of each sequence, and with a teacher the `criterion` that it makes.

    A run that began under version 1 gets no `masks`: the model draws its own, as a function of the
    seed, the step, the micro-batch and the rank.
    """
    documents = document_mask(micro.tokens, setup.separator)
    return {
        "documents": documents, **_dropout(setup, state, micro), **_criterion(setup, state, micro)
    }  # fmt: skip


def _criterion(setup: Setup, state: TrainState, micro: MicroBatch) -> dict:
    if setup.teacher is None:
        return {}
    with state.precision.autocast():
        return {"criterion": setup.teacher.criterion(micro, state.step)}


def _dropout(setup: Setup, state: TrainState, micro: MicroBatch) -> dict:
    config = setup.config
    model, seed, device = config.model, config.run.seed, config.machine.device
    if state.numerics["dropout"] > 1:
        return {"masks": dropout_masks(model, seed, micro.numbers, device)}
    if model.dropout:
        drawn = mix(seed, state.step, micro.index, setup.parallel.rank) >> 1
        generator_of(device).manual_seed(drawn)
    return {}


def generator_of(device: str):
    """The generator of this device; seeding all devices would take a millisecond."""
    return torch.default_generator if device == "cpu" else torch.get_device_module(device)
