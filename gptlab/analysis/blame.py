"""Find the text of a step: its windows with the loss of each token, the hardest first.

The data order is a pure function of (seed, sequence number), so a training does not record what it
reads. The losses are those of an existing checkpoint, not of the model at that step.
"""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptlab import hardware
from gptlab.checkpoints import Checkpoint
from gptlab.data.documents import Place, places
from gptlab.data.mixture import Mixture, open_mixture
from gptlab.data.token_files import Dataset
from gptlab.errors import CheckpointError, ConfigError, RunError
from gptlab.files import display
from gptlab.inference.evaluate import token_losses
from gptlab.runs import Run, load_checkpoint
from gptlab.training.provenance import read_trace

PASS_TOKENS = 8192  # about the size of a forward pass
MOST_PLACES = 6  # documents of one window that are named
STEP = "a step reads one batch of text and changes the parameters once"


@dataclass(frozen=True)
class Window:
    """A sequence of the step.

    dataset: the name of the one it is from. start: position of its first token in train.bin.
    tokens: block_size + 1 ids, the first only as context. losses: of the others, in nats. places:
    its beginning, and each document that begins in it.
    """

    sequence: int
    dataset: str
    start: int
    tokens: list[int]
    losses: list[float]
    places: tuple[Place, ...] = ()

    @property
    def loss(self) -> float:
        """Mean over its tokens, in nats."""
        return sum(self.losses) / len(self.losses)


@dataclass(frozen=True)
class Blame:
    """What a step trained on. windows: the hardest of its `count` sequences from `first` on.

    steps: how many the run has taken. loss: the checkpoint's mean over all sequences. record: the
    run's record of this step, or of the nearest recorded one; its numbers may be None.
    """

    step: int
    steps: int
    first: int
    count: int
    windows: list[Window]
    loss: float
    record: dict | None
    checkpoint: Checkpoint
    data: Mixture

    @property
    def block_size(self) -> int:
        """Tokens of a sequence."""
        return len(self.windows[0].losses)

    @property
    def uniform_loss(self) -> float:
        """The loss of a model that knows nothing, in nats per token."""
        return float(np.log(self.checkpoint.model.config.vocab_size))


@dataclass(frozen=True)
class Piece:
    """A piece of a window: tokens that form whole characters. loss: the highest, or None."""

    text: str
    loss: float | None
    is_end: bool = False  # of a document


def blame(
    folder,
    step: int,
    top: int = 8,
    checkpoint: str | None = None,
    device: str = "auto",
    progress: Callable[[str, int, int], None] = lambda stage, advance, total: None,
) -> Blame:
    """The windows of a step of the run in `folder`, and their losses.

    checkpoint: "best" or "ckpt"; None takes best.pt, else ckpt.pt. progress: called with "reading",
    sequences done since the last call, and their total. Raises ConfigError for a step that the run
    has not taken, RunError for a dataset that has changed, DataError for one that is gone.
    """
    run = Run(folder)
    records = [record for record in run.records() if record["step"] > 0]
    if not records:
        raise RunError(f"{display(run.folder)} has no records of a training (metrics.jsonl).")
    last = max(record["step"] for record in records)
    if not 1 <= step <= last:
        raise ConfigError(
            f"--step {step} is out of range: {display(run.folder)} has taken {last:,} steps, so "
            f"choose one from 1 to {last} ({STEP})."
        )
    path = {"best": run.best, "ckpt": run.checkpoint, None: run.folder}[checkpoint]
    device = _device(device)
    loaded = load_checkpoint(path, device)
    settings = (loaded.content.get("train_config") or {}).get("resolved")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{display(loaded.path)} does not record what it was trained on.")
    fingerprint = loaded.content["dataset"]["fingerprint"]
    data = open_mixture(settings["dataset"], settings["vocab_size"], fingerprint)
    data.refuse_tasks("blame")
    if data.fingerprint != fingerprint:
        raise RunError(
            f"{display(run.folder)} was trained on other data than {data.name} "
            "now holds, so the text behind a step is gone",
            "prepare it again as before",
        )
    batch = settings["batch_size"] * settings["gradient_accumulation_steps"]
    first, count = sequences_of(records, batch, step)
    numbers = np.arange(first, first + count)
    block_size = settings["block_size"]
    origins = data.sequences(block_size, settings["seed"]).origins(numbers)
    rows = np.stack([data.parts[k].train[at : at + block_size + 1] for k, at in origins])
    rows = rows.astype(np.int64)
    losses = _losses(loaded, rows, device, progress)
    means = losses.mean(axis=1)
    hardest = np.argsort(-means, kind="stable")[:top]
    windows = [
        Window(
            first + int(row),
            data.parts[origins[row][0]].name,
            origins[row][1],
            rows[row].tolist(),
            losses[row].tolist(),
        )
        for row in hardest
    ]
    record = _nearest_record(run, records, step)
    return Blame(
        step, last, first, count, _with_places(data, windows), float(means.mean()), record,
        loaded, data,
    )  # fmt: skip


