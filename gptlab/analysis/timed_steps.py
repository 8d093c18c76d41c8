"""Take steps of a training when asked, and say how long they took: runs in a process of its own.

`check --against` runs this file with the code of another revision, so of gptlab it imports only
what a rehearsal needs. In: one line of JSON, then a number of steps a line. Out: a line of JSON
each, and at the end the peak memory in bytes.
"""

import json
import sys
import time
import types


def print_timed_steps() -> None:
    """Answer standard input until it ends."""
    asked = json.loads(sys.stdin.readline())
    import torch

    from gptlab import hardware
    from gptlab.training import config as configuration
    from gptlab.training.building import settle_torch
    from gptlab.training.loop import train_step
    from gptlab.training.measuring import rehearsal

    device = asked["device"]
    settle_torch(device)
    unknown = [name for name in asked["values"] if name not in configuration.OPTIONS]
    config = configuration.build(asked["values"])
    choice = types.SimpleNamespace(device=device, use_scaler=asked["use_scaler"])
    setup, state = rehearsal(config, choice, asked["sequences"])
    for _ in range(2):  # the first warms up
        seconds = _timed(lambda: train_step(setup, state), hardware, device)
    _answer({"unknown": unknown, "seconds": seconds})
    for line in sys.stdin:
        steps = int(line)
        taken = _timed(lambda: [train_step(setup, state) for _ in range(steps)], hardware, device)  # noqa: B023
        _answer({"seconds": taken / steps})
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated()
    else:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak *= 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    _answer({"memory": peak})


def _timed(work, hardware, device: str) -> float:
    begin = time.perf_counter()
    work()
    hardware.synchronize(device)
    return time.perf_counter() - begin


def _answer(line: dict) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    print_timed_steps()
