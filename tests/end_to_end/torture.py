"""Kills one training with SIGKILL again and again, resumes it, and compares it with a quiet one.

Run by test_torture.py with the plan as JSON; prints what it found as JSON. Every attempt is a
process of its own, a fork of this one, which has imported everything and computed nothing: that
saves the seconds of `import torch`. Half of the kills come from outside at a random instant. The
others come from inside, at the n-th of the moments that matter: a step, a window of an evaluation,
and each write, fsync, link and rename of a file. Of several processes any may be the one that is
killed; the others follow at once, as torchrun has it.
"""

import functools
import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from gptlab import checkpoints, runs
from gptlab.checkpoints import read_checkpoint
from gptlab.cli.main import main
from gptlab.runs import Run
from gptlab.training import evaluation, loop, trainer

assert trainer  # imported here, so that no attempt has to
CLOCKS = ("time", "tokens_per_second", "mfu", "data_share", "processes")
LONGEST = 300  # seconds of an attempt


class Moments:
    """Counts the moments that matter by their kind, and kills this process at one of them."""

    def __init__(self, kind="", last=0):
        self.seen, self.kind, self.last = {}, kind, last

    def before(self, owner, name):
        function = getattr(owner, name)

        @functools.wraps(function)
        def counting(*args, **options):
            self.seen[name] = self.seen.get(name, 0) + 1
            if name == self.kind and self.seen[name] == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        setattr(owner, name, counting)

    def install(self):
        for owner, name in (
            (os, "fsync"), (os, "replace"), (os, "link"), (checkpoints._Remembering, "write"),
            (runs.Run, "append"), (loop, "train_step"), (loop, "evaluate"),
            (evaluation, "window_losses"),
        ):  # fmt: skip
            self.before(owner, name)


def attempt(plan, folder, moment=("", 0), seconds=None, victim=0):
    """Start or resume the run of `folder`; (was it killed, moments seen by kind) at its end.

    victim: the process to kill, and whose moments are counted.
    """
    options = [f"--{name}={value}" for name, value in plan["options"].items()]
    if Run(folder).checkpoint.exists():
        options = ["--resume", "--quiet"]
    argv = ["train", *options, f"--out_dir={folder}"]
    world_size, ranks = plan["world_size"], []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    seen = folder.parent / "seen"
    seen.write_text("{}", encoding="utf-8")
    for rank in range(world_size):
        child = os.fork()
        if not child:
            if world_size > 1:
                os.environ.update(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size),
                    LOCAL_WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=str(port),
                )  # fmt: skip
            is_victim = rank == victim
            run_one(argv, Moments(*moment) if is_victim else Moments(), seen if is_victim else None)
        ranks.append(child)
    status = wait_for(ranks.pop(victim), seconds)
    for other in ranks:
        if os.WIFSIGNALED(status):
            os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{' '.join(argv)} ended with {os.waitstatus_to_exitcode(status)}")
    return os.WIFSIGNALED(status), json.loads(seen.read_text(encoding="utf-8"))


def run_one(argv, moments, seen):
    """Train in this process, which ends here."""
    code = 1
    try:
        moments.install()
        code = main(argv)
        if seen is not None:
            seen.write_text(json.dumps(moments.seen), encoding="utf-8")
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait_for(child, seconds):
    """The status with which a child ends; after `seconds` it is killed."""
    end = time.monotonic() + (LONGEST if seconds is None else seconds)
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    if seconds is None:
        raise SystemExit(f"an attempt took longer than {LONGEST} s")
    return os.waitpid(child, 0)[1]


def differing(one, other, path):
    """Paths of the leaves that are not bitwise equal in two nested states."""
    if isinstance(one, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    if isinstance(one, dict) and one.keys() == other.keys():
        return [leaf for key in one for leaf in differing(one[key], other[key], f"{path}/{key}")]
    return [] if one == other else [path]


def differences(whole, broken):
    """What two finished runs do not have in common, clocks and names aside."""
    found = []
    for name in ("checkpoint", "best"):
        one, other = (read_checkpoint(getattr(Run(folder), name)) for folder in (whole, broken))
        for state in (one, other):
            state.pop("sha256", None)  # shards have it beside them
            del state["train_config"]
        found += differing(one, other, name)
    one, other = (
        [{n: v for n, v in r.items() if n not in CLOCKS} for r in Run(folder).records()]
        for folder in (whole, broken)
    )
    found += [f"metrics.jsonl: {a} or {b}" for a, b in zip(one, other, strict=False) if a != b]
    if len(one) != len(other):
        found.append(f"metrics.jsonl: {len(one)} or {len(other)} records")
    traces = [(folder / "trace.jsonl").read_bytes() for folder in (whole, broken)]
    found += ["trace.jsonl"] * (traces[0] != traces[1])
    return found + [f"stray {path.name}" for path in broken.glob(".*.tmp")]


def torture(plan):
    """Kill and resume as often as planned; what was seen, as a dict."""
    out, source = Path(plan["out"]), random.Random(plan["seed"])
    began = time.monotonic()
    was_killed, of_first = attempt(plan, out / "whole")
    seconds = time.monotonic() - began
    moments = [of_first]  # of each process, by their kind
    for rank in range(1, plan["world_size"]):
        was_killed, seen = attempt(plan, out / f"seen{rank}", victim=rank)
        moments.append(seen)
    assert not was_killed and of_first["train_step"] == plan["options"]["max_iters"]
    result = {"kills": 0, "from_outside": 0, "inside": {}, "finished": 0, "differences": []}
    folder = out / "broken0"
    while result["kills"] < plan["kills"]:
        victim = source.randrange(plan["world_size"])
        if source.random() < 0.4:
            wait = source.uniform(0.1, 0.8) * seconds
            was_killed, _ = attempt(plan, folder, seconds=wait, victim=victim)
            result["from_outside"] += was_killed
        else:
            kind = source.choice(sorted(moments[victim]))
            moment = (kind, source.randint(1, 1 + moments[victim][kind] // 5))
            was_killed, _ = attempt(plan, folder, moment, victim=victim)
            result["inside"][kind] = result["inside"].get(kind, 0) + was_killed
        result["kills"] += was_killed
        if not was_killed:
            result["finished"] += 1
            result["differences"] += differences(out / "whole", folder)
            folder = out / f"broken{result['finished']}"
    attempt(plan, folder)
    result["differences"] += differences(out / "whole", folder)
    return result


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    if wanted["options"].get("parallelism", "auto") != "auto":
        import torch.distributed.checkpoint
        import torch.distributed.fsdp  # so that no attempt has to
    print(json.dumps(torture(wanted)))
