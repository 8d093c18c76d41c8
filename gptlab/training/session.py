"""From what was said to a run that can begin: device, data, decisions, model, state."""

import contextlib
import ctypes
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gptlab import hardware
from gptlab.checkpoints import model_from
from gptlab.data.batches import Batches, check_length
from gptlab.data.token_files import Dataset, check_ids, open_dataset
from gptlab.errors import CheckpointError, ConfigError, RunError
from gptlab.files import display, out_home
from gptlab.inference.evaluate import check_loss_mask, evaluation_windows
from gptlab.interop.read.models import local_checkpoint
from gptlab.model.arithmetic import count_parameters
from gptlab.model.lora import train_only
from gptlab.model.transformer import GPT
from gptlab.runs import Run, load_checkpoint
from gptlab.training import config as configuration
from gptlab.training.config import (
    MODEL_OPTIONS,
    START_OPTIONS,
    Measurements,
    Overrides,
    Resolved,
    TrainConfig,
)
from gptlab.training.ema import Ema
from gptlab.training.loss_band import LossBand
from gptlab.training.memory import explained_out_of_memory, fitting_batch_size, memory_warning
from gptlab.training.metrics import Metrics, Text, duration
from gptlab.training.optimizers.combined import Optimizers
from gptlab.training.parallel import Parallel, compile_blocks
from gptlab.training.precision import Precision
from gptlab.training.provenance import Trace
from gptlab.training.schedules import decay_start

logger = logging.getLogger(__name__)

MEASURE_SECONDS = 3.0
SAVE_BYTES_PER_SECOND = 200e6
KEPT_BYTES = 1 << 30
# what a resume may not change: another model or other data would be another run
CHANGEABLE_MODEL_OPTIONS = {"dropout", "gradient_checkpointing"}
FIXED_OPTIONS = (
    "model_preset", "init_from", "optimizer", "seed", "minutes",
    "lora_rank", "lora_alpha", "lora_targets", "freeze_layers",
)  # fmt: skip
# what the first start decided stands at every later one, unless the command line says otherwise
DECIDED = ("max_iters", "compile_model", "warmup_iters", "eval_interval", "eval_tokens")


@dataclass
class Session:
    """A run that is ready to go on at `step`."""

    overrides: Overrides
    resolved: Resolved
    parallel: Parallel
    dataset: Dataset
    run: Run
    model: GPT
    optimizers: Optimizers
    precision: Precision
    ema: Ema | None
    batches: Batches
    windows: object  # starts of the evaluation's windows
    metrics: Metrics
    step: int = 0  # optimizer steps done
    sequences_seen: int = 0
    best_val_loss: float = math.inf
    best_step: int = 0
    skipped_steps: int = 0
    bad_in_a_row: int = 0  # steps that were skipped or whose loss is hopeless
    is_diverged: bool = False  # the loss of the newest step
    unread_verdicts: list = field(default_factory=list)  # (skipped, hopeless) of each step
    trace: Trace = field(default_factory=Trace)  # what a replay of the first steps compares with
    band: LossBand | None = None  # where spike_rollback is on
    spike: float | None = None  # the loss that left the band
    roll_backs: int = 0  # of this start
    deadline: float = math.inf  # time.perf_counter() at which max_minutes are over
    step_seconds: float = 0.0  # of the last step; the slowest; of the last checkpoint's writing
    slowest: float = 0.0
    save_seconds: float = 0.0
    last_save: float = 0.0  # time.perf_counter()
    next_plot: float = 0.0  # time.perf_counter() from which loss.png may be drawn again
    chat_template: str = ""  # Jinja: of the dataset, else of the model that init_from names
    machine: str = ""  # this one in words, for the run's config.py
    changes: list = field(default_factory=list)  # options changed at this resume, "name old -> new"

    @property
    def config(self) -> TrainConfig:
        """The configuration without any "auto"."""
        return self.resolved.config

    @property
    def is_finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.config.batch.max_iters

    def uncompiled(self):
        """A context in which the model runs eager: other shapes would be compiled anew."""
        if self.config.machine.compile_model:
            return torch.compiler.set_stance("force_eager")
        return contextlib.nullcontext()


