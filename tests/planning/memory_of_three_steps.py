"""Prints {"planned": bytes, "measured": bytes} of a training in this process, as JSON.

The measured figure is the process's high-water mark after the third step less what it held before
the model was built. Run in a fresh process by test_plan.py, with the options as JSON.
"""

import json
import sys

from gptlab.hardware import Choice
from gptlab.training.building import settle_torch
from gptlab.training.config import build
from gptlab.training.loop import train_step
from gptlab.training.measuring import rehearsal
from gptlab.training.memory import step_memory


def held(field):
    """Bytes of this process: "VmRSS" now, "VmHWM" at most so far."""
    with open("/proc/self/status", encoding="utf-8") as file:
        line = next(line for line in file if line.startswith(field))
    return 1024 * int(line.split()[1])


resolved = dict(device="cpu", dtype="float32", warmup_iters=0, lr_decay_iters=9, min_lr=1e-4)
config = build({**json.loads(sys.argv[1]), **resolved})
sequences, micro_batches = config.batch.batch_size, config.batch.gradient_accumulation_steps
settle_torch("cpu")
before = held("VmRSS")
setup, state = rehearsal(config, Choice("cpu", "float32", False, "cpu"), sequences, micro_batches)
for _ in range(3):
    train_step(setup, state)
measured = held("VmHWM") - before
planned = step_memory(config, "cpu")
print(json.dumps({"planned": sum(planned.values()), "measured": measured, "rows": planned}))
