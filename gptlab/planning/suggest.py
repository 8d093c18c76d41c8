"""What to train, for someone who has not said: sizes, lengths and settings that fit (no torch).

The wizard asks these functions. They know the text's size, the machine's speed and its memory, and
return options by their flat names, so that all that they decide can be written on a command line.
"""

import math

from gptlab.model.arithmetic import count_parameters, flops_per_token, training_memory
from gptlab.model.config import GPTConfig, preset
from gptlab.training.config import TrainConfig
from gptlab.training.memory import TIGHT, in_gigabytes
from gptlab.training.optimizers.table import OPTIMIZERS
from gptlab.training.resolving import COMPILED_STEP, SIZES_FROM_TEXT, Measurements, TextSize

PRESET_SIZES = ("tiny", "small", "medium", "large")
# tokens per parameter with which a training's FLOPs are spent best (Hoffmann et al. 2022)
CHINCHILLA = 20
# reading a text up to four times is nearly as good as new text, and beyond sixteen times hardly
# anything is gained (Muennighoff et al. 2023)
AS_GOOD_AS_NEW, WORN_OUT = 4, 16

# name: (steps, seconds): the steps of a model that was chosen, or the time of one that is fitted
LENGTHS = {"quick": (100, 60), "short": (500, 150), "medium": (2000, 900), "long": (10000, 3600)}

# presets for larger texts: (train tokens from which they are worth it, name)
_LARGER = ((10_000_000, "tiny"), (50_000_000, "small"), (200_000_000, "medium"))
SHARE_OF_PEAK = 0.4  # of the peak that a training step of such models reaches, roughly
TOKENS_PER_PARAMETER = 0.8  # below it a smaller model learns more in the same time


def architecture(size: str, text: TextSize) -> dict:
    """Options of the model for a preset's name, or for "3x96": layers and width."""
    if size in PRESET_SIZES:
        return {"model_preset": size, "block_size": text.block_size(preset(size)["block_size"])}
    n_layer, n_embd = map(int, size.split("x"))
    heads = next(small[2] for small in SIZES_FROM_TEXT if small[3] == n_embd)
    return custom_architecture(n_layer, heads, n_embd, text)


def custom_architecture(n_layer: int, n_head: int, n_embd: int, text: TextSize) -> dict:
    """Options of a model of this shape; small vocabularies get a head of their own."""
    options = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "qk_norm": True}
    if text.vocab_size <= 512:  # a second matrix costs next to nothing then, and learns faster
        options |= {"tie_weights": False, "init_projection": "zero"}
    return {**options, "block_size": text.block_size(128 if n_embd < 320 else 256)}


def model_of(options: dict, text: TextSize) -> GPTConfig:
    """The model that these options describe. Raises ConfigError."""
    names = GPTConfig.__dataclass_fields__
    values = {**(preset(options["model_preset"]) if options.get("model_preset") else {}), **options}
    chosen = {name: value for name, value in values.items() if name in names}
    return GPTConfig(**{**chosen, "vocab_size": text.vocab_size})


def fitting_size(text: TextSize, seconds: float, peak: float) -> str:
    """The size that this text and this time are enough for. peak: FLOP/s of the device."""
    chosen = f"{SIZES_FROM_TEXT[0][1]}x{SIZES_FROM_TEXT[0][3]}"
    sizes = [(needed, f"{layers}x{width}") for needed, layers, _, width in SIZES_FROM_TEXT]
    for needed, size in [*sizes, *_LARGER]:
        model = model_of(architecture(size, text), text)
        tokens = seconds * SHARE_OF_PEAK * peak / flops_per_token(model)
        if text.train_tokens < needed or tokens < TOKENS_PER_PARAMETER * count_parameters(model):
            break
        chosen = size
    return chosen


