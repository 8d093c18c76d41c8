"""Ablations at the size of nanoGPT's CPU run: the loss of each idea after the speedrun's steps.

    python benchmarks/ablation.py [--seeds 3] [--only "4 heads, value residual"] [--json FILE]

Each row changes one thing in config/speedrun.py and trains on the same number of tokens. The loss
is measured on the whole validation split of tiny Shakespeare. Ideas that gptlab did not adopt are
small patches here. Steps are timed interleaved with those of the unchanged recipe, so times are
ratios.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import report
import torch
import torch.nn.functional as F
from torch import nn

from gptlab.data.batches import Batches, Sequences
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.token_files import open_dataset
from gptlab.data.windows import evaluation_windows
from gptlab.inference.evaluate import evaluate_loss
from gptlab.model.transformer import GPT, rotate
from gptlab.training import config as configuration
from gptlab.training.optimizers import muon
from gptlab.training.optimizers.combined import Optimizers
from gptlab.training.precision import clip_grad_norm
from gptlab.training.schedules import learning_rate

# Ideas as patches: each takes the model and changes it in place -----------------------------------


def value_residual(model: GPT) -> None:
    """Mix the values of each layer and the first layer's, by learned weights (Zhou et al. 2024)."""
    first = {}

    def forward(attention, x, rotary, cache):
        B, T, _ = x.shape
        D = attention.config.head_dim
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        q, k, v = (projection(x).view(B, T, -1, D) for projection in projections)
        if attention.layer == 0:
            first["v"] = v
        else:
            v = attention.mix[0] * v + attention.mix[1] * first["v"]
        q, k = attention.q_norm(q), attention.k_norm(k)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        y = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)
        return attention.o_proj(y.transpose(1, 2).reshape(B, T, -1))

    for block in model.blocks:
        block.attention.mix = nn.Parameter(torch.tensor([0.5, 0.5]))
        block.attention.forward = forward.__get__(block.attention)


def soft_cap(model: GPT) -> None:
    """Cap the logits at +-15 by tanh (Gemma 2, 2024)."""

    def forward(tokens, targets, reduction):
        logits = model.unembed(model.features(tokens)).flatten(0, 1)
        capped = 15 * torch.tanh(logits / 15)
        return None, F.cross_entropy(
            capped, targets.flatten(), ignore_index=-1, reduction=reduction
        )

    model.forward = forward