def run_folder(overrides: Overrides, recipe_name: str = "") -> Path:
    """Where the run lives: out_dir, else out/ and the recipe's or the dataset's name."""
    out_dir = overrides.values.get("out_dir")
    if out_dir:
        return Path(out_dir).expanduser()
    stem = (
        recipe_name or Path(overrides.values.get("dataset", configuration.RunOptions.dataset)).name
    )
    return out_home() / stem


def prepare_session(
    overrides: Overrides, parallel: Parallel, *, started: float, recipe_name: str = ""
) -> Session:
    """Everything up to step 0, or up to the step of the checkpoint. Raises GPTLabError.

    started: time.perf_counter() of when the process began; a budget in minutes counts from there.
    """
    run = Run(run_folder(overrides, recipe_name))
    state = None
    if overrides.values.get("resume"):
        state = run.load()
        check_complete(state, run)
        overrides = continue_overrides(overrides, state)
    elif not overrides.values.get("overwrite") and not overrides.values.get("dry_run"):
        run.check_free()
    values = overrides.values
    request = parallel.own_device(values.get("device", "auto"))
    report = hardware.detect(request if parallel.world_size > 1 else None)
    choice = hardware.choose(report, request, values.get("dtype", "auto"))
    if state and values.get("dtype", "auto") == "auto":
        before = state["decided"]  # on the same device the precision stays, unless it became slow
        if before["device"] == choice.device and before["dtype"] != choice.dtype:
            as_before = hardware.choose(report, request, before["dtype"])
            choice = choice if as_before.slow else as_before
    parallel.begin(choice.device)
    settle_torch(choice.device)
    if not hardware.attention_is_causal(choice.device, choice.dtype):
        logger.warning("The fused attention of %s is wrong here: using plain.", choice.device)
        for kernel in ("flash", "mem_efficient", "cudnn"):
            getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(False)
    dataset = open_dataset(
        values.get("dataset", configuration.RunOptions.dataset), values.get("vocab_size")
    )
    start = None
    if state is None and values.get("init_from", "scratch") != "scratch":
        path = parallel.from_first(lambda: local_checkpoint(values["init_from"], logger.warning))
        start = load_checkpoint(path)
        overrides = with_model_of(start, overrides, dataset)
    if state is not None and state["dataset"]["fingerprint"] != dataset.fingerprint:
        raise RunError(
            f"{display(run.folder)} was trained on other data than {display(dataset.folder)} holds "
            "now (or with another tokenizer): start a new run with another --out_dir, or prepare "
            "the data as it was."
        )
    resolved = decide(overrides, report, choice, dataset, parallel, started, state, start)
    if resolved.config.evaluation.sample_interval and dataset.tokenizer:
        dataset.tokenizer.encode(resolved.config.evaluation.sample_prompt)  # raises, if it must
    with explained_out_of_memory(resolved.config):
        session = _build(overrides, resolved, run, parallel, dataset, state, start)
    session.machine = report.in_words(choice.device)
    if resolved.config.batch.max_minutes:
        session.deadline = started + 60 * resolved.config.batch.max_minutes
    return session


def check_complete(state: dict, run: Run) -> None:
    """CheckpointError where a training state lacks a part of what `save` writes."""
    parts = {
        "": ("step", "sequences_seen", "best_val_loss", "best_step", "skipped_steps", "ema",
             "scaler", "dataset", "train_config", "decided"),
        "dataset": ("fingerprint",),
        "train_config": ("values", "sources", "resolved"),
        "decided": (*DECIDED, "dtype", "device"),
    }  # fmt: skip
    for part, names in parts.items():
        for name in names:
            if name not in (state[part] if part else state):
                what = f"{part} {name}".strip()
                raise CheckpointError(
                    f"{display(run.checkpoint)} cannot be continued: it has no {what}."
                )


