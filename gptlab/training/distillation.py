"""Learn from teachers beside the text: the distance to their averaged probabilities is a part of
the loss (Hinton et al. 2015; at temperature 1).

The teachers' logits are computed anew for each micro-batch, and never for more rows at once than
the model's own loss holds, so no file of them exists and any text and length will do.
"""

import logging
from pathlib import Path

import torch

from gptlab.checkpoints import Checkpoint, content_sha256
from gptlab.data.batches import MicroBatch
from gptlab.data.mixture import Mixture
from gptlab.errors import ConfigError, GPTLabError, RunError
from gptlab.files import quoted
from gptlab.inference.ensemble import Ensemble, model_words
from gptlab.interop.read.models import local_checkpoint
from gptlab.model.arithmetic import count_parameters, flops_per_token
from gptlab.model.config import GPTConfig
from gptlab.runs import load_checkpoint
from gptlab.training.config import Overrides, RunOptions, TrainConfig
from gptlab.training.going_on import same_ids
from gptlab.training.parallel import Parallel

logger = logging.getLogger(__name__)


class DistilledCrossEntropy(torch.autograd.Function):
    """(summed cross-entropy of the targets, summed KL divergence from the teacher), of logits.

    logits [n, V], targets int64 [n] of which -1 do not count, teacher: log-probabilities [n, V].
    The gradient of the first result is that of (1 - share) * cross-entropy + share * divergence:
    a step then reports the text's own loss and learns from both. The second has none.
    """

    @staticmethod
    def forward(ctx, logits, targets, teacher, share: float):
        values = logits.to(torch.promote_types(logits.dtype, torch.float32))
        unmasked = targets != -1  # [n]
        labels = targets.clamp_min(0)[:, None]  # [n, 1]
        found = values.log_softmax(-1)  # [n, V]
        text = -(found.gather(1, labels)[:, 0] * unmasked).sum()
        taught = teacher.exp()  # [n, V]
        apart = ((taught * (teacher - found)).sum(-1) * unmasked).sum()
        if ctx.needs_input_grad[0]:
            # d / d logits = softmax - (1 - share) one-hot - share * the teacher's probabilities
            grad = found.exp_().sub_(taught, alpha=share)
            own = torch.full_like(labels, share - 1, dtype=grad.dtype)
            ctx.save_for_backward(grad.scatter_add_(1, labels, own), unmasked)
            ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(apart)
        return text, apart

    @staticmethod
    def backward(ctx, grad_text, _):
        grad, unmasked = ctx.saved_tensors
        return grad.mul_((unmasked * grad_text)[:, None]).to(ctx.dtype), None, None, None


class Criterion:
    """The loss of one micro-batch, as `GPT.forward` asks for it: chunk by chunk, in order.

    hidden: [N, C], of the teachers for all tokens of the micro-batch.
    """

    def __init__(self, ensemble: Ensemble, hidden: torch.Tensor, share: float):
        self.ensemble, self.hidden, self.share = ensemble, hidden, share
        self.row = 0
        self.divergence = torch.zeros((), device=hidden.device)  # nats, of the rows so far

    def __call__(self, logits, targets):
        """The summed cross-entropy of logits [n, V], with the gradient of the whole loss."""
        rows = slice(self.row, self.row + targets.size(0))
        self.row = rows.stop
        with torch.no_grad():
            teacher = self.ensemble.unembed(self.hidden[rows])  # [n, V]
        text, apart = DistilledCrossEntropy.apply(logits, targets, teacher, self.share)
        self.divergence += apart.detach()
        return text


class Teacher:
    """The models that a training learns from, whole in each process, and its share of the loss.

    words: as the option names them. share: of the loss. sha256: of each one's weights.
    """

    def __init__(
        self, words: list[str], models: list[Checkpoint], share: float, vocab_size: int, parallel
    ):
        self.words, self.models, self.share, self.parallel = words, models, share, parallel
        separators = [each.separator for each in models]
        ensemble = Ensemble([each.model for each in models], vocab_size, separators)
        self.ensemble = ensemble.eval().requires_grad_(False)
        self.sha256 = [_sha256(each) for each in models]
        self.step, self.seen = -1, {}  # of the last step: (divergence, targets) by micro-batch

    @property
    def configs(self) -> list[GPTConfig]:
        """The settings of each teacher."""
        return [each.model.config for each in self.models]

    def record(self) -> list[dict]:
        """What a checkpoint and a run's provenance hold of the teachers."""
        return [
            {"model": word, "sha256": sha256}
            for word, sha256 in zip(self.words, self.sha256, strict=True)
        ]

    def absolute(self) -> str:
        """The option's value, independent of the working directory."""
        return ",".join(str(each.path.resolve()) for each in self.models)

    @torch.no_grad()
    def criterion(self, micro: MicroBatch, step: int) -> Criterion:
        """The loss of a micro-batch of the step after `step`."""
        hidden = self.ensemble.features(micro.tokens).flatten(0, 1)  # [N, C]
        found = Criterion(self.ensemble, hidden, self.share)
        if step != self.step:
            self.step, self.seen = step, {}
        self.seen[micro.index] = (found.divergence, (micro.targets != -1).sum())
        return found

    def beside(self, step: int) -> dict:
        """What the record of `step` has beside the text's loss: the divergence, in nats per target
        of all processes, which must all call this."""
        seen = self.seen.values() if self.step == step - 1 else ()
        apart = self.parallel.sum([divergence for divergence, _ in seen])
        targets = self.parallel.sum([count for _, count in seen])
        return {"distill_loss": float(apart / targets.clamp_min(1))}


