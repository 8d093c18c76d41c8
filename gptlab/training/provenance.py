"""Record what a run depends on, at its start, so that its first steps can be repeated.

    provenance.json  versions, threads, machine, every option, hashes of the data and of the code
    source.zip       the text of that code, so that a later difference can be shown as a line
    trace.jsonl      exact loss and gradient norm of the first steps, and digests of the weights

`python gpt.py replay` (analysis/replay.py) compares with them.
"""

import hashlib
import json
import platform
import zipfile
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

import msgspec
import numpy as np
import torch

from gptlab.data.mixture import absolute_mixture
from gptlab.errors import RunError
from gptlab.files import FORMAT_VERSIONS, atomic_write, display, write_json
from gptlab.model import proof
from gptlab.model.initialisation import NUMERICS
from gptlab.model.shards import whole
from gptlab.run_records import Record, read_records
from gptlab.runs import Run
from gptlab.training.config import START_OPTIONS
from gptlab.typed_json import Count, read_form

TRACED_STEPS = 50
DIGEST_STEPS = (0, 1, 2, 5, 10, 20, 50)  # the weights are digested after these; 0: initial weights
# at most this many values are hashed, evenly spread: 20 to 60 ms for a model of any size, and a
# difference in one weight reaches all of them within a step or two
DIGESTED_VALUES = 1 << 22
# the files that decide the numbers, below the package
CODE = (
    "model/*.py",
    "data/batches.py",
    "data/mixture.py",
    "data/token_files.py",
    "training/*.py",
    "inference/evaluate.py",
)
_PACKAGE = Path(__file__).resolve().parent.parent
# what float.hex writes and float.fromhex reads
Exact = Annotated[str, msgspec.Meta(pattern=r"^-?(0x[01](\.[0-9a-f]+)?p[+-]?\d{1,3}|inf|nan)$")]
Data = TypedDict(
    "Data",
    {"name": str, "fingerprint": str, "train.bin": str | None, "train_tokens": Count},
)


class Provenance(TypedDict):
    """The content of provenance.json. sources: the SHA-256 of each file of the code. numerics: the
    versions of what is drawn, since there is more than one."""

    format_version: int
    conditions: dict
    data: Data
    settings: dict
    sources: dict[str, str]
    numerics: NotRequired[dict[str, int]]


class TracedStep(Record, total=False):
    """A line of trace.jsonl; step 0 has the weights only. weights: a digest of each."""

    loss: Exact
    grad_norm: Exact
    weights: dict[str, str]


def source_texts() -> dict[str, str]:
    """The text of each file that decides the numbers of a training, by its path."""
    files = sorted(path for pattern in CODE for path in _PACKAGE.glob(pattern))
    return {
        f"gptlab/{path.relative_to(_PACKAGE).as_posix()}": path.read_text(encoding="utf-8")
        for path in files
    }


def describe(setup) -> Provenance:
    """What the numbers of a training depend on: the content of provenance.json."""
    data = setup.data
    return {
        "format_version": FORMAT_VERSIONS["provenance"],
        "conditions": {
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "threads": torch.get_num_threads(),
            "CPU capability": torch.backends.cpu.get_cpu_capability(),
            "processes": setup.parallel.world_size,
            "machine": setup.machine.partition(", Python")[0],
        },
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "train.bin": ((data.meta or {}).get("sha256") or {}).get("train.bin"),
            "train_tokens": data.train_tokens,
            "parts": {part.name: part.fingerprint for part in data.parts},
            "teachers": setup.teacher.record() if setup.teacher is not None else [],
        },
        "settings": _settings(setup),
        "sources": {path: _hash(text) for path, text in source_texts().items()},
        "numerics": dict(NUMERICS),
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _settings(setup) -> dict:
    """Every option as it was resolved; paths do not depend on the working directory."""
    values = {n: v for n, v in setup.config.flat().items() if n not in START_OPTIONS}
    del values["minutes"]  # it became max_iters
    for name in ("parallelism", "collective_timeout"):
        del values[name]  # of the processes, which are among the conditions
    start = Path(values["init_from"]).expanduser()
    if values["init_from"] != "scratch" and start.exists():  # else it is the name of a model
        values["init_from"] = str(start.resolve())
    if values["initial_tensors"] is not None:
        values["initial_tensors"] = str(Path(values["initial_tensors"]).expanduser().resolve())
    if setup.teacher is not None:
        values["teacher"] = setup.teacher.absolute()
    values["dataset"] = absolute_mixture(values["dataset"])
    return values


