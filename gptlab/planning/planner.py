"""From a model and a length to all options of a training, with its time on this machine."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gptlab.hardware import Choice, Hardware, choose, peak_flops
from gptlab.model.arithmetic import count_parameters
from gptlab.planning import suggest
from gptlab.training.config import TrainConfig, layer, plan_numbers
from gptlab.training.memory import explained_out_of_memory
from gptlab.training.resolving import Measurements, TextSize, resolve, situation_of

SEED = 1337
MEASURE_SECONDS = 2.0
LENGTH = ("max_iters", "minutes")


@dataclass(frozen=True)
class Plan:
    """A training as options by their flat names, resolved, with its expected seconds."""

    options: dict
    config: TrainConfig
    seconds: float


class Planner:
    """Plans trainings on one text and one device; each model is measured once.

    say: called with what takes seconds, before it is done.
    """

    def __init__(
        self, hardware: Hardware, choice: Choice, dataset: str, text: TextSize,
        say: Callable[[str], None] = lambda sentence: None,
    ):  # fmt: skip
        self.hardware, self.choice = hardware, choice
        self.dataset, self.text, self.say = dataset, text, say
        self._measured: dict = {}
        self._peak = 0.0

    @property
    def free(self) -> int | None:
        """Free bytes of the device."""
        return self.hardware.device(self.choice.device).memory_free

    def fitted_model(self, seconds: float) -> dict:
        """Options of the model that this text and this time are enough for."""
        if not self._peak:
            self._peak = peak_flops(self.choice.device, self.choice.dtype).value
        size = suggest.fitting_size(self.text, seconds, self._peak)
        return suggest.architecture(size, self.text)

    def plan(
        self,
        model: Mapping,
        *,
        max_iters: int | None = None,
        minutes: float | None = None,
        changed: Mapping | None = None,
    ) -> Plan:
        """All options of a training of this model for so many steps, or minutes.

        changed: options that a person said, over everything that follows from the rest. Raises
        ConfigError for what cannot be, HardwareError when memory runs out.
        """
        overrides = {name: value for name, value in (changed or {}).items() if name not in LENGTH}
        device, dtype = self.choice.device, self.choice.dtype
        options = {"dataset": self.dataset, **model}
        options |= suggest.batch(options, self.text, device, self.free, dtype)
        options |= suggest.training(options, self.text) | {"dropout": 0.0}
        length = {"max_iters": max_iters} if minutes is None else {"minutes": minutes}
        measured = self._measure(self._resolve({**options, **overrides, "max_iters": 100}, None))
        draft = self._resolve({**options, **overrides, **length}, measured)
        epochs = plan_numbers(draft, self.text.train_tokens)["epochs"]
        options |= suggest.regularisation(epochs)
        options |= {
            # a person who watches sees the text improve, at every second evaluation
            "sample_interval": 2 * draft.evaluation.eval_interval,
            "max_iters": draft.batch.max_iters,
            "seed": SEED,
            "device": device,
            "dtype": dtype,
            "compile_model": draft.machine.compile_model,
        }
        options |= overrides
        config = self._resolve(options, measured)
        return Plan(options, config, suggest.expected_seconds(config, measured))

    def _resolve(self, options: Mapping, measured: Measurements | None) -> TrainConfig:
        choice = choose(self.hardware, self.choice.device, options.get("dtype", "auto"))
        situation = situation_of(self.hardware, choice, self.text, measurements=measured)
        return resolve(layer(command_line=options), situation).config

    def _measure(self, config: TrainConfig) -> Measurements:
        """Two seconds of this very model on this machine."""
        from gptlab.training.building import settle_torch
        from gptlab.training.measuring import measure

        key = (config.model, config.batch, config.machine, config.optimizer.optimizer)
        if key not in self._measured:
            size = in_millions(count_parameters(config.model))
            self.say(f"Measuring a model of {size} parameters on this machine ...")
            settle_torch(self.choice.device)
            with explained_out_of_memory(config):
                choice = choose(self.hardware, config.machine.device, config.machine.dtype)
                found = measure(config, choice, 1, time.perf_counter(), MEASURE_SECONDS)
            # the time before the first step is spent already: the person sits in front of it
            self._measured[key] = dataclasses.replace(found, elapsed=0.0)
        return self._measured[key]


def in_millions(number: int) -> str:
    """A number of parameters as a person says it: 0.83M, 25M, 350M."""
    return f"{number / 1e6:.2g}M" if number < 99.5e6 else f"{number / 1e6:.0f}M"