def settle_torch(device: str) -> None:
    """What torch is told once in a process that trains on this device."""
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32 in what stays float32
    if device == "cpu":
        keep_freed_memory()
        # as use_deterministic_algorithms, which would import the compiler for three seconds
        torch.set_deterministic_debug_mode("error")
        torch.utils.deterministic.fill_uninitialized_memory = False


def keep_freed_memory() -> None:
    """Let glibc keep the large blocks of one step for the next; elsewhere nothing happens.

    It would give them back to the system and get them anew, page by page and filled with zeros:
    250,000 page faults, a fifth of a step at 10M parameters.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc: musl, macOS, Windows
        mallopt = ctypes.CDLL(None).mallopt
        trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        for option in (trim, mmap):
            if not mallopt(option, KEPT_BYTES):
                mallopt(option, 32 << 20)  # older ones take no more


def continue_overrides(overrides: Overrides, state: dict) -> Overrides:
    """What was said at the run's first start, under what the command line says now."""
    stored = state["train_config"]
    fresh = {
        name: value
        for name, value in overrides.values.items()
        if overrides.sources[name] == "command line"
    }
    for name in FIXED_OPTIONS:
        before = stored["values"].get(name, configuration.OPTIONS[name].default)
        if name in fresh and fresh[name] != before:
            instead = "say the total number of steps with --max_iters"
            if name != "minutes":
                instead = "start a new run with another --out_dir"
            raise ConfigError(
                f"{name} cannot change at a resume (the run began with {before!r}, now it says "
                f"{fresh[name]!r}): {instead}."
            )
    recipe = {name: value for name, value in overrides.values.items() if name not in fresh}
    for name in {*recipe, *stored["values"]} - {"max_iters", "minutes", *START_OPTIONS}:
        source = stored["sources"].get(name, "")
        if not recipe or source == "command line" or source.startswith("preset"):
            continue
        if name not in fresh and recipe.get(name) != stored["values"].get(name):
            raise ConfigError(
                f"The recipe says {name} = {recipe.get(name)!r} and the run began with "
                f"{stored['values'].get(name)!r}: leave --config out to continue the run as it is."
            )
    began = {name: value for name, value in stored["values"].items() if name not in START_OPTIONS}
    if overrides.values.get("anneal"):
        fresh = {**fresh, **annealing(state, fresh)}
    merged = configuration.layer(began, fresh, "as the run began")
    sources = {
        name: source if name in fresh else stored["sources"].get(name, source)
        for name, source in merged.sources.items()
    }
    return Overrides(merged.values, sources)


def annealing(state: dict, fresh: dict) -> dict:
    """The options with which a wsd run does nothing more than decay, from where it stands."""
    before, step = state["train_config"]["resolved"], state["step"]
    if fresh.get("max_iters") is not None:
        raise ConfigError("anneal and max_iters both say where the run ends: say one of the two.")
    if before["schedule"] != "wsd":
        raise ConfigError(
            f"anneal continues a run of schedule wsd with its decay, and this one has "
            f"{before['schedule']}, which decays all the time: continue it with --resume alone."
        )
    stored = configuration.build({**before, "resume": False})
    if step < stored.schedule.warmup_iters or step > decay_start(stored):
        phase = "still warms up" if step < stored.schedule.warmup_iters else "decays already"
        raise ConfigError(
            f"This run {phase} at step {step}: continue it with --resume alone, without anneal."
        )
    end = step + fresh["anneal"]
    return {"max_iters": end, "lr_decay_iters": end, "decay_fraction": fresh["anneal"] / end}


