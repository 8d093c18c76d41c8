"""Suggest what to train: sizes, lengths and settings that suit a text and a machine.

The wizard calls these functions. They use the text's size, the machine's speed and its memory, and
return options by their flat names, so that every decision can be written on a command line.
"""

import bisect
from collections.abc import Mapping
from typing import Any

from gptlab.model.arithmetic import count_parameters, flops_per_token
from gptlab.model.config import GPTConfig, preset
from gptlab.model.memory import fits
from gptlab.planning.plan import Machine
from gptlab.training.config import TrainConfig, build, layer
from gptlab.training.memory import in_gigabytes, memory_needed
from gptlab.training.resolving import SIZES_FROM_TEXT, TextSize, or_endless
from gptlab.training.times import SHARE_OF_PEAK

PRESET_SIZES = ("tiny", "small", "medium", "large")
# name: (steps, seconds): the steps for a chosen model, or the time for a fitted one
LENGTHS = {"quick": (100, 60), "short": (500, 150), "medium": (2000, 900), "long": (10000, 3600)}

# presets for larger texts: (train tokens from which they pay, name)
_LARGER = ((10_000_000, "tiny"), (50_000_000, "small"), (200_000_000, "medium"))
SMALLEST = f"{SIZES_FROM_TEXT[0][1]}x{SIZES_FROM_TEXT[0][3]}"
MOST_DROPOUT = 0.2
TOKENS_PER_PARAMETER = 0.8  # below it a smaller model learns more in the same time


def architecture(size: str, text: TextSize) -> dict[str, Any]:
    """Options of the model for a preset's name, or for "3x96": layers and width."""
    if size in PRESET_SIZES:
        return {"model_preset": size, "block_size": text.block_size(preset(size)["block_size"])}
    n_layer, n_embd = map(int, size.split("x"))
    heads = next(small[2] for small in SIZES_FROM_TEXT if small[3] == n_embd)
    return custom_architecture(n_layer, heads, n_embd, text)


def custom_architecture(n_layer: int, n_head: int, n_embd: int, text: TextSize) -> dict[str, Any]:
    """Options of a model of this shape; with a small vocabulary the output head is untied."""
    options: dict[str, Any] = {
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": n_embd,
        "qk_norm": True,
    }
    if text.vocab_size <= 512:  # then a second matrix costs almost nothing, and learns faster
        options |= {"tie_weights": False, "init_projection": "zero"}
    return {**options, "block_size": text.block_size(128 if n_embd < 320 else 256)}


def training_of(options: Mapping[str, Any], text: TextSize) -> TrainConfig:
    """The configuration that these options describe, not resolved. Raises ConfigError."""
    values = layer(command_line={**options, "vocab_size": text.vocab_size}).values
    return build({name: value for name, value in values.items() if name != "model_preset"})


def model_of(options: Mapping[str, Any], text: TextSize) -> GPTConfig:
    """The model that these options describe. Raises ConfigError."""
    return training_of(options, text).model


def fitting_size(text: TextSize, seconds: float, machine: Machine) -> str:
    """The largest size that suits this text, time and machine."""
    chosen = SMALLEST
    sizes = [(needed, f"{layers}x{width}") for needed, layers, _, width in SIZES_FROM_TEXT]
    for needed, size in [*sizes, *_LARGER]:
        options = architecture(size, text)
        model = model_of(options, text)
        tokens = seconds * SHARE_OF_PEAK * machine.peak / flops_per_token(model)
        if or_endless(
            text.train_tokens
        ) < needed or tokens < TOKENS_PER_PARAMETER * count_parameters(model):
            break
        if refusal_of(options, text, machine):
            break
        chosen = size
    return chosen


# Memory -------------------------------------------------------------------------------------------


def batch(options: Mapping[str, Any], text: TextSize, machine: Machine) -> dict[str, Any]:
    """Options of the batch: tokens of a step for a model of this size, in pieces that fit."""
    sequences = _sequences(options, text, machine)
    size = sequences
    while size > 1 and not _fits(options, text, machine, size, sequences):
        size //= 2
    chosen = {"batch_size": size}
    if sequences > size:
        chosen["gradient_accumulation_steps"] = sequences // size
    if size == 1 and not _fits(options, text, machine, 1, sequences):
        chosen["gradient_checkpointing"] = True
    return chosen


