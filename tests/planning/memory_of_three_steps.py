"""Prints {"planned": bytes, "measured": bytes} of a training in this process, as JSON.

The measured figure is the process's high-water mark after the third step less what it held before
the model was built. Run in a fresh process by test_plan.py, with the options as JSON.
"""

import json
import sys

import torch

from gptlab.model.lora import train_only
from gptlab.model.transformer import GPT
from gptlab.training.config import build
from gptlab.training.memory import step_memory
from gptlab.training.precision import Precision, clip_grad_norm
from gptlab.training.session import make_optimizers, settle_torch


def held(field):
    """Bytes of this process: "VmRSS" now, "VmHWM" at most so far."""
    with open("/proc/self/status", encoding="utf-8") as file:
        line = next(line for line in file if line.startswith(field))
    return 1024 * int(line.split()[1])


config = build(dict(json.loads(sys.argv[1]), device="cpu", dtype="float32"))
size, micro_batches = config.batch.batch_size, config.batch.gradient_accumulation_steps
settle_torch("cpu")
before = held("VmRSS")
model = GPT(config.model).train()
train_only(model, config.trained, config.finetune.lora_alpha)
optimizers = make_optimizers(model, config, "float32")
precision = Precision("cpu", "float32", False)
for _ in range(3):
    for _ in range(micro_batches):
        tokens = torch.randint(config.model.vocab_size, (size, config.model.block_size + 1))
        _, loss = model(tokens[:, :-1], tokens[:, 1:], reduction="sum")
        precision.backward(loss / (tokens.numel() * micro_batches))
    precision.step(optimizers, clip_grad_norm(model, 1.0))
    optimizers.zero_grad()
measured = held("VmHWM") - before
planned = step_memory(config, "cpu")
print(json.dumps({"planned": sum(planned.values()), "measured": measured, "rows": planned}))
