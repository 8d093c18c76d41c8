"""A checkpoint: what a `.pt` file holds, how it is written, validated before use.

Such a file holds tensors and plain types only, is read without running any pickled code, and
carries the SHA-256 of all that is in it. Before anything is built from it, its settings, shapes and
sizes are held against each other, so that a damaged or foreign file is a sentence.
"""

import contextlib
import hashlib
import math
import pickle
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypedDict, cast

from gptlab import sharded_checkpoints
from gptlab.errors import CheckpointError, ConfigError, TokenizerError
from gptlab.files import FORMAT_VERSIONS, AnyPath, atomic_write, check_format_version, display
from gptlab.options import coerce, options_of
from gptlab.typed_json import Count, misfit

if TYPE_CHECKING:
    import torch

    from gptlab.data.tokenizer import Tokenizer
    from gptlab.model.config import GPTConfig
    from gptlab.model.transformer import GPT

# Bounds for the settings in a file: of each number, and of the values in a table of positions.
LARGEST_SIZE = 1 << 24
LARGEST_TABLE = 1 << 26
Option = bool | int | float | str | None  # a value as the options of a run have it
BASE = "base.pt"  # of a LoRA run: the model beside which its checkpoints have adapters only
WRAPPER_PREFIXES = ("_orig_mod.", "module.")  # what torch.compile and DDP put before names


@dataclass(frozen=True)
class Checkpoint:
    """A model ready to use, and where it comes from. val_loss: nats per token, or None.

    members: of an ensemble; path, step and tokenizer are then those of the first one.
    """

    model: "GPT"
    tokenizer: "Tokenizer | None"
    path: Path
    step: int
    val_loss: float | None
    content: dict[str, Any]
    members: tuple["Checkpoint", ...] = ()

    @property
    def name(self) -> str:
        """The path as messages show it; of an ensemble all paths, with commas between."""
        return ",".join(member.name for member in self.members) or display(self.path)

    @property
    def separator(self) -> int | None:
        """The id at which attention began anew in its training; None where it did not."""
        resolved = (self.content.get("train_config") or {}).get("resolved") or {}
        is_masked = resolved.get("document_mask") and self.tokenizer is not None
        return self.tokenizer.eot_id if is_masked else None  # type: ignore[union-attr]


# Writing ------------------------------------------------------------------------------------------


def tokenizer_content(tokenizer: "Tokenizer | None") -> dict[str, Any] | None:
    """A tokenizer as a checkpoint holds it."""
    if tokenizer is None:
        return None
    return {"kind": tokenizer.kind, "json": tokenizer.to_json()}


def model_content(
    model: "GPT",
    tokenizer: "Tokenizer | None",
    part: Literal["whole", "merged", "base", "adapters"] = "whole",
    **more: Any,
) -> dict[str, Any]:
    """What every checkpoint holds: version, settings, weights, tokenizer, and `more`.

    Weights are on the CPU, or shards where they are.

    With them goes the proof of the model as it is now (model/proof.py). part: of the model of a
    LoRA training: "whole", with its adapters beside its weights; "merged" into them; "base", its
    weights alone; "adapters" alone, and then `more` has the `base` that they belong to. With
    adapters, `more` has their lora_alpha.
    """
    from gptlab.model.lora import is_adapter, merged_weights
    from gptlab.model.proof import proof_of
    from gptlab.model.shards import is_sharded

    weights = merged_weights(model) if part == "merged" else model.state_dict()
    if model.config.tie_weights:
        weights.pop("lm_head.weight")  # one copy of what is one matrix
    if part in ("base", "adapters"):
        weights = {n: w for n, w in weights.items() if is_adapter(n) == (part == "adapters")}
    return {
        "format_version": FORMAT_VERSIONS["checkpoint"],
        "model_config": model.config.to_dict(),
        "model": {_plain_name(n): w if is_sharded(w) else w.cpu() for n, w in weights.items()},
        "tokenizer": tokenizer_content(tokenizer),
        "proof": proof_of(model),
        **more,
    }


def _plain_name(name: str) -> str:
    for prefix in WRAPPER_PREFIXES:
        name = name.replace(prefix, "")
    return name


def content_sha256(content: dict[str, Any]) -> str:
    """SHA-256 (hex) of everything in a checkpoint: names, plain values, and each tensor's bytes."""
    import torch

    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)};".encode())
            plain = value.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            digest.update(f"dict {len(value)};".encode())
            for name, each in value.items():
                add(name)
                add(each)
        elif isinstance(value, (list, tuple)):
            digest.update(f"list {len(value)};".encode())
            for each in value:
                add(each)
        else:
            digest.update(f"{value!r};".encode())

    add({name: value for name, value in content.items() if name != "sha256"})
    return digest.hexdigest()


