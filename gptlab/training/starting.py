"""Prepare a training from its options: device, data, decisions, state."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from gptlab import hardware
from gptlab.data.mixture import dataset_names, open_mixture
from gptlab.errors import RunError
from gptlab.files import out_home
from gptlab.interop.read.models import local_checkpoint
from gptlab.runs import Run, find_run, load_checkpoint
from gptlab.training import agreement, resuming
from gptlab.training.building import build_state, checked_windows, make_batches, settle_torch
from gptlab.training.config import MachineOptions, Overrides, RunOptions, TrainConfig
from gptlab.training.distillation import added_work, open_teacher
from gptlab.training.effects import refuse_unused
from gptlab.training.initial_model import with_model_of
from gptlab.training.measuring import fit_micro_batch, measure
from gptlab.training.memory import explained_out_of_memory, memory_warning, step_fits
from gptlab.training.parallel import Parallel
from gptlab.training.resolving import (
    COMPILE_SECONDS,
    Measurements,
    Resolved,
    TextSize,
    resolve,
    resolve_roughly,
    situation_of,
)
from gptlab.training.setup import Setup
from gptlab.training.sharding import shards_of
from gptlab.training.state import TrainState
from gptlab.training.times import estimated_times
from gptlab.training.units import TextUnits

logger = logging.getLogger(__name__)


def new_run_folder(overrides: Overrides, recipe_name: str = "") -> Path:
    """The folder of the run: out_dir, else out/ and the recipe's or the dataset's name."""
    out_dir = overrides.values.get("out_dir")
    if out_dir:
        return Path(out_dir).expanduser()
    names = dataset_names(overrides.values.get("dataset", RunOptions.dataset))
    stem = recipe_name or "-".join(Path(name).name for name in names)
    return out_home() / stem


def prepare_training(
    overrides: Overrides,
    parallel: Parallel,
    *,
    started: float,
    recipe_name: str = "",
    fingerprint: str | None = None,
) -> tuple[Setup, TrainState]:
    """Prepare everything before the first step, of the run or of a resume. Raises GPTLabError.

    started: time.perf_counter() when the process began; a budget in minutes counts from there.
    fingerprint: of the version of the dataset to take; without it the newest, and for a resume the
    one that the run began with.
    """
    run = Run(new_run_folder(overrides, recipe_name))
    parallel.connect(overrides.values.get("collective_timeout", MachineOptions.collective_timeout))
    begun = parallel.step_begun(run.folder)
    if begun is not None:  # torchrun has started the processes again
        overrides = resuming.after_restart(overrides, run)
    if overrides.values.get("resume") is True and not run.exists():
        # a run is named as everywhere: lab is out/lab
        with contextlib.suppress(RunError):
            found = Run(find_run(str(overrides.values.get("out_dir") or run.folder)))
            run = found if found.exists() else run
    stored = None  # the checkpoint of an earlier start
    if overrides.values.get("resume") == "auto":
        values = {**overrides.values, "resume": run.exists()}
        overrides = Overrides(values, overrides.sources)
    if overrides.values.get("resume"):
        stored = run.load(mapped=parallel.world_size > 1)  # which may divide it
        resuming.check_complete(stored, run)
        if begun is not None and stored["step"] > begun:
            overrides = resuming.without_anneal(overrides)  # it has begun
        overrides = resuming.continue_overrides(overrides, stored)
    elif not overrides.values.get("overwrite") and not overrides.values.get("dry_run"):
        run.check_free()
    report, choice = choose_device(overrides, parallel, stored)
    agreement.check_start(overrides, choice, stored, parallel)
    parallel.begin(choice.device)
    settle_torch(choice.device)
    avoid_leaking_attention(choice)
    data = open_mixture(
        overrides.values.get("dataset", RunOptions.dataset),
        overrides.values.get("vocab_size"),
        stored["dataset"]["fingerprint"] if stored else fingerprint,
    )
    agreement.check_data(data, parallel)
    start, added_ids = None, 0  # the model of init_from
    init_from = overrides.values.get("init_from", "scratch")
    if stored is None and init_from != "scratch":
        path = parallel.from_first(lambda: local_checkpoint(init_from, logger.warning))
        if path.is_dir() and not Run(path).is_running():
            parallel.from_first(Run(path).consolidate_best)
        loaded = load_checkpoint(path, mapped=parallel.world_size > 1)
        start, overrides = with_model_of(loaded, overrides, data)
        if start is not loaded:
            added_ids = start.tokenizer.vocab_size - loaded.tokenizer.vocab_size
    if stored is not None:
        resuming.check_same_data(data, stored, run, overrides)
    teacher = open_teacher(overrides, data, parallel, stored, start)
    resolved = decide(overrides, report, choice, data, parallel, started, stored, start, teacher)
    config = resolved.config
    separator = data.separator if config.batch.document_mask else None
    if stored is None:
        refuse_unused(config, overrides, parallel.world_size)
    else:
        resuming.check_same_model(config, stored)
    if config.evaluation.sample_interval and data.tokenizer:
        data.tokenizer.encode(config.evaluation.sample_prompt)  # raises TokenizerError
    with explained_out_of_memory(config):
        state = build_state(resolved, run, parallel, stored, start)
    template = (stored or (start.content if start else {})).get("chat_template")
    setup = Setup(
        resolved=resolved,
        parallel=parallel,
        batches=make_batches(config, data, parallel),
        overrides=overrides,
        data=data,
        run=run,
        windows=checked_windows(config, data),
        tests=data.tests(),
        units=TextUnits(data.meta),
        chat_template=data.chat_template or template or "",
        machine=report.in_words(choice.device),
        added_ids=added_ids,
        changes=resuming.changed_options(config, overrides, stored) if stored else (),
        start=start.path if start else None,
        separator=separator,
        teacher=teacher,
    )
    return setup, state


def choose_device(overrides: Overrides, parallel: Parallel, stored: dict | None):
    """(hardware.Hardware, hardware.Choice): each process of a machine gets its own device."""
    values = overrides.values
    request, dtype = parallel.own_device(values.get("device", "auto")), values.get("dtype", "auto")
    report = hardware.detect(request if parallel.world_size > 1 else None)
    choice = hardware.choose(report, request, dtype)
    if stored and dtype == "auto":
        before = stored["decided"]  # the same device keeps its precision, unless that became slow
        if before["device"] == choice.device and before["dtype"] != choice.dtype:
            as_before = hardware.choose(report, request, before["dtype"])
            choice = choice if as_before.slow else as_before
    return report, choice


def avoid_leaking_attention(choice) -> None:
    """Switch fused attention off on a device where it lets a token see later ones."""
    if hardware.attention_is_causal(choice.device, choice.dtype):
        return
    logger.warning("Fused attention is wrong on %s: using plain attention.", choice.device)
    for kernel in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(False)


def decide(
    overrides, report, choice, data, parallel, started, stored, start=None, teacher=None
) -> Resolved:
    """Resolve the configuration; the first process measures and decides, the others follow."""
    # a model's embedding may have more rows than its tokenizer has ids (GPT-2's 50,304)
    model = stored["model_config"] if stored else start.model.config.to_dict() if start else {}
    text = TextSize.of(data, model.get("vocab_size"))
    decided = resuming.decided_values(overrides, stored) if stored else None
    situation = situation_of(report, choice, text, decided=decided)
    device = report.device(choice.device)
    situation = dataclasses.replace(
        situation,
        processes=parallel.world_size,
        fits_whole=parallel.from_first(
            lambda: fits_in_a_process(overrides, situation, device.memory_free, parallel)
        ),
    )
    roughly = resolve_roughly(overrides, situation).config
    shards = shards_of(roughly.machine.parallelism, parallel)
    peak = functools.cache(lambda dtype: hardware.peak_flops(device.name, dtype).value)

    def fitted() -> int:
        config = resolve_roughly(overrides, situation).config
        free = device.memory_free
        return fit_micro_batch(config, choice, free, parallel, shards, teacher)

    if overrides.values.get("batch_size") == "auto":
        situation = dataclasses.replace(situation, fitting=parallel.from_first(fitted))

    def measured() -> Measurements | None:
        config = resolve_roughly(overrides, situation).config
        data.check_lengths(config.model.block_size)
        if warning := memory_warning(config, device.memory_free, shards):
            logger.warning("%s", warning)
        if stored is not None or not needs_measurement(overrides, config, device, peak):
            return None
        if shards > 1:  # to measure, one process would need the whole model
            return estimated()
        with explained_out_of_memory(config):
            return measure(config, choice, parallel.world_size, started, teacher=teacher)

    def estimated() -> Measurements:
        config = resolve_roughly(overrides, situation).config
        times = estimated_times(config, peak(config.machine.dtype) * parallel.world_size)
        added = added_work(config, teacher.configs) if teacher is not None else 0.0
        return dataclasses.replace(times, step=times.step * (1 + added))

    measurements = parallel.from_first(measured)
    is_set = overrides.values.get("eval_interval") not in (None, "auto")
    is_decided = "eval_interval" in (situation.decided or {})
    needs_estimate = not (measurements or is_set or is_decided)
    estimate = parallel.from_first(estimated) if needs_estimate else None
    times = dict(measurements=measurements, estimate=estimate)
    resolved = resolve(overrides, dataclasses.replace(situation, **times))
    if resolved.warning and parallel.is_first:
        logger.warning("%s.", resolved.warning)
    return resolved


def fits_in_a_process(overrides, situation, free: int | None, parallel: Parallel) -> bool:
    """Whether each process has the memory for the whole model and its training.

    Without a set batch_size a single sequence counts: more micro-batches take no more memory.
    """
    if parallel.world_size == 1:
        return True
    kind = situation.choice.device.partition(":")[0]
    if kind == "cpu" and free is not None:
        free //= parallel.local_size  # the processes of a machine share its memory
    config = resolve_roughly(overrides, situation).config
    if overrides.values.get("batch_size") == "auto":
        config = config.replace(batch_size=1)
    return step_fits(config, kind, free)


def needs_measurement(
    overrides: Overrides, config: TrainConfig, device, peak: Callable[[str], float]
) -> bool:
    """Whether the length or compile_model depends on how fast a step is here.

    peak: the FLOP/s of the device in a precision.
    """
    if config.batch.minutes is not None:
        return True
    can_compile = device.compile.available and not config.model.n_expert
    if overrides.values.get("compile_model", "auto") != "auto" or not can_compile:
        return False
    flops = config.flops_per_token * config.tokens_per_step * config.batch.max_iters
    kind = "cpu" if device.kind == "cpu" else "other"
    return flops / peak(config.machine.dtype) > COMPILE_SECONDS[kind] / 2
