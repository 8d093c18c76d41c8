"""Diagnose a run from its curves: the problem, its numbers, and one command to try (no torch).

It reads metrics.jsonl and config.py. Each rule is a function of a `RunRecord` that returns a
Finding or None. The thresholds are rules of thumb, checked on runs that are bad on purpose.
"""

import itertools
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from gptlab.data.mixture import find_mixture_meta
from gptlab.errors import ConfigError, RunError
from gptlab.files import display
from gptlab.runs import Run
from gptlab.training.run_recipe import read_run_recipe
from gptlab.training.units import TextUnits

NO_RATE = 1e-7  # a thousand steps at this rate move a weight by less than its initial noise
HIGH_RATE = 2e-2  # no model here learns well from it
WAITING = 0.2  # share of the time that reading text may take
STEEP = 0.12  # a run is far too short if the second half of its steps lowers the loss by this share
NOISY = 0.06  # standard deviation of a batch's loss, as a share of the loss
LEARNED = 0.98  # of a task's answers right: there is little left to learn
FEW_STEPS = 300
LOW_RATE, USUAL_RATE = 3e-4, 1e-3  # small models learn at about 1e-3
AT_LEVEL = 0.97  # of the unigram baseline's loss: no better than counting


@dataclass(frozen=True)
class RunRecord:
    """The records and options of a run. levels: loss of each baseline in nats per token."""

    folder: Path
    records: list
    settings: dict
    levels: dict
    is_running: bool = False

    @property
    def training(self) -> list[dict]:
        """The records of steps."""
        return [r for r in self.records if "learning_rate" in r]

    @property
    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of the steps whose loss was finite."""
        return [(r["step"], r["loss"]) for r in self.training if r.get("loss") is not None]

    @property
    def evaluations(self) -> list[tuple[int, float]]:
        """(step, validation loss), of the averaged weights if they were better."""
        found = []
        for r in self.records:
            values = [r[k] for k in ("val_loss", "ema_val_loss") if r.get(k) is not None]
            if values:
                found.append((r["step"], min(values)))
        return found

    @property
    def step(self) -> int:
        """Steps done."""
        return max((r["step"] for r in self.records), default=0)

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, loss) of the lowest validation loss."""
        return min(self.evaluations, key=lambda pair: pair[1], default=None)

    @property
    def clean_loss(self) -> float | None:
        """At the step of `best`, the loss of the windows that hold no passage of the training
        text; None where that is not measured, because there are few such passages."""
        found = [
            r["clean_val_loss"]
            for r in self.records
            if r.get("clean_val_loss") and self.best and r["step"] == self.best[0]
        ]
        return found[-1] if found else None

    @property
    def has_learned_its_task(self) -> bool:
        """Whether nearly all answers to the unseen problems of a task are right at the end."""
        answers = [r["accuracy"] for r in self.records if r.get("accuracy") is not None]
        return bool(answers) and answers[-1] >= LEARNED

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one step."""
        names = ("batch_size", "gradient_accumulation_steps", "block_size")
        return math.prod(int(self.settings.get(name) or 1) for name in names)

    @property
    def state(self) -> str:
        """finished, interrupted, running, or imported (not yet trained here)."""
        if self.is_running:
            return "running"
        if not self.records and not Run(self.folder).checkpoint.exists():
            return "imported"
        if self.step and self.step >= (self.settings.get("max_iters") or math.inf):
            return "finished"
        patience = self.settings.get("early_stopping") or 0
        interval = self.settings.get("eval_interval") or 0
        if patience and interval and self.best:
            if (self.step - self.best[0]) // interval >= patience:
                return "finished"
        return "interrupted"


@dataclass(frozen=True)
class Finding:
    """One problem: its name, a sentence with the numbers, and the options to try."""

    name: str
    sentence: str
    options: dict
    continues: bool = False  # the command resumes this run; otherwise it starts a new one


def read_run(folder) -> RunRecord:
    """The records and options of a run directory. Raises RunError if there are none."""
    run = Run(folder)
    records = run.records() if run.folder.is_dir() else []
    if not records:
        raise RunError(
            f"{display(run.folder)} has no records of a training (metrics.jsonl)",
            "name a run directory, such as out/shakespeare_char",
        )
    try:
        settings = read_run_recipe(run.recipe).values
    except (OSError, UnicodeDecodeError, ConfigError):
        settings = {}  # the records alone still show much
    # the dataset may be gone: then there are no baselines to compare with
    meta = find_mixture_meta(settings.get("dataset", ""))
    return RunRecord(run.folder, records, settings, TextUnits(meta).levels(), run.is_running())


def diagnose(run: RunRecord) -> list[Finding]:
    """The problems that the records show, the most serious first; empty if there are none."""
    if not run.training:
        return []
    for rule in (rate_too_high, no_rate):  # these make every other finding meaningless
        if finding := rule(run):
            return [finding]
    if not run.losses:
        return []
    found = [rule(run) for rule in (waiting_for_data, overfitting, decay_too_short)]
    if not found[1] and not run.has_learned_its_task:
        found.append(rate_too_low(run) or too_short(run))
    if not found[-1] and not run.has_learned_its_task:
        found += [rule(run) for rule in (batch_too_small, stuck_at_unigrams)]
    return [finding for finding in found if finding]


def no_rate(run: RunRecord) -> Finding | None:
    """A learning rate of practically zero."""
    rates = sorted(r["learning_rate"] for r in run.training)
    if rates[int(0.9 * (len(rates) - 1))] >= NO_RATE or not run.losses:
        return None
    (_, first), (_, last) = run.losses[0], run.losses[-1]
    settings, iters = run.settings, run.settings.get("max_iters") or run.step
    sentence = (
        f"The learning rate was practically zero (at most {rates[int(0.9 * (len(rates) - 1))]:.1g} "
        f"in nine tenths of the records), so nothing was learned: the loss went from {first:.3f} "
        f"to {last:.3f} in {run.step} steps"
    )
    decay, warmup = settings.get("lr_decay_iters", iters), settings.get("warmup_iters") or 0
    if warmup >= run.step:
        cause, options = f"the warm-up of {warmup} steps never ended", {"warmup_iters": iters // 20}
    elif decay < iters / 2 and (settings.get("learning_rate") or 0) > NO_RATE:
        cause = f"lr_decay_iters {decay} ends the schedule early, at min_lr"
        options = {"lr_decay_iters": iters}
    else:
        cause = f"learning_rate is {settings.get('learning_rate', 0):g}"
        options = {"learning_rate": 1e-3, "min_lr": 1e-4}
    return Finding("learning rate zero", f"{sentence}; {cause}.", options)


def rate_too_high(run: RunRecord) -> Finding | None:
    """Non-finite losses, a loss that rose above its start, or a high rate without progress."""
    rate = run.settings.get("learning_rate") or max(r["learning_rate"] for r in run.training)
    broken = [r["step"] for r in run.training if r.get("loss") is None]
    skipped = max((r.get("skipped_steps") or 0 for r in run.training), default=0)
    losses = [loss for _, loss in run.losses]
    smooth = _smooth(losses)
    reason = ""
    diverged = next((r for r in run.records if r.get("diverged")), None)
    if diverged:
        value = "not finite" if diverged["loss"] is None else f"{diverged['loss']:.3g}"
        reason = f"the training ended at step {diverged['step']}, where the loss was {value}"
    elif broken or (skipped and run.settings.get("dtype") != "float16"):
        where = f" (first at step {broken[0]})" if broken else ""
        reason = f"the loss or its gradient was not finite in {max(skipped, len(broken))} steps"
        reason += where
    elif losses and max(smooth[1:], default=0) > 1.1 * losses[0]:
        reason = f"the loss rose from {losses[0]:.2f} at the start to {max(losses):.2f}"
    elif peak := _climb(smooth, _noise(losses)):
        reason = (
            f"the training loss rose again, from {peak[0]:.2f} to {peak[1]:.2f}, and stayed there"
        )
    else:
        # half-way between the unigram and the 5-gram level, or about as far below the first loss
        known = [run.levels[name] for name in ("unigram", "5-gram") if name in run.levels]
        bar = statistics.mean(known) if len(known) == 2 else 0.65 * losses[0]
        if rate >= HIGH_RATE and run.best and run.best[1] > bar:
            reason = (
                f"the lowest validation loss is only {run.best[1]:.2f}, and such models do not "
                "learn well above 1e-2"
            )
    if not reason:
        return None
    return Finding(
        "learning rate too high",
        f"The learning rate {rate:g} is too high: {reason}.",
        {"learning_rate": float(f"{rate / 10:.2g}")},
    )


def waiting_for_data(run: RunRecord) -> Finding | None:
    """Steps that wait for the text to be read."""
    shares = [r["data_share"] for r in run.training[1:] if r.get("data_share") is not None]
    if len(shares) < 2 or statistics.median(shares) < WAITING:
        return None
    name = run.settings.get("dataset", "the dataset")
    return Finding(
        "waiting for data",
        f"Waiting for data: reading text took {statistics.median(shares):.0%} of the time, so the "
        f"disk that holds {name} is too slow; copy the dataset's folder to a local disk and use "
        "that copy.",
        {"dataset": f"/A/LOCAL/DISK/{Path(str(name)).name}"},
    )


def overfitting(run: RunRecord) -> Finding | None:
    """The validation loss rises while the training loss still falls."""
    if not run.best or len(run.evaluations) < 3:
        return None
    (best_step, best), (last_step, last) = run.best, run.evaluations[-1]
    since = sum(step > best_step for step, _ in run.evaluations)
    at_best, at_end = _loss_near(run, best_step), _loss_near(run, last_step)
    rise = last - best
    clear = rise > 0.03 * best or (since >= 2 and rise > max(0.01, 0.005 * best))
    if not clear or at_end > at_best - 0.005:
        return None
    dropout = run.settings.get("dropout") or 0.0
    return Finding(
        "overfitting",
        f"Overfitting since step {best_step}: the validation loss rose from {best:.3f} to "
        f"{last:.3f} by step {last_step}, while the training loss fell from {at_best:.3f} to "
        f"{at_end:.3f}; best.pt has the weights of step {best_step}. More text helps most.",
        {"dropout": 0.2 if dropout < 0.2 else min(0.5, dropout + 0.1), "early_stopping": 3},
    )


def too_short(run: RunRecord) -> Finding | None:
    """A finished run whose loss was still falling fast."""
    if run.state != "finished":
        return None
    middle, end = _loss_near(run, run.step / 2), _loss_near(run, run.step)
    share = (middle - end) / max(end, 1e-9)
    level = run.levels.get("5-gram", math.inf)
    above = bool(run.best and run.best[1] > level) or (level == math.inf and run.step < 100)
    # at so few steps a model that beats the unigram but not yet the 5-gram is still learning
    learns = bool(run.best and run.best[1] < AT_LEVEL * run.levels.get("unigram", 0))
    hardly_begun = run.step < 100 or (run.step < 200 and share > STEEP / 4)
    hardly_begun = hardly_begun or (run.step < FEW_STEPS and learns and share > 0)
    if share < STEEP and not (above and hardly_begun):
        return None
    tokens = run.step * run.tokens_per_step
    factor = 10 if run.step < 300 else 4
    reached = f"; the 5-gram reaches {level:.3f}" if level < math.inf and above else ""
    return Finding(
        "far too short",
        f"Far too short: {run.step} steps of {run.tokens_per_step:,} tokens ({tokens:,} in all). "
        f"The training loss went from {run.losses[0][1]:.3f} to {middle:.3f} in the middle and "
        f"{end:.3f} at the end{reached}.",
        {"max_iters": factor * run.step},
        continues=True,
    )


def decay_too_short(run: RunRecord) -> Finding | None:
    """A learning rate that fell too early, too late or not at all."""
    if run.state != "finished" or run.step < 50:
        return None
    rates = [(r["step"], r["learning_rate"]) for r in run.training]
    highest, (_, final) = max(rate for _, rate in rates), rates[-1]
    if final > 0.5 * highest:
        return Finding(
            "decay too short",
            f"The learning rate never came down: it ended at {final:.2g}, and the highest was "
            f"{highest:.2g}; a decay to min_lr lowers the loss by the last few hundredths.",
            {"lr_decay_iters": run.step}
            | ({"decay_fraction": 0.3} if run.settings.get("schedule") == "wsd" else {}),
        )
    at_end = (step for step, rate in rates if rate <= 1.01 * final and step > run.step / 50)
    reached = next(at_end, None)
    if reached is None:
        return None
    began = max(step for step, rate in rates if rate >= 0.95 * highest)
    at_lowest, end = _loss_near(run, reached), _loss_near(run, run.step)
    share, gain = (run.step - reached) / run.step, at_lowest - end
    if share > 0.4 or (share > 0.25 and gain < 0.03 * end):
        return Finding(
            "decay too short",
            f"The decay was too short: the rate reached its minimum {final:.2g} at step {reached} "
            f"of {run.step}, and the last {share:.0%} of the steps only brought the loss from "
            f"{at_lowest:.3f} to {end:.3f}.",
            {"lr_decay_iters": run.step},
        )
    before = _loss_near(run, began)
    earlier = _loss_near(run, began - 2 * (run.step - began))
    is_steep = before - end > max(2 * (earlier - before), 0.02 * end)
    if 0 < run.step - began <= 0.15 * run.step and is_steep:
        return Finding(
            "decay too short",
            f"The decay was too short: in its {run.step - began} steps the loss fell from "
            f"{before:.3f} to {end:.3f}, more than in twice as many steps before it.",
            {"decay_fraction": 0.4},
        )
    return None


def batch_too_small(run: RunRecord) -> Finding | None:
    """The losses of single batches vary widely, because each step sees only a few lines of text."""
    half = [loss for step, loss in run.losses if step > run.step / 2]
    if len(half) < 8:
        return None
    noise = _noise(half)
    share = noise / statistics.mean(half)
    if share < NOISY or run.tokens_per_step >= 4096:
        return None
    batch_size = int(run.settings.get("batch_size") or 1)
    factor = 2 ** math.ceil(math.log2(max(2.0, (share / NOISY * 1.5) ** 2)))
    return Finding(
        "batch too small",
        f"The batch is small: with {run.tokens_per_step:,} tokens per step the loss varies by "
        f"{share:.0%} ({noise:.3f}) from batch to batch, so each step is mostly noise.",
        {"batch_size": batch_size * factor},
    )


def rate_too_low(run: RunRecord) -> Finding | None:
    """A low rate, with which the loss has hardly left its start, or not reached the unigram."""
    rate = run.settings.get("learning_rate") or USUAL_RATE
    if rate >= LOW_RATE or not run.best:
        return None
    (_, first), (_, best) = run.losses[0], run.best
    level = run.levels.get("unigram")
    # a fifth of the way to the unigram is what a sane rate takes in its first steps
    learned = 0.9 * first
    if level:
        learned = 1.05 * level if run.step >= 100 else first - 0.2 * (first - level)
    if best < learned:
        return None
    beside = f", but counting single tokens reaches {level:.3f}" if level else ""
    return Finding(
        "learning rate too low",
        f"The learning rate {rate:g} is too low: in {run.step} steps the loss went from "
        f"{first:.3f} to {best:.3f}{beside}.",
        {"learning_rate": float(f"{max(USUAL_RATE, rate * 10):.2g}")},
    )


def stuck_at_unigrams(run: RunRecord) -> Finding | None:
    """A loss no lower than that of counting single tokens."""
    level = run.levels.get("unigram")
    if not level or not run.best or run.best[1] < AT_LEVEL * level:
        return None
    rate = run.settings.get("learning_rate") or 1e-3
    return Finding(
        "stuck at the unigram level",
        f"Stuck at the unigram level: the lowest validation loss is {run.best[1]:.3f}, and "
        f"counting single tokens reaches {level:.3f}, so the model does not use the preceding "
        "text.",
        {
            "learning_rate": float(
                f"{max(USUAL_RATE, rate * 10) if rate < LOW_RATE else rate / 5:.2g}"
            )
        },
    )


def summary(run: RunRecord) -> list[str]:
    """The course of the run in a few lines."""
    lines = [f"{run.state.capitalize()} after step {run.step:,}"]
    total = run.settings.get("max_iters")
    lines[0] += f" of {total:,}." if total else "."
    if len(run.losses) > 1:
        (first_step, first), (last_step, last) = run.losses[0], run.losses[-1]
        lines.append(
            f"Training loss: {first:.3f} at step {first_step}, {last:.3f} at step {last_step}."
        )
    if run.best:
        beside = ", ".join(f"{name} {level:.3f}" for name, level in run.levels.items())
        lines.append(f"Lowest validation loss: {run.best[1]:.4f} at step {run.best[0]:,}.")
        if run.clean_loss is not None:
            lines.append(
                f"Without windows that hold text of the training part it is {run.clean_loss:.4f}."
            )
        lines.append(f"Losses are in nats per token{f'; baselines: {beside}' * bool(beside)}.")
    speeds = [r["tokens_per_second"] for r in run.training[1:] if r.get("tokens_per_second")]
    if speeds:
        lines.append(f"Speed: {statistics.median(speeds):,.0f} tokens/s.")
    return lines


def _smooth(values: list[float]) -> list[float]:
    """The median of each value with its two neighbours on both sides."""
    return [statistics.median(values[max(0, i - 2) : i + 3]) for i in range(len(values))]


def _noise(values: list[float]) -> float:
    """The standard deviation of a value around the trend of the values."""
    steps = [b - a for a, b in itertools.pairwise(values)]
    return statistics.pstdev(steps) / math.sqrt(2) if steps else 0.0


def _climb(smooth: list[float], noise: float) -> tuple[float, float] | None:
    """(lowest, later level) when the second half lies well above an earlier point."""
    if len(smooth) < 6:
        return None
    later = statistics.median(smooth[len(smooth) // 2 :])
    lowest = min(smooth[: len(smooth) // 2])
    return (lowest, later) if later - lowest > max(0.15 * lowest, 2 * noise) else None


def _loss_near(run: RunRecord, step: float) -> float:
    """The mean training loss of the (at most three) records nearest to a step."""
    nearest = sorted(run.losses, key=lambda pair: abs(pair[0] - step))
    close = [pair for pair in nearest[:3] if abs(pair[0] - step) <= run.step / 12]
    return statistics.mean(loss for _, loss in close or nearest[:1])
