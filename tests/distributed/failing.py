"""`python train.py` with a fault: `failing.py RANK STEP FAULT OPTIONS ...`.

After this step, on this process, once in a launch: a signal to itself (SIGKILL), to its launcher
(launcher:SIGUSR1) or to both (both:SIGTERM); `stuck` waits for ever, `error` raises one. Before the
training, FAULT is `start:` and a Python expression. Each process notes its number in pids.txt
beside the home.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from gptlab.cli.main import run_command
from gptlab.training.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]


def happen(fault: str) -> None:
    whom, _, name = fault.rpartition(":")
    if fault == "stuck":
        threading.Event().wait()
    if fault == "error":
        raise ZeroDivisionError("one divided by nothing")
    if whom in ("launcher", "both"):
        os.kill(os.getppid(), getattr(signal, name))
    if whom in ("", "both"):
        os.kill(os.getpid(), getattr(signal, name))


def main(rank: str, step: str, fault: str, *options: str) -> int:
    with open(Path(os.environ["GPTLAB_HOME"], "pids.txt"), "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    recorded = Metrics.step

    def step_with_fault(metrics, state, *rest):
        recorded(metrics, state, *rest)
        if state.step == int(step):
            happen(fault)

    is_first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    sys.argv = [str(ROOT / "train.py"), *options]
    if os.environ["RANK"] == rank and is_first_start:
        if fault.startswith("start:"):
            exec(fault.removeprefix("start:"))
        else:
            Metrics.step = step_with_fault
    return run_command("train", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