def batch(options: dict, text: TextSize, device: str, free: int | None, dtype: str) -> dict:
    """Options of the batch: tokens of a step for a model of this size, in pieces that fit.

    free: bytes of the device, None where it does not tell.
    """
    model = model_of(options, text)
    tokens = 2048
    while tokens < 32768 and count_parameters(model) > 1200 * tokens:  # 2M, 5M, 10M, ...
        tokens *= 2
    if device != "cpu":
        tokens *= 4  # an accelerator has its full speed only with more at once
    sequences = max(1, tokens // model.block_size)
    size = sequences
    while size > 1 and not _fits(model, size, free, dtype):
        size //= 2
    chosen = {"batch_size": size}
    if sequences > size:
        chosen["gradient_accumulation_steps"] = sequences // size
    if size == 1 and not _fits(model, 1, free, dtype):
        chosen["gradient_checkpointing"] = True
    return chosen


def memory_needed(options: dict, text: TextSize, dtype: str) -> int:
    """The least bytes that training this model takes: one sequence at a time, recomputed."""
    model = model_of({**options, "gradient_checkpointing": True}, text)
    return _memory(model, 1, dtype)


def _fits(model: GPTConfig, batch_size: int, free: int | None, dtype: str) -> bool:
    return free is None or _memory(model, batch_size, dtype) < TIGHT * free


def _memory(model: GPTConfig, batch_size: int, dtype: str) -> int:
    return training_memory(
        model,
        batch_size,
        bytes_per_activation=4 if dtype == "float32" else 2,
        optimizer_states=OPTIMIZERS["muon"].values_per_parameter,
    ).total


def refusal_of(options: dict, text: TextSize, free: int | None, dtype: str) -> str:
    """Why a model cannot be trained here, "" when it can: not even one sequence fits."""
    needed = memory_needed(options, text, dtype)
    if free is None or needed < TIGHT * free:
        return ""
    return f"that model needs at least {in_gigabytes(needed)} and {in_gigabytes(free)} are free"


def nearest_that_fits(shape: dict, text: TextSize, free: int | None, dtype: str) -> str:
    """What to take instead of a shape that does not fit: fewer layers, else a smaller width."""
    n_layer, n_head, n_embd = shape["n_layer"], shape["n_head"], shape["n_embd"]
    per_head = n_embd // n_head
    while n_head >= 1:
        for layers in range(n_layer, 0, -1):
            smaller = custom_architecture(layers, n_head, n_head * per_head, text)
            if not refusal_of(smaller, text, free, dtype):
                width = f" and width {n_head * per_head} ({n_head} heads)" * (
                    n_head < shape["n_head"]
                )
                return f"{layers} layers{width} would"
        n_head //= 2
    return "nothing of this kind would"


def training(options: dict, text: TextSize) -> dict:
    """Options of optimizer and schedule for a model of this size."""
    model = model_of(options, text)
    rate = 1e-2 if model.init_projection == "zero" else 5e-3
    if model.n_embd > 256:  # wider models bear less
        rate = float(f"{5e-3 * 256 / model.n_embd:.1g}")
    return {
        "optimizer": "muon",
        "learning_rate": rate,
        "schedule": "wsd",
        "decay_fraction": 1.0,  # falls from the end of the warm-up
        "min_lr": 0.0,
    }


def regularisation(epochs: float) -> dict:
    """Options against overfitting, for a text that is read this many times."""
    if epochs < 2:
        return {"dropout": 0.0, "weight_decay": 0.0}
    against = {"dropout": 0.1 if epochs < 10 else 0.2, "weight_decay": 0.1}
    return against if epochs < 10 else {**against, "early_stopping": 3}


def expected_overfitting(epochs: float, early_stopping: bool) -> str:
    """What reading a text this many times does to the model, in a sentence."""
    if epochs <= 1:
        return "No part of the text is read twice, so nothing can be learned by heart."
    if epochs <= AS_GOOD_AS_NEW:
        return "Up to 4 readings are nearly as good as new text: expect little overfitting."
    if epochs <= WORN_OUT:
        return (
            "Some of it will be learned by heart; dropout delays that, and best.pt keeps the "
            "weights from the best point."
        )
    stop = "stops at that turn by itself" if early_stopping else "goes on, and best.pt keeps it"
    return (
        "Expect overfitting: after some time the validation loss turns and rises. The training "
        f"{stop}; more text, or a shorter training, would use the time better."
    )


def expected_seconds(config: TrainConfig, measured: Measurements) -> float:
    """The time of a whole run without its start: steps, evaluations and savings."""
    iters, evaluation = config.batch.max_iters, config.evaluation
    kind = "cpu" if config.machine.device == "cpu" else "other"
    share = COMPILED_STEP[kind] if config.machine.compile_model else 1.0
    weights = 2 if config.optimizer.ema_decay else 1
    each = weights * evaluation.eval_tokens * measured.eval_token + measured.save
    return iters * measured.step * share + math.ceil(iters / evaluation.eval_interval) * each