def with_model_of(start, overrides: Overrides, dataset: Dataset) -> Overrides:
    """What was said, with the architecture of the checkpoint that init_from names."""
    stored = start.model.config.to_dict()
    known = start.tokenizer.vocab_size if start.tokenizer else stored["vocab_size"]
    if known != dataset.vocab_size or (
        start.tokenizer
        and dataset.tokenizer
        and start.tokenizer.fingerprint != dataset.tokenizer.fingerprint
    ):
        raise ConfigError(
            f"{display(start.path)} was trained with another tokenizer than {dataset.name} was "
            "prepared with: prepare the text with the tokenizer of that model (prepare.py "
            f"YOUR_TEXT --tokenizer {display(start.path.parent)})."
        )
    free = CHANGEABLE_MODEL_OPTIONS | {"block_size", "vocab_size"}
    for name, value in stored.items():
        if name not in free and overrides.values.get(name, value) != value:
            raise ConfigError(
                f"{name} {overrides.values[name]!r} is not what init_from {display(start.path)} "
                f"has ({value!r}): leave {name} out."
            )
    stored.pop("vocab_size")
    sources = {**dict.fromkeys(stored, f"init_from {display(start.path)}"), **overrides.sources}
    return Overrides({**stored, **overrides.values}, sources)


def decide(overrides, report, choice, dataset, parallel, started, state, start=None) -> Resolved:
    """Resolve the configuration; the first process measures and decides, the others follow."""
    compile_support = report.device(choice.device).compile
    # a model's table may have more rows than its tokenizer has ids (GPT-2's 50,304)
    model = state["model_config"] if state else start.model.config.to_dict() if start else {}
    arguments = dict(
        choice=choice,
        can_compile=(compile_support.available, compile_support.reason),
        vocab_size=model.get("vocab_size", dataset.vocab_size),
        train_tokens=len(dataset.train),
        val_tokens=len(dataset.val),
        decided=state["decided"] if state else None,
    )

    no_matter = Measurements(step=1.0, eval_token=1e-4)
    free = report.device(choice.device).memory_free

    def fitted() -> int:
        rough = configuration.resolve(overrides, **arguments, measurements=no_matter).config
        return fit_micro_batch(rough, choice, free, parallel)

    if overrides.values.get("batch_size") == "auto":
        arguments["fitting"] = parallel.from_first(fitted)

    def measured() -> Measurements | None:
        rough = configuration.resolve(overrides, **arguments, measurements=no_matter).config
        for part in ("train", "val"):
            check_length(len(getattr(dataset, part)), rough.model.block_size, part, dataset.name)
        if warning := memory_warning(rough, free):
            logger.warning("%s", warning)
        wants_time = rough.batch.minutes is not None
        asks_compile = overrides.values.get("compile_model", "auto") == "auto"
        long_enough = False
        if asks_compile and compile_support.available and not wants_time:
            flops = rough.flops_per_token * rough.tokens_per_step * rough.batch.max_iters
            peak = hardware.peak_flops(choice.device, choice.dtype).value
            kind = "cpu" if choice.device == "cpu" else "other"
            long_enough = flops / peak > configuration.COMPILE_SECONDS[kind] / 2
        if state is not None or not (wants_time or long_enough):
            return None
        with explained_out_of_memory(rough):
            return measure(rough, choice, parallel.world_size, started)

    measurements = parallel.from_first(measured)
    resolved = configuration.resolve(overrides, **arguments, measurements=measurements)
    if resolved.warning and parallel.is_first:
        logger.warning("%s.", resolved.warning)
    if state is not None:
        _check_same_model(resolved.config, state)
    return resolved


def fit_micro_batch(config: TrainConfig, choice, free: int | None, parallel: Parallel) -> int:
    """The largest micro-batch that fits on this device, in one process of those that train."""
    kind = choice.device.partition(":")[0]
    if kind == "cpu" and free is not None:
        free //= parallel.local_size  # the processes of a machine share its memory
    model = None

    def attempt(size: int) -> None:
        nonlocal model
        if kind == "cpu":  # which swaps, or kills, instead of saying that memory is out
            return
        model = model or _untrained(config, choice.device)
        shape = (size, config.model.block_size)
        tokens = torch.zeros(shape, dtype=torch.int64, device=choice.device)
        with Precision(choice.device, choice.dtype, False).autocast():
            model(tokens, tokens, reduction="sum")[1].backward()

    return fitting_batch_size(config, kind, free, parallel.world_size, attempt)


