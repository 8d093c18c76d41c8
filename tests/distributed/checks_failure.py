"""What processes agree on before the first step, and the watch over them."""

import itertools
import re
import shutil
import time
from types import SimpleNamespace
from unittest.mock import patch

import gptlab
from gptlab.analysis.links import measure_links
from gptlab.errors import GPTLabError
from gptlab.training import agreement
from gptlab.training.config import build, layer
from gptlab.training.parallel import Parallel

CHOICE = SimpleNamespace(device="cpu", dtype="float32")


def begun(world, seconds=30.0):
    """This process among those of the launch, watched, with the launch's group."""
    import torch.distributed as dist

    parallel = Parallel()
    parallel.connect(seconds)
    parallel._control = dist.group.WORLD
    return parallel


def error_of(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except GPTLabError as error:
        return re.sub(r" on [^\s:]+", " on HOST", str(error))
    return None


def on_last(world, value, otherwise):
    """One value on the last process, another on the rest."""
    return value if world.rank == world.size - 1 else otherwise


def check_processes_with_other_versions_options_devices_and_steps_are_named_by_all(world):
    last = f"Process {world.size - 1} on HOST"
    same = layer({"learning_rate": 0.1})
    parallel = begun(world)

    def found(overrides=same, choice=CHOICE, stored=None):
        return error_of(agreement.check_start, overrides, choice, stored, parallel)

    assert found() is None
    with patch.object(gptlab, "__version__", on_last(world, "0.0.1", gptlab.__version__)):
        assert found().startswith(f"{last} has gptlab 0.0.1, and the first process has 0.")
    other = layer({"learning_rate": on_last(world, 0.2, 0.1)})
    assert found(other).startswith(
        f"{last} was started with learning_rate 0.2, and the first process with learning_rate 0.1:"
    )
    other = layer(on_last(world, {"learning_rate": 0.1, "seed": 2}, {"learning_rate": 0.1}))
    assert f"{last} was started with seed 2, and the first process with no seed" in found(other)
    cuda = SimpleNamespace(device="cuda:1", dtype="float32")
    assert f"{last} would train with device cpu, and the first process with cuda" in found(
        choice=on_last(world, CHOICE, cuda)
    )
    step = f"{last} found another checkpoint (none) than the first process (step 8)"
    assert step in found(stored=on_last(world, None, {"step": 8}))
    parallel.watch.stop()


def check_another_copy_of_the_data_is_named_by_all(world):
    parallel = begun(world)

    def data(tokens, fingerprint):
        part = SimpleNamespace(meta={})
        return SimpleNamespace(
            train_tokens=tokens, val_tokens=10, fingerprint=fingerprint, parts=[part]
        )

    found = error_of(agreement.check_data, data(1000, on_last(world, "b", "a") * 64), parallel)
    last = f"Process {world.size - 1} on HOST has another copy of the dataset"
    assert found.startswith(f"{last} (fingerprint bbbbbbbbbbbb) than the first process (finger")
    found = error_of(agreement.check_data, data(on_last(world, 999, 1000), "a"), parallel)
    assert found.startswith(f"{last} (999 training tokens) than the first process (1,000 training")
    parallel.watch.stop()


def check_a_folder_that_is_not_shared_and_a_full_disk_are_named_by_all(world):
    parallel, config = begun(world), build({"vocab_size": 60})
    last = f"Process {world.size - 1} on HOST"
    folder = world.folder / "run"
    agreement.check_folder(config, folder, parallel)
    parallel.any(False)  # the first process has removed its token
    assert list(folder.iterdir()) == []
    own = on_last(world, world.folder / "elsewhere", world.folder / "new")
    found = error_of(agreement.check_folder, config, own, parallel, seconds=0.2)
    assert found.startswith(f"{last}: ") and "is not the folder that the first process" in found
    parallel.any(False)
    assert not (world.folder / "new").exists() and not (world.folder / "elsewhere").exists()
    free = on_last(world, 1000, 10**12)
    usage = shutil.disk_usage(world.folder)._replace(free=free)
    with patch.object(shutil, "disk_usage", lambda path: usage):
        found = error_of(agreement.check_folder, config, folder, parallel)
    assert found.startswith(f"{last}: ") and "has 1.0 kB free" in found
    parallel.watch.stop()


def check_an_error_of_one_process_in_an_agreement_names_it(world):
    parallel = begun(world)

    def full():
        if world.rank == 1:
            raise OSError(28, "No space left on device", "out/run/ckpt/shard-2")

    found = error_of(parallel.gather, full)
    assert found.startswith("Process 1 on HOST: The disk is full while writing out/run/ckpt/shard")
    parallel.watch.stop()


def check_long_work_of_the_first_process_trips_no_watch(world):
    seconds = 0.5
    parallel = begun(world, seconds)
    for step in range(3):
        parallel.watch.after(step)
        parallel.any(False)

    def work():
        end = time.monotonic() + 3 * seconds
        while time.monotonic() < end:
            sum(range(1000))
        return "done"

    assert parallel.from_first(work) == "done"
    parallel.watch.after(3)
    parallel.any(False)
    parallel.watch.stop()


def check_the_links_between_all_processes_are_measured(world):
    parallel = begun(world)
    links = measure_links(parallel, size=100_000)
    pairs = sorted(link.processes for link in links.links)
    assert pairs == list(itertools.combinations(range(world.size), 2))
    assert min(link.bandwidth for link in links.links) > 1e5 and links.latency > 0
    assert parallel.gather(lambda: links) == [links] * world.size
    parallel.watch.stop()
