"""What a run says: the progress bar, the lines, metrics.jsonl, and the closing words."""

import contextlib
import logging
import math
import re
import sys
import time

from tqdm import tqdm

from gptlab.files import display
from gptlab.runs import Run
from gptlab.training.config import TrainConfig

logger = logging.getLogger(__name__)

# what would ring, clear or recolour a terminal; an untrained model writes such characters
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
LINE_SECONDS = 5.0  # between lines of a run whose output is not a terminal
BASELINES = {"5gram": "5-gram", "lzma": "lzma", "unigram": "unigram"}


class Text:
    """The units of a dataset's text, which turn nats per token into bits per byte."""

    def __init__(self, meta: dict | None):
        meta = meta or {}
        part = "val_counted" if meta.get("val_counted_tokens") else "val"
        tokens, size = meta.get(f"{part}_tokens"), meta.get(f"{part}_bytes")
        self.tokens_per_byte = tokens / size if tokens and size else None
        found = meta.get("baselines") or {}
        self.baselines = {
            label: float(found[key]) for key, label in BASELINES.items() if found.get(key)
        }

    def bits_per_byte(self, loss: float) -> float | None:
        """A loss in nats per token as bits per byte of text, where the sizes are known."""
        if self.tokens_per_byte is None:
            return None
        return loss / math.log(2) * self.tokens_per_byte

    def levels(self) -> dict[str, float]:
        """Each baseline as a loss in nats per token, for a plot."""
        if self.tokens_per_byte is None:
            return {}
        return {
            label: bits * math.log(2) / self.tokens_per_byte
            for label, bits in self.baselines.items()
        }


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Metrics:
    """Says and records how a run goes. Only the first process says and writes anything.

    peak: FLOP/s of the device, or None when it is not known; a measured step above it raises it,
    so that the share shown (MFU, Chowdhery et al. 2022) is never above 100%.
    """

    def __init__(self, config: TrainConfig, run: Run | None, text: Text, *, first: bool, peak):
        self.config, self.run, self.text = config, run, text
        self.loud = first and not config.run.quiet
        self.first = first
        self.peak = peak
        self.bar = None
        self.last_time, self.last_step = time.perf_counter(), 0
        self.last_line = self.last_reading = 0.0
        self.val_loss = self.rate = self.share = None
        self.tracker = None

    def say(self, text: str = "") -> None:
        """Print a line above the bar."""
        if self.loud:
            with tqdm.external_write_mode(file=sys.stdout):
                try:
                    print(text, flush=True)
                except UnicodeEncodeError:  # a console must not end a run
                    known = sys.stdout.encoding
                    print(text.encode(known, "replace").decode(known), flush=True)

    def begin(self, step: int, tracker=None) -> None:
        """The loop begins at `step`."""
        self.tracker = tracker
        self.last_time, self.last_step = time.perf_counter(), step
        if self.loud and sys.stderr.isatty():
            self.bar = tqdm(
                total=self.config.batch.max_iters,
                initial=step,
                unit="step",
                desc="training",
                dynamic_ncols=True,
                smoothing=0.05,
                bar_format="{desc} {n_fmt}/{total_fmt} |{bar:12}| {remaining} left{postfix}",
            )

    @contextlib.contextmanager
    def paused(self):
        """Around work that is not a step, so that tokens/s counts steps only."""
        before = time.perf_counter()
        yield
        self.last_time += time.perf_counter() - before

    def step(
        self, step: int, loss, grad_norm, rate: float, sequences: int, skipped: int, reading: float
    ) -> None:
        """After step number `step` (1 = the first): show it, and record it at every log_interval.

        loss and grad_norm are tensors; reading them waits for the device, so only then. reading:
        seconds that went into reading text, so far.
        """
        if self.bar is not None:
            self.bar.update(1)
        if step % self.config.evaluation.log_interval and step != 1:
            return
        now = time.perf_counter()
        loss, grad_norm = float(loss), float(grad_norm)
        steps = max(1, step - self.last_step)
        seconds = max(1e-9, now - self.last_time)
        tokens_per_second = steps * self.config.tokens_per_step / seconds
        data_share = min(1.0, (reading - self.last_reading) / seconds)
        self.last_time, self.last_step, self.last_reading = now, step, reading
        self.rate = tokens_per_second
        record = {
            "step": step,
            "loss": loss,
            "bits_per_byte": self.text.bits_per_byte(loss),
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "sequences_seen": sequences,
            "skipped_steps": skipped,
            "tokens_per_second": round(tokens_per_second, 1),
            "data_share": round(data_share, 4),
            "time": round(time.time(), 3),
        }
        if self.peak:
            flops = tokens_per_second * self.config.flops_per_token
            self.peak = max(self.peak, flops)
            self.share = flops / self.peak
            record["mfu"] = round(self.share, 4)
        self._record(record)
        self._show(step, loss)

    def rolled_back(self, step: int, spike: int, loss: float, sequences: tuple[int, int]) -> None:
        """The loss jumped at step `spike`: the run stands at `step` again, past some sequences."""
        first, end = sequences
        back = {"spike_step": spike, "spike_loss": loss, "skipped_sequences": [first, end]}
        self._record({"step": step, "rolled_back": back})
        self.say(
            f"The loss jumped to {loss:.3g} at step {spike}: back to the checkpoint of step {step},"
            f" and past the {end - first:,} sequences since ({first:,} to {end - 1:,})."
        )
        self.last_time, self.last_step = time.perf_counter(), step
        if self.bar is not None:
            self.bar.n = step
            self.bar.refresh()

    def diverged(self, step: int, loss: float) -> None:
        """The training ends at this step, because its loss is hopeless."""
        self._record({"step": step, "loss": loss, "diverged": True})

    def _show(self, step: int, loss: float) -> None:
        if not self.loud:
            return
        share = f" mfu {self.share:.0%}" if self.share is not None else ""
        if self.bar is not None:
            val = f" val {self.val_loss:.3f}" if self.val_loss is not None else ""
            bits = self.text.bits_per_byte(loss)
            bits = f" ({bits:.2f} b/B)" if bits is not None else ""
            self.bar.set_postfix_str(f" loss {loss:.3f}{bits}{val} {self.rate:,.0f} tok/s{share}")
        elif time.perf_counter() - self.last_line > LINE_SECONDS or step == 1:
            self.last_line = time.perf_counter()
            total = self.config.batch.max_iters
            left = (total - step) * self.config.tokens_per_step / max(1.0, self.rate)
            self.say(
                f"step {step}/{total}: loss {self.in_words(loss)}, {self.rate:,.0f} tokens/s"
                f"{share.replace(' mfu', ', mfu')}, {duration(left)} left"
            )

    def in_words(self, loss: float) -> str:
        """A loss with its bits per byte beside it."""
        bits = self.text.bits_per_byte(loss)
        return f"{loss:.4f}" + (f" ({bits:.3f} bits/byte)" if bits is not None else "")

    def evaluation(
        self,
        step: int,
        loss: float,
        averaged: float | None,
        is_best: bool,
        sample: str | None = None,
    ) -> None:
        """Record and say the validation loss after `step` steps, and what the model writes then."""
        self.val_loss = loss if averaged is None else min(loss, averaged)
        record = {
            "step": step,
            "val_loss": loss,
            "val_bits_per_byte": self.text.bits_per_byte(loss),
        }
        if averaged is not None:
            record["ema_val_loss"] = averaged
        if sample is not None:
            record["sample"] = self.config.evaluation.sample_prompt + sample
        self._record(record)
        line = f"step {step}: validation loss {self.in_words(loss)}"
        if averaged is not None:
            line += f", averaged weights {averaged:.4f}"
        mark = ", the lowest so far" if is_best else ""
        self.say(f"{line}{mark}{self.beside_baselines(self.val_loss)}")
        if sample is not None:
            shown = CONTROL.sub("\ufffd", self.config.evaluation.sample_prompt + sample)
            self.say("\n".join(f"  | {line}" for line in shown.strip("\n").split("\n")))

    def beside_baselines(self, loss: float) -> str:
        """The loss set beside what simple programs reach on the same text."""
        bits = self.text.bits_per_byte(loss)
        if bits is None or not self.text.baselines:
            return ""
        levels = ", ".join(f"{label} {value:.2f}" for label, value in self.text.baselines.items())
        return f" [{levels}]"

    def _record(self, record: dict) -> None:
        if self.run is not None and self.first:
            self.run.append(record)
        if self.tracker is not None:
            try:
                self.tracker(record)
            except Exception as error:  # a tracker must never end a run
                logger.warning("Logging to the tracker stopped (%s).", error)
                self.tracker = None

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def make_tracker(config: TrainConfig, folder):
    """A callable that sends a record to TensorBoard or W&B, or None; a failure is a warning."""
    if config.run.log_to == "none":
        return None
    try:
        if config.run.log_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder))

            def send(record):
                for name, value in record.items():
                    if isinstance(value, (int, float)) and name not in ("step", "time"):
                        writer.add_scalar(name, value, record["step"])
                writer.flush()

            return send
        import wandb

        # never asks for a key: without one the run is kept locally
        mode = "online" if wandb.api.api_key else "offline"
        session = wandb.init(dir=str(folder), config=config.flat(), mode=mode)
        return lambda record: session.log(record, step=record["step"])
    except Exception as error:
        logger.warning(
            "log_to %s is not available (%s): install it with `pip install %s`; training goes on.",
            config.run.log_to,
            error,
            config.run.log_to,
        )
        return None


