"""Train one run and measure it on the whole validation split.

compare and sweep do it in their own process. For the code of a git revision, this file's text runs
in a process that imports that code (`paired_runs.train_in_child`), so it imports as little as
possible, and nothing from gptlab.analysis.
"""

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path


def train_and_measure(
    values: dict, sources: dict, folder: str, initial: str | None = None, shows_bar: bool = False
) -> dict | None:
    """Train or continue the run in `folder`, and measure its last weights; None: it was stopped.

    values, sources: its overrides. initial: where the initial tensors are written. shows_bar: of
    its steps, on stderr. The result has the numbers of a line of results.jsonl; the losses of the
    windows go into validation.npz beside the checkpoint. The weights are those after the last step,
    the averaged ones where ema_decay is on. Raises GPTLabError.
    """
    from gptlab.runs import Run

    stopped = train_quietly(values, sources, folder, shows_bar)
    return measure_run(Run(folder), initial) if stopped == {} else stopped


def train_quietly(values: dict, sources: dict, folder: str, shows_bar: bool) -> dict | None:
    """Train or continue the run in `folder`: {}, or {"diverged": why}; None: it was stopped."""
    from gptlab.errors import TrainingError
    from gptlab.runs import Run
    from gptlab.training.config import Overrides, layer
    from gptlab.training.trainer import train

    start = {"out_dir": str(folder), "quiet": not shows_bar}
    if Run(folder).exists():
        length = {"max_iters": values["max_iters"]} if "max_iters" in values else {}
        overrides = layer(command_line={**start, "resume": True, **length})
    else:
        own = dict.fromkeys(start, "command line")
        overrides = Overrides({**values, **start}, {**sources, **own})
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            outcome = train(overrides)
    except TrainingError as error:
        return {"diverged": str(error)}
    return None if outcome.exit_code else {}


def measure_run(run, initial: str | None = None) -> dict:
    """The numbers of a finished run; `validation.npz` and, where asked, its initial tensors."""
    import math

    import numpy as np
    import torch

    from gptlab.checkpoints import read_checkpoint
    from gptlab.data.mixture import open_part
    from gptlab.files import atomic_write
    from gptlab.inference.evaluate import PASS_TOKENS, window_losses
    from gptlab.runs import load_checkpoint
    from gptlab.training.config import build

    content = read_checkpoint(run.checkpoint)
    config = build(content["train_config"]["resolved"])
    device, block_size = config.machine.device, config.model.block_size
    checkpoint = load_checkpoint(run.checkpoint, device)
    model = checkpoint.model
    if content.get("ema"):
        model.load_state_dict(content["ema"], strict=False)
    dataset = open_part(config.run.dataset, content["train_config"]["values"].get("vocab_size"))
    held_out = dataset.validation(block_size)
    rows = max(1, PASS_TOKENS // block_size)
    nats, targets = window_losses(
        model, held_out.tokens, held_out.starts, held_out.block_size, rows, device,
        loss_mask=held_out.loss_mask, separator=checkpoint.separator,
    )  # fmt: skip
    with atomic_write(run.folder / "validation.npz") as file:
        np.savez(file, nats=nats, targets=targets, block_size=block_size)
    if initial is not None:
        import safetensors.torch

        from gptlab.model.transformer import GPT

        torch.manual_seed(config.run.seed)  # as the training drew them
        drawn = {name: w.detach() for name, w in GPT(config.model).named_parameters()}
        with atomic_write(initial) as file:
            file.write(safetensors.torch.save(drawn))
    records = run.records()
    rates = [r["tokens_per_second"] for r in records if r.get("tokens_per_second")][1:]
    curve = []
    for record in records:
        found = [record.get(name) for name in ("val_loss", "ema_val_loss")]
        if losses := [loss for loss in found if loss is not None]:
            curve.append([record["step"] * config.tokens_per_step, min(losses)])
    return {
        "loss": math.fsum(nats) / int(targets.sum()),
        "steps": content["step"],
        "tokens": content["step"] * config.tokens_per_step,
        "tokens_per_second": sorted(rates)[len(rates) // 2] if rates else None,
        "flops_per_token": config.flops_per_token,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "curve": curve,
    }


def run_as_child(argv: list[str]) -> int:
    """`SPEC RESULT`: train what a JSON file describes and write the result to another."""
    from gptlab.errors import GPTLabError

    specification, result = map(Path, argv)
    try:
        found = train_and_measure(**json.loads(specification.read_text(encoding="utf-8")))
    except GPTLabError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        found = None
    if found is None:
        return 130
    result.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_as_child(sys.argv[1:]))