def write_checkpoint(state: dict[str, Any], path: AnyPath) -> str:
    """Write `state` with its SHA-256 as the file `path`, atomically; returns the SHA-256."""
    with atomic_torch_save(state, Path(path)) as sha256:
        return sha256


@contextlib.contextmanager
def atomic_torch_save(state: dict[str, Any], path: Path) -> Iterator[str]:
    """Write `state` with its SHA-256 beside `path`, run the block, then let it take that name.

    Yields the SHA-256.
    """
    import torch

    sha256 = content_sha256(state)
    state = {**state, "sha256": sha256}
    with atomic_write(path) as file:
        remembering = _Remembering(file)
        try:
            torch.save(state, cast(IO[bytes], remembering))  # it calls write and flush only
            file.flush()
        except Exception as error:
            cause = remembering.error or error
            if isinstance(cause, OSError):
                cause.filename = cause.filename or str(path)
            raise cause from None
        yield sha256


class _Remembering:
    """A file that remembers the OSError of a write, which torch.save turns into another error."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


# Reading ------------------------------------------------------------------------------------------


class _ModelForm(TypedDict):
    model_config: dict[str, Any]
    model: dict[str, Any]


class _CheckpointForm(_ModelForm, total=False):
    """The types of what every checkpoint holds."""

    step: Count
    val_loss: float | None
    base: str | None


def read_checkpoint(path: AnyPath, mapped: bool = False) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU. CheckpointError: missing, damaged, foreign.

    Adapters come with the weights of the model that they belong to, from base.pt beside the file.
    mapped: tensors stay in a file, whose pages the system reads and drops as it likes.
    """
    path = Path(path)
    content: dict[str, Any] = open_checkpoint(path, mapped)
    if mapped and sharded_checkpoints.has_shards(path):
        with tempfile.TemporaryFile(dir=path.parent) as file:
            return cast(dict[str, Any], sharded_checkpoints.with_tensors(content, file))
    return cast(dict[str, Any], sharded_checkpoints.with_tensors(content))


def open_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """As `read_checkpoint`; the tensors of a checkpoint in shards are read when they are needed."""
    if sharded_checkpoints.has_shards(path):
        content = sharded_checkpoints.open_shards(path)
        content["proof"] = sharded_checkpoints.with_tensors(content.get("proof"))  # 10 kB
        return _checked(content, path)
    content = _read_file(path, mapped)
    if content.get("base") is None:
        return content
    beside = Path(path).with_name(BASE)
    base = _read_file(beside, mapped) if beside.is_file() else {"model": {}}
    if base.get("base") is not None or base.get("sha256") != content["base"]:
        raise CheckpointError(
            f"{display(path)} holds adapters, and {display(beside)} is not the model that they "
            "belong to: copy the run's whole folder."
        )
    return {**content, "model": {**base["model"], **content["model"]}}


def _read_file(path: Path, mapped: bool = False) -> dict[str, Any]:
    """What a checkpoint file itself holds."""
    import torch

    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint {display(path)}: train a model first (python train.py), or "
            "name an existing run with --out_dir."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd pickles, which are refused all the same
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_unpickling_sentence(path, error)) from None
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # torch's reader meets damage with errors of every kind
        raise CheckpointError(
            f"{display(path)} is damaged: it is cut short or was changed after it was written."
        ) from error
    if not isinstance(content, dict) or "model" not in content:
        raise CheckpointError(f"{display(path)} is not a checkpoint of gptlab.")
    check_format_version(content.get("format_version"), "checkpoint", path, CheckpointError)
    if not _is_plain(content):
        raise CheckpointError(
            f"{display(path)} was refused: it holds a tensor that is larger than its data, or of "
            "a kind that no checkpoint of gptlab has."
        )
    is_hashed = content["format_version"] > 1 or "sha256" in content
    if is_hashed and content.get("sha256") != content_sha256(content):
        raise CheckpointError(f"{display(path)} is damaged: its SHA-256 does not fit.")
    return _checked(content, path)


def _checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """A content whose plain values have their types; CheckpointError for another."""
    if misfit(content, _CheckpointForm):
        raise CheckpointError(f"{display(path)} is not a checkpoint of gptlab.")
    return content


