"""What stays fixed during a training."""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gptlab.data.batches import Batches
from gptlab.data.mixture import Mixture
from gptlab.data.windows import Windows
from gptlab.model.transformer import GPT
from gptlab.runs import Run
from gptlab.training.config import Overrides, TrainConfig
from gptlab.training.distillation import Teacher
from gptlab.training.parallel import Parallel
from gptlab.training.resolving import Resolved
from gptlab.training.state import TrainState
from gptlab.training.units import TextUnits


@dataclass(frozen=True)
class Setup:
    """A run, resolved and open: options, data, processes. A rehearsal has no data and no run.

    windows: the evaluation's windows of each dataset. tests: problems whose answers are right or
    wrong, of each dataset that has some, by what they are. chat_template: Jinja, of the dataset,
    else of the model that init_from names. machine: a description of this one. added_ids: by which
    the vocabulary of that model was extended. changes: options that differ from the run's
    last start, as "name old -> new". start: the checkpoint that init_from names, at the first
    start. separator: the id at which attention begins anew, with document_mask. teacher: what is
    learned from beside the text.
    """

    resolved: Resolved
    parallel: Parallel
    batches: Batches
    overrides: Overrides = field(default_factory=lambda: Overrides({}, {}))
    data: Mixture | None = None
    run: Run | None = None
    windows: tuple[Windows, ...] = ()
    tests: dict[str, dict[str, Windows]] = field(default_factory=dict)
    units: TextUnits | None = None
    chat_template: str = ""
    machine: str = ""
    added_ids: int = 0
    changes: tuple[str, ...] = ()
    start: Path | None = None
    separator: int | None = None
    teacher: Teacher | None = None

    @property
    def config(self) -> TrainConfig:
        """The configuration without any "auto"."""
        return self.resolved.config

    @contextlib.contextmanager
    def apart(self, model: GPT):
        """Around forward passes beside the training: eager, as other shapes would be recompiled.

        Afterwards no part of a sharded model is left whole.
        """
        compiled = self.config.machine.compile_model
        stance = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
        with stance, self.parallel.watch.paused():
            yield
        if self.parallel.is_sharded:
            model.reshard()

    def content(self, state: TrainState) -> dict:
        """What every checkpoint of the run holds besides the model and the state."""
        moved = {"max_iters": state.end}
        if state.stretch is not None:
            moved["lr_decay_iters"] = state.end
        return {
            "chat_template": self.chat_template,
            "reversed_answers": self.data.has_reversed_answers,
            "dataset": {
                "name": self.data.name,
                "fingerprint": self.data.fingerprint,
                "sequences_seen": self.data.positions(state.sequences_seen),
            },
            "teachers": self.teacher.record() if self.teacher is not None else [],
            "train_config": {
                "values": dict(self.overrides.values),
                "sources": dict(self.overrides.sources),
                "resolved": self.config.flat() | moved,
            },
        }
