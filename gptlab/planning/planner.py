"""Propose all options of a training for a model and a length, with the time on this machine."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gptlab.hardware import choose
from gptlab.model.arithmetic import count_parameters
from gptlab.planning import suggest
from gptlab.planning.plan import Machine, expected_seconds, resolve_here
from gptlab.training.config import LENGTHS, TrainConfig, layer, plan_numbers, resolved_value
from gptlab.training.resolving import Measurements, TextSize, or_endless

SEED = 1337
MEASURE_SECONDS = 2.0


@dataclass(frozen=True)
class Proposal:
    """A training: options by their flat names, the resolved configuration, expected seconds."""

    options: dict[str, Any]
    config: TrainConfig
    seconds: float


class Planner:
    """Proposes trainings on one text and one device; each model is measured once.

    note: called with a sentence before work that takes seconds.
    """

    def __init__(
        self,
        machine: Machine,
        dataset: str,
        text: TextSize,
        note: Callable[[str], None] = lambda sentence: None,
    ):
        self.machine, self.dataset, self.text, self.note = machine, dataset, text, note
        self._measured: dict[tuple[object, ...], Measurements] = {}

    def fitted_model(self, seconds: float) -> dict[str, Any]:
        """Options of the largest model that suits this text, time and machine."""
        size = suggest.fitting_size(self.text, seconds, self.machine)
        return suggest.architecture(size, self.text)

    def propose(
        self,
        model: Mapping[str, Any],
        *,
        max_iters: int | None = None,
        minutes: float | None = None,
        epochs: float | None = None,
        changed: Mapping[str, Any] | None = None,
    ) -> Proposal:
        """All options of a training of this model for some steps, minutes or epochs.

        changed: options that the user set; they override everything derived. Raises ConfigError for
        an impossible combination, HardwareError when memory runs out.
        """
        changed = {name: value for name, value in (changed or {}).items() if name not in LENGTHS}
        length = {"max_iters": max_iters, "minutes": minutes, "epochs": epochs}
        machine = self._machine_in(changed.get("dtype", self.machine.choice.dtype))
        options = {"dataset": self.dataset, **model}
        options |= suggest.batch(options, self.text, machine)
        options |= suggest.training(options, self.text) | {"dropout": 0.0}
        draft, times = resolve_here(
            layer(command_line={**options, **changed, **length}),
            self.text,
            machine,
            lambda config: self._measure(machine, config),
        )
        epochs = plan_numbers(draft.config, or_endless(self.text.train_tokens))["epochs"]
        options |= suggest.regularisation(epochs)
        options |= {
            # a sample at every second evaluation shows how the text improves
            "sample_interval": 2 * resolved_value(draft.config.evaluation.eval_interval),
            "max_iters": draft.config.batch.max_iters,
            "seed": SEED,
            "device": machine.choice.device,
            "dtype": machine.choice.dtype,
            "compile_model": draft.config.machine.compile_model,
        }
        options |= changed
        overrides = layer(command_line=options)
        config = resolve_here(overrides, self.text, machine, lambda _: times)[0].config
        return Proposal(options, config, expected_seconds(config, times))

    def _machine_in(self, dtype: str) -> Machine:
        """This machine with the precision that the user chose. Raises HardwareError."""
        choice = choose(self.machine.report, self.machine.choice.device, dtype)
        return dataclasses.replace(self.machine, choice=choice)

    def _measure(self, machine: Machine, config: TrainConfig) -> Measurements:
        """The times of this model on this machine, measured for two seconds."""
        key = (
            config.model,
            config.batch.batch_size,
            config.sequences_per_step,
            config.machine.dtype,
            config.optimizer.optimizer,
        )
        if key not in self._measured:
            size = in_millions(count_parameters(config.model))
            self.note(f"Measuring a model of {size} parameters on this machine ...")
            found = machine.measure(config, time.perf_counter(), MEASURE_SECONDS)
            # the time before the first step has already passed during the questions
            self._measured[key] = dataclasses.replace(found, elapsed=0.0)
        return self._measured[key]


def in_millions(number: int) -> str:
    """A number of parameters in words: 0.83M, 25M, 350M."""
    return f"{number / 1e6:.2g}M" if number < 99.5e6 else f"{number / 1e6:.0f}M"
