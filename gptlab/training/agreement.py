"""What all processes must have alike before the first step: versions, options, data, the folder.

Processes that differ would hang in different collectives, or train one model on two texts. Here the
first process compares, and says in one sentence which process on which machine differs in what.
"""

import hashlib
import platform
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import torch

import gptlab
from gptlab.data.mixture import Mixture
from gptlab.errors import ConfigError, DataError, GPTLabError, RunError
from gptlab.files import display, remove_folder
from gptlab.model.proof import code_hashes
from gptlab.training.config import Overrides, TrainConfig
from gptlab.training.disk_space import refuse_full_disk
from gptlab.training.parallel import Parallel

SHARED_SECONDS = 40.0  # that a network file system may take to show a new file to other machines


def check_start(overrides: Overrides, choice, stored: dict | None, parallel: Parallel) -> None:
    """Compare versions, options, kind of device and checkpoint, before there are groups.

    Raises ConfigError or RunError, alike in all processes.
    """
    code = hashlib.sha256(repr(code_hashes()).encode()).hexdigest()
    ours = {
        "gptlab": gptlab.__version__,
        "torch": str(torch.__version__),
        "Python": platform.python_version(),
        "code of gptlab/model": code[:12],
    }
    _compare(parallel, ours, _other_version)
    options = {n: str(v) for n, v in overrides.values.items() if n not in ("quiet", "out_dir")}
    _compare(parallel, options, _other_option)
    machine = {"device": choice.device.partition(":")[0], "precision": choice.dtype}
    _compare(parallel, machine, _other_machine)
    found = {"step": stored["step"] if stored else None}
    _compare(parallel, found, _other_checkpoint)


def check_data(data: Mixture, parallel: Parallel) -> None:
    """Compare what each process has opened as the dataset. Raises DataError, in all processes.

    Of token files without a meta.json, whose hash would read all of them, the sizes only.
    """
    ours = {"training tokens": data.train_tokens, "validation tokens": data.val_tokens}
    if all(part.meta is not None for part in data.parts):
        ours["fingerprint"] = data.fingerprint
    _compare(parallel, ours, _other_data)


def check_folder(
    config: TrainConfig, folder: Path, parallel: Parallel, seconds: float = SHARED_SECONDS
) -> None:
    """Check that all processes have the one run folder, and space in it.

    Raises RunError, in all processes. seconds: to wait for what the first process writes there.
    """
    token = folder / f".shared-{uuid.uuid4().hex}.tmp"

    is_new = not folder.exists()

    def write() -> tuple[str, str]:
        refuse_full_disk(config, folder)
        if parallel.world_size > 1:
            folder.mkdir(parents=True, exist_ok=True)
            token.touch()
        return token.name, parallel.host

    name, first_host = parallel.from_first(write)
    if parallel.world_size == 1:
        return

    def look() -> None:
        deadline = time.monotonic() + seconds
        while not (folder / name).exists():
            if time.monotonic() > deadline:
                raise RunError(
                    f"{display(folder)} is not the folder that the first process on "
                    f"{first_host} has under this name",
                    "choose an --out_dir on a disk that all machines share",
                )
            time.sleep(0.1)
        refuse_full_disk(config, folder)

    try:
        parallel.gather(look)
    except Exception:
        if parallel.is_first and is_new:
            remove_folder(folder)
        raise
    finally:
        if parallel.is_first:
            token.unlink(missing_ok=True)


def _compare(parallel: Parallel, ours: dict, differs: Callable[..., GPTLabError]) -> None:
    """Raise what `differs(process, what, theirs, first's)` makes of the first difference."""
    everyone = parallel.each({"host": parallel.host, "has": ours})
    first = everyone[0]["has"]
    for rank, other in enumerate(everyone):
        theirs = other["has"]
        for what in {**first, **theirs}:
            if theirs.get(what) != first.get(what):
                process = f"Process {rank} on {other['host']}"
                raise parallel.watch.shared(
                    differs(process, what, theirs.get(what), first.get(what))
                )


def _other_version(process: str, what: str, theirs, ours) -> GPTLabError:
    return ConfigError(
        f"{process} has {what} {theirs}, and the first process has {ours}",
        "install the same on all machines",
    )


def _other_option(process: str, what: str, theirs, ours) -> GPTLabError:
    theirs, ours = (
        f"no {what}" if value is None else f"{what} {value}" for value in (theirs, ours)
    )
    return ConfigError(
        f"{process} was started with {theirs}, and the first process with {ours}",
        "start all of them with the same command and the same recipe",
    )


def _other_machine(process: str, what: str, theirs, ours) -> GPTLabError:
    return ConfigError(
        f"{process} would train with {what} {theirs}, and the first process with {ours}",
        f"name one that all machines have, with --{'device' if what == 'device' else 'dtype'}",
    )


def _other_checkpoint(process: str, what: str, theirs, ours) -> GPTLabError:
    theirs, ours = ("none" if step is None else f"step {step}" for step in (theirs, ours))
    return RunError(
        f"{process} found another checkpoint ({theirs}) than the first process ({ours})",
        "choose an --out_dir on a disk that all machines share",
    )


def _other_data(process: str, what: str, theirs, ours) -> GPTLabError:
    theirs, ours = (
        f"{value:,} {what}" if isinstance(value, int) else f"{what} {str(value)[:12]}"
        for value in (theirs, ours)
    )
    return DataError(
        f"{process} has another copy of the dataset ({theirs}) than the first process ({ours})",
        "put the same data folder on all machines",
    )
