"""`python gpt.py plan`: show the plan of a training before it starts."""

import json
import sys
from dataclasses import dataclass
from typing import Annotated

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.started import STARTED
from gptlab.cli.ui.console import (
    leading_words,
    make_console,
    make_table,
    memory_table,
    note,
    print_table,
)
from gptlab.errors import ConfigError
from gptlab.model.arithmetic import active_in_words
from gptlab.training.units import in_dollars, in_short, in_time


@dataclass(frozen=True)
class PlanOptions:
    """Plan."""

    config: Annotated[str | None, "a recipe: a Python file of assignments, which is executed"] = (
        None
    )
    measure: Annotated[bool, "time a few steps here instead of estimating from the FLOPs"] = False
    json: Annotated[bool, "print it as JSON"] = False
    gpus: Annotated[int, "plan for this many GPUs of a kind instead of this machine; 0 = off"] = 0
    gpu: Annotated[
        str, "with gpus: t4, l4, v100, rtx3090, rtx4090, a100, h100, h200, b200 or mi300x"
    ] = "h100"
    node: Annotated[int, "with gpus: GPUs in one machine"] = 8
    network: Annotated[
        float | None, "with gpus: Gbit/s between machines for each GPU [as such machines have]"
    ] = None
    price: Annotated[float | None, "with gpus: US dollars per GPU and hour [as listed]"] = None
    output: Annotated[str | None, "with gpus: write what the plan chooses to this recipe"] = None


CLUSTER = ("gpus", "gpu", "node", "network", "price", "output")


def main(argv: list[str]) -> int:
    """Print the plan of what the command line describes; the exit code."""
    words, rest = leading_words(argv)
    overrides = COMMANDS["plan"].parse(rest)
    if recipe := overrides.pop("config", None):
        words.append(recipe)
    if len(words) > 1:
        raise ConfigError(f"plan takes one run or recipe, not {len(words)}.")
    as_json, measure = overrides.pop("json", False), overrides.pop("measure", False)
    wanted = {name: overrides.pop(name) for name in CLUSTER if name in overrides}
    from gptlab.training.config import layer
    from gptlab.training.named_config import NamedConfig, open_config, open_recipe

    if recipe:
        target = open_recipe(recipe, overrides)
    elif words:
        target = open_config(words[0], overrides)
    else:
        target = NamedConfig("the defaults" if not overrides else "", layer(None, overrides))
    if not wanted:
        note("Measuring a few steps ..." if measure else "Looking at this machine ...")
    from gptlab.planning.plan import make_plan, text_size, this_machine, with_start

    overrides, vocab_size = with_start(target.overrides)
    decided = target.run.values if target.run else None
    text = text_size(overrides, vocab_size or (decided or {}).get("vocab_size"))
    if wanted:
        if measure:
            raise ConfigError(
                "--measure times steps here, and --gpus plans for other machines",
                "leave one of the two out",
            )
        if overrides.values.get("teacher"):
            raise ConfigError(
                "--gpus does not count what a teacher takes", "leave teacher out of this plan"
            )
        from gptlab.cli.ui.cluster_plan import present

        present(wanted, overrides, text, decided, target.name, as_json)
        return 0
    machine = this_machine(overrides)
    plan = make_plan(overrides, text, machine, decided=decided, measure=measure, started=STARTED)
    if as_json:
        print(json.dumps(plan.to_dict(), indent=2))
    else:
        show_plan(plan, target.name)
    sys.stdout.flush()
    return 0


def show_plan(plan, name: str) -> None:
    """Print a plan: first the verdict in sentences, then tables."""
    from rich.padding import Padding
    from rich.text import Text

    console = make_console()
    model = plan.config.model
    heading = f"{plan.total_parameters:,} parameters{active_in_words(model)}"
    console.print(Text(f"{name}: {heading}" if name else heading, style="bold"))
    kv = f" ({model.n_kv_head} for keys and values)" if model.n_kv_head != model.n_head else ""
    console.print(
        Text(
            f"{model.n_layer} layers, {model.n_head} heads{kv}, width {model.n_embd}, "
            f"block_size {model.block_size:,}, vocabulary {model.vocab_size:,} "
            f"({plan.text.source})"
        )
    )
    console.print()
    for sentence in [*_verdict(plan), *plan.notes]:
        console.print(Padding(Text(sentence), (0, 0, 0, 2)))
    console.print()
    size = plan.config.batch.batch_size
    sequences = "1 sequence" if size == 1 else f"{size} sequences"
    for title, table in (
        ("The training", _work(plan)),
        (f"Memory of a step on {plan.device}, micro-batches of {sequences}", _memory(plan)),
        ("Parameters", _parameters(plan)),
        ("The same training on one rented GPU", _gpus(plan)),
    ):
        print_table(console, title, table)
    console.print(Text(_assumptions(plan), "dim"))