def _sha256(checkpoint: Checkpoint) -> str:
    """SHA-256 of what decides a model's logits: settings and weights."""
    content = {"model_config": checkpoint.model.config.to_dict()}
    return content_sha256({**content, "model": dict(checkpoint.model.state_dict())})


def added_work(config: TrainConfig, teachers: list[GPTConfig]) -> float:
    """FLOPs of the teachers' forward passes for each FLOP of the model's own training step."""
    length = config.model.block_size
    forward = sum(flops_per_token(teacher, length) / 3 for teacher in teachers)
    return forward / config.flops_per_token


def lesson(config: TrainConfig, teachers: list[GPTConfig], words: list[str]) -> str:
    """Who teaches, how large they are, and what that adds to a step."""
    sizes = sorted({count_parameters(teacher) for teacher in teachers})
    size = " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
    each = " each" if len(teachers) > 1 else ""
    what = "their averaged" if len(teachers) > 1 else "its"
    added = added_work(config, teachers)
    return (
        f"{'Teachers' if len(teachers) > 1 else 'Teacher'}: {', '.join(words)} ({size} parameters"
        f"{each}); {config.run.distill:g} of the loss is the distance to {what} probabilities, "
        f"which take {added / (1 + added):.0%} of a step's FLOPs."
    )


def open_teacher(
    overrides: Overrides, data: Mixture, parallel: Parallel, stored: dict | None, start
) -> Teacher | None:
    """The teachers that the options name, on this process's device; None where there are none.

    stored: the checkpoint of a resume, whose teachers must be the same. start: of init_from.
    Raises ConfigError for a model that this one cannot learn from, RunError for a changed one.
    """
    word, began = overrides.values.get("teacher"), (stored or {}).get("teachers") or []
    if stored is not None and bool(word) != bool(began):
        raise ConfigError(
            f"teacher cannot change at a resume (the run began with {len(began) or 'none'})",
            "start a new run with another --out_dir",
        )
    if not word:
        return None
    words, models = model_words(word), []
    for each in words:
        try:
            path = parallel.from_first(
                lambda each=each: local_checkpoint(each, logger.warning, "teacher")
            )
            # all processes fail, or none: the others would wait for it
            parallel.gather(lambda path=path: models.append(load_checkpoint(path, parallel.device)))
        except GPTLabError as error:
            if not began:
                raise
            raise RunError(
                f"This run learns from the teacher {each}, which cannot be read ({error.problem})",
                "put it back, or name where it is now with --teacher",
            ) from error
    vocab_size = data.vocab_size
    if stored is not None or start is not None:
        vocab_size = (stored["model_config"] if stored else start.model.config.to_dict())[
            "vocab_size"
        ]
    block_size = overrides.values.get("block_size") or GPTConfig.block_size
    for each, model in zip(words, models, strict=True):
        _check(each, model, data, vocab_size, block_size)
    share = overrides.values.get("distill", RunOptions.distill)
    teacher = Teacher(words, models, share, vocab_size, parallel)
    if any(hashes != teacher.sha256 for hashes in parallel.gather(lambda: teacher.sha256)):
        raise RunError(
            f"The processes have different models under the names of the teachers {word}",
            "let all of them see the same folders",
        )
    before = [each["sha256"] for each in began]
    if began and teacher.sha256 != before:
        changed = [
            each for each, sha in zip(words, teacher.sha256, strict=True) if sha not in before
        ]
        raise RunError(
            f"{', '.join(changed) or word} {'is' if len(changed) == 1 else 'are'} not what this "
            "run has learned from so far: the teachers' weights, number or order changed",
            "put the former ones back, or start a new run with another --out_dir",
        )
    return teacher


def _check(word: str, teacher: Checkpoint, data: Mixture, vocab_size: int, block_size: int) -> None:
    """ConfigError for a teacher of other tokens, or with a shorter window."""
    model, dataset = teacher.model.config, data.parts[0]
    known = teacher.tokenizer.vocab_size if teacher.tokenizer else model.vocab_size
    if known != dataset.vocab_size or not same_ids(teacher.tokenizer, dataset.tokenizer):
        raise ConfigError(
            f"The teacher {word} has another tokenizer than {dataset.name} was prepared with",
            f"prepare the text with the teacher's: python prepare.py YOUR_TEXT.txt --dataset NAME "
            f"--tokenizer {quoted(str(Path(teacher.path).parent))}",
        )
    if model.vocab_size < vocab_size:
        raise ConfigError(
            f"The teacher {word} has {model.vocab_size:,} ids, and the model {vocab_size:,}",
            "learn from a model with as many",
        )
    if model.block_size < block_size:
        raise ConfigError(
            f"The teacher {word} sees {model.block_size:,} tokens, and block_size is "
            f"{block_size:,}",
            f"use --block_size {model.block_size} or less",
        )
