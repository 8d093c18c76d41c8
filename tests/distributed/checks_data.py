"""Datasets in shards, and attention that stops at document borders: as on one process."""

import os
from pathlib import Path
from unittest.mock import patch

import torch.distributed as dist

from gptlab.data.mixture import open_mixture
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.runs import Run


def prepare_lines(home: Path, tokenizer: Path) -> None:
    """The datasets "plays" and "letters" in this home, in shards of a few documents."""
    for name, line in (("plays", "to be or not to be\n"), ("letters", "that is the question\n")):
        texts = [f"{line[: 5 + i % 12]} {'not ' * (i % 7)}\n" for i in range(900)]
        (home / f"{name}.txt").write_text("".join(texts))
        how = dict(document="line", tokenizer=str(tokenizer), shard_tokens="3k", val_fraction=0.3)
        prepare(str(home / f"{name}.txt"), PrepareOptions(**how))


def losses_of(folder: Path) -> list[float]:
    records = Run(folder).records()
    return [r[name] for r in records for name in ("loss", "val_loss") if name in r]


def check_a_mix_of_shards_under_a_document_mask_trains_as_on_one_process(world):
    home = world.folder.parent
    with patch.dict(os.environ, GPTLAB_HOME=str(home)):
        if world.rank == 0:
            prepare_lines(home, home / "data" / "tiny")
        dist.barrier()
        data = open_mixture("plays:0.6,letters:0.4")
        assert all(len(part.train.files) > 2 for part in data.parts)
    how = dict(dataset="plays:0.6,letters:0.4", document_mask=True, dropout=0.1, batch_size=6)
    world.train("one", alone=True, **how)
    expected = losses_of(world.folder / "one")
    assert len(expected) == 14
    for parallelism in ("ddp", "fsdp"):
        world.train(parallelism, parallelism=parallelism, max_iters=12, **how)
        found = losses_of(world.folder / parallelism)
        worst = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
        assert worst < 1e-5, (parallelism, worst)
