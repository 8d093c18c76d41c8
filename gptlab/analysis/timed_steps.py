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
    """Take the steps that standard input asks for, until it ends."""
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

    def seconds(steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            train_step(setup, state)
        hardware.synchronize(device)
        return (time.perf_counter() - begin) / steps

    seconds(1)  # warms up
    _answer({"unknown": unknown, "seconds": seconds(1)})
    for line in sys.stdin:
        _answer({"seconds": seconds(int(line))})
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = _peak_of_process()
    _answer({"memory": peak})


def _peak_of_process() -> int:
    """The largest memory of this process in bytes; 0 on Windows, which does not say."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes


def _answer(line: dict) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    print_timed_steps()
