"""The plan of a training on many GPUs: sentences, a table, and the recipe that it chooses."""

import dataclasses
import json
from pathlib import Path

from gptlab.cli.ui.console import make_console, make_table, memory_table, print_table
from gptlab.cli.ui.recipe_builder import write_recipe
from gptlab.errors import ConfigError, HardwareError
from gptlab.files import display, in_bytes, quoted
from gptlab.planning.cluster import Cluster
from gptlab.planning.cluster_choice import SPREAD, plan_on
from gptlab.planning.gpus import GB, find_gpu
from gptlab.training.units import in_dollars, in_short, in_time


def present(wanted, overrides, text, decided, name: str, as_json: bool) -> None:
    """Plan for the GPUs that the options name, print it, and write its recipe if one is wanted."""
    cluster = _cluster_of(wanted)
    plan = plan_on(cluster, overrides, text, decided)
    path = wanted.get("output")
    if path is not None and plan.chosen is None:
        raise HardwareError(f"{_does_not_fit(plan)}, so {display(path)} was not written.")
    if as_json:
        print(json.dumps(_as_dict(plan), indent=2))
    else:
        _show(plan, name)
    if path is not None:
        values = {**overrides.values, **plan.options}
        for length in ("minutes", "epochs"):
            values.pop(length, None)
        title = f"{name or 'A training'} on {_in_words(cluster)}, as gpt.py plan chose it."
        write_recipe(Path(path), values, title, launcher(cluster))
        if not as_json:
            where = " on each machine; node1 is one of them" if cluster.machines > 1 else ""
            command = f"{launcher(cluster)} --config {quoted(display(path))}"
            print(f"Wrote {display(path)}. This starts it{where}:\n  {command}")
            if cluster.machines > 1:
                print("Slurm, Kubernetes and SkyPilot: docs/SCALE.md.")


def launcher(cluster) -> str:
    """The words that start the processes on one machine of the cluster, of which one is node1."""
    if cluster.gpus == 1:
        return "python train.py"
    nodes = "--standalone"
    if cluster.machines > 1:
        nodes = f"--nnodes {cluster.machines} --rdzv_backend c10d --rdzv_endpoint node1:29500"
    return f"torchrun {nodes} --nproc_per_node {cluster.local} train.py"


def _cluster_of(wanted) -> Cluster:
    """The cluster that the options describe. Raises ConfigError."""
    if "gpus" not in wanted or wanted["gpus"] == 0:
        names = ", ".join(f"--{name}" for name in wanted if name != "gpus")
        raise ConfigError(f"{names or '--gpus 0'} has no effect", "add --gpus with their number")
    for name in ("gpus", "node", "network", "price"):
        if wanted.get(name) is not None and wanted[name] <= 0:
            raise ConfigError(f"{name} is {wanted[name]:g}", "it must be above 0")
    gpu, gpus, node = find_gpu(wanted.get("gpu", "h100")), wanted["gpus"], wanted.get("node", 8)
    if gpus > node and gpus % node:
        raise ConfigError(
            f"{gpus} GPUs are not a number of whole machines of {node}",
            f"plan for {gpus // node * node} or {-(-gpus // node) * node}, or set --node",
        )
    if wanted.get("network") is not None and gpus <= node:
        raise ConfigError(
            f"network has no effect: {gpus} GPUs are in one machine", "leave it out, or set --node"
        )
    network = wanted.get("network")
    return Cluster(
        gpu,
        gpus,
        node,
        gpu.network if network is None else network * GB / 8,
        wanted["price"] if wanted.get("price") is not None else gpu.dollars_per_hour,
    )


def _in_words(cluster) -> str:
    machines = "one machine" if cluster.machines == 1 else f"{cluster.machines} machines"
    return f"{cluster.gpus} x {cluster.gpu.name} in {machines}"


def _does_not_fit(plan) -> str:
    least = min(one.needed for one in plan.settings)
    return (
        f"It does not fit: one sequence takes at least {in_bytes(least)} on each GPU, which has "
        f"{in_bytes(plan.cluster.gpu.memory)}"
    )


def _show(plan, name: str) -> None:
    """Print the choice in sentences, then what each parallelism takes."""
    from rich.padding import Padding
    from rich.text import Text

    from gptlab.model.arithmetic import active_in_words
    from gptlab.model.building import module_parameters  # needs torch

    console, cluster = make_console(), plan.cluster
    model = plan.config.model
    number = f"{module_parameters(model):,} parameters{active_in_words(model)}"
    heading = f"{number} on {_in_words(cluster)}"
    console.print(Text(f"{name}: {heading}" if name else heading, style="bold"))
    console.print()
    for sentence in [*verdict(plan), *plan.notes]:
        console.print(Padding(Text(sentence), (0, 0, 0, 2), expand=False))
    console.print()
    again = " (* gradient_checkpointing)" * any(one.checkpointing for one in plan.settings)
    of = "Each parallelism on one GPU and" if cluster.gpus > 1 else "The GPU"
    title = f"{of} in one step{again}"
    endless = console.options.update(max_width=1000)
    is_wide_enough = (
        console.measure(_table(plan, COLUMNS), options=endless).maximum <= console.width
    )
    for columns in [COLUMNS] if is_wide_enough else [COLUMNS[:4], COLUMNS[4:]]:
        print_table(console, title, _table(plan, columns))
        title = ""
    if plan.chosen:
        of = f"each GPU with {plan.chosen.parallelism}" if cluster.gpus > 1 else "the GPU"
        print_table(
            console, f"Memory of {of}", memory_table(plan.chosen.memory, plan.chosen.needed)
        )
    console.print(Text(_assumptions(plan), "dim"))


