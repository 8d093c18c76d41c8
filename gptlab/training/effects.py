"""Options whose value can have no effect in this run: one table, each row with its reason.

An option of something that the run does not use is refused where the command line sets it. One
whose effect the run's length cuts off is named in a line: a short trial of a recipe is fine.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gptlab.errors import ConfigError
from gptlab.options import format_value
from gptlab.training.config import FOR_THIS_RUN, OPTIONS, Overrides, TrainConfig
from gptlab.training.schedules import decay_start

PROPOSED = "the wizard"  # which sets options together, and lets some be changed
# "" where the option has an effect, else why it has none
Reason = Callable[[TrainConfig], str]


def _unless(is_used: Callable[[TrainConfig], object], reason: str) -> Reason:
    return lambda config: "" if is_used(config) else reason


def _warmup(config: TrainConfig) -> str:
    iters, warmup = config.batch.max_iters, config.schedule.warmup_iters
    if warmup < iters:
        return ""
    rate = config.optimizer.learning_rate
    return f"the run ends after {iters:,} steps, so learning_rate {rate:g} is never reached"


def _decay(config: TrainConfig) -> str:
    iters, schedule = config.batch.max_iters, config.schedule
    if schedule.schedule == "wsd" and decay_start(config) >= iters:
        begins = f"{decay_start(config):,}"
        return f"the decay would begin at step {begins}, and the run ends at {iters:,}"
    if schedule.lr_decay_iters > iters:
        lowest = f"min_lr {schedule.min_lr:g}"
        return f"the run ends at step {iters:,}, so the decay never comes down to {lowest}"
    if schedule.lr_decay_iters <= schedule.warmup_iters:
        return f"the warm-up takes {schedule.warmup_iters:,} steps, so nothing is left to decay in"
    return ""


def _later_than_the_run(option: str, instead: str) -> Reason:
    def reason(config: TrainConfig) -> str:
        iters = config.batch.max_iters
        return instead.format(iters=f"{iters:,}") if config.flat()[option] > iters else ""

    return reason


def _checkpoints(config: TrainConfig) -> str:
    interval, evaluated = config.evaluation.checkpoint_interval, config.evaluation.eval_interval
    if not interval or (interval % evaluated and interval < config.batch.max_iters):
        return ""
    return f"each evaluation saves a checkpoint too, every {evaluated:,} steps and at the end"


def _samples(config: TrainConfig) -> str:
    options, iters = config.evaluation, config.batch.max_iters
    first = options.sample_interval and math.lcm(options.sample_interval, options.eval_interval)
    if not first or first <= iters:
        return ""
    return (
        f"evaluations are every {options.eval_interval:,} steps and the run ends at {iters:,}, so "
        "there is one sample, at the end"
    )


def _early_stopping(config: TrainConfig) -> str:
    options, iters = config.evaluation, config.batch.max_iters
    least = (options.early_stopping + 1) * options.eval_interval
    if not options.early_stopping or least < iters:
        return ""
    return (
        f"with an evaluation every {options.eval_interval:,} steps it stops after step {least:,} "
        f"at the earliest, and the run ends at {iters:,}"
    )


def _profile(config: TrainConfig) -> str:
    if config.run.profiled.start <= config.batch.max_iters:
        return ""
    return f"the run ends after {config.batch.max_iters:,} steps"


NO_MLP = "there is no MLP (intermediate_size is 0)"
# of what the run does not use
UNUSED: dict[str, Reason] = {
    "distill": _unless(lambda c: c.run.teacher, "there is no teacher"),
    "lora_alpha": _unless(lambda c: c.finetune.lora_rank, "there are no adapters (lora_rank is 0)"),
    "lora_targets": _unless(
        lambda c: c.finetune.lora_rank, "there are no adapters (lora_rank is 0)"
    ),
    "muon_momentum": _unless(
        lambda c: c.optimizer.optimizer == "muon", "the optimizer is adamw, not muon"
    ),
    "decay_fraction": _unless(
        lambda c: c.schedule.schedule == "wsd", "the schedule is cosine, not wsd"
    ),
    "sample_prompt": _unless(
        lambda c: c.evaluation.sample_interval, "no samples are written (sample_interval is 0)"
    ),
    "use_swiglu": _unless(lambda c: c.model.intermediate_size, NO_MLP),
    "mlp_ratio": _unless(lambda c: c.model.intermediate_size, NO_MLP),
    **dict.fromkeys(
        ("n_expert_active", "expert_size", "expert_balance"),
        _unless(lambda c: c.model.n_expert, "there are no experts (n_expert is 0)"),
    ),
    "rope_theta": _unless(
        lambda c: c.model.position_encoding == "rope", "position_encoding is not rope"
    ),
}
# of what does not happen before the run ends
TOO_LATE: dict[str, Reason] = {
    "warmup_iters": _warmup,
    "lr_decay_iters": _decay,
    "eval_interval": _later_than_the_run(
        "eval_interval", "the run ends after {iters} steps, and the only evaluation is there"
    ),
    "checkpoint_interval": _checkpoints,
    "sample_interval": _samples,
    "lens_interval": _later_than_the_run(
        "lens_interval", "the run ends after {iters} steps, and the only look inside is there"
    ),
    "early_stopping": _early_stopping,
    "profile_steps": _profile,
    "log_interval": _later_than_the_run(
        "log_interval", "the run ends after {iters} steps, and only its first step is recorded"
    ),
}


def without_effect(config: TrainConfig, overrides: Overrides) -> list[str]:
    """A sentence for each option that is set to no effect; config is resolved."""
    return [
        f"{name} {format_value(value)}{_origin(overrides, name)}: {why}."
        for name, value, why in _idle(UNUSED | TOO_LATE, config, overrides)
    ]


def refuse_unused(config: TrainConfig, overrides: Overrides, processes: int = 1) -> None:
    """ConfigError for an option of the command line that belongs to what the run does not use."""
    parallelism = overrides.values.get("parallelism", "auto")
    if processes == 1 and parallelism != "auto" and _is_typed(overrides, "parallelism"):
        raise ConfigError(
            f"--parallelism {parallelism} has no effect: there is one process",
            "start several with torchrun --nproc_per_node N train.py ..., or leave it out",
        )
    if processes == 1 and _is_typed(overrides, "collective_timeout"):
        raise ConfigError(
            "--collective_timeout has no effect: there is one process", "leave it out"
        )
    for name, _, why in _idle(UNUSED, config, overrides):
        if _is_typed(overrides, name):
            raise ConfigError(f"--{name} has no effect: {why}", "leave it out", sep="; ")


def _is_typed(overrides: Overrides, name: str) -> bool:
    source = overrides.sources.get(name)
    return source in FOR_THIS_RUN and source != PROPOSED


def _idle(
    table: Mapping[str, Reason], config: TrainConfig, overrides: Overrides
) -> Iterator[tuple[str, Any, str]]:
    """(option, value, why it has no effect); a value that equals the default says nothing, nor
    does one of the model that the run starts from."""
    for name, reason in table.items():
        value = overrides.values.get(name)
        if value is None or value == OPTIONS[name].default:
            continue
        if not overrides.sources[name].startswith("init_from ") and (why := reason(config)):
            yield name, value, why


def _origin(overrides: Overrides, name: str) -> str:
    source = overrides.sources[name]
    return "" if source in FOR_THIS_RUN else f" ({source})"