def previous_tokens(model: GPT, reach: int = 1) -> None:
    """Add embeddings of the previous tokens, from separate tables, to each token's own."""
    own = model.token_embedding
    size = own.weight.shape

    class Smeared(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = own.weight
            self.before = nn.ParameterList(
                nn.Parameter(torch.randn(size) * model.config.init_std) for _ in range(reach)
            )

        def forward(self, tokens):
            x = F.embedding(tokens, self.weight)
            for distance, table in enumerate(self.before, 1):
                x[:, distance:] = x[:, distance:] + F.embedding(tokens[:, :-distance], table)
            return x

    model.token_embedding = Smeared()


def embedding_shortcut(model: GPT) -> None:
    """Mix the embedding into the input of each block (Jordan et al. 2024)."""
    blocks = model.blocks

    class Mixed(nn.Module):
        def __init__(self, block, kept):
            super().__init__()
            self.block, self.kept = block, kept
            self.mix = nn.Parameter(torch.tensor([1.0, 0.0]))

        def forward(self, x, *more):
            if self.block is blocks[0].block:
                self.kept["x"] = x
            return self.block(self.mix[0] * x + self.mix[1] * self.kept["x"], *more)

    kept = {}
    for index, block in enumerate(list(blocks)):
        blocks[index] = Mixed(block, kept)


def polar_express(*coefficients):
    """Muon with fewer steps, each the best quintic for what the last one left (Amsel et al. 2025).

    The Gram matrix's norm is a closer bound on the largest singular value than the matrix's own.
    """

    def orthogonalize(matrices, dtype, steps=None):
        wide = matrices.size(1) <= matrices.size(2)
        x = matrices if wide else matrices.mT
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        gram = x @ x.mT
        size = gram.norm(dim=(1, 2), keepdim=True) + 1e-7  # zero gradients stay zero
        x, gram = x / size.sqrt(), gram / size
        for index, (a, b, c) in enumerate(coefficients):
            if index:
                gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x if wide else x.mT

    return orthogonalize


# minimax for singular values from 0.005, 0.01 and 0.001 up
THREE = (8.2987, -24.4305, 18.0903), (3.9152, -2.9211, 0.5592), (3.1746, -2.3804, 0.4978)
FOUR = (
    (8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526),
    (1.9562, -1.3375, 0.3839),
)  # fmt: skip
FIVE = (
    (8.4703, -25.1081, 18.6293), (4.1828, -3.1087, 0.5806), (3.9619, -2.9541, 0.563),
    (3.2866, -2.4647, 0.5074), (2.2737, -1.6447, 0.4162),
)  # fmt: skip

# name -> options that change, a patch, or a replacement of Muon's orthogonalize
IDEAS = {
    "the recipe": {},
    "ReLU2 instead of SwiGLU": dict(use_swiglu=False, activation="relu2"),
    "no QK-norm": dict(qk_norm=False),
    "scaled projections": dict(init_projection="scaled"),
    "AdamW at 0.003": dict(optimizer="adamw", learning_rate=3e-3),
    "Muon's momentum 0.95": dict(muon_momentum=0.95),
    "rate 0.014": dict(learning_rate=0.014),
    "rate 0.007": dict(learning_rate=0.007),
    "embeddings at 3 times the rate": dict(rate_of_adamw=3.0),
    "Newton-Schulz of 3 steps": dict(muon=partial(muon.orthogonalize, steps=3)),
    "Newton-Schulz of 5 steps": dict(muon=partial(muon.orthogonalize, steps=5)),
    "Newton-Schulz of 3 best steps": dict(muon=polar_express(*THREE)),
    "Newton-Schulz of 4 best steps": dict(muon=polar_express(*FOUR)),
    "Newton-Schulz of 5 best steps": dict(muon=polar_express(*FIVE)),
    "batch 12 (as many tokens)": dict(batch_size=12, max_iters=4 / 3),
    "4 heads": dict(n_head=4),
    "3 layers of 160": dict(n_layer=3, n_embd=160, n_head=5),
    "weight decay 0.1": dict(weight_decay=0.1),
    "value residual": dict(patch=value_residual),
    "soft-capped logits": dict(patch=soft_cap),
    "embedding of the token before": dict(patch=previous_tokens),
    "embedding of the two before": dict(patch=partial(previous_tokens, reach=2)),
    "embedding into each block": dict(patch=embedding_shortcut),
}
PATCHES = ("patch", "muon", "rate_of_adamw")
QUICK = ["the recipe", "ReLU2 instead of SwiGLU"]


def settings(changes: dict, steps: int | None) -> dict:
    """The recipe's options with these changes; max_iters in them is a factor."""
    recipe = configuration.read_recipe(REPOSITORY / "config" / "speedrun.py")
    iters = round((steps or recipe["max_iters"]) * changes.get("max_iters", 1))
    options = {k: v for k, v in changes.items() if k not in PATCHES}
    return {**recipe, **options, "vocab_size": 66, "max_iters": iters, "lr_decay_iters": iters}


class Training:
    """One run of an idea, a step at a time."""

    def __init__(self, changes: dict, dataset, seed: int, steps: int | None = None):
        self.config = config = configuration.build({**settings(changes, steps), "seed": seed})
        torch.manual_seed(seed)
        self.model = GPT(config.model)
        if "patch" in changes:
            changes["patch"](self.model)
        self.optimizer = Optimizers(self.model, config, fast_dtype=torch.float32)
        self.rate_of_adamw = changes.get("rate_of_adamw", 1.0)
        self.muon = changes.get("muon", muon.orthogonalize)
        sequences = Sequences(
            dataset.train, vocab_size=66, block_size=config.model.block_size, seed=seed
        )
        rows = config.batch.batch_size
        self.batches = Batches(sequences, batch_size=rows, sequences_per_step=rows)
        self.step_number = 0

    def step(self) -> float:
        """Take one step; return its seconds."""
        begin = time.process_time()  # CPU time of one thread: other programs matter less
        config, rows = self.config, self.config.batch.batch_size
        rate = learning_rate(config, self.step_number)
        self.optimizer.set_learning_rate(rate)
        for group in self.optimizer.optimizers[0].param_groups:  # AdamW's
            group["lr"] = rate * self.rate_of_adamw
        for micro in self.batches.micro_batches(self.step_number * rows):
            _, loss = self.model(micro.tokens, micro.targets, reduction="sum")
            (loss / (rows * config.model.block_size)).backward()
        clip_grad_norm(self.model, config.optimizer.grad_clip)
        plain, muon.orthogonalize = muon.orthogonalize, self.muon
        self.optimizer.step(torch.zeros(()))
        muon.orthogonalize = plain
        self.optimizer.zero_grad()
        self.step_number += 1
        return time.process_time() - begin

    def finish(self, val) -> float:
        """Take the remaining steps; return the loss on the whole validation split."""
        while self.step_number < self.config.batch.max_iters:
            self.step()
        size = self.config.model.block_size
        windows = evaluation_windows(len(val), size)
        return evaluate_loss(self.model, val, windows, size, 64, "cpu")


def main() -> None:
    """Run, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", default=str(report.SHAKESPEARE))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=1)
    parser.add_argument("--only", help="names of rows, with commas")
    parser.add_argument("--quick", action="store_true", help="two rows, 60 steps, one seed")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = options.only.split(", ") if options.only else QUICK if options.quick else list(IDEAS)
    for name in chosen:
        if name not in IDEAS:
            parser.error(f"there is no row {name!r}: choose from {', '.join(IDEAS)}")
    seeds = 1 if options.quick else options.seeds
    steps = 60 if options.quick else None
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GPTLAB_HOME"] = folder
        prepare(options.text, PrepareOptions(dataset="tiny", tokenizer="char"))
        dataset = open_dataset("tiny")
        losses, ratios = {name: [] for name in chosen}, {name: [] for name in chosen}
        for seed in range(options.first_seed, options.first_seed + seeds):
            for name in chosen:
                run, plain = (Training(c, dataset, seed, steps) for c in (IDEAS[name], {}))
                seconds = [(run.step(), plain.step()) for _ in range(6)][1:]
                rows = [r.config.batch.batch_size for r in (run, plain)]
                pairs = [(a / rows[0]) / (b / rows[1]) for a, b in seconds]
                ratios[name].append(statistics.median(pairs))
                losses[name].append(run.finish(dataset.val))
                print(f"{name}: {losses[name][-1]:.4f} {ratios[name][-1]:.3f}", flush=True)
        found = {
            name: {"loss": statistics.mean(losses[name]), **report.spread(losses[name]),
                   "time": statistics.median(ratios[name])}
            for name in chosen
        }  # fmt: skip
    base = found.get("the recipe", {}).get("loss")
    rows = [
        [
            name, f"{row['loss']:.4f}", f"{row['min']:.4f} to {row['max']:.4f}",
            f"{row['loss'] - base:+.4f}" if base else "", f"{row['time']:.2f}",
        ]
        for name, row in found.items()
    ]  # fmt: skip
    print(report.table(["change", "loss", "seeds", "against the recipe", "time per token"], rows))
    report.finish({"ablation": found}, options.json)


if __name__ == "__main__":
    main()