def _verdict(plan) -> list[str]:
    """Whether it fits, how long it takes here, and what it costs elsewhere."""
    from gptlab.files import in_bytes
    from gptlab.model.memory import fits

    config, needed, free = plan.config, in_bytes(plan.needed), plan.free
    if free is None:
        memory = f"A step needs {needed}; how much {plan.device} has free is not known."
    elif fits(plan.needed, free):
        memory = f"It fits: a step needs {needed}, and {in_bytes(free)} are free on {plan.device}."
    else:
        memory = (
            f"It does not fit: a step needs {needed}, and only {in_bytes(free)} are free on "
            f"{plan.device}."
        )
    about = "less than 0.1 s" if plan.seconds < 0.1 else f"about {in_time(plan.seconds)}"
    compiled = ", compiled" if config.machine.compile_model else ""
    sentences = [
        memory,
        f"It takes {about} on {plan.description} in {config.machine.dtype}"
        f"{compiled} ({plan.time_basis}).",
    ]
    if fitting := [gpu for gpu in plan.gpus if gpu.batch_size]:
        cheapest = min(fitting, key=lambda gpu: gpu.dollars)
        sentences.append(
            f"The cheapest rented GPU would be a {cheapest.name}: {in_time(cheapest.seconds)} and "
            f"{in_dollars(cheapest.dollars)}."
        )
    return sentences


def _parameters(plan):
    columns = ("component", "parameters", "share")
    table = make_table(*columns, numbers=columns[1:])
    total = plan.total_parameters
    for component, count in plan.parameters.items():
        if count:
            table.add_row(component, f"{count:,}", f"{count / total:.1%}")
    if not plan.parameters["output head"]:
        table.add_row("output head", "tied", "", style="dim")
    table.add_row("total", f"{total:,}", "", style="bold")
    if plan.active_parameters != total:
        active = plan.active_parameters
        table.add_row("active for a token", f"{active:,}", f"{active / total:.1%}")
    if plan.trained != total:
        what = "adapters, trained" if plan.config.finetune.lora_rank else "of these trained"
        table.add_row(what, f"{plan.trained:,}", f"{plan.trained / total:.1%}")
    return table


def _work(plan):
    from rich.text import Text

    config = plan.config
    table = make_table("", "")
    which = "active " if config.model.n_expert else ""
    rows = {
        "length": f"{config.batch.max_iters:,} steps of {config.tokens_per_step:,} tokens "
        f"= {in_short(plan.tokens)} tokens",
        "epochs": ", ".join(f"{n:.2f} of {name}" for name, n in plan.epochs_of_each.items())
        or (f"{plan.epochs:.2f}" if plan.epochs is not None else ""),
        "FLOPs": f"{in_short(plan.flops_per_token)} per token, "
        f"{in_short(plan.flops_per_token * plan.tokens)} in all",
        f"tokens per {which}parameter": f"{plan.tokens_per_parameter:.2g}",
        "compute-optimal": f"about {in_short(plan.optimal_tokens)} tokens, or "
        f"{-(-plan.optimal_tokens // config.tokens_per_step):,} steps, for a model of this size "
        f"(20 per {which}parameter, Hoffmann et al. 2022)",
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, Text(value))  # Text: a product's name may have brackets
    return table


def _memory(plan):
    from gptlab.files import in_bytes

    table = memory_table(plan.memory, plan.needed)
    table.add_section()
    if plan.free is not None:
        fits = f"{plan.largest_batch_size:,}" if plan.largest_batch_size else "none"
        table.add_row("free here", in_bytes(plan.free))
        table.add_row("largest batch_size that fits", fits)
    cache = plan.kv_bytes_per_token
    table.add_row("KV cache per token, in generation", in_bytes(cache))
    table.add_row("KV cache of a full window", in_bytes(cache * plan.config.model.block_size))
    if plan.most_generated is not None:
        table.add_row("full windows to generate at once", f"{plan.most_generated:,}")
    return table


def _gpus(plan):
    numbers = ("memory", "time", "cost")
    whole = plan.config.batch.batch_size
    differs = any(gpu.batch_size != whole for gpu in plan.gpus)  # where it does not fit
    table = make_table("GPU", *numbers, *["batch_size"] * differs, numbers=(*numbers, "batch_size"))
    table.columns[0].no_wrap = True
    for gpu in plan.gpus:
        row = [gpu.name, f"{gpu.memory >> 30} GB", "", "", "too small"]
        if gpu.batch_size:
            row[2:] = [in_time(gpu.seconds), in_dollars(gpu.dollars), f"{gpu.batch_size:,}"]
        table.add_row(*row[: len(table.columns)])
    return table


def _assumptions(plan) -> str:
    """What the times and costs on GPUs rest on."""
    from gptlab.planning.gpus import assumed_share

    share = f"{100 * assumed_share(plan.config.model):.2g}%"
    prices = ", ".join(f"{g.name} {g.dollars_per_hour:.2f} ({g.seen})" for g in plan.gpus)
    return f"Assumed: {share} of the GPU's peak speed; US dollars per hour, as listed: {prices}."
