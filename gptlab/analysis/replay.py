"""Repeat the first steps of a run: bitwise equal, or the first difference and its cause.

A run records what it depends on and the results of its first steps (training/provenance.py). Here
the same steps are taken again from the recorded options, in a temporary folder, and compared.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from gptlab.code_changes import CodeChange, changed_code
from gptlab.errors import HardwareError, RunError
from gptlab.files import display
from gptlab.model.initialisation import FIRST_NUMERICS, NUMERICS
from gptlab.options import coerce
from gptlab.runs import Run, read_sources
from gptlab.training.config import OPTIONS, Overrides
from gptlab.training.loop import train_step
from gptlab.training.measuring import compile_if_wanted
from gptlab.training.parallel import Parallel
from gptlab.training.provenance import (
    DIGEST_STEPS,
    describe,
    digests,
    exact,
    read_provenance,
    read_trace,
    source_texts,
)
from gptlab.training.setup import Setup
from gptlab.training.starting import prepare_training
from gptlab.training.state import TrainState


@dataclass(frozen=True)
class Difference:
    """The first difference. what: "loss", "grad_norm" or "weights"; before, after: exact values.

    tensors: the weights that differ at `tensors_step`, the first step from `step` on whose weights
    were recorded, in the order of the model; total: how many there are.
    """

    step: int
    what: str
    before: str = ""
    after: str = ""
    tensors: tuple[str, ...] = ()
    tensors_step: int | None = None
    total: int = 0


@dataclass(frozen=True)
class Replay:
    """The result. steps: taken and compared; digested: steps whose weights were compared.

    changes: what is different now, as (what, before, after); code: its changed places;
    unread_code: changed files whose former text is gone.
    """

    device: str
    steps: int
    digested: tuple[int, ...]
    difference: Difference | None
    changes: list[tuple[str, str, str]]
    code: list[CodeChange] = field(default_factory=list)
    unread_code: list[str] = field(default_factory=list)


def replay(folder, steps: int, progress: Callable[[int], None] = lambda step: None) -> Replay:
    """Take the first steps of a run again, at most as many as it recorded, and compare.

    The run is not changed. progress: called with each step done. Raises RunError for a run without
    records of its first steps, and the errors of a training that cannot start.
    """
    run = Run(folder)
    recorded, trace = read_provenance(run), read_trace(run)
    trace = list(itertools.takewhile(lambda r: r["step"] <= steps, trace))
    if [record["step"] for record in trace] != list(range(len(trace))) or len(trace) < 2:
        raise RunError(
            f"{display(run.trace)} has no record of a first step: there is nothing to compare with."
        )
    numerics = recorded.get("numerics", FIRST_NUMERICS)
    drawn, now = numerics["initialisation"], NUMERICS["initialisation"]
    if drawn != now and recorded["settings"]["init_from"] == "scratch":
        raise RunError(
            f"{display(run.folder)} cannot be replayed: its initial weights were drawn in another "
            f"way (version {drawn} of the initialisation, and this release has {now})",
            "replay it with the release that trained it",
        )
    began, parallel = time.perf_counter(), Parallel()
    with tempfile.TemporaryDirectory(prefix="gptlab-replay-") as temporary:
        overrides = _overrides(recorded, temporary)
        try:
            setup, state = prepare_training(
                overrides, parallel, started=began, fingerprint=recorded["data"]["fingerprint"]
            )
            state.numerics = numerics
            compile_if_wanted(setup, state, say=lambda line: None)
            now = describe(setup)
            moved = {r["step"]: r["planned"] for r in run.records() if "planned" in r}
            difference, digested, done = _compare(trace, _steps(setup, state, moved), progress)
        except HardwareError:
            device, dtype = overrides.values["device"], overrides.values["dtype"]
            raise RunError(
                f"{display(run.folder)} was trained on {device} in {dtype}, which this machine "
                "does not have",
                "replay it on the machine where it was trained",
            ) from None
        finally:
            parallel.end()
    code, unread = changed_code(recorded["sources"], read_sources(run), source_texts())
    device = now["settings"]["device"]
    return Replay(device, done, digested, difference, changed(recorded, now), code, unread)


def _overrides(recorded: dict, out_dir: str) -> Overrides:
    """The options of the run as if all of them were set explicitly."""
    values = {
        name: coerce(OPTIONS[name], value)
        for name, value in recorded["settings"].items()
        if name in OPTIONS
    }
    values |= {"out_dir": out_dir, "quiet": True, "log_to": "none"}
    if recorded["data"].get("train.bin"):
        values.pop("vocab_size", None)  # belongs to the data: if that changed, it is named
    return Overrides(values, dict.fromkeys(values, "the run"))


def _steps(setup: Setup, state: TrainState, moved: dict[int, dict]) -> Iterator[dict]:
    """The records of the steps, as `Trace` writes them, without an end.

    moved: by step, where a budget in minutes moved the end of the run, as its metrics say.
    """
    yield {"step": 0, "weights": digests(state.model)}
    while True:
        if plan := moved.get(state.step):
            state.move_end(plan["end"], plan["schedule"])
        result = train_step(setup, state)
        record = {
            "step": state.step,
            "loss": exact(result.loss),
            "grad_norm": exact(result.grad_norm),
        }
        if state.step in DIGEST_STEPS:
            record["weights"] = digests(state.model)
        yield record


def _compare(trace: list[dict], records: Iterator[dict], progress):
    """(the first difference or None, steps whose weights were compared, steps taken).

    After a difference it continues to the next step with recorded weights.
    """
    difference, digested, done = None, [], 0
    for before, after in zip(trace, records, strict=False):  # records have no end
        done = after["step"]
        progress(done)
        difference = difference or _differs(before, after)
        if "weights" not in before:
            continue
        digested.append(done)
        if difference:
            tensors = _differing(before["weights"], after["weights"])
            total = len(after["weights"])
            difference = replace(difference, tensors=tensors, tensors_step=done, total=total)
            break
    return difference, tuple(digested), done


def _differs(before: dict, after: dict) -> Difference | None:
    for what in ("loss", "grad_norm"):
        if before.get(what) != after.get(what):
            return Difference(after["step"], what, before.get(what, ""), after.get(what, ""))
    if "weights" in before and _differing(before["weights"], after["weights"]):
        return Difference(after["step"], "weights")
    return None


def _differing(before: dict, after: dict) -> tuple[str, ...]:
    """Names of the weights that differ or that only one of the two has."""
    return tuple(
        name for name in {**after, **before} if before.get(name, "") != after.get(name, "")
    )


def changed(before: dict, now: dict) -> list[tuple[str, str, str]]:
    """(what, before, after) of each condition, hash and option that is different now."""
    found = [
        (name, str(value), str(now["conditions"].get(name)))
        for name, value in before["conditions"].items()
        if now["conditions"].get(name) != value
    ]
    old, new = before["data"], now["data"]
    if old["fingerprint"] != new["fingerprint"]:
        found.append((f"data {new['name']}", _data(old), _data(new)))
    if old.get("teachers", []) != new.get("teachers", []):
        found.append(("weights of the teachers", *map(_teachers, (old, new))))
    for name, value in before["settings"].items():
        if name in now["settings"] and now["settings"][name] != value and name != "log_to":
            found.append((name, str(value), str(now["settings"][name])))
    return found


def _teachers(data: dict) -> str:
    each = [f"{one['model']} {one['sha256'][:12]}" for one in data.get("teachers", [])]
    return ", ".join(each) or "none"


def _data(data: dict) -> str:
    known = data.get("train.bin") or data["fingerprint"]
    return f"{data.get('train_tokens')} tokens with SHA-256 {str(known)[:12]}"