def _untrained(config: TrainConfig, device: str) -> GPT:
    """The model with random weights, wrapped for training."""
    model = GPT(config.model).to(device)
    train_only(model, config.trained, config.finetune.lora_alpha)
    return model


def _check_same_model(config: TrainConfig, state: dict) -> None:
    for name, value in config.model.to_dict().items():
        stored = state["model_config"].get(name)
        if value != stored and name not in CHANGEABLE_MODEL_OPTIONS:
            raise ConfigError(
                f"{name} cannot change at a resume (the run has {stored!r}, now it says {value!r}):"
                " start a new run with another --out_dir."
            )


def measure(
    config: TrainConfig, choice, world_size: int, started: float, seconds: float = MEASURE_SECONDS
) -> Measurements:
    """Time a few steps of this very model for some seconds, on a copy with random tokens."""
    device = choice.device
    torch.manual_seed(0)
    model = _untrained(config, device)
    precision = Precision(device, choice.dtype, choice.use_scaler)
    optimizers = make_optimizers(model, config, choice.dtype)
    own_rows = -(-config.sequences_per_step // world_size)
    # no more than about a second a pass, however large the model and the batch are
    peak = hardware.peak_flops(device, choice.dtype).value
    affordable = peak / (config.flops_per_token * config.model.block_size)
    rows = max(1, min(config.batch.batch_size, own_rows, int(affordable)))
    micro_batches = own_rows / rows
    tokens = torch.randint(
        config.model.vocab_size, (rows, config.model.block_size + 1), device=device
    )

    def micro_step():
        with precision.autocast():
            _, loss = model(tokens[:, :-1], tokens[:, 1:], reduction="sum")
        precision.backward(loss / tokens.numel())

    def timed(work) -> float:
        begin = time.perf_counter()
        work()
        hardware.synchronize(device)
        return time.perf_counter() - begin

    nothing_skipped = torch.zeros((), device=device)
    passes, updates = [], []
    end = time.perf_counter() + seconds
    while len(passes) < 4 or (time.perf_counter() < end and len(passes) < 50):
        passes.append(timed(micro_step))
        updates.append(timed(lambda: optimizers.step(nothing_skipped)))
        optimizers.zero_grad()
        if time.perf_counter() > end + 2 * seconds and len(passes) > 1:
            break
    steady = slice(1, None)  # the first pass warms up
    step = _median(passes[steady]) * micro_batches + _median(updates[steady])
    with torch.no_grad(), precision.autocast():
        forward = _median([timed(lambda: model(tokens[:, :-1], tokens[:, 1:])) for _ in range(3)])
    values = count_parameters(config.model) * (6 if config.optimizer.ema_decay else 4)
    return Measurements(
        elapsed=time.perf_counter() - started,
        step=step,
        eval_token=forward / (rows * config.model.block_size),
        save=4 * values / SAVE_BYTES_PER_SECOND,
    )


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def make_optimizers(model: GPT, config: TrainConfig, dtype: str) -> Optimizers:
    """The optimizers of a run."""
    # Newton-Schulz bears few digits, so it runs in the precision that this device is fast in
    return Optimizers(model, config, getattr(torch, dtype))


def _build(overrides, resolved, run, parallel, dataset, state, start) -> Session:
    """Model, optimizer and the rest, wrapped in a fixed order and filled with the stored state."""
    config = resolved.config
    device = config.machine.device
    train_path = dataset.folder / "train.bin"
    windows = evaluation_windows(
        len(dataset.val), config.model.block_size, config.evaluation.eval_tokens
    )
    for first in windows:
        window = dataset.val[first : first + config.model.block_size + 1]
        check_ids(window, dataset.vocab_size, dataset.folder / "val.bin", int(first))
    check_loss_mask(dataset.val_loss_mask, windows, config.model.block_size)
    torch.manual_seed(config.run.seed)
    if state is not None:
        changes = {name: getattr(config.model, name) for name in CHANGEABLE_MODEL_OPTIONS}
        model = model_from(state, run.checkpoint, device, keep_adapters=True, **changes)
    elif start is not None:
        model = model_from(start.content, start.path, device, **_own_settings(config, start))
    else:
        model = GPT(config.model).to(device)
    train_only(model, config.trained, config.finetune.lora_alpha)
    parallel.share_gradients(model)
    model.train()
    optimizers = make_optimizers(model, config, config.machine.dtype)
    precision = Precision(device, config.machine.dtype, resolved.use_scaler)
    ema = Ema(model, config.optimizer.ema_decay) if config.optimizer.ema_decay else None
    batches = Batches(
        dataset.train,
        loss_mask=dataset.train_loss_mask,
        vocab_size=dataset.vocab_size,
        block_size=config.model.block_size,
        batch_size=config.batch.batch_size,
        sequences_per_step=config.sequences_per_step,
        seed=config.run.seed,
        device=device,
        rank=parallel.rank,
        world_size=parallel.world_size,
        path=display(train_path),
    )
    peak = hardware.peak_flops(device, config.machine.dtype) if parallel.is_first else None
    metrics = Metrics(
        config,
        None if config.run.dry_run else run,
        Text(dataset.meta),
        first=parallel.is_first,
        peak=peak and peak.value * parallel.world_size,
    )
    session = Session(
        overrides, resolved, parallel, dataset, run, model, optimizers, precision, ema, batches,
        windows, metrics,
    )  # fmt: skip
    if state is not None:
        restore(session, state)
        session.changes = _changed_options(session, state)
    stored = state or (start.content if start else {})
    session.chat_template = (dataset.meta or {}).get("chat_template") or (
        stored.get("chat_template") or ""
    )
    return session


def _own_settings(config: TrainConfig, start) -> dict:
    stored = start.model.config.to_dict()
    return {n: v for n, v in config.model.to_dict().items() if stored.get(n) != v}


def restore(session: Session, state: dict) -> None:
    """Let the session stand where `state` was saved: all but the model's weights."""
    session.optimizers.load_state_dict(state["optimizer"])
    session.precision.load_state_dict(state["scaler"])
    if session.ema is not None:
        for name, weights in (state["ema"] or state["model"]).items():
            if name in session.ema.weights:
                session.ema.weights[name].copy_(weights)
    session.step = state["step"]
    session.sequences_seen = state["sequences_seen"]
    session.best_val_loss = state["best_val_loss"]
    session.best_step = state["best_step"]
    session.skipped_steps = state["skipped_steps"]
    if state.get("loss_band") is not None:
        session.band = LossBand(*state["loss_band"])


def _changed_options(session: Session, state: dict) -> list[str]:
    """Each option that differs from the run's last start, as "name old -> new"."""
    before = state["train_config"]["resolved"]
    skip = {*START_OPTIONS, "minutes"}
    return [
        f"{name} {before.get(name)} -> {value}"
        for name, value in session.config.flat().items()
        if name not in skip and name in before and before[name] != value
        and (name in MODEL_OPTIONS or session.overrides.sources.get(name) == "command line")
    ]  # fmt: skip


def compile_if_wanted(session: Session) -> None:
    """Compile the model and prove it on a step's shapes; where it fails, training goes on eager."""
    config = session.config
    if not config.machine.compile_model:
        return
    shape = (config.batch.batch_size, config.model.block_size)
    tokens = torch.zeros(shape, dtype=torch.int64, device=config.machine.device)

    def try_step():
        with session.precision.autocast():
            _, loss = session.model(tokens, tokens, reduction="sum")
        loss.backward()
        session.optimizers.zero_grad()

    if config.machine.device == "cpu":  # two threads gave other weights in each run without it
        torch.use_deterministic_algorithms(True)
    session.metrics.say("Compiling the model (once, tens of seconds) ...")
    begin = time.perf_counter()
    failure = compile_blocks(session.model, try_step)
    session.optimizers.zero_grad()
    if failure:
        logger.warning("torch.compile does not work here (%s): training without it.", failure)
    else:
        session.metrics.say(f"Compiled in {duration(time.perf_counter() - begin)}.")
