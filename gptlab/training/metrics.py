"""Record a run in metrics.jsonl, one record per line, and show it at a terminal."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from gptlab.files import runnable
from gptlab.runs import Run
from gptlab.training.config import TrainConfig
from gptlab.training.pace import Pace
from gptlab.training.parallel import Parallel
from gptlab.training.profiling import Profile
from gptlab.training.terminal import CONTROL, Terminal, columns, fitting
from gptlab.training.units import TextUnits, duration

logger = logging.getLogger(__name__)

NOTICEABLE = 0.05  # of the steps, by which an end moves
LINE_SECONDS = 5.0  # between lines of a run whose output is not a terminal


class Metrics:
    """Records and shows how a run goes. All processes call it; only the first writes and prints.

    run: None where nothing is written. save_seconds: of a checkpoint, estimated. peak: FLOP/s of
    the device, or None if unknown; a faster step raises it, so that the share shown (MFU, Chowdhery
    et al. 2022) never exceeds 100%. beside: further fields of the record of a step, found by all
    processes together.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: Run | None,
        units: TextUnits,
        *,
        parallel: Parallel,
        peak,
        save_seconds: float = 0.0,
        beside: Callable[[int], dict] = lambda step: {},
    ):
        self.config, self.units = config, units
        self.end = config.batch.max_iters
        self.run = run if parallel.is_first else None
        self.terminal = Terminal(loud=parallel.is_first and not config.run.quiet)
        self.pace = Pace(parallel, config.tokens_per_step)
        self.profile = Profile(config.run.profiled, self.run)
        self.peak = peak
        self.beside = beside
        self.last_time, self.last_step = time.perf_counter(), 0
        self.last_line = self.last_reading = 0.0
        self.val_loss = self.rate = self.share = None
        self.tracker = None
        self.save_seconds = save_seconds
        self.pauses, self.looks = [], []  # seconds of each so far

    def say(self, text: str = "") -> None:
        """Print a line above the bar."""
        self.terminal.say(runnable(text))

    def begin(self, step: int, tracker=None) -> None:
        """The loop begins at `step`. tracker: called with each record."""
        self.tracker = tracker
        self.terminal.begin(step, self.end)
        self._trace(step)
        self.pace.begin()
        self.last_time, self.last_step = time.perf_counter(), step

    def paused(self):
        """Leave an evaluation or a checkpoint out of tokens/s."""
        return self._apart(self.pauses)

    def looking(self):
        """Leave a look inside the model out of tokens/s."""
        return self._apart(self.looks)

    @contextlib.contextmanager
    def _apart(self, durations: list[float]):
        before = time.perf_counter()
        with self.pace.apart():
            yield
        seconds = time.perf_counter() - before
        self.last_time += seconds
        durations.append(seconds)

    def seconds_left(self, step: int) -> float:
        """Of the steps to come and of their evaluations, checkpoints and looks inside."""
        config = self.config
        each_step = config.tokens_per_step / max(1.0, self.rate)
        if self.pauses:
            pause = sum(self.pauses) / len(self.pauses)
        else:  # a forward pass over eval_tokens, in steps
            weights = 2 if config.optimizer.ema_decay else 1
            evaluated = weights * config.evaluation.eval_tokens / config.tokens_per_step
            pause = evaluated * config.forward_share * each_step + self.save_seconds
        total, interval = self.end, config.evaluation.eval_interval
        pauses = math.ceil(total / interval) - step // interval
        left = (total - step) * each_step + pauses * pause
        if self.looks:
            looks = math.ceil((total - step) / config.evaluation.lens_interval)
            left += looks * sum(self.looks) / len(self.looks)
        return left

    def step(self, state, result, reading: float) -> None:
        """After a step: show it, and record it at every log_interval.

        state: TrainState. result: StepResult, whose tensors are read only then, because that waits
        for the device. reading: seconds spent on reading text so far.
        """
        self.terminal.advance()
        step = state.step
        self._record_step(step, state, result, reading)
        self._trace(step)

    def _record_step(self, step: int, state, result, reading: float) -> None:
        if step % self.config.evaluation.log_interval and step != 1:
            return
        now = time.perf_counter()
        loss, grad_norm = float(result.loss), float(result.grad_norm)
        steps = max(1, step - self.last_step)
        seconds = max(1e-9, now - self.last_time)
        self.rate = steps * self.config.tokens_per_step / seconds
        data_share = min(1.0, (reading - self.last_reading) / seconds)
        processes = self.pace.record(steps, seconds, data_share)
        self.last_time, self.last_step, self.last_reading = time.perf_counter(), step, reading
        record = {
            "step": step,
            "loss": loss,
            "bits_per_byte": self.units.bits_per_byte(loss),
            "grad_norm": grad_norm,
            "learning_rate": result.learning_rate,
            "sequences_seen": state.sequences_seen,
            "skipped_steps": state.skipped_steps,
            "tokens_per_second": round(self.rate, 1),
            "data_share": round(data_share, 4),
            "time": round(time.time(), 3),
            **processes,
        }
        record |= self.beside(step)
        if self.peak:
            flops = self.rate * self.config.flops_per_token
            self.peak = max(self.peak, flops)
            self.share = flops / self.peak
            record["mfu"] = round(self.share, 4)
        self._record(record)
        self._show(step, loss)

    def rolled_back(self, step: int, spike: int, loss: float, sequences: tuple[int, int]) -> None:
        """The loss jumped at step `spike`: the run goes back to `step` and skips sequences."""
        first, end = sequences
        back = {"spike_step": spike, "spike_loss": loss, "skipped_sequences": [first, end]}
        self._record({"step": step, "rolled_back": back})
        self.say(
            f"The loss jumped to {loss:.3g} at step {spike}: going back to the checkpoint of step "
            f"{step} and skipping the {end - first:,} sequences since ({first:,} to {end - 1:,})."
        )
        self.last_time, self.last_step = time.perf_counter(), step
        self.terminal.go_back(step)

    def end_moved(self, step: int, end: int, planned: int | None, times: Mapping) -> None:
        """After `step` steps a budget in minutes moved the end; times: what it rests on, in s."""
        self._record({"step": step, "planned": {"end": end, "schedule": planned, **times}})
        before, self.end = self.end, end
        self.terminal.move_end(end)
        if abs(end - before) >= NOTICEABLE * before:
            minutes = self.config.batch.minutes
            self.say(
                f"The run ends at step {end} now, not at {before}: a step takes "
                f"{times['step_seconds']:.2g} s, and {duration(times['seconds_left'])} of the "
                f"{minutes:g} {'minute' if minutes == 1 else 'minutes'} are left."
            )

    def diverged(self, step: int, loss: float) -> None:
        """The training ends at this step, because its loss diverged."""
        self._record({"step": step, "loss": loss, "diverged": True})

    def _show(self, step: int, loss: float) -> None:
        terminal, left = self.terminal, f"{duration(self.seconds_left(step))} left"
        share = f"mfu {self.share:.0%}" if self.share is not None else ""
        speed = f"{self.rate:,.0f} tokens/s"
        if terminal.bar is not None:
            val = f"val {self.val_loss:.3f}" if self.val_loss is not None else ""
            terminal.show([left, f"loss {loss:.3f}", val, speed, share])
        elif terminal.loud and (time.perf_counter() - self.last_line > LINE_SECONDS or step == 1):
            self.last_line = time.perf_counter()
            line = f"step {step}/{self.end}: loss {loss:.4f}"
            parts = [line, left, speed, share]
            self.say(fitting(parts, columns() or 79) or line)

    def evaluation(
        self,
        step: int,
        loss: float,
        averaged: float | None,
        is_best: bool,
        sample: str | None = None,
        of_each: Mapping[str, tuple[float, float]] | None = None,
        clean: float | None = None,
        answers: Mapping[str, object] = MappingProxyType({}),
        experts: Mapping[str, list] | None = None,
    ) -> None:
        """Record and show the validation loss after `step` steps, and what the model writes.

        of_each: share and loss of each dataset, by its name. clean: the lower of both losses, over
        the windows without text of the training part. answers: of a task, how many are right
        (`inference.answers.accuracy_fields`), which is recorded too. experts: how they were used.
        """
        self.val_loss = loss if averaged is None else min(loss, averaged)
        record = {
            "step": step,
            "val_loss": loss,
            "val_bits_per_byte": self.units.bits_per_byte(loss),
        }
        if averaged is not None:
            record["ema_val_loss"] = averaged
        if clean is not None:
            record["clean_val_loss"] = clean
        mixed = of_each if of_each and len(of_each) > 1 else {}
        if mixed:
            record["val_losses"] = {name: value for name, (_, value) in mixed.items()}
        if experts is not None:
            record["experts"] = experts
        if sample is not None:
            record["sample"] = self.config.evaluation.sample_prompt + sample
        record |= answers
        self._record(record)
        line = f"step {step}: validation loss {loss:.4f}"
        terms = [f"{share:.3g} {name} {value:.4f}" for name, (share, value) in mixed.items()]
        line += f" = {' + '.join(terms)}" if terms else ""
        if averaged is not None:
            line += f", averaged weights {averaged:.4f}"
        self.say(f"{line}{', the lowest so far' if is_best else ''}")
        if answers:
            self.say(f"  {right_in_words(answers)}")
        if sample is not None:
            shown = CONTROL.sub("\ufffd", self.config.evaluation.sample_prompt + sample)
            self.say("\n".join(f"  | {line}" for line in shown.strip("\n").split("\n")))

    def inside(self, step: int, found: dict) -> None:
        """Record what a look inside the model found after `step` steps."""
        self._record({"step": step, "inside": found})

    def _trace(self, step: int) -> None:
        """Let the profile begin or end after a step; that takes no time of the steps."""
        if not self.profile.steps:
            return
        before = time.perf_counter()
        if words := self.profile.after(step):
            self.say(words)
        self.last_time += time.perf_counter() - before

    def _record(self, record: dict) -> None:
        if self.run is not None:
            self.run.append(record)
        if self.tracker is not None:
            try:
                self.tracker(record)
            except Exception as error:  # a tracker must never end a run
                logger.warning("Logging to the tracker stopped (%s).", error)
                self.tracker = None

    def close(self) -> None:
        """Remove the bar; write the trace of a start that ended early, and what a tracker holds."""
        self.terminal.close()
        if words := self.profile.end():
            self.say(words)
        finish, self.tracker = getattr(self.tracker, "finish", None), None
        if finish is not None:
            try:
                finish()
            except Exception as error:
                logger.warning("Logging to the tracker stopped (%s).", error)


def right_in_words(answers: Mapping, with_lengths: bool = True) -> str:
    """How many answers are right, of the fields of a record."""
    lengths = answers["accuracy_by_length"]
    words = f"{answers['accuracy']:.1%} of the answers to unseen problems are exactly right"
    if "train_accuracy" in answers:
        words += f", {answers['train_accuracy']:.1%} of those it trains on"
    if with_lengths and len(lengths) > 1:
        each = ", ".join(f"{name}: {n / total:.0%}" for name, (n, total) in lengths.items())
        words += f"; by length {each}"
    return words
