"""Train recipes side by side: the same seeds, data order and, where they fit, initial tensors.

    comparison.json  what is compared: recipes, code, data; written first
    results.jsonl    one line a run, appended when the run is measured
    a.seed1337/      an ordinary run directory, with validation.npz: the loss of each window

A process may be killed anywhere: the same call goes on with the run that was cut short, and a run
that has its line is never trained again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptlab import hardware
from gptlab.analysis.measured_run import train_and_measure
from gptlab.analysis.revisions import environment
from gptlab.data.mixture import open_mixture
from gptlab.data.token_files import Dataset
from gptlab.errors import ConfigError, RunError
from gptlab.files import FORMAT_VERSIONS, display, read_json, write_json
from gptlab.model.building import parameter_shapes
from gptlab.planning.plan import with_start
from gptlab.runs import Run
from gptlab.training.config import Overrides, RunOptions, TrainConfig
from gptlab.training.interruption import Interruption
from gptlab.training.provenance import source_texts
from gptlab.training.resolving import TextSize, resolve_roughly, situation_of

logger = logging.getLogger(__name__)

CURVE_POINTS = 10  # evaluations of a run, at least, so that its curve can be read between them
INITIAL_OPTIONS = ("init_std", "init_projection")


@dataclass(frozen=True)
class Arm:
    """One side. name: of its runs' folders. commit: of the code that trains it; "" is this code.

    shuffled: its initial weights are those of the first arm, each tensor's values in random order:
    it differs from the first arm by chance only.
    """

    name: str
    label: str
    overrides: Overrides
    config: TrainConfig
    dataset: Dataset
    commit: str = ""
    shuffled: bool = False

    def identity(self) -> dict:
        """What decides its numbers, for comparison.json."""
        return {
            "name": self.name,
            "values": self.overrides.values,
            "data": self.dataset.fingerprint,
            "code": self.commit or code_now(),
            "shuffled": self.shuffled,
        }


def code_now() -> str:
    """A hash of the code that decides the numbers of a training."""
    texts = json.dumps(source_texts(), sort_keys=True)
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def make_arm(name: str, label: str, overrides: Overrides, commit: str = "") -> Arm:
    """One side from its overrides, all "auto" resolved for this machine. Raises a GPTLabError."""
    values = {n: v for n, v in overrides.values.items() if n not in ("out_dir", "seed")}
    if values.get("minutes") is not None:
        raise ConfigError(
            f"{label} sets minutes, which is measured anew for each run",
            "give it a number of steps: --both max_iters=N",
        )
    data = open_mixture(values.get("dataset", RunOptions.dataset), values.get("vocab_size"))
    if len(data.parts) > 1:
        raise ConfigError(
            f"{label} trains on {len(data.parts)} datasets, and a comparison measures on the "
            "validation text of one",
            "name one dataset: --both dataset=NAME",
        )
    report = _this_machine()
    choice = hardware.choose(report, values.get("device", "auto"), values.get("dtype", "auto"))
    # what a run decides by measuring is decided once for all of them
    values |= {"device": choice.device, "dtype": choice.dtype}
    values["compile_model"] = values.get("compile_model") is True
    values |= {"log_to": "none", "sample_interval": 0}
    overrides = Overrides(values, {n: overrides.sources.get(n, "compare") for n in values})
    adopted, vocab_size = with_start(overrides)
    situation = situation_of(report, choice, TextSize.of(data, vocab_size))
    # a curve has CURVE_POINTS evaluations at least, all together a tenth of the training
    drawn = resolve_roughly(adopted, situation).config
    often = max(1, drawn.batch.max_iters // CURVE_POINTS)
    for values in (overrides.values, adopted.values):
        values["eval_interval"] = min(often, drawn.evaluation.eval_interval)
        values.pop("eval_tokens", None)
    config = resolve_roughly(adopted, situation).config
    data.check_lengths(config.model.block_size)  # before anything is written
    fewest = min(drawn.evaluation.eval_tokens, config.evaluation.eval_tokens)
    overrides.values["eval_tokens"] = fewest
    overrides.sources.update(eval_interval="compare", eval_tokens="compare")
    return Arm(name, label, overrides, config, data.parts[0], commit)


@functools.lru_cache
def _this_machine() -> hardware.Hardware:
    return hardware.detect()  # its trials take a second


def shares_initial_tensors(first: Arm, other: Arm) -> bool:
    """Whether the tensors of the first arm are copied into the other, where name and shape agree.

    They are where any shape differs, because a sequence of random draws shifts after it. Models of
    equal shapes draw alike from one seed; a difference between them is an edit of the
    initialisation, which copying would undo. The same holds for the options of the initialisation.
    """
    scratch = all(arm.config.run.init_from == "scratch" for arm in (first, other))
    own = "initial_tensors" in other.overrides.values or any(
        getattr(first.config.model, n) != getattr(other.config.model, n) for n in INITIAL_OPTIONS
    )
    if not scratch or own or other.shuffled:
        return other.shuffled
    if first.commit:
        return True  # known when its tensors are there
    return parameter_shapes(first.config.model) != parameter_shapes(other.config.model)


class Ledger:
    """Results in a file, one JSON object a line; what a kill cut short is left out."""

    def __init__(self, path: Path):
        self.path = path

    def lines(self) -> list[dict]:
        """All whole lines, oldest first."""
        if not self.path.exists():
            return []
        found = []
        for text in self.path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict):
                    found.append(line)
        return found

    def add(self, line: dict) -> None:
        """Append a line, on disk when this returns."""
        is_whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
        with open(self.path, "a", encoding="utf-8", newline="\n") as file:
            file.write(("" if is_whole else "\n") + json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


class PairedRuns:
    """The runs of a comparison in one folder, and their results.

    trees: the folder of the checkout of each commit that an arm names.
    """

    def __init__(self, folder: Path, arms: list[Arm], trees: dict[str, Path] | None = None):
        self.folder, self.arms, self.trees = Path(folder), arms, trees or {}
        self.ledger = Ledger(self.folder / "results.jsonl")

    def open(self) -> None:
        """Make the folder, or go on in it. Raises RunError where it holds another comparison."""
        if not self.belongs_here():
            raise RunError(
                f"{display(self.folder)} holds another comparison, or this one before its recipes, "
                "code or text changed",
                "choose another --out_dir",
            )
        if not (self.folder / "comparison.json").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            version = {"format_version": FORMAT_VERSIONS["comparison"]}
            write_json(self.folder / "comparison.json", version | self._identity())

    def belongs_here(self) -> bool:
        """Whether the folder is free, or holds this very comparison."""
        path = self.folder / "comparison.json"
        if not path.exists():
            return not self.folder.exists() or not any(self.folder.iterdir())
        known = read_json(path)
        return {"arms": known.get("arms")} == json.loads(json.dumps(self._identity()))

    def _identity(self) -> dict:
        return {"arms": [arm.identity() for arm in self.arms]}

    # Results --------------------------------------------------------------------------------------

    def results(self) -> dict[tuple[str, int], dict]:
        """The line of each measured run, by (arm, seed): the first one, if a run has two."""
        found: dict[tuple[str, int], dict] = {}
        for line in self.ledger.lines():
            if "arm" in line:
                found.setdefault((line["arm"], line["seed"]), line)
        return found

    def judgements(self) -> list[int]:
        """The numbers of seeds at which `--seeds N` was judged, in order."""
        return list(dict.fromkeys(n["judged"] for n in self.ledger.lines() if "judged" in n))

    def run_folder(self, arm: Arm, seed: int) -> Path:
        """The directory of one run."""
        return self.folder / f"{arm.name.lower()}.seed{seed}"

    def windows(self, arm: Arm, seed: int) -> tuple[np.ndarray, np.ndarray, int] | None:
        """(nats, targets, block_size) of the validation windows; None where the file is gone."""
        try:
            with np.load(self.run_folder(arm, seed) / "validation.npz") as found:
                return found["nats"], found["targets"], int(found["block_size"])
        except (OSError, ValueError, KeyError):
            return None

    # Training -------------------------------------------------------------------------------------

    def train(
        self,
        seed: int,
        begin: Callable[[Arm, int], object],
        shows_bar: bool = False,
        arms: Sequence[Arm] = (),
    ) -> bool:
        """Train and measure what is missing of this seed, one arm after the other.

        begin(arm, seed) is called before each run that is trained. shows_bar: of its steps. arms:
        only these, of which the first must be trained. False: a signal stopped it; the same call
        continues.
        """
        for arm in arms or self.arms:
            run, told = Run(self.run_folder(arm, seed)), False
            while (arm.name, seed) not in self.results():
                if run.is_running():
                    if not told:
                        logger.warning("Another process trains %s: waiting.", display(run.folder))
                    told = True
                    time.sleep(0.5)
                    continue
                begin(arm, seed)
                try:
                    found = self._train_arm(arm, seed, shows_bar)
                except RunError:  # another process was faster
                    if not run.is_running() and (arm.name, seed) not in self.results():
                        raise
                    continue
                if found is None:
                    return False
                self.ledger.add({"arm": arm.name, "seed": seed, **found})
        return True

    def _train_arm(self, arm: Arm, seed: int, shows_bar: bool) -> dict | None:
        first = self.arms[0]
        wanted = arm is first and any(shares_initial_tensors(first, b) for b in self.arms[1:])
        initial = self.folder / f"initial.seed{seed}.safetensors"
        values = {**arm.overrides.values, "seed": seed}
        if arm is not first and (path := self._initial_for(arm, seed, initial)):
            values["initial_tensors"] = str(path)
        specification = {
            "values": values,
            "sources": {n: arm.overrides.sources.get(n, "compare") for n in values},
            "folder": str(self.run_folder(arm, seed)),
            "initial": str(initial) if wanted else None,
        }
        tree = self.trees.get(arm.commit)
        if tree is not None:
            return train_in_child(specification, tree, arm.label)
        return train_and_measure(**specification, shows_bar=shows_bar)

    def _initial_for(self, arm: Arm, seed: int, drawn: Path) -> Path | None:
        """The file of tensors that this arm begins with; None: it draws its own."""
        first = self.arms[0]
        is_lost = "diverged" in self.results()[first.name, seed]
        if is_lost or not shares_initial_tensors(first, arm):
            return None
        if not drawn.exists():
            raise RunError(
                f"{display(drawn)} is gone, and {arm.name} begins with its tensors",
                "choose another --out_dir",
            )
        import safetensors.torch

        tensors = safetensors.torch.load_file(drawn)
        if arm.shuffled:
            path = drawn.with_suffix(".shuffled.safetensors")
            write_shuffled(tensors, seed, path)
            return path
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return None if shapes == parameter_shapes(arm.config.model) else drawn


def write_shuffled(tensors: dict, seed: int, path: Path) -> None:
    """Write the tensors with the values of each in random order, which depends on the seed."""
    import safetensors.torch
    import torch

    from gptlab.files import atomic_write

    generator = torch.Generator().manual_seed(seed)
    shuffled = {
        name: tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].view_as(tensor)
        for name, tensor in tensors.items()
    }
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(shuffled))


def train_in_child(specification: dict, tree: Path, label: str) -> dict | None:
    """`train_and_measure` by the code of a checkout; None: a signal stopped it. RunError."""
    source = Path(sys.modules[train_and_measure.__module__].__file__)
    # the checkout before everything else, whatever the working directory is
    code = f"import sys\nsys.path.insert(0, {str(tree)!r})\n{source.read_text(encoding='utf-8')}"
    with tempfile.TemporaryDirectory(prefix="gptlab-") as folder:
        asked, answered = Path(folder) / "run.json", Path(folder) / "result.json"
        write_json(asked, specification)
        words = [sys.executable, "-c", code, str(asked), str(answered)]
        with (
            open(Path(folder) / "errors.txt", "w+", encoding="utf-8") as errors,
            Interruption() as interruption,
        ):
            child = subprocess.Popen(
                words, env=environment(), stdout=subprocess.DEVNULL, stderr=errors
            )
            told = False
            while True:
                try:
                    child.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    if interruption.received and not told:
                        child.terminate()  # it finishes its step and saves
                        told = True
            errors.seek(0)
            lines = [line.strip() for line in errors if line.strip()]
        if answered.exists():
            return read_json(answered)
        if interruption.received or child.returncode in (130, 143, -2, -15):
            return None
    cause = lines[-1] if lines else f"exit code {child.returncode}"
    raise RunError(f"The code of {label} cannot train this run: {cause}")


def with_shuffled(first: Arm, name: str = "A2") -> Arm:
    """The first arm again, from other initial weights: what differs is chance."""
    return dataclasses.replace(
        first, name=name, label=f"{first.label}, initial weights shuffled", shuffled=True
    )