def verdict(plan) -> list[str]:
    """What to choose and what it takes, in sentences."""
    best, config = plan.chosen, plan.config
    if best is None:
        return [f"{_does_not_fit(plan)}. More GPUs, larger ones or a smaller model would."]
    seconds, dollars = plan.takes(best)
    low, high = (in_time(part * seconds) for part in SPREAD)
    names = ("parallelism", "batch_size", "gradient_accumulation_steps")
    options = [f"--{name} {plan.options[name]}" for name in names if name in plan.options]
    options += ["--gradient_checkpointing true"] * best.checkpointing
    micro = "one micro-batch" if best.micro_batches == 1 else f"{best.micro_batches} micro-batches"
    is_even = config.sequences_per_step == best.micro_batches * best.batch_size * plan.cluster.gpus
    sentences = [
        f"Use {' '.join(options)}: each GPU takes {micro} of {'' if is_even else 'up to '}"
        f"{best.batch_size} sequences in a step of {config.tokens_per_step:,} tokens.",
        f"{config.batch.max_iters:,} steps, {in_short(plan.tokens)} tokens, take "
        f"about {in_time(seconds)} and {in_dollars(dollars)}, at {best.mfu:.0%} of the "
        f"peak. Published runs took from {SPREAD[0]:g} to {SPREAD[1]:g} times "
        f"such an estimate: {low} to {high}.",
    ]
    if best.communication:
        sentences.append(
            f"A step takes {_in_ms(best.step)}. Its communication takes "
            f"{_in_ms(best.communication)}; {_in_ms(best.exposed)} of it do not overlap with "
            "computation."
        )
    return sentences


def _in_ms(seconds: float) -> str:
    return f"{1000 * seconds:,.3g} ms" if seconds < 1 else f"{seconds:,.3g} s"


COLUMNS = ("batch", "memory", "sent", "step", "waits", "MFU", "time", "cost")


def _table(plan, columns: tuple[str, ...]):
    table = make_table("", *columns, numbers=columns)
    table.columns[0].no_wrap = True
    for one in plan.settings:
        seconds, dollars = plan.takes(one)
        cells = {
            "batch": f"{one.micro_batches} x {one.batch_size}",
            "memory": in_bytes(one.needed),
            "sent": in_bytes(one.traffic.sent),
            "step": _in_ms(one.step),
            "waits": f"{one.exposed / one.step:.0%}",
            "MFU": f"{one.mfu:.0%}",
            "time": in_time(seconds),
            "cost": in_dollars(dollars),
        }
        if not plan.has_room(one):
            cells = {name: cells[name] for name in ("batch", "memory", "sent")}
            cells["step"] = "too large"
        if not cells.keys() & set(columns):
            continue
        name = one.parallelism if plan.cluster.gpus > 1 else "1 GPU"
        table.add_row(
            f"{name}{'*' * one.checkpointing}",
            *(cells.get(column, "") for column in columns),
            style="bold" if one is plan.chosen else None,
        )
    return table


def _assumptions(plan) -> str:
    from gptlab.planning.gpus import assumed_share

    cluster = plan.cluster
    links = f"{cluster.gpu.link / GB:g} GB/s inside a machine"
    if cluster.machines > 1:
        links += f", {8 * cluster.network / GB:g} Gbit/s for each GPU between machines"
    return (
        f"Assumed: {assumed_share(plan.config.model):.0%} of {cluster.gpu.peak[0] / 1e12:g} "
        f"TFLOP/s while a GPU computes, {links}, {cluster.dollars_per_hour:.2f} US dollars per "
        "GPU and hour. docs/SCALE.md compares such plans with published runs."
    )


def _as_dict(plan) -> dict:
    """Plain types, for JSON."""
    return {
        "cluster": dataclasses.asdict(plan.cluster),
        "settings": [
            {**dataclasses.asdict(one), "fits": plan.has_room(one), "step": one.step}
            for one in plan.settings
        ],
        "chosen": plan.options if plan.chosen else None,
        "tokens": plan.tokens,
        **dict(
            zip(("seconds", "dollars"), plan.takes(plan.chosen), strict=True) if plan.chosen else {}
        ),
        "notes": plan.notes,
    }
