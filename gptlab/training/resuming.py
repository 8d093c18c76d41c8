"""What a resumed run keeps from its first start, and what may change."""

from gptlab.checkpoints import tokenizer_from
from gptlab.data.mixture import Mixture
from gptlab.errors import CheckpointError, ConfigError, RunError
from gptlab.files import display, fresh_folder
from gptlab.model.config import GPTConfig
from gptlab.runs import Run
from gptlab.training import config as configuration
from gptlab.training.config import (
    CHANGEABLE_MODEL_OPTIONS,
    LENGTHS,
    MODEL_OPTIONS,
    START_OPTIONS,
    Overrides,
    TrainConfig,
)
from gptlab.training.going_on import way_to
from gptlab.training.schedules import Stretch, decay_start
from gptlab.training.state import DECISIONS

FIXED_OPTIONS = (
    "model_preset", "init_from", "extend_vocabulary", "optimizer", "seed", "minutes", "epochs",
    "distill", "lora_rank", "lora_alpha", "lora_targets", "freeze_layers",
)  # fmt: skip


def check_complete(stored: dict, run: Run) -> None:
    """CheckpointError for a training state that lacks something that a run writes."""
    parts = {
        "": ("step", "sequences_seen", "best_val_loss", "best_step", "skipped_steps", "ema",
             "scaler", "dataset", "train_config", "decided"),
        "dataset": ("fingerprint",),
        "train_config": ("values", "sources", "resolved"),
        "decided": (*DECISIONS, "dtype", "device"),
    }  # fmt: skip
    for part, names in parts.items():
        for name in names:
            if name not in (stored[part] if part else stored):
                what = f"{part} {name}".strip()
                raise CheckpointError(
                    f"{display(run.checkpoint)} cannot be continued: it has no {what}."
                )


def after_restart(overrides: Overrides, run: Run) -> Overrides:
    """The options of processes that torchrun starts again: they go on with their launch's run."""
    values = {**overrides.values, "resume": run.exists(), "overwrite": False}
    return Overrides(values, {"resume": "restart", "overwrite": "restart", **overrides.sources})


def without_anneal(overrides: Overrides) -> Overrides:
    """The options without `anneal`, whose decay is in the run's own by now."""
    return Overrides(
        {n: v for n, v in overrides.values.items() if n != "anneal"}, overrides.sources
    )


def check_same_data(data: Mixture, stored: dict, run: Run, overrides: Overrides) -> None:
    """RunError for other tokens than the run's, with the commands that go on from its weights; for
    tokens in another order too."""
    began, path = stored["dataset"], display(run.folder)
    if began["fingerprint"] == data.fingerprint:
        positions = data.positions(stored["sequences_seen"])  # a moved dataset has another name
        if list(began.get("sequences_seen", positions).values()) != list(positions.values()):
            raise RunError(
                f"{path} has read its datasets in another order than this release does",
                "continue it with the release that began it, or start a new run with another "
                "--out_dir",
            )
        return
    dataset, tokenizer = data.parts[0], tokenizer_from(stored, run.checkpoint)
    elsewhere = Overrides(
        {**overrides.values, "out_dir": display(fresh_folder(run.folder))},
        {**overrides.sources, "out_dir": "command line"},
    )
    what, other = display(dataset.folder), "another tokenizer"
    if len(data.parts) > 1:
        what, other = data.name, "another tokenizer, or other weights"
    raise RunError(
        f"{path} was trained on other data than {what} now holds (or with {other}), and no older "
        "version of that is kept",
        way_to(path, path, tokenizer, dataset, elsewhere),
    )


def continue_overrides(overrides: Overrides, stored: dict) -> Overrides:
    """The overrides of the run's first start, with those of the command line on top."""
    began = stored["train_config"]
    fresh = {
        name: value
        for name, value in overrides.values.items()
        if overrides.sources[name] in configuration.FOR_THIS_RUN or name in START_OPTIONS
    }
    recipe = {n: v for n, v in overrides.values.items() if n not in fresh}
    _refuse_fixed(fresh, began["values"])
    _refuse_other_recipe(recipe, fresh, began)
    if overrides.values.get("anneal"):
        fresh = {**fresh, **annealing(stored, fresh)}
    values = {name: value for name, value in began["values"].items() if name not in START_OPTIONS}
    merged = configuration.layer(values, fresh, "as the run began")
    sources = {
        name: (overrides.sources if name in fresh else began["sources"]).get(name, source)
        for name, source in merged.sources.items()
    }
    return Overrides(merged.values, sources)


