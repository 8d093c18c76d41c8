"""Run tasks of lm-eval (EleutherAI's evaluation harness) on a gptlab model.

`lm_eval` is an optional extra: it is imported only when its tasks are requested.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from gptlab.analysis.evaluation import begin_id
from gptlab.checkpoints import Checkpoint
from gptlab.errors import ConfigError, DataError
from gptlab.inference.config import SamplingConfig
from gptlab.inference.decoding import evaluating
from gptlab.inference.evaluate import measure_tokens, sliding_windows
from gptlab.inference.generator import Generator

ROWS = 8  # texts that share a forward pass
MOST_TOKENS = 256  # of an answer, where the task sets no limit


def evaluate_tasks(
    checkpoint: Checkpoint,
    names: Sequence[str],
    limit: int | None = None,
    progress: Callable[[str, int, int | None], None] = lambda stage, advance, total: None,
) -> dict[str, dict[str, float]]:
    """{task: {metric: value}} of tasks by their names in lm-eval, or paths of .yaml files.

    limit: at most this many examples per task. Raises ConfigError without the package, DataError
    for a task that is unknown or whose data is not available.
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--tasks needs the package lm-eval ({error.name} is missing)", "pip install lm-eval"
        ) from None
    if checkpoint.tokenizer is None:
        raise ConfigError("Tasks are text, and this model was trained without a tokenizer.")
    own_files = [str(Path(name).resolve()) if name.endswith(".yaml") else name for name in names]
    try:
        manager = TaskManager(include_defaults=any(not n.endswith(".yaml") for n in own_files))
        found = lm_eval.simple_evaluate(
            model=harness_model(checkpoint, progress),
            tasks=own_files,
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
            log_samples=False,
        )
    except Exception as error:  # the package and its data sources raise errors of many kinds
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise DataError(
            f"lm-eval cannot run {', '.join(names)} ({type(error).__name__}: {reason})."
        ) from error
    return {
        task: {
            metric.removesuffix(",none"): float(value)
            for metric, value in metrics.items()
            if isinstance(value, int | float) and not metric.startswith(("alias", "sample"))
        }
        for task, metrics in found["results"].items()
    }


def harness_model(checkpoint: Checkpoint, progress=lambda stage, advance, total: None):
    """An `lm_eval.api.model.LM` around a gptlab model."""
    from lm_eval.api.model import LM

    class HarnessModel(LM):
        """Answers the three kinds of requests of the tasks."""

        def loglikelihood(self, requests):
            pairs = [request.args for request in requests]
            return scores(checkpoint, pairs, progress)

        def loglikelihood_rolling(self, requests):
            return [log_likelihood(checkpoint, request.args[0]) for request in requests]

        def generate_until(self, requests):
            found = []
            for request in requests:
                found.append(answer(checkpoint, *request.args))
                progress("writing answers", 1, len(requests))
            return found

    return HarnessModel()


def scores(checkpoint: Checkpoint, pairs, progress) -> list[tuple[float, bool]]:
    """(log-probability in nats, whether it is the likeliest text) of each (context, continuation).

    A text longer than the window loses its beginning. Spaces at the end of a context belong to the
    continuation, as in the tokens of a whole text.
    """
    encoded = [_encode_pair(checkpoint, *pair) for pair in pairs]
    order = sorted(range(len(encoded)), key=lambda n: -len(encoded[n][0]))
    found = [(0.0, True)] * len(encoded)
    model = checkpoint.model
    device = next(model.parameters()).device
    with evaluating(model), torch.inference_mode():
        for first in range(0, len(order), ROWS):
            part = order[first : first + ROWS]
            length = max(len(encoded[n][0]) for n in part) - 1
            rows = np.zeros((len(part), max(1, length)), dtype=np.int64)
            for row, n in zip(rows, part, strict=True):
                ids = encoded[n][0]
                row[: len(ids) - 1] = ids[:-1]  # padded at the end, which no earlier token sees
            hidden = model.features(torch.from_numpy(rows).to(device))  # [b, T, C]
            for row, n in enumerate(part):
                ids, own = encoded[n]
                places = slice(len(ids) - 1 - own, len(ids) - 1)
                logits = model.unembed(hidden[row, places]).float().log_softmax(-1)  # [own, V]
                wanted = torch.tensor(ids[len(ids) - own :], device=device)
                total = logits.gather(1, wanted[:, None]).sum().item()
                found[n] = (total, bool((logits.argmax(-1) == wanted).all()))
            progress("scoring answers", len(part), len(order))
    return found


def _encode_pair(checkpoint: Checkpoint, context: str, continuation: str) -> tuple[list[int], int]:
    """(ids of both, at most a window and its last target; how many belong to the continuation)."""
    tokenizer, window = checkpoint.tokenizer, checkpoint.model.config.block_size
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    begin = _begin(checkpoint)
    before = tokenizer.encode(bare)
    ids = tokenizer.encode(bare + continuation)
    own = len(ids) - len(before)
    if bare and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id, *ids]
    elif not bare:
        ids = [*begin, *ids]
    own = min(own, window, len(ids) - 1)
    return ids[-window - 1 :], own


def _begin(checkpoint: Checkpoint) -> list[int]:
    """The ids before a text, at most one."""
    begin = begin_id(checkpoint.tokenizer)
    return [] if begin is None else [begin]


def log_likelihood(checkpoint: Checkpoint, text: str) -> float:
    """Log-probability of a whole text in nats, summed over its windows."""
    ids = np.array([*_begin(checkpoint), *checkpoint.tokenizer.encode(text)], dtype=np.int64)
    if len(ids) < 2:
        return 0.0
    window = checkpoint.model.config.block_size
    windows = sliding_windows(len(ids), window, window)
    return -float(measure_tokens([checkpoint.model], ids, windows, window)[0].sums.sum())


def answer(checkpoint: Checkpoint, context: str, settings: dict) -> str:
    """The continuation of a text up to one of settings["until"], by default the likeliest one."""
    until = settings.get("until") or []
    until = [until] if isinstance(until, str) else until
    draws = bool(settings.get("do_sample"))
    config = SamplingConfig(
        max_tokens=int(settings.get("max_gen_toks", MOST_TOKENS)),
        temperature=float(settings.get("temperature", 1.0)) if draws else 0.0,
        top_k=0,
        top_p=float(settings.get("top_p", 1.0)) if draws else 1.0,
        seed=0,
        stop=tuple(word for word in until if word),
    )
    longest = max(1, checkpoint.model.config.block_size - config.max_tokens)
    ids = checkpoint.tokenizer.encode(context)[-longest:]
    return Generator(checkpoint.model, checkpoint.tokenizer).generate([ids], config)[0].text