def sequences_of(records: Sequence[dict], batch: int, step: int) -> tuple[int, int]:
    """(first sequence, how many) of a step, from the records and the batch of the last start.

    A roll-back records the sequences that it skipped. A resume may have changed the batch between
    two records: then the batches before and after determine at which step. Raises RunError where
    they do not.
    """
    reached = {0: 0} | {r["step"]: r["sequences_seen"] for r in records if "sequences_seen" in r}
    left = dict(reached)  # sequences passed when the step after this one began
    for record in records:
        if "rolled_back" in record:
            first, end = record["rolled_back"]["skipped_sequences"]
            reached[record["step"]], left[record["step"]] = first, end
    known = sorted(reached)
    before = max(s for s in known if s < step)
    after = min((s for s in known if s >= step), default=None)
    if after is None:
        return left[before] + (step - 1 - before) * batch, batch

    def batch_up_to(i: int) -> int | None:
        """Sequences of a step before the i-th known one; i runs from 0 to one past the last."""
        if i == len(known):
            return batch
        return (reached[known[i]] - left[known[i - 1]]) // (known[i] - known[i - 1]) if i else None

    i, steps = known.index(after), after - before
    earlier, later = batch_up_to(i - 1), batch_up_to(i + 1)
    grown = reached[after] - left[before]
    each, rest = divmod(grown, steps)
    if rest == 0 and (steps == 1 or each in (earlier, later)):
        return left[before] + (step - 1 - before) * each, each
    if earlier not in (None, later):
        old_steps, rest = divmod(grown - steps * later, earlier - later)
        if rest == 0 and 0 < old_steps < steps:
            if step <= before + old_steps:
                return left[before] + (step - 1 - before) * earlier, earlier
            return reached[after] - (after - step + 1) * later, later
    raise RunError(
        f"The batch changed between steps {before} and {after}, but the records do not show where",
        "name a step outside of them",
    )


def _nearest_record(run: Run, records: Sequence[dict], step: int) -> dict | None:
    """The record with loss and gradient norm of the step, or of the nearest recorded one."""
    traced = [
        {name: float.fromhex(r[name]) for name in ("loss", "grad_norm")} | {"step": r["step"]}
        for r in read_trace(run)
        if "grad_norm" in r
    ]
    of_steps = [r for r in records if "grad_norm" in r]
    return min([*of_steps, *traced], key=lambda r: abs(r["step"] - step), default=None)


def _device(request: str) -> str:
    untried = hardware.choose(hardware.detect(only=""), request, "float32")
    if untried.device == "cpu":  # which needs no trials
        return "cpu"
    choice = hardware.choose(hardware.detect(), request, "float32")
    if not hardware.attention_is_causal(choice.device, "float32"):
        return "cpu"
    return choice.device


@torch.no_grad()
def _losses(loaded: Checkpoint, windows: np.ndarray, device: str, progress) -> np.ndarray:
    """Loss of each token of the windows, in nats: int64 [n, T + 1] -> float32 [n, T]."""
    rows = max(1, PASS_TOKENS // windows.shape[1])
    found = []
    for begin in range(0, len(windows), rows):
        ids = torch.from_numpy(windows[begin : begin + rows]).to(device)  # [b, T + 1]
        losses = token_losses(loaded.model, ids[:, :-1], ids[:, 1:], loaded.separator)
        found.append(losses.cpu().numpy())
        progress("reading", len(ids), len(windows))
    return np.concatenate(found)


def _with_places(data: Mixture, windows: list[Window]) -> list[Window]:
    """The windows with the places of their documents, where the source is known."""
    placed = {}
    for dataset in data.parts:
        own = [window for window in windows if window.dataset == dataset.name]
        if own:
            placed |= {window.sequence: window for window in _placed_in(dataset, own)}
    return [placed[window.sequence] for window in windows]


def _placed_in(dataset: Dataset, windows: list[Window]) -> list[Window]:
    eot = dataset.tokenizer.eot_id if dataset.tokenizer else None
    wanted = []
    for window in windows:
        begins = [window.start]
        begins += [window.start + i + 1 for i, t in enumerate(window.tokens[:-1]) if t == eot]
        wanted.append(begins[:MOST_PLACES])
    found = iter(places(dataset, [position for begins in wanted for position in begins]))
    return [
        Window(**{**vars(window), "places": tuple(p for p in (next(found) for _ in begins) if p)})
        for window, begins in zip(windows, wanted, strict=True)
    ]


def pieces(window: Window, tokenizer) -> list[Piece]:
    """A window as text in pieces, each of one token, or of several that share a character.

    Without a tokenizer each piece is the token's id.
    """
    losses = [None, *window.losses]
    if tokenizer is None:
        return [Piece(f"{t} ", loss) for t, loss in zip(window.tokens, losses, strict=True)]
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    shown, held = [], []
    for token, loss in zip(window.tokens, losses, strict=True):
        is_end = token == tokenizer.eot_id
        text = decoder.decode(tokenizer.token_bytes(token), final=is_end)
        held.append(loss)
        if text or is_end:
            known = [value for value in held if value is not None]
            shown.append(Piece(text, max(known, default=None), is_end))
            held = []
    if held:  # an incomplete character at the end
        shown.append(Piece("\ufffd", max((v for v in held if v is not None), default=None)))
    return shown


def level(loss: float | None, uniform_loss: float) -> int:
    """The loss of a token in quarters of the uniform baseline, from 0 to 4; 4 is above it."""
    return 0 if loss is None else min(4, int(4 * loss / uniform_loss))
