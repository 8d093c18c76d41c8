"""Tokens per second and memory of a step, beside those of another revision of the code."""

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from gptlab import hardware
from gptlab.analysis import timed_steps
from gptlab.analysis.check import CheckLine, Subject
from gptlab.analysis.revisions import environment, repository
from gptlab.errors import RunError
from gptlab.files import in_bytes
from gptlab.training.config import OPTIONS, TrainConfig

ROUNDS = 8  # of each side, in turn, so that a machine that slows down slows both
ROUND_SECONDS = 0.4
SLOWER, LARGER = 0.95, 1.1  # ratios that deserve a look: rounds of equal code vary by 3%


def beside_revision(revision: str, checkout: Path) -> Callable[[Subject], CheckLine]:
    """The check against a clean checkout of this revision."""
    return functools.partial(_speed, revision=revision, checkout=checkout)


def _speed(subject: Subject, *, revision: str, checkout: Path) -> CheckLine:
    config, sequences = _affordable(subject)
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(_Steps(repository(), config, sequences, subject))
        try:
            there = stack.enter_context(_Steps(checkout, config, sequences, subject))
        except RunError as error:
            return CheckLine("SKIP", f"the code of {revision} cannot take these steps ({error})")
        if lacks := there.lacks(config):
            return CheckLine("SKIP", f"{revision} has no option {lacks}, which is set here")
        steps = max(1, int(ROUND_SECONDS / here.first))
        times = [(here.take(steps), there.take(steps)) for _ in range(ROUNDS)]
        memory = here.end(), there.end()
    ratios = sorted(other / own for own, other in times)
    ratio, tokens = ratios[len(ratios) // 2], sequences * config.model.block_size
    own, other = (tokens / min(each) for each in zip(*times, strict=True))
    size = "the small shape" if config is not subject.original else "its own size"
    more = memory[0] / max(1, memory[1])
    sentence = (
        f"{own:,.0f} tokens/s, {revision} {other:,.0f}: {ratio:.2f} times as fast ({ratios[0]:.2f} "
        f"to {ratios[-1]:.2f} in {ROUNDS} rounds), {in_bytes(memory[0])} for "
        f"{in_bytes(memory[1])} of memory; {sequences} x {config.model.block_size} tokens at {size}"
    )
    # slower in the median, and in nearly all rounds
    slower = ratio < SLOWER and ratios[-2] < 1
    return CheckLine("WARN" if slower or more > LARGER else "PASS", sentence, ratio)


def _affordable(subject: Subject) -> tuple[TrainConfig, int]:
    """The own shape with as many sequences as take about half a second, else the small shape."""
    dtype = subject.choice.dtype
    peak = hardware.peak_flops(subject.device, dtype).value
    for config in (subject.original, subject.config):
        own = peak / 4 / (config.flops_per_token * config.model.block_size)
        if own >= 1:
            break
    sequences = max(1, min(int(own), config.sequences_per_step))
    if config is subject.config:
        return config.replace(dtype=dtype), sequences
    return config, sequences


class _Steps:
    """A process that takes steps with the code in a folder. RunError where it cannot."""

    def __init__(self, folder: Path, config: TrainConfig, sequences: int, subject: Subject):
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, timed_steps.__file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env={**environment(), "PYTHONPATH": str(folder)},
        )  # fmt: skip
        values = config.flat() | {"compile_model": False, "init_from": "scratch"}
        values |= {"lora_rank": 0, "freeze_layers": 0, "max_iters": 1000}
        asked = dict(
            values=values, sequences=sequences, device=subject.device,
            use_scaler=subject.choice.use_scaler,
        )  # fmt: skip
        try:
            answer = self._ask(json.dumps(asked))
        except BaseException:
            self.__exit__()
            raise
        self.unknown, self.first = answer["unknown"], answer["seconds"]

    def __enter__(self) -> "_Steps":
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(OSError):
                file.close()

    def _ask(self, line: str) -> dict:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        answer = self.process.stdout.readline()
        if not answer:
            self.errors.seek(0)
            lines = self.errors.read().strip().splitlines()
            raise RunError(lines[-1] if lines else "its process ended")
        return json.loads(answer)

    def lacks(self, config: TrainConfig) -> str:
        """An option that its code does not know and that has another value than the default."""
        values = config.flat()
        return next((n for n in self.unknown if values[n] != OPTIONS[n].default), "")

    def take(self, steps: int) -> float:
        """Seconds of a step."""
        return self._ask(str(steps))["seconds"]

    def end(self) -> int:
        """Its peak memory in bytes; it takes no more steps."""
        self.process.stdin.close()
        return self._answer()["memory"]
