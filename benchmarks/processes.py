"""Measure whole processes: wall time, peak memory of the process tree, first output."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.05  # between two readings of the memory


@dataclass(frozen=True)
class Ended:
    """A process that has succeeded. peak: bytes of it and its children together, at one moment."""

    seconds: float
    peak: int | None
    output: str


def run(command: Sequence, folder=None, environment: dict | None = None) -> Ended:
    """Run a command to its end, without a shell; its stderr is shown only if it fails."""
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as output:
        begin = time.perf_counter()
        child = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=errors,
        )
        with _watched(child.pid) as peak:
            code = child.wait()
        seconds = time.perf_counter() - begin
        output.seek(0), errors.seek(0)
        if code:
            sys.stderr.write(errors.read().decode(errors="replace")[-4000:])
            raise RuntimeError(f"{' '.join(map(str, command))} ended with exit code {code}.")
        return Ended(seconds, max(peak, default=None), output.read().decode(errors="replace"))


def in_a_process_of_its_own(script: str, argv: Sequence, environment: dict | None = None) -> dict:
    """The JSON that `script` prints when it is called with `argv`."""
    return json.loads(run([sys.executable, script, *argv], None, environment).output)


def seconds_until(
    done: Callable[[bytes], bool], command: Sequence, folder=None, environment: dict | None = None
) -> float:
    """Seconds until `done(stdout so far)` is true; then the process is ended.

    Raises RuntimeError if that never happens. The process must not buffer its output; one that ends
    by itself is waited for.
    """
    seen = b""
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            while not done(seen):
                part = os.read(child.stdout.fileno(), 1 << 16)
                if not part:
                    errors.seek(0)
                    sys.stderr.write(errors.read().decode(errors="replace")[-4000:])
                    raise RuntimeError(f"{' '.join(map(str, command))} ended too early.")
                seen += part
            return time.perf_counter() - begin
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


@contextlib.contextmanager
def _watched(process: int):
    """A list whose maximum is the peak memory of a process tree; empty except on Linux."""
    looks: list[int] = []
    over = threading.Event()

    def watch():
        while not over.is_set():
            used = sum(_memory(number) for number in _tree(process))
            if used:
                looks[:] = [max([used, *looks])]
            over.wait(SAMPLE_SECONDS)

    thread = threading.Thread(target=watch, daemon=True)
    if Path("/proc/self/smaps_rollup").exists():
        thread.start()
    try:
        yield looks
    finally:
        over.set()
        if thread.is_alive():
            thread.join()


def _tree(process: int) -> list[int]:
    """A process and its children, their children, and so on."""
    children = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(OSError):
                children += [int(word) for word in (task / "children").read_text().split()]
    return [process, *(number for child in children for number in _tree(child))]


def _memory(process: int) -> int:
    """Bytes of a process; shared pages are split among their processes, so sums are right."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def forget_peak() -> None:
    """Restart the count of `own_peak`, if the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def own_peak() -> int:
    """The peak bytes of this process (on Linux since `forget_peak`)."""
    # not getrusage there: its figure starts with the parent's memory at the start of this process
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others KiB
