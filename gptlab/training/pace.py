"""How each of the processes that train together fares: its own speed, its waits, its memory."""

import contextlib
import sys
import time

import torch

from gptlab.training.parallel import Parallel


class Pace:
    """What each process did between two records; all of them call it at the same points.

    On a CPU a process that waits for the others sleeps. So the time that its main thread computed,
    or wanted to, is its own, and the slowest has the most of it. A GPU's own time cannot be told
    from its waits in this way: there all have the speed of the slowest.
    """

    def __init__(self, parallel: Parallel, tokens_per_step: int):
        self.parallel = parallel
        self.tokens = tokens_per_step / parallel.world_size
        self.is_cpu = torch.device(parallel.device).type == "cpu"
        self.own = 0.0 if parallel.world_size == 1 else own_seconds()

    @contextlib.contextmanager
    def apart(self):
        """Leave what happens here out of the next record."""
        before = 0.0 if self.parallel.world_size == 1 else own_seconds()
        yield
        if self.parallel.world_size > 1:
            self.own += own_seconds() - before

    def begin(self) -> None:
        """The loop begins."""
        self.own = 0.0 if self.parallel.world_size == 1 else own_seconds()

    def record(self, steps: int, seconds: float, data_share: float) -> dict:
        """The field of a record for these steps, alike in all processes; {} for a single one."""
        if self.parallel.world_size == 1:
            return {}
        own = own_seconds()
        worked = min(seconds, max(1e-9, own - self.own)) if self.is_cpu else seconds
        found = {
            "tokens_per_second": round(steps * self.tokens / worked, 1),
            "busy": round(worked / seconds, 4),
            "data_share": round(data_share, 4),
            "memory": peak_memory(self.parallel.device),
        }
        each = self.parallel.gather(lambda: found)
        self.own = own_seconds()
        processes = {name: [its[name] for its in each] for name in found}
        if self.is_cpu:
            processes["slowest"] = processes["busy"].index(max(processes["busy"]))
        else:
            del processes["busy"]
        return {"processes": processes}


def own_seconds() -> float:
    """Seconds that this thread has computed, or could have if it had been given a core (Linux)."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as file:
            ran, waited, _ = file.read().split()
        return (int(ran) + int(waited)) / 1e9
    except (OSError, ValueError):
        return time.thread_time()


def peak_memory(device: str) -> int:
    """Bytes that this process held at most so far: tensors on a GPU, everything on a CPU; 0 where
    that is not known."""
    kind = torch.device(device).type
    if kind in ("cuda", "xpu"):
        return getattr(torch, kind).max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