def decided_values(overrides: Overrides, stored: dict) -> dict:
    """What the first start decided; another max_iters than that ends the schedule as well."""
    decided, asked = stored["decided"], overrides.values.get("max_iters")
    kept = asked in (None, decided["max_iters"])
    return {n: value for n, value in decided.items() if kept or n != "lr_decay_iters"}


def _refuse_fixed(fresh: dict, began: dict) -> None:
    """ConfigError for an option of the command line that a resume may not change."""
    for name in FIXED_OPTIONS:
        before = began.get(name, configuration.OPTIONS[name].default)
        if name in fresh and fresh[name] != before:
            instead = "set the total number of steps with --max_iters"
            if name not in LENGTHS:
                instead = "start a new run with another --out_dir"
            raise ConfigError(
                f"{name} cannot change at a resume (the run began with {before!r}, now it is "
                f"{fresh[name]!r}): {instead}."
            )


def _refuse_other_recipe(recipe: dict, fresh: dict, began: dict) -> None:
    """ConfigError for a recipe that differs from the one of the run's first start."""
    if not recipe:
        return
    values, sources = began["values"], began["sources"]
    for name in {*recipe, *values} - {*LENGTHS, *START_OPTIONS, *fresh}:
        source = sources.get(name, "")
        if source in configuration.FOR_THIS_RUN or source.startswith("preset"):
            continue
        if recipe.get(name) != values.get(name):
            raise ConfigError(
                f"The recipe has {name} = {recipe.get(name)!r}, but the run began with "
                f"{values.get(name)!r}: leave --config out to continue the run as it is."
            )


def annealing(stored: dict, fresh: dict) -> dict:
    """The options that let a wsd run decay from its current step on, and end."""
    before, step = stored["train_config"]["resolved"], stored["step"]
    if fresh.get("max_iters") is not None:
        raise ConfigError("anneal and max_iters both set where the run ends: use one of the two.")
    if before["schedule"] != "wsd":
        raise ConfigError(
            f"anneal continues a run of schedule wsd with its decay, but this one has "
            f"{before['schedule']}, which decays all the time: continue it with --resume alone."
        )
    planned = stored["decided"].get("lr_decay_iters", before["lr_decay_iters"])
    config = configuration.build({**before, "lr_decay_iters": planned, "resume": False})
    if stored.get("stretch"):  # a budget moved the end
        step = Stretch(*stored["stretch"]).at(step)
    if step < config.schedule.warmup_iters or step > decay_start(config):
        phase = "warming up" if step < config.schedule.warmup_iters else "already decaying"
        raise ConfigError(
            f"This run is {phase} at step {stored['step']}: continue it with --resume alone, "
            "without anneal."
        )
    end = stored["step"] + fresh["anneal"]
    return {"max_iters": end, "lr_decay_iters": end, "decay_fraction": fresh["anneal"] / end}


def check_same_model(config: TrainConfig, stored: dict) -> None:
    """ConfigError for a setting of the model that a resume may not change."""
    filled = GPTConfig(**stored["model_config"]).to_dict()  # also of options newer than the run
    for name, value in config.model.to_dict().items():
        before = filled[name]
        if value != before and name not in CHANGEABLE_MODEL_OPTIONS:
            raise ConfigError(
                f"{name} cannot change at a resume (the run has {before!r}, now it is {value!r}):"
                " start a new run with another --out_dir."
            )


def changed_options(config: TrainConfig, overrides: Overrides, stored: dict) -> tuple[str, ...]:
    """Each option that differs from the run's last start, as "name old -> new"."""
    before = stored["train_config"]["resolved"]
    return tuple(
        f"{name} {before.get(name)} -> {value}"
        for name, value in config.flat().items()
        if name not in {*START_OPTIONS, "minutes", "epochs"}
        and name in before and before[name] != value
        and (name in MODEL_OPTIONS or overrides.sources.get(name) in configuration.FOR_THIS_RUN)
    )  # fmt: skip
