"""Twenty losses of each small recipe on a generated text: what any change to training must keep.

After a change that is meant to alter them, write them anew and look at the difference:

    GPTLAB_UPDATE_GOLDEN=1 python -m pytest tests/training/test_golden.py
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from gptlab.runs import Run
from gptlab.training import trainer
from gptlab.training.config import layer, read_recipe
from gptlab.training.picture import Picture

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
NEEDS_MORE = ("gpt2_124m", "finetune_shakespeare")  # than a text: a GPU, a pretrained model
RECIPES = [path for path in sorted((ROOT / "config").glob("*.py")) if path.stem not in NEEDS_MORE]
STEPS = 20
# the text is another one, the batch smaller, and no dropout, whose draws differ between processors;
# all else is the recipe's
CHANGES = dict(
    dataset="tiny", batch_size=4, gradient_accumulation_steps=1, max_iters=STEPS, device="cpu",
    dtype="float32", compile_model=False, log_interval=1, eval_interval=STEPS, eval_tokens=256,
    dropout=0.0, quiet=True,
)  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_s_first_losses_are_those_on_record(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Picture, "draw", lambda *_: None)
    trainer.train(layer(read_recipe(recipe), dict(CHANGES, out_dir=str(tmp_path / "run"))))
    losses = [record["loss"] for record in Run(tmp_path / "run").records() if "loss" in record]
    assert len(losses) == STEPS
    path = GOLDEN / f"{recipe.stem}.json"
    if os.environ.get("GPTLAB_UPDATE_GOLDEN"):
        content = {"torch": torch.__version__, "losses": [round(loss, 6) for loss in losses]}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    assert path.exists(), f"{path.name} is missing: see the head of this file"
    recorded = json.loads(path.read_text(encoding="utf-8"))["losses"]
    np.testing.assert_allclose(losses[:5], recorded[:5], atol=1e-4)
    np.testing.assert_allclose(losses, recorded, atol=1e-2)  # processors round differently