def _unpickling_sentence(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        looks_whole = file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    if looks_whole and ("weights_only" in str(error) or "unsupported" in str(error).lower()):
        return (
            f"{display(path)} was refused: it holds more than tensors and plain values, and "
            "loading such a file could run somebody's code."
        )
    return f"{display(path)} is damaged or not a checkpoint."


def _is_plain(value: object) -> bool:
    """Whether all tensors in a value are dense ones with data for each of their elements.

    A file of a few bytes can describe a view of terabytes, which the first copy would allocate.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return (
            value.layout is torch.strided
            and not value.is_quantized
            and value.device.type == "cpu"
            and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
        )
    if isinstance(value, dict):
        return all(_is_plain(each) for each in value.values())
    return not isinstance(value, (list, tuple, set)) or all(map(_is_plain, value))


def read_training_state(path: Path, mapped: bool = False) -> dict[str, Any]:
    """A training state that a run can go on from, every weight finite.

    Tensors in shards are StoredTensors. mapped: of `read_checkpoint`. Raises CheckpointError.
    """
    content = open_checkpoint(path, mapped)
    if "optimizer" not in content:
        raise CheckpointError(
            f"{display(path)} has weights only and cannot be continued: start a run from it with "
            f"--init_from {display(path)}."
        )
    _stored_config(content, path)
    if what := _misfit_of_state(content):
        raise CheckpointError(f"{display(path)} cannot be continued: {what}.")
    check_finite(content, path)
    return content


class _DatasetForm(TypedDict, total=False):
    fingerprint: str


class _OptionsForm(TypedDict, total=False):
    values: dict[str, Option]
    sources: dict[str, Option]
    resolved: dict[str, Option]


class _StateForm(TypedDict, total=False):
    """The types of what a training state holds beside tensors."""

    sequences_seen: Count
    best_step: Count
    skipped_steps: Count
    best_val_loss: float  # inf before the first evaluation
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    dataset: _DatasetForm
    train_config: _OptionsForm
    decided: dict[str, Option]


def _misfit_of_state(state: dict[str, Any]) -> str:
    """Why a training state is not one that a run writes; "" where it is."""
    if what := misfit(state, _StateForm):
        return what

    def shapes(tensors: object) -> dict[str, Any]:
        if not isinstance(tensors, dict):
            return {}
        return {name: getattr(value, "shape", None) for name, value in tensors.items()}

    weights = shapes(state["model"])
    if state.get("ema") is not None:
        average = shapes(state["ema"])
        if not (average.items() <= weights.items() and set(state["optimizer"]) <= set(average)):
            return "it has no valid ema"
    for name, parts in state["optimizer"].items():
        # of which names, shapes and dtypes is the optimizer's to check, when it takes them
        found = shapes(parts)
        if name not in weights or not found or None in found.values():
            return f"it has no valid optimizer state of {name}"
    options = state.get("train_config", {})
    if set(options.get("sources", ())) != set(options.get("values", ())):
        return "its train_config has other sources than values"
    return ""


def check_finite(content: dict[str, Any], path: AnyPath) -> None:
    """CheckpointError where a weight is not a number."""
    import torch

    for name, weight in content["model"].items():
        parts: Iterable[torch.Tensor] = [weight] if isinstance(weight, torch.Tensor) else []
        if isinstance(weight, sharded_checkpoints.StoredTensor):
            parts = weight.parts()
        if not all(part.isfinite().all() for part in parts):
            raise CheckpointError(f"{display(path)} holds weights that are not finite ({name}).")


# Building -----------------------------------------------------------------------------------------


def model_from(
    content: dict[str, Any],
    path: AnyPath,
    device: str = "cpu",
    keep_adapters: bool = False,
    **changes: Any,
) -> "GPT":
    """The model of a checkpoint's content, with other settings where `changes` says so.

    A shorter block_size is fine (learned positions are cropped); a longer one, or other weights'
    shapes, raise CheckpointError. keep_adapters: those of a LoRA training stay beside the weights
    that they adapt, to be trained on; else they are merged into them.
    """
    import torch

    from gptlab.model import lora
    from gptlab.model.building import SkipInitialisation
    from gptlab.model.config import GPTConfig
    from gptlab.model.transformer import GPT

    path = Path(path)
    stored = _stored_config(content, path)
    config = GPTConfig(**(stored.to_dict() | changes))
    if config.block_size > stored.block_size:
        raise CheckpointError(
            f"{display(path)} was trained with block_size {stored.block_size}, and "
            f"{config.block_size} is longer: use --block_size {stored.block_size} or less."
        )
    weights = {_plain_name(name): value for name, value in content["model"].items()}
    adapters = {name: weights.pop(name) for name in list(weights) if lora.is_adapter(name)}
    positions = "position_embedding.weight"
    if isinstance(weights.get(positions), torch.Tensor) and weights[positions].dim():
        weights[positions] = weights[positions][: config.block_size]
    if config.tie_weights:
        weights.setdefault("lm_head.weight", weights.get("token_embedding.weight"))
    with SkipInitialisation():
        model = GPT(config)
    expected = {name: value.shape for name, value in model.state_dict().items()}
    for name, shape in expected.items():
        found = weights.get(name)
        if isinstance(found, torch.Tensor) and not found.is_floating_point():
            kind = str(found.dtype).removeprefix("torch.")
            raise CheckpointError(f"{display(path)} holds {name} as {kind}, not as numbers.")
        if not isinstance(found, torch.Tensor) or found.shape != shape:
            has = "no such tensor" if found is None else f"{tuple(getattr(found, 'shape', ()))}"
            raise CheckpointError(
                f"{display(path)} does not fit its model: {name} should be {tuple(shape)} and the "
                f"file has {has}."
            )
    if extra := sorted(set(weights) - set(expected)):
        raise CheckpointError(f"{display(path)} has a tensor that its model lacks: {extra[0]}.")
    model.load_state_dict(weights, assign=True)
    if config.tie_weights:
        model.lm_head.weight = model.token_embedding.weight
    model.make_tables()
    if adapters:
        _check_adapters(adapters, expected, content, path)
        lora.add_adapters(model, adapters, content["lora_alpha"])
        if not keep_adapters:
            lora.merge_adapters(model)
    return model.to(device)


def _stored_config(content: dict[str, Any], path: Path) -> "GPTConfig":
    """The GPTConfig of a checkpoint; nothing is built from settings that its weights do not bear.

    CheckpointError: a setting of another type or name, or a model larger than what is in the file.
    """
    from gptlab.model.arithmetic import count_parameters
    from gptlab.model.building import parameter_shapes
    from gptlab.model.config import GPTConfig

    known, settings = options_of(GPTConfig), content["model_config"]
    try:
        if unknown := [name for name in settings if name not in known]:
            raise ConfigError(f"unknown: {unknown[0]!s:.40}")
        if odd := [name for name, value in settings.items() if misfit(value, Option)]:
            raise ConfigError(f"{odd[0]} is {type(settings[odd[0]]).__name__}")
        settings = {name: coerce(known[name], value) for name, value in settings.items()}
        for name, value in settings.items():
            if isinstance(value, int) and value > LARGEST_SIZE:
                raise ConfigError(f"{name} is {value:.3g}")
        config = GPTConfig(**settings)
        if config.block_size * config.head_dim > LARGEST_TABLE:
            raise ConfigError(f"block_size is {config.block_size}")
    except ConfigError as error:
        raise CheckpointError(
            f"{display(path)} has settings that this model cannot have ({error.problem})."
        ) from None
    present = sum(getattr(value, "numel", int)() for value in content["model"].values())
    needed = count_parameters(config)
    # a few more are named below, tensor by tensor
    has_layers = config.n_layer <= 1000 + len(content["model"])
    if has_layers and needed > 2 * present + 1_000_000:  # an edited model may share its weights
        needed = sum(map(math.prod, parameter_shapes(config).values()))
    if not has_layers or needed > 2 * present + 1_000_000:
        raise CheckpointError(
            f"{display(path)} does not fit its model: its settings need {needed:,} parameters in "
            f"{config.n_layer:,} layers, and the file has {present:,}."
        )
    return config


def _check_adapters(
    adapters: dict[str, Any],
    expected: "dict[str, torch.Size]",
    content: dict[str, Any],
    path: Path,
) -> None:
    """CheckpointError unless each adapter is a pair that fits a projection of the model."""
    import torch

    shapes = {
        name: value.shape
        for name, value in adapters.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() == 2
    }
    alpha = content.get("lora_alpha")
    is_number = isinstance(alpha, float) and 0 < alpha < math.inf
    for name in adapters:
        where = name.rpartition(".")[0]
        matrix = expected.get(f"{where}.weight", ())
        a, b = (shapes.get(f"{where}.{end}", (0, 0)) for end in ("lora_A", "lora_B"))
        is_pair = a[0] == b[1] > 0 and where.endswith("_proj") and (b[0], a[1]) == tuple(matrix)
        if not (is_number and is_pair):
            raise CheckpointError(
                f"{display(path)} does not fit its model: it has no whole adapter of {where}."
            )


def proof_in(content: dict[str, Any], path: AnyPath) -> dict[str, Any] | None:
    """The proof that travels in a checkpoint, or None: older files, and foreign ones, have none."""
    from gptlab.model.proof import is_proof

    stored = content.get("proof")
    if stored is not None and not is_proof(stored, _stored_config(content, Path(path))):
        raise CheckpointError(f"{display(path)} holds a proof that cannot be read.")
    return stored


def tokenizer_from(content: dict[str, Any], path: AnyPath) -> "Tokenizer | None":
    """The tokenizer that travels in a checkpoint, or None for a model trained without one."""
    from gptlab.data.tokenizer import Tokenizer

    stored = content.get("tokenizer")
    if stored is None:
        return None
    try:
        return Tokenizer.from_json(stored["json"])
    except (TokenizerError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{display(path)} holds a tokenizer that cannot be read ({error})."
        ) from None
