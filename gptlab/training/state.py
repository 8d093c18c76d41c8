"""The state of a training: exactly what a checkpoint restores."""

import math
from dataclasses import dataclass, field

import torch

from gptlab.model.initialisation import FIRST_NUMERICS, NUMERICS
from gptlab.model.shards import place
from gptlab.model.transformer import GPT
from gptlab.training.ema import Ema
from gptlab.training.loss_band import LossBand
from gptlab.training.optimizers.combined import Optimizers
from gptlab.training.precision import MixedPrecision
from gptlab.training.schedules import Stretch

# the first start decides these; every resume keeps them, unless the command line overrides them
DECISIONS = ("max_iters", "compile_model", "warmup_iters", "eval_interval", "eval_tokens")


@dataclass
class TrainState:
    """The state of a training: exactly what a checkpoint holds.

    end: steps of the whole run. decisions: what the first start decided, by option. step:
    optimizer steps done. best_val_loss: nats per token, reached at best_step. band: None unless
    spike_rollback is on. ema: None unless ema_decay is above 0. base: SHA-256 of the run's base.pt,
    beside which a LoRA training keeps adapters only. numerics: versions of what is drawn. spent:
    seconds of a budget in minutes that are used; None where there is none. stretch: None until
    such a budget moves the end.
    """

    model: GPT
    optimizers: Optimizers
    precision: MixedPrecision
    ema: Ema | None
    end: int
    decisions: dict = field(default_factory=dict)
    band: LossBand | None = None
    step: int = 0
    sequences_seen: int = 0
    best_val_loss: float = math.inf
    best_step: int = 0
    skipped_steps: int = 0
    base: str | None = None
    numerics: dict = field(default_factory=NUMERICS.copy)
    spent: float | None = None
    stretch: Stretch | None = None

    @property
    def schedule_step(self) -> float:
        """The step whose learning rate the next one takes, in the schedule as first planned."""
        return self.step if self.stretch is None else self.stretch.at(self.step)

    def move_end(self, end: int, planned: int | None) -> None:
        """Let the run end at another step, and its schedule too.

        planned: the last step of the schedule as first planned; None where that stays.
        """
        if planned is not None:
            self.stretch = Stretch(self.step, self.schedule_step, end, planned)
        self.end = end

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.end

    def content(self) -> dict:
        """Everything but the model's weights, as a checkpoint holds it."""
        return {
            "step": self.step,
            "sequences_seen": self.sequences_seen,
            "best_val_loss": self.best_val_loss,
            "best_step": self.best_step,
            "skipped_steps": self.skipped_steps,
            "optimizer": self.optimizers.state_dict(),
            "ema": self.ema.weights if self.ema is not None else None,
            "scaler": self.precision.state_dict(),
            "decided": self._decided(),
            "spent": self.spent,
            "stretch": list(self.stretch) if self.stretch is not None else None,
            "base": self.base,
            "numerics": self.numerics,
            "loss_band": self.band.state() if self.band is not None else None,
        }

    def _decided(self) -> dict:
        """What a resume keeps; of a moved end also the schedule as first planned."""
        schedule = {"lr_decay_iters": self.stretch.planned} if self.stretch is not None else {}
        return {**self.decisions, "max_iters": self.end, **schedule}

    @torch.no_grad()
    def restore(self, content: dict) -> None:
        """Restore everything but end, decisions and the model's weights.

        Raises CheckpointError for the state of another optimizer.
        """
        self.optimizers.load_state_dict(content["optimizer"])
        self.precision.load_state_dict(content["scaler"])
        if self.ema is not None:
            for name, weights in (content["ema"] or content["model"]).items():
                if name in self.ema.weights:
                    place(self.ema.weights[name], weights)
        self.step = content["step"]
        self.sequences_seen = content["sequences_seen"]
        self.best_val_loss = content["best_val_loss"]
        self.best_step = content["best_step"]
        self.skipped_steps = content["skipped_steps"]
        self.base = content.get("base")
        self.numerics = content.get("numerics", FIRST_NUMERICS)
        self.spent = content.get("spent")
        goes_on = content["decided"]["max_iters"] == self.end  # else max_iters was set
        self.stretch = Stretch(*content["stretch"]) if goes_on and content.get("stretch") else None
        if content.get("loss_band") is not None:
            self.band = LossBand(*content["loss_band"])
