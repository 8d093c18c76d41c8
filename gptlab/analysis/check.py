"""Whether the code that is here builds and trains this model as it should: questions with answers.

Each check is a plain function of a `Subject` that returns a `CheckLine`; the modules beside this
one hold them by subject: check_model.py, check_weights.py, check_training.py, check_files.py,
check_speed.py.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gptlab.hardware import Choice
from gptlab.model.config import GPTConfig
from gptlab.training.config import LENGTHS, START_OPTIONS, Overrides, TrainConfig

if TYPE_CHECKING:
    import torch

    from gptlab.model.transformer import GPT

Status = Literal["PASS", "WARN", "FAIL", "SKIP"]

# the small shape, at most: a step takes hundredths of a second, and every switch still acts
SMALL = dict(n_layer=4, vocab_size=256, block_size=64)
SMALL_KV_HEADS, SMALL_GROUP, SMALL_HEAD_DIM = 2, 2, 32


@dataclass(frozen=True)
class CheckLine:
    """An answer. number: what was measured, in the sentence too; None where nothing was.

    WARN: unusual, and right where it is intended. SKIP: does not apply, and why.
    """

    status: Status
    sentence: str
    number: float | None = None
    name: str = ""


def within(number: float, limit: float, right: str, wrong: str, status: Status = "FAIL"):
    """PASS with the sentence `right` where the number is at most `limit`, else `status`.

    A `{}` in a sentence becomes the number.
    """
    ok = number <= limit  # False for nan
    sentence = (right if ok else wrong).format(f"{number:.2g}")
    return CheckLine("PASS" if ok else status, sentence, number)


@dataclass(frozen=True)
class Subject:
    """What is checked: options at a small shape, on one device, in float32.

    config: resolved, at the small shape; original: at its own. precisions: the lower ones that are
    fast on the device. run: a directory whose weights are checked too. notes: what was assumed.
    """

    name: str
    config: TrainConfig
    original: TrainConfig
    choice: Choice
    precisions: tuple[str, ...] = ()
    run: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        """Where it is checked."""
        return self.choice.device

    @functools.cached_property
    def plain(self) -> TrainConfig:
        """The small configuration from scratch: all weights are trained, without dropout."""
        return self.config.replace(
            init_from="scratch", lora_rank=0, freeze_layers=0, dropout=0.0, ema_decay=0.0
        )

    def build(self, **changes) -> "GPT":
        """A new model at the small shape, as training draws it. changes: of its settings."""
        import torch

        from gptlab.model import transformer

        torch.manual_seed(0)
        settings = dataclasses.replace(self.config.model, **changes)
        return transformer.GPT(settings).to(self.device)

    def build_narrow(self, dropout: float = 0.0, **changes) -> "GPT":
        """A model with large random weights, in which every branch shows (`narrow_copy`)."""
        from gptlab.model.building import narrow_copy

        return narrow_copy(self.build(**changes), dropout).to(self.device)

    @functools.cached_property
    def narrow(self) -> "GPT":
        """`build_narrow()`, once. No check changes it."""
        return self.build_narrow()

    def tokens(self, rows: int, length: int, vocab_size: int) -> "torch.Tensor":
        """Random ids, int64 [rows, length], on the device."""
        import torch

        generator = torch.Generator().manual_seed(rows * length)
        return torch.randint(vocab_size, (rows, length), generator=generator).to(self.device)


def small_shape(model: GPTConfig) -> GPTConfig:
    """The same settings with fewer layers, channels, ids and positions: what a check computes.

    Grouped queries stay grouped, a head stays smaller or larger than its share of the width, and
    the MLP keeps its ratio.
    """
    kv_heads = min(model.n_kv_head, SMALL_KV_HEADS)
    heads = kv_heads * min(model.n_head // model.n_kv_head, SMALL_GROUP)
    head_dim = min(model.head_dim, SMALL_HEAD_DIM)
    width = model.n_embd * heads * head_dim / (model.n_head * model.head_dim)
    n_embd = heads * head_dim if model.head_dim * model.n_head == model.n_embd else _eights(width)
    hidden = model.intermediate_size and _eights(n_embd * model.intermediate_size / model.n_embd)
    if model.n_expert:
        size = max(8, hidden // model.n_expert_active)
        hidden = size * model.n_expert_active
    return dataclasses.replace(
        model,
        **{name: min(getattr(model, name), most) for name, most in SMALL.items()},
        n_head=heads,
        n_kv_head=kv_heads,
        head_dim=head_dim,
        n_embd=n_embd,
        intermediate_size=hidden,
        expert_size=size if model.n_expert else 0,
    )


def _eights(size: float) -> int:
    return max(8, round(size / 8) * 8)


def subject_of(
    name: str, overrides: Overrides, device: str = "auto", run: Path | None = None,
    decided: Mapping | None = None,
) -> Subject:  # fmt: skip
    """The subject of these options on this machine. Raises ConfigError and HardwareError.

    decided: values that a run has resolved. What a check does not use (lengths, names) is left out.
    """
    from gptlab import hardware
    from gptlab.planning.plan import text_size
    from gptlab.training.building import settle_torch
    from gptlab.training.resolving import resolve_roughly, situation_of

    notes: list[str] = []
    report = hardware.detect()
    choice = hardware.choose(report, device)
    overrides, vocab_size = _with_start(overrides, notes)
    text = text_size(overrides, vocab_size or (decided or {}).get("vocab_size"))
    left_out = {*LENGTHS, *START_OPTIONS, "compile_model", "device", "dtype", "batch_size"}
    values = {n: v for n, v in overrides.values.items() if n not in left_out}
    situation = situation_of(report, choice, text)
    original = resolve_roughly(Overrides(values, overrides.sources), situation).config
    settle_torch(choice.device)
    kept = small_shape(original.model)
    frozen = min(original.finetune.freeze_layers, kept.n_layer - 1)
    config = original.replace(**kept.to_dict(), dtype="float32", compile_model=False,
                              freeze_layers=frozen)  # fmt: skip
    precisions = tuple(
        each.dtype
        for each in report.device(choice.device).precisions
        if each.dtype != "float32" and each.supported and each.fast
    )
    return Subject(name, config, original, choice, precisions, run, tuple(notes))


def _with_start(overrides: Overrides, notes: list[str]) -> tuple[Overrides, int | None]:
    """`with_start`; a model that is not here is noted, and the options alone are checked."""
    from gptlab.errors import GPTLabError
    from gptlab.interop.read.models import present_checkpoint
    from gptlab.planning.plan import with_start

    try:
        return with_start(overrides)
    except GPTLabError:
        word, here = overrides.values["init_from"], None
        with contextlib.suppress(GPTLabError):
            here = present_checkpoint(word)
        if here is not None:
            raise  # the options do not fit it
        notes.append(f"{word}, which init_from names, is not here: a default shape takes its place")
        return overrides, None


Table = Mapping[str, Callable[[Subject], CheckLine]]


def run_checks(subject: Subject, checks: Table) -> Iterator[CheckLine]:
    """The line of each check as soon as it is known. One that cannot be computed is a FAIL."""
    from gptlab.errors import GPTLabError

    for name, check in checks.items():
        with _undisturbed():
            try:
                line = check(subject)
            except GPTLabError as error:
                line = CheckLine("FAIL", error.problem)
            except Exception as error:  # whatever an edited module may raise
                why = f"{type(error).__name__} {next(iter(str(error).splitlines()), '')}".rstrip()
                line = CheckLine("FAIL", f"cannot be computed: {why}")
        yield dataclasses.replace(line, name=name)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """One thread and whole float32 products; afterwards all is as before, random numbers too."""
    import torch

    threads, random = torch.get_num_threads(), torch.get_rng_state()
    precision = torch.get_float32_matmul_precision()
    torch.set_num_threads(1)  # tensors are small: a second thread is only waited for
    torch.set_float32_matmul_precision("highest")  # TF32 rounds more than the checks allow
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(random)
        torch.set_float32_matmul_precision(precision)


def shape_in_words(model: GPTConfig) -> str:
    """Layers, heads, channels, window and vocabulary."""
    kv = f" ({model.n_kv_head} for keys and values)" if model.n_kv_head != model.n_head else ""
    return (
        f"{model.n_layer} layers, {model.n_head} heads{kv}, {model.n_embd} channels, "
        f"block_size {model.block_size}, {model.vocab_size} ids"
    )


def uniform_loss(model: GPTConfig) -> float:
    """ln V, in nats: the loss of a model that finds every token equally likely."""
    return math.log(model.vocab_size)