def closing_words(metrics: Metrics, best_step: int, best_loss: float, step: int) -> list[str]:
    """What the run reached and what that means, as lines."""
    lines = [f"Lowest validation loss {metrics.in_words(best_loss)} at step {best_step}."]
    bits = metrics.text.bits_per_byte(best_loss)
    if bits is not None and metrics.text.baselines:
        beaten = [label for label, level in metrics.text.baselines.items() if bits < level]
        unbeaten = [label for label in metrics.text.baselines if label not in beaten]
        levels = ", ".join(f"{k} {v:.3f}" for k, v in metrics.text.baselines.items())
        verdict = f"better than {' and '.join(beaten)}" if beaten else "better than none of them"
        if unbeaten and beaten:
            verdict += f", not yet than {' and '.join(unbeaten)}"
        lines.append(f"Baselines in bits/byte: {levels}: the model is {verdict}.")
    interval = metrics.config.evaluation.eval_interval
    if step - best_step >= 2 * interval:
        lines.append(
            f"After step {best_step} the model overfitted: the training loss fell and the "
            f"validation loss rose. best.pt is from step {best_step}; more text, more dropout, a "
            "smaller model or --early_stopping 3 would help."
        )
    if metrics.run is not None:
        lines.append(f"Wrote {display(metrics.run.best)} and {display(metrics.run.plot)}.")
    return lines
