"""A run as a report shows it: curves over steps, tokens and time, samples, data, commands.

Everything comes from the run's own files and the meta.json of its dataset; nothing is executed.
"""

import bisect
import math
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from gptlab.analysis.diagnosis import RunRecord, read_run
from gptlab.data.mixture import find_mixture_meta
from gptlab.data.prepare_command import prepare_command
from gptlab.data.token_files import is_chat
from gptlab.errors import ConfigError
from gptlab.files import as_installed, display, quoted, shareable
from gptlab.model.arithmetic import active_parameters, count_parameters
from gptlab.runs import Run
from gptlab.training.config import OPTIONS, Overrides, TrainConfig, build
from gptlab.training.going_on import command_to_train
from gptlab.training.run_recipe import RunRecipe, read_run_recipe
from gptlab.training.units import TextUnits

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Sample:
    """A text that the model wrote at a step. loss: its validation loss then, in nats per token."""

    step: int
    loss: float | None
    text: str


@dataclass(frozen=True)
class RunView:
    """One run. config: None if this release cannot read the recipe. meta: that of the dataset."""

    record: RunRecord
    recipe: RunRecipe
    config: TrainConfig | None
    meta: dict | None

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.record.folder.resolve().name

    @property
    def parameters(self) -> int | None:
        """Number of parameters; None without a config."""
        return count_parameters(self.config.model) if self.config else None

    @property
    def active(self) -> int | None:
        """Number of parameters that work on a token; None without a config."""
        return active_parameters(self.config.model) if self.config else None

    @cached_property
    def tokens(self) -> Points:
        """(step, tokens trained on so far), from step 0."""
        block = self.record.settings.get("block_size") or 1
        seen = [(r["step"], r.get("sequences_seen")) for r in self.record.training]
        return [(0, 0), *((step, n * block) for step, n in seen if n)]

    @cached_property
    def seconds(self) -> Points:
        """(step, seconds of training so far), without evaluations and interruptions."""
        points, total, before = [(0, 0.0)], 0.0, 0
        for record in self.record.training:
            rate = record.get("tokens_per_second")
            if rate:
                tokens = at(self.tokens, record["step"]) - at(self.tokens, before)
                total += tokens / rate
            before = record["step"]
            points.append((before, total))
        return points

    def curve(self, field: str, over: str = "step") -> Points:
        """(x, value) of a field of the records; over: "step", "tokens" or "seconds"."""
        found = [(r["step"], r[field]) for r in self.record.records if r.get(field) is not None]
        return self._over(found, over)

    def evaluations(self, over: str = "step") -> Points:
        """(x, validation loss in nats per token), of the averaged weights if they were better."""
        return self._over(self.record.evaluations, over)

    def _over(self, points: Points, over: str) -> Points:
        if over == "step":
            return points
        table = getattr(self, over)
        return [(at(table, step), value) for step, value in points]

    @cached_property
    def bits_per_nat(self) -> float | None:
        """Factor from nats per token to bits per byte; None if the size of the text is unknown."""
        for record in self.record.records:
            if record.get("val_loss") and record.get("val_bits_per_byte"):
                return record["val_bits_per_byte"] / record["val_loss"]
        return None

    @cached_property
    def has_changed_data(self) -> bool:
        """Whether the dataset of this name is no longer the one that the run was trained on."""
        size = TextUnits(self.meta).tokens_per_byte
        if self.bits_per_nat is None or size is None:
            return False
        return not math.isclose(size / math.log(2), self.bits_per_nat, rel_tol=1e-6)

    @cached_property
    def baselines(self) -> dict[str, float]:
        """The baselines in bits per byte; {} if the dataset is no longer the same."""
        known = self.bits_per_nat is not None and not self.has_changed_data
        return TextUnits(self.meta).baselines if known else {}

    @property
    def text(self) -> tuple:
        """What two runs share that were measured on the same text, whatever their tokenizers."""
        name = self.record.settings.get("dataset")
        source = (self.meta or {}).get("source") or {}
        if self.has_changed_data or not source.get("fingerprint"):
            return (name, self.has_changed_data)
        split = self.meta.get("split") or {}
        return (source["fingerprint"], *(split.get(n) for n in ("how", "val_fraction", "val")))

    @property
    def levels(self) -> dict[str, float]:
        """The baselines as losses in nats per token."""
        return {name: bits / self.bits_per_nat for name, bits in self.baselines.items()}

    @property
    def samples(self) -> list[Sample]:
        """The texts written during training, in order."""
        return [
            Sample(r["step"], r.get("val_loss"), r["sample"])
            for r in self.record.records
            if isinstance(r.get("sample"), str)
        ]

    @property
    def speed(self) -> float | None:
        """Median tokens per second."""
        rates = sorted(value for _, value in self.curve("tokens_per_second")[1:])
        return rates[len(rates) // 2] if rates else None


def at(table: Points, x: float) -> float:
    """The value at `x`, interpolated linearly between the points of an ascending table."""
    place = bisect.bisect_left(table, (x,))
    if place == 0:
        return table[0][1]
    if place == len(table):
        (x0, y0), (x1, y1) = table[-2:] if len(table) > 1 else (table[-1], table[-1])
        return y1 + (y1 - y0) / (x1 - x0) * (x - x1) if x1 > x0 else y1
    (x0, y0), (x1, y1) = table[place - 1], table[place]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def view_run(folder) -> RunView:
    """Read a run directory. Raises RunError if it holds no training records."""
    record = read_run(folder)
    path = Run(folder).recipe
    try:
        recipe = read_run_recipe(path)
        config = build({n: v for n, v in recipe.values.items() if n in OPTIONS})
    except (OSError, UnicodeDecodeError, ConfigError, TypeError):
        recipe, config = RunRecipe(Overrides({}, {})), None
    return RunView(record, recipe, config, find_mixture_meta(record.settings.get("dataset", "")))


# Commands -----------------------------------------------------------------------------------------


def commands(view: RunView) -> list[tuple[str, str]]:
    """(purpose, command) of each command that made this run or continues from it."""
    folder = quoted(shareable(view.record.folder))
    recipe = quoted(shareable(Run(view.record.folder).recipe))
    found = []
    if view.meta and (prepare := prepare_command(view.meta)):
        found.append(("Prepare the text", shared(prepare)))
    if view.recipe.values:
        found.append(("Start the run", train_command(view)))
        steps = view.recipe.values.get("max_iters")
        again = f"python train.py --config {recipe} --max_iters {steps} --out_dir {folder}-again"
        found.append(("Repeat the run, with the same loss", again))
    if view.record.state == "finished":
        longer = f"python train.py --out_dir {folder} --resume --max_iters {2 * view.record.step}"
        found.append(("Continue to twice as many steps", longer))
    else:
        found.append(("Continue the run", f"python train.py --out_dir {folder} --resume"))
    mode = "chat" if is_chat(view.meta) else "interactive"
    found.append(("Write with the model", f"python sample.py --out_dir {folder} --{mode}"))
    return [(purpose, as_installed(command)) for purpose, command in found]


def train_command(view: RunView) -> str:
    """The command line that started the run, from the sources of its values."""
    return shared(command_to_train(view.recipe.overrides, out_dir=display(view.record.folder)))


def shared(command: str) -> str:
    """A command line whose absolute paths are as a page that is shared shows them."""
    words = shlex.split(command)
    return " ".join(quoted(shareable(w) if Path(w).is_absolute() else w) for w in words)