def _sequences(options: Mapping[str, Any], text: TextSize, machine: Machine) -> int:
    """Sequences of a step for a model of this size."""
    model = model_of(options, text)
    tokens = 2048
    while tokens < 32768 and count_parameters(model) > 1200 * tokens:  # 2M, 5M, 10M, ...
        tokens *= 2
    if machine.choice.device != "cpu":
        tokens *= 4  # an accelerator needs larger batches for its full speed
    return max(1, tokens // model.block_size)


def _needed(
    options: Mapping[str, Any],
    text: TextSize,
    machine: Machine,
    size: int,
    sequences: int,
    **more: Any,
) -> int:
    """The bytes that a training of this model needs with micro-batches of `size` sequences.

    With dropout, whose masks take memory: it is suggested once the length of the run is known.
    """
    config = training_of(
        {
            **options,
            **training(options, text),
            "dropout": MOST_DROPOUT,
            "device": machine.choice.device,
            "dtype": machine.choice.dtype,
            "batch_size": size,
            "gradient_accumulation_steps": sequences // size,
            **more,
        },
        text,
    )
    return memory_needed(config)


def _fits(
    options: Mapping[str, Any], text: TextSize, machine: Machine, size: int, sequences: int
) -> bool:
    return fits(_needed(options, text, machine, size, sequences), machine.free)


def least_memory(options: Mapping[str, Any], text: TextSize, machine: Machine) -> int:
    """The least bytes that training this model takes: one sequence at a time."""
    sequences = _sequences(options, text, machine)
    return min(
        _needed(options, text, machine, 1, sequences, gradient_checkpointing=recomputed)
        for recomputed in (False, True)
    )


def refusal_of(options: Mapping[str, Any], text: TextSize, machine: Machine) -> str:
    """Why a model cannot be trained here, "" when it can: not even one sequence fits."""
    needed, free = least_memory(options, text, machine), machine.free
    if free is None or fits(needed, free):
        return ""
    needs = f"that model needs at least {in_gigabytes(needed)}"
    return f"{needs}, but {in_gigabytes(free)} are free"


def nearest_that_fits(shape: Mapping[str, int], text: TextSize, machine: Machine) -> str:
    """A shape instead of one that does not fit: fewer layers, else a smaller width."""
    n_head, per_head = shape["n_head"], shape["n_embd"] // shape["n_head"]
    while n_head >= 1:
        layers = _most_layers(shape["n_layer"], n_head, n_head * per_head, text, machine)
        if layers:
            width = f" and width {n_head * per_head} ({n_head} heads)" * (n_head < shape["n_head"])
            return f"{layers} layers{width} would"
        n_head //= 2
    return "nothing of this kind would"


def _most_layers(n_layer: int, n_head: int, n_embd: int, text: TextSize, machine: Machine) -> int:
    """The most layers, up to n_layer, with which a model of this width fits; 0 for none."""

    def is_refused(layers: int) -> bool:
        return bool(refusal_of(custom_architecture(layers, n_head, n_embd, text), text, machine))

    # memory grows with the layers; each check builds a model on the meta device, so use few
    return bisect.bisect_left(range(1, n_layer + 1), True, key=is_refused)


# Optimizer and regularisation ---------------------------------------------------------------------


def training(options: Mapping[str, Any], text: TextSize) -> dict[str, Any]:
    """Options of optimizer and schedule for a model of this size."""
    model = model_of(options, text)
    rate = 1e-2 if model.init_projection == "zero" else 5e-3
    if model.n_embd > 256:  # wider models need lower rates
        rate = float(f"{5e-3 * 256 / model.n_embd:.1g}")
    return {
        "optimizer": "muon",
        "learning_rate": rate,
        "schedule": "wsd",
        "decay_fraction": 1.0,  # falls from the end of the warm-up
        "min_lr": 0.0,
    }


def regularisation(epochs: float) -> dict[str, Any]:
    """Options against overfitting, for a text that is read this many times."""
    if epochs < 2:
        return {"dropout": 0.0, "weight_decay": 0.0}
    if epochs < 10:
        return {"dropout": 0.1, "weight_decay": 0.1}
    return {"dropout": MOST_DROPOUT, "weight_decay": 0.1, "early_stopping": 3}
