"""Checks of what is written and read again: checkpoints, resumes, exports, a run's weights."""

import importlib
import tempfile
from pathlib import Path

import torch

from gptlab.analysis.check import CheckLine, Subject, within
from gptlab.analysis.check_model import ROUNDING, apart, logits_of
from gptlab.checkpoints import (
    Checkpoint,
    model_content,
    model_from,
    read_checkpoint,
    write_checkpoint,
)
from gptlab.data.tokenizer import char_tokenizer
from gptlab.errors import ConfigError
from gptlab.interop.read.models import read_model
from gptlab.interop.write.export import FORMATS
from gptlab.model.proof import difference_from
from gptlab.model.reference import disagreement
from gptlab.runs import Run, load_checkpoint
from gptlab.training import loop
from gptlab.training.building import build_state
from gptlab.training.measuring import random_setup
from gptlab.training.parallel import Parallel
from gptlab.training.resolving import Resolved


def save_and_load(subject: Subject) -> CheckLine:
    """Weights through a checkpoint file: the same logits."""
    model = subject.narrow
    tokens = subject.tokens(2, model.config.block_size, model.config.vocab_size)
    with tempfile.TemporaryDirectory(prefix="gptlab-check-") as folder:
        path = Path(folder) / "ckpt.pt"
        write_checkpoint(model_content(model, None), path)
        content = read_checkpoint(path)
        torch.manual_seed(1)  # what is drawn anew must not come out as before
        loaded = model_from(content, path, subject.device).eval()
    if reason := difference_from(content["proof"], loaded):
        return CheckLine("FAIL", f"a checkpoint comes back as another model: {reason}")
    return within(
        apart(logits_of(loaded, tokens), logits_of(model, tokens)),
        0.0 if subject.device == "cpu" else ROUNDING,
        "a checkpoint comes back with the same logits",
        "a checkpoint comes back with other logits, by {}",
    )


def resumes(subject: Subject) -> CheckLine:
    """Four steps, against two steps, a checkpoint, and two more: the same weights."""
    resolved = Resolved(random_setup(subject.config, 4).config, {})
    setup = random_setup(subject.config, 4)
    alone = Parallel.alone(subject.device)
    with tempfile.TemporaryDirectory(prefix="gptlab-check-") as folder:
        run = Run(folder)

        def begin(stored=None):
            first = Checkpoint(subject.build(), None, run.best, 0, None, {})
            start = first if subject.config.run.init_from != "scratch" else None
            if start is not None:
                first.content.update(model_content(start.model, None))
            return build_state(resolved, run, alone, stored, start)

        state = begin()
        for _ in range(2):
            loop.train_step(setup, state)
        extra = {
            "dataset": {},
            "train_config": {},
            "lora_alpha": subject.config.finetune.lora_alpha,
        }
        run.save(model_content(state.model, None, **state.content(), **extra))
        again = begin(run.load())
    for each in (state, again):
        for _ in range(2):
            loop.train_step(setup, each)
    worst = max(
        (a - b).abs().max().item() / max(a.abs().max().item(), 1e-30)
        for a, b in zip(state.model.parameters(), again.model.parameters(), strict=True)
    )
    return within(
        worst,
        0.0 if subject.device == "cpu" else ROUNDING,
        "two steps, a checkpoint and two steps: the weights of four steps",
        "two steps, a checkpoint and two steps: other weights than four steps, by {}",
    )


def export_and_import(subject: Subject) -> CheckLine:
    """Each format that this model can be written in, read back as the same weights."""
    model = subject.build().cpu().eval()
    known = min(model.config.vocab_size, 200)
    tokenizer = char_tokenizer(chr(0x4E00 + n) for n in range(known - 1))
    checkpoint = Checkpoint(model, tokenizer, Path("check/ckpt.pt"), 0, None, {})
    if disagreement(model):
        return CheckLine("SKIP", "exports refuse what is unlike model/reference.py")
    written, refused = [], ""
    for form in ("hf", "gguf"):
        with tempfile.TemporaryDirectory(prefix="gptlab-check-") as folder:
            format = importlib.import_module(FORMATS[form])
            try:
                format.check(checkpoint)
            except ConfigError as error:  # which names the settings
                refused = error.problem
                continue
            found = read_model(format.write(checkpoint, Path(folder) / f"model.{form}")).weights
        for name, value in model.state_dict().items():
            rows = known if name in ("token_embedding.weight", "lm_head.weight") else None
            if name in found and not torch.equal(found[name][:rows], value[:rows]):
                return CheckLine("FAIL", f"{form} comes back with another {name}")
        written.append(form)
    if not written:
        return CheckLine("SKIP", refused)
    return CheckLine("PASS", f"{' and '.join(written)} come back as the same weights")


def weights_of_run(subject: Subject) -> CheckLine:
    """A run's own checkpoint: whole, finite, and what its proof says."""
    checkpoint = load_checkpoint(subject.run)
    for name, weight in checkpoint.model.named_parameters():
        if not weight.isfinite().all():
            return CheckLine("FAIL", f"{name} is not finite")
    proof = checkpoint.content.get("proof")
    where = f"{checkpoint.path.name}, step {checkpoint.step:,}"
    if proof is None:
        return CheckLine("PASS", f"{where}: whole and finite; it is too old to carry a proof")
    if reason := difference_from(proof, checkpoint.model):
        return CheckLine("FAIL", f"{where}: its {reason} from those when it was saved")
    return CheckLine("PASS", f"{where}: whole, finite, and with the logits that it was saved with")


FILE_CHECKS = {
    "save and load": save_and_load,
    "resume": resumes,
    "export and import": export_and_import,
}
RUN_CHECKS = {"the run's weights": weights_of_run}
