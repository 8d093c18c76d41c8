"""`python gpt.py doctor`: check that a run will work here; `doctor RUN`: diagnose its curve."""

import dataclasses
import functools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gptlab.analysis.health import Check
from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.command_line import command_to_try, program
from gptlab.cli.ui.progress import Bars
from gptlab.cli.ui.questions import open_console
from gptlab.errors import ConfigError, GPTLabError
from gptlab.files import data_home, display, out_home, quoted
from gptlab.runs import Run, find_run, list_runs
from gptlab.training.config import Overrides, RunOptions, layer, read_recipe


@dataclass(frozen=True)
class DoctorOptions:
    """Doctor."""

    cluster: Annotated[
        bool,
        "under torchrun: measure the links between all processes, and what share of a step of "
        "this recipe communication takes",
    ] = False


def main(argv: list[str]) -> int:
    """Print the checks or the diagnosis; 1 when something was found."""
    name = argv[0] if argv and not argv[0].startswith("-") else None
    overrides = COMMANDS["doctor"].parse(argv[1:] if name else argv)
    is_of_cluster = overrides.pop("cluster", False)
    if name:
        if is_of_cluster:
            raise ConfigError("--cluster measures a launch, and a run has none", "leave one out")
        return examine_run(find_run(name))
    recipe_path = overrides.pop("config", None)
    recipe = read_recipe(recipe_path) if recipe_path else {}
    layered = layer(recipe, overrides, recipe_path or "recipe")
    if is_of_cluster:
        return examine_cluster(layered)
    stem = Path(recipe_path).stem if recipe_path else ""
    return report(checks(layered, stem, everything=not overrides and not recipe))


# The machine and the plan -------------------------------------------------------------------------


def checks(overrides: Overrides, recipe_name: str, everything: bool) -> Iterator[Check]:
    """The checks of a training with these options; without options, of all datasets and runs."""
    from gptlab.analysis import health

    yield health.check_versions(health.read_requirements())
    try:
        import torch  # noqa: F401
    except ImportError as error:
        yield Check(
            "torch", False, f"it cannot be imported ({error})", "pip install -r requirements.txt"
        )
        return
    from gptlab.training.starting import new_run_folder

    folder = new_run_folder(overrides, recipe_name)
    place = folder if overrides.values.get("out_dir") else out_home()
    yield health.check_writable("out_dir", place, "--out_dir")
    yield health.check_writable("data", data_home(), "the variable GPTLAB_HOME")
    yield from _checks_of_machine(overrides, folder)
    yield from _checks_of_datasets(overrides, everything)
    runs = list_runs() if everything else [folder] if Run(folder).exists() else []
    for run in runs:
        yield from health.check_run(run)


def _checks_of_machine(overrides: Overrides, folder: Path) -> Iterator[Check]:
    from gptlab import hardware
    from gptlab.analysis import health

    machine = hardware.detect()
    try:
        choice = hardware.choose(
            machine, overrides.values.get("device", "auto"), overrides.values.get("dtype", "auto")
        )
        config = _planned(overrides, machine, choice)
    except GPTLabError as error:
        yield Check("options", False, error.problem, error.fix or "change the option")
        return
    device = machine.device(choice.device)
    yield health.check_device(choice, device, config)
    for note in machine.notes:
        yield Check("accelerator", False, note.problem, note.fix or "fix it, or use --device cpu")
    yield health.check_attention(choice, config.model.head_dim)
    yield health.check_compiler(device, overrides.values.get("compile_model", "auto") is not False)
    yield health.check_space(config, folder)


def _planned(overrides: Overrides, machine, choice, processes: int = 1):
    """The configuration of these options, for a vocabulary and a text as far as they are known."""
    from gptlab.planning.plan import text_size
    from gptlab.training.resolving import resolve_roughly, situation_of

    # not as if from the command line, because a missing dataset has a check of its own
    values = {"dataset": RunOptions.dataset, **overrides.values}
    text = text_size(Overrides(values, {**overrides.sources, "dataset": "default"}))
    situation = dataclasses.replace(situation_of(machine, choice, text), processes=processes)
    return resolve_roughly(overrides, situation).config


def _checks_of_datasets(overrides: Overrides, everything: bool) -> Iterator[Check]:
    from gptlab.analysis import health
    from gptlab.data.mixture import dataset_names
    from gptlab.data.token_files import list_datasets

    prepared = dict(list_datasets())
    if everything:
        names = list(prepared)
        if not names:
            fix = f"prepare one: {program('prepare.py')} shakespeare"
            yield Check("dataset", False, "no dataset is prepared", fix)
    else:
        names = dataset_names(overrides.values.get("dataset", "shakespeare"))
    for name in names:
        meta = prepared.get(name) or {}
        total = health.dataset_bytes(meta)
        with Bars() as bars:
            progress = functools.partial(bars.progress, f"checking {name}", total=total)
            check = health.check_dataset(name, overrides.values.get("vocab_size"), progress)
        yield check
        if check.ok and (unlike := health.check_validation(name, meta)):
            yield unlike
    if not everything and len(names) > 1:
        yield health.check_mixture(overrides.values["dataset"])


