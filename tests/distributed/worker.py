"""Run checks in one gloo group: `torchrun ... worker.py RESULTS.json FILE:CHECK ...`.

Each check is called with the same `World` on every process. What it raises is caught on every
process, and all agree on it through the launcher's store, which still works where the group does
not. After a failure that some processes do not share, the rest is not run.
"""

import datetime
import faulthandler
import importlib.util
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

COLLECTIVE_SECONDS = 20  # that a process waits for the others, in a collective or at its end
CHECK_SECONDS = 60  # of a check, unless its attribute `seconds` says more


@dataclass(frozen=True)
class World:
    """This process among those of the launch. folder: an empty one of the check, shared by all."""

    rank: int
    size: int
    folder: Path


def load(path: Path):
    """The module in a file of checks."""
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[path.stem])
    return sys.modules[path.stem]


def run(check, world: World) -> dict:
    """{"value"} of a check, or {"error", "traceback"}; a hang prints its stack and ends all."""
    faulthandler.dump_traceback_later(getattr(check, "seconds", CHECK_SECONDS), exit=True)
    try:
        return {"value": check(world)}
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}:{last.lineno}"
        return {"error": f"{type(error).__name__} at {where}", "traceback": traceback.format_exc()}
    finally:
        faulthandler.cancel_dump_traceback_later()


def agree(store, name: str, world: World, own: dict) -> list[dict]:
    """What each process found; one that says nothing has an error."""
    store.set(f"{name}/{world.rank}", json.dumps(own))
    found = []
    for rank in range(world.size):
        try:
            store.wait([f"{name}/{rank}"], datetime.timedelta(seconds=COLLECTIVE_SECONDS + 5))
            found.append(json.loads(store.get(f"{name}/{rank}")))
        except dist.DistStoreError:
            found.append({"error": "silence", "traceback": "it neither ended nor failed"})
    return found


def main(results: Path, names: list[str]) -> None:
    """Run the checks in order; the first process writes the results after each."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=COLLECTIVE_SECONDS))
    rank, size = dist.get_rank(), dist.get_world_size()
    store, done = dist.distributed_c10d._get_default_store(), {}
    for name in names:
        file, _, function = name.rpartition(":")
        world = World(rank, size, results.with_name(f"{results.stem}-{function}"))
        world.folder.mkdir(exist_ok=True)
        check, begin = getattr(load(Path(file)), function), time.perf_counter()
        found = agree(store, name, world, run(check, world))
        errors = [each.get("error") for each in found]
        done[f"{Path(file).stem}.{function}"] = {
            "value": found[0].get("value"),
            "failures": {r: each["traceback"] for r, each in enumerate(found) if "error" in each},
            "seconds": time.perf_counter() - begin,
        }
        if rank == 0:
            results.write_text(json.dumps(done))
        if any(errors) and (len(set(errors)) > 1 or "DistBackendError" in str(errors)):
            os._exit(1)  # the others may be anywhere
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