def read_provenance(run: Run) -> Provenance:
    """The content of a run's provenance.json; RunError where there is none that can be read."""
    try:
        return read_form(
            run.provenance, "provenance", Provenance, RunError, "this run cannot be replayed"
        )
    except FileNotFoundError:
        raise RunError(
            f"{display(run.folder)} has no provenance.json: it is not a run, or an older gptlab "
            "made it; train again to get a run that can be replayed."
        ) from None


def read_trace(run: Run) -> list[TracedStep]:
    """The records of trace.jsonl, by step; incomplete lines are left out."""
    return [
        record
        for record in read_records(run.trace, TracedStep)
        if record["step"] == 0 or {"loss", "grad_norm"} <= record.keys()
    ]


def digests(model: torch.nn.Module) -> dict[str, str]:
    """16 hex digits of each parameter's SHA-256; in a large model, of evenly spread values.

    All processes call it; of a sharded model one parameter at a time is whole.
    """
    parameters = dict(model.named_parameters())
    stride = -(-sum(weight.numel() for weight in parameters.values()) // DIGESTED_VALUES)
    found = {}
    for name, weight in parameters.items():
        values = whole(weight.detach()).flatten()[::stride].contiguous().cpu()
        content = values.view(torch.uint8).numpy()
        found[name] = hashlib.sha256(content).hexdigest()[:16]
    return found


def exact(value) -> str:
    """A number to its last bit, as text."""
    return float(value).hex()


class Trace:
    """Writes trace.jsonl during the first steps; does nothing before `begin` and after them.

    All processes call it; the first one writes.
    """

    def __init__(self):
        self.run = None  # of the first process
        self.last = -1  # the last step that is traced
        self.unread = []  # records whose numbers are still on the device

    def begin(self, setup, state) -> None:
        """Record what the run depends on; a resume goes on only under the same conditions."""
        proof.code_texts()  # as this process runs them, before anybody edits a file
        if not setup.parallel.from_first(lambda: _open(setup, state.step)):
            return
        self.run = setup.run if setup.parallel.is_first else None
        self.last = TRACED_STEPS
        if state.step == 0:
            self._add({"step": 0}, state.model)
            self.flush()

    def step(self, setup, state, result) -> None:
        """After a step; its numbers are read from the device at log_interval only."""
        if state.step > self.last:
            return
        if state.sequences_seen != state.step * setup.config.sequences_per_step:
            self.last = -1  # a roll-back skipped text, which a replay does not
            return
        record = {"step": state.step, "loss": result.loss, "grad_norm": result.grad_norm}
        self._add(record, state.model)
        if state.step % setup.config.evaluation.log_interval == 0 or state.step == self.last:
            self.flush()

    def _add(self, record: dict, model) -> None:
        if record["step"] in DIGEST_STEPS:
            record["weights"] = digests(model)
        self.unread.append(record)

    def flush(self) -> None:
        """Write the pending records; a checkpoint must not be ahead of the trace."""
        if self.run is None or not self.unread:
            self.unread.clear()
            return
        with open(self.run.trace, "a", encoding="utf-8", newline="\n") as file:
            for record in self.unread:
                numbers = {n: exact(record[n]) for n in ("loss", "grad_norm") if n in record}
                file.write(json.dumps(record | numbers) + "\n")
        self.unread.clear()


def _open(setup, step: int) -> bool:
    """Write what a run depends on at its start; whether the steps after `step` are traced."""
    run, now = setup.run, json.loads(json.dumps(describe(setup)))
    if step == 0:
        with atomic_write(run.sources) as file:
            _zip(source_texts(), file)
        write_json(run.provenance, now)
        return True
    kept = [record for record in read_trace(run) if record["step"] <= step]
    if [r["step"] for r in kept] != list(range(step + 1)):
        return False  # all steps are traced, or none ever was
    with atomic_write(run.trace, "w") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
    return _began_like(run, now)  # else the next steps could not be repeated in one go


def _began_like(run: Run, now: dict) -> bool:
    try:
        return read_provenance(run) == now
    except RunError:  # a lost file must not stop a run
        return False


def _zip(texts: dict[str, str], file) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in texts.items():
            archive.writestr(zipfile.ZipInfo(path), text, zipfile.ZIP_DEFLATED)
