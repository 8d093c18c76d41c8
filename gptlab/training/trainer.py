"""Run a training, from its options to its closing message."""

import time
from dataclasses import dataclass
from pathlib import Path

from gptlab import hardware
from gptlab.checkpoints import model_content
from gptlab.data.versions import note_run
from gptlab.files import atomic_write
from gptlab.training import messages
from gptlab.training.agreement import check_folder
from gptlab.training.background import BackgroundSave
from gptlab.training.clock import Clock
from gptlab.training.config import Overrides, layer
from gptlab.training.evaluation import evaluate, evaluation_is_due
from gptlab.training.interruption import Interruption
from gptlab.training.loop import train_loop, train_step
from gptlab.training.measuring import compile_if_wanted
from gptlab.training.memory import explained_out_of_memory
from gptlab.training.metrics import Metrics
from gptlab.training.observers import Observers
from gptlab.training.parallel import Parallel
from gptlab.training.picture import Picture
from gptlab.training.provenance import Trace
from gptlab.training.run_recipe import as_recipe
from gptlab.training.setup import Setup
from gptlab.training.stability import Stability
from gptlab.training.starting import prepare_training
from gptlab.training.state import TrainState
from gptlab.training.times import saving_seconds
from gptlab.training.trackers import make_tracker


@dataclass(frozen=True)
class Outcome:
    """How a training ended. exit_code: 0, or 128 + the signal that stopped it."""

    folder: Path
    step: int
    best_step: int
    best_val_loss: float
    exit_code: int = 0


def train(
    overrides: Overrides | None = None,
    *,
    started: float | None = None,
    recipe_name: str = "",
    **options,
) -> Outcome:
    """Train a model: `train(dataset="shakespeare", max_iters=500)`.

    overrides: layered options (`training.config.layer`); keyword options are the same names as on
    the command line. Returns the run's folder and how it ended. Raises GPTLabError.
    """
    overrides = overrides or layer(command_line=options, asked="a call from Python")
    started = started or time.perf_counter()
    parallel, setup, observers = Parallel(), None, None
    try:
        setup, state = prepare_training(
            overrides, parallel, started=started, recipe_name=recipe_name
        )
        observers = observe(setup, started - parallel.earlier)
        with explained_out_of_memory(setup.config, parallel.shards):
            exit_code = run(setup, state, observers)
        return Outcome(
            setup.run.folder, state.step, state.best_step, state.best_val_loss, exit_code
        )
    except BaseException as error:
        parallel.watch.fail(error)
        raise
    finally:
        if observers is not None:
            observers.metrics.close()
            observers.saving.end()
        if setup is not None:
            setup.run.end()
        parallel.end()


def observe(setup: Setup, started: float) -> Observers:
    """The observers of this start. started: time.perf_counter() when the process began."""
    config, parallel = setup.config, setup.parallel
    peak = None
    if parallel.is_first:
        found = hardware.peak_flops(config.machine.device, config.machine.dtype)
        peak = found and found.value * parallel.world_size
    run = None if config.run.dry_run else setup.run
    metrics = Metrics(
        config, run, setup.units, parallel=parallel, peak=peak,
        save_seconds=saving_seconds(config),
        **({} if setup.teacher is None else {"beside": setup.teacher.beside}),
    )  # fmt: skip
    return Observers(
        metrics=metrics,
        trace=Trace(),
        clock=Clock(config, started, parallel.world_size),
        stability=Stability(metrics),
        interruption=Interruption(),
        picture=Picture(),
        watch=parallel.watch,
        saving=BackgroundSave(),
    )


def run(setup: Setup, state: TrainState, observers: Observers) -> int:
    """Train until the end or until something stops this start; the exit code."""
    say = observers.metrics.say
    for line in messages.plan_lines(setup, state):
        say(line)
    if setup.config.run.dry_run:
        result = train_step(setup, state)
        say(
            f"Dry run: one step works (loss {float(result.loss):.4f}, gradient norm "
            f"{result.grad_norm:.3f})."
        )
        return 0
    was_evaluated = setup.parallel.from_first(lambda: setup.run.was_evaluated(state.step))
    if state.is_finished and was_evaluated:
        show_finished(setup, state, observers)
        return 0
    check_folder(setup.config, setup.run.folder, setup.parallel)
    setup.parallel.from_first(lambda: open_run(setup, state))
    tracker = make_tracker(setup.config, setup.run.folder) if setup.parallel.is_first else None
    with observers.interruption as interruption:
        compile_if_wanted(setup, state, say)
        observers.trace.begin(setup, state)
        observers.metrics.begin(state.step, tracker)
        # cut() removed the evaluation of this step, or the run was interrupted before its end
        if state.step and (was_evaluated or evaluation_is_due(setup.config, state)):
            evaluate(setup, state, observers.metrics)
        observers.clock.begin(state)
        stopped = train_loop(setup, state, observers)
        observers.watch.rest()
        observers.saving.wait()
    observers.metrics.close()
    if stopped:
        cause = interruption.received or "a signal to another process"
        if observers.clock.is_out_of_time(state) and not interruption.received:
            cause = f"max_minutes {setup.config.batch.max_minutes:g}"
        is_saved = not observers.stability.is_diverged
        lines = messages.how_to_go_on(setup, state, cause, is_saved)
    else:
        setup.parallel.from_first(setup.run.consolidate_best)
        observers.picture.draw(setup)
        lines = messages.closing_words(setup, state, observers.metrics)
    for line in lines:
        say(line)
    return interruption.exit_code if stopped else 0


def show_finished(setup: Setup, state: TrainState, observers: Observers) -> None:
    """Say that the run is finished; complete what a kill cut short."""

    def complete() -> None:
        setup.run.begin(resume=True)  # removes the half picture that a kill left
        if not setup.run.plot.exists():
            observers.picture.draw(setup)

    setup.parallel.from_first(complete)
    observers.metrics.say(messages.finished_line(state))


def open_run(setup: Setup, state: TrainState) -> None:
    """Lock the run's folder, drop the records after the checkpoint, and write the recipe."""
    config, run = setup.config, setup.run
    run.begin(resume=config.run.resume, overwrite=config.run.overwrite)
    setup.parallel.note_begun(run.folder, state.step)
    for dataset in setup.data.parts:
        if dataset.meta is not None:
            note_run(dataset.folder, run.folder)
    if state.step:
        run.cut(state.step)
    elif config.finetune.lora_rank:
        base = model_content(state.model, setup.data.tokenizer, "base")
        state.base = run.keep_base(base, setup.start)
    with atomic_write(run.recipe, "w") as file:
        file.write(as_recipe(setup.overrides, setup.resolved, setup.machine))