def report(found: Iterator[Check], all_well: str = "Everything works here.") -> int:
    """Print each check as it is done, and a sentence when none failed; 1 when one did."""
    from rich.padding import Padding
    from rich.text import Text

    console = open_console()
    failed = 0
    for check in found:
        mark = Text("ok  ", "green") if check.ok else Text("FAIL", "bold red")
        line = Text.assemble(mark, "  ", (check.name, "bold"), f": {check.detail}")
        console.print(line)
        if not check.ok:
            failed += 1
            console.print(Padding(Text(f"to do: {check.fix}", "yellow"), (0, 0, 0, 6)))
    if failed:
        what = "1 check needs" if failed == 1 else f"{failed} checks need"
        console.print(f"\n{what} attention.", style="bold")
        return 1
    console.print(f"\n{all_well}", style="bold green")
    return 0


# The links between processes ----------------------------------------------------------------------


def examine_cluster(overrides: Overrides) -> int:
    """Measure the links between the processes of this launch; the first process prints. 1 when one
    of them is much slower than the others."""
    from gptlab import hardware
    from gptlab.analysis.links import measure_links, step_share
    from gptlab.training.parallel import Parallel
    from gptlab.training.starting import choose_device

    parallel = Parallel()
    if parallel.world_size == 1:
        print(
            "There is one process, which sends nothing: start all of them with\n"
            "  torchrun --standalone --nproc_per_node 2 gpt.py doctor --cluster"
        )
        return 0
    with parallel.together():
        parallel.connect()
        machine, choice = choose_device(overrides, parallel, None)
        parallel.begin(choice.device)
        if parallel.is_first:
            print(f"Measuring the links between {parallel.world_size} processes.", flush=True)
        links = measure_links(parallel)
        config = parallel.from_first(
            lambda: _planned(overrides, machine, choice, parallel.world_size)
        )
        config = config.replace(device=choice.device, compile_model=False)
        share = step_share(config, choice, links, parallel)
        hardware.synchronize(choice.device)
        return parallel.from_first(
            lambda: report(_checks_of_links(links, share, config), "The links are alike.")
        )


def _checks_of_links(links, share, config) -> Iterator[Check]:
    from gptlab.analysis.health import Check
    from gptlab.files import in_bytes

    def process(rank: int) -> str:
        return f"process {rank} on {links.hosts[rank]}"

    def rate(bandwidth: float) -> str:
        return f"{in_bytes(bandwidth)}/s"

    machines = len(set(links.hosts))
    where = f"{machines} {'machine' if machines == 1 else 'machines'}"
    yield Check("processes", True, f"{len(links.hosts)} on {where}")
    yield Check(
        "all-reduce",
        True,
        f"{rate(links.bandwidth)} between all, {1e6 * links.latency:,.0f} µs for a small tensor",
    )
    slowest, usual = links.slowest, links.median_bandwidth
    first, second = map(process, slowest.processes)
    is_alike = slowest.bandwidth >= usual / 2
    yield Check(
        "slowest link",
        is_alike,
        f"{first} to {second}: {rate(slowest.bandwidth)}, {1e6 * slowest.latency:,.0f} µs; the "
        f"median of {len(links.links)} is {rate(usual)}",
        "" if is_alike else "look at the cable, the switch and other traffic between the two",
    )
    if len(links.hosts) > 2:  # else the one link belongs to both
        rank = links.slowest_process
        found = f"those of {process(rank)}: {rate(links.bandwidth_of(rank))}"
        yield Check("slowest links", True, found)
    seconds = share.compute
    slow, median = max(seconds), statistics.median(seconds)
    is_even = slow <= 1.5 * median
    yield Check(
        "slowest process",
        is_even,
        f"{process(seconds.index(slow))}: {1e3 * slow:,.0f} ms for its part of a step; the median "
        f"is {1e3 * median:,.0f} ms",
        "" if is_even else "all processes wait for it in each step: see what else runs there",
    )
    yield Check(
        "communication",
        True,
        f"each process sends {in_bytes(share.sent)} in a step with {config.machine.parallelism}, "
        f"which takes {1e3 * share.communication:,.1f} ms: {share.share:.0%} of a step, less what "
        "is sent while it computes",
    )


# A run --------------------------------------------------------------------------------------------


def examine_run(folder: Path) -> int:
    """Print what a run's curve shows, and check its checkpoints; 1 when something was found."""
    from rich.padding import Padding
    from rich.text import Text

    from gptlab.analysis.diagnosis import diagnose, read_run, summary
    from gptlab.analysis.health import check_run, check_validation
    from gptlab.data.mixture import dataset_names
    from gptlab.data.token_files import find_meta

    run = read_run(folder)
    console = open_console()
    console.print(Text(display(folder), "bold"))
    for line in summary(run):
        console.print(Padding(Text(line), (0, 0, 0, 2)))
    findings = diagnose(run)
    for finding in findings:
        console.print()
        console.print(Text(finding.sentence, "yellow"))
        console.print(Padding(Text("Try:"), (0, 0, 0, 2)))
        console.print(Text(f"  {command_to_try(run, finding)}", "cyan"), soft_wrap=True)
    names = dataset_names(run.settings.get("dataset", ""))
    validation = [
        check for name in names if (check := check_validation(Path(name).name, find_meta(name)))
    ]
    if not findings and not validation:
        console.print("  The curve shows no problem.", style="green")
        if run.state == "interrupted" and Run(folder).exists():
            command = f"{program('train.py')} --out_dir {quoted(display(folder))} --resume"
            console.print(Text(f"  Continue: {command}"), soft_wrap=True)
    console.print()
    if validation:
        report(iter(validation))
        console.print()
    damaged = 0
    if Run(folder).exists():
        damaged = report(check_run(folder), "Its checkpoints are intact.")
    return 1 if findings or validation or damaged else 0
