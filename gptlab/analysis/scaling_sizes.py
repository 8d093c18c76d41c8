"""The sizes of a ladder: models of different width and depth, and the rule of their rate."""

import math
from dataclasses import dataclass

from gptlab.model.arithmetic import parameters_by_component
from gptlab.training.config import TrainConfig, build
from gptlab.training.resolving import TextSize

BLOCK_SIZE, SEQUENCES = 128, 8  # of a step: the same for all sizes
PARAMETERS = 1e9  # of the largest size that is considered
WIDTHS = (*range(16, 96, 8), *range(96, 192, 16), *range(192, 4097, 64))
RATE, RATE_WIDTH = 1.4e-2, 32  # the highest learning rate at this width
FIRST_SEED = 1337  # of a point, as of a training


@dataclass(frozen=True)
class Size:
    """A model of the ladder: its options, its settings, its counts. flops: of a step, per token."""

    options: dict
    config: TrainConfig
    parameters: int
    non_embedding: int
    flops: float

    @property
    def name(self) -> str:
        """WIDTHxLAYERS."""
        return f"{self.config.model.n_embd}x{self.config.model.n_layer}"

    def steps(self, compute: float) -> int:
        """The steps that take about so many FLOPs."""
        return max(1, round(compute / self.flops / self.config.tokens_per_step))

    def tokens(self, compute: float) -> int:
        """The tokens of these steps."""
        return self.steps(compute) * self.config.tokens_per_step


def sizes_for(text: TextSize, device: str, dtype: str) -> list[Size]:
    """All sizes that are considered, the smallest first: a layer for each 32 channels.

    The rate falls with the root of the width: slower than AdamW's own for hidden matrices (1/width,
    Yang et al. 2021), because Muon's update keeps its norm. On the plays, 0.7 and 1.4 times this
    rate end within 0.003 nats of each other at widths 32 and 72.
    """
    found: list[Size] = []
    small = text.vocab_size <= 512  # then an untied head costs almost nothing
    for width in WIDTHS:
        options = {
            "n_layer": max(2, round(width / 32)),
            "n_head": max(2, width // 64),
            "n_embd": width,
            "block_size": text.block_size(BLOCK_SIZE),
            "qk_norm": True,
            "tie_weights": not small,
            "init_projection": "zero" if small else "scaled",
            "dropout": 0.0,
            "batch_size": SEQUENCES,
            "optimizer": "muon",
            "learning_rate": float(f"{RATE * math.sqrt(RATE_WIDTH / width):.2g}"),
            "weight_decay": 0.0,
            "schedule": "wsd",
            "decay_fraction": 1.0,  # falls to nothing from the end of the warm-up
            "min_lr": 0.0,
            "device": device,
            "dtype": dtype,
            "compile_model": False,
        }
        config = build({**options, "vocab_size": text.vocab_size})
        parts = parameters_by_component(config.model)
        embeddings = sum(parts[n] for n in parts if "embedding" in n or n == "output head")
        total = sum(parts.values())
        if total > PARAMETERS:
            break
        found.append(Size(options, config, total, total - embeddings, config.flops_per_token))
    return found


@dataclass(frozen=True)
class Point:
    """One training of the ladder. level: its place in the levels; None for a check."""

    size: Size
    steps: int
    seed: int
    level: int | None

    @property
    def tokens(self) -> int:
        """The tokens that it reads."""
        return self.steps * self.size.config.tokens_per_step

    @property
    def flops(self) -> float:
        """The FLOPs that it takes."""
        return self.tokens * self.size.flops

    @property
    def key(self) -> str:
        """The name of its line and of its folder."""
        first = self.seed == FIRST_SEED
        return f"{self.size.name}.{self.steps}" + ("" if first else f".seed{self.seed}")
