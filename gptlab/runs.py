"""The run directory: its files, its lock, its checkpoints and its metrics.

    ckpt.pt       the newest full training state: what --resume continues
    ckpt.prev.pt  the one before it, in case the newest is damaged
    ckpt.step*.pt the last few of all, where keep_checkpoints asks for them
    best.pt       the weights with the lowest validation loss: what sample.py takes
    metrics.jsonl one record a line; loss.png, the same as a picture
    config.py     what was said for the run, as a recipe
    adapter/      of a LoRA training: the adapters of best.pt alone, as peft reads them
    evaluations.jsonl: what gpt.py evaluate measured
    provenance.json, source.zip, trace.jsonl: what its first steps rest on (training/provenance.py)

`.pt` files hold tensors and plain types only, are read without running any pickled code, and carry
the SHA-256 of all that is in them.
"""

import contextlib
import datetime
import hashlib
import json
import logging
import math
import os
import pickle
import shutil
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gptlab.errors import CheckpointError, ConfigError, RunError, TokenizerError
from gptlab.files import (
    FORMAT_VERSIONS,
    atomic_write,
    check_format_version,
    display,
    out_home,
    remove_folder,
)
from gptlab.options import coerce, options_of

logger = logging.getLogger(__name__)

_METRICS_HEAD = json.dumps({"format_version": FORMAT_VERSIONS["metrics"]}) + "\n"
_EVALUATIONS_HEAD = json.dumps({"format_version": FORMAT_VERSIONS["evaluations"]}) + "\n"
_EVALUATED = ("loss", "perplexity", "bits_per_byte", "tokens")
_MEASURED = (
    "loss", "bits_per_byte", "grad_norm", "learning_rate", "sequences_seen", "skipped_steps",
    "tokens_per_second", "data_share", "time", "mfu", "val_loss", "val_bits_per_byte",
    "ema_val_loss",
)  # fmt: skip
# Bounds for the settings in a file: of each number, and of the values in a table of positions.
LARGEST_SIZE = 1 << 24
LARGEST_TABLE = 1 << 26
WRAPPER_PREFIXES = ("_orig_mod.", "module.")  # what torch.compile and DDP put before names


@dataclass(frozen=True)
class Checkpoint:
    """A model ready to use, and where it comes from. val_loss: nats per token, or None."""

    model: object
    tokenizer: object
    path: Path
    step: int
    val_loss: float | None
    content: dict


class Run:
    """One run directory. Nothing is created before `begin`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.checkpoint = self.folder / "ckpt.pt"
        self.previous = self.folder / "ckpt.prev.pt"
        self.best = self.folder / "best.pt"
        self.metrics = self.folder / "metrics.jsonl"
        self.plot = self.folder / "loss.png"
        self.recipe = self.folder / "config.py"
        self.provenance = self.folder / "provenance.json"
        self.sources = self.folder / "source.zip"
        self.trace = self.folder / "trace.jsonl"
        self.adapter = self.folder / "adapter"
        self.evaluations = self.folder / "evaluations.jsonl"
        self._lock = None

    def exists(self) -> bool:
        """Whether there is something here that a new start would destroy."""
        return any(path.exists() for path in (self.checkpoint, self.previous, self.best))

    def check_free(self) -> None:
        """RunError when a new start would destroy a run."""
        if self.exists():
            raise RunError(
                f"{display(self.folder)} holds a run already: continue it with --resume, choose "
                "another --out_dir, or delete it with --overwrite."
            )

    def begin(self, resume: bool = False, overwrite: bool = False) -> None:
        """Make the directory and lock it; RunError when it is taken or a live process has it.

        What belongs to no checkpoint is removed: the records of a run that died before its first
        one must not mix with those of the next, and a kill may leave half-written files.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        former = [*self.folder.glob(".*.tmp"), *self.adapter.glob(".*.tmp")]
        if not resume:
            if not overwrite:
                self.check_free()
            former += [self.checkpoint, self.previous, self.best, *self.kept_checkpoints()]
            former += [self.metrics, self.plot, self.recipe]
            former += [self.provenance, self.sources, self.trace, self.evaluations]
            if self.adapter.is_dir():
                remove_folder(self.adapter)
        for path in former:
            path.unlink(missing_ok=True)

    def _take_lock(self) -> None:
        # the system frees such a lock when the process ends, however it ends; on a network file
        # system it holds for all machines, or the system says that it cannot lock
        file = open(self.folder / ".lock", "a+", encoding="utf-8")
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            with file:
                owner = _first_line(file)
            if isinstance(error, (BlockingIOError, PermissionError)):
                raise RunError(
                    f"Another process is training in {display(self.folder)}{owner}: wait for it, "
                    "stop it, or choose another --out_dir."
                ) from None
            logger.warning(
                "%s cannot be locked (%s): see to it yourself that no second run uses it.",
                display(self.folder),
                error.strerror or error,
            )
            return
        file.truncate(0)
        file.write(f" (process {os.getpid()} on {socket.gethostname()})\n")
        file.flush()
        self._lock = file

    def is_running(self) -> bool:
        """Whether a live process trains here; asked with a lock that is given back at once."""
        path = self.folder / ".lock"
        try:
            with open(path, "r+" if os.name == "nt" else "r", encoding="utf-8") as file:
                if os.name == "nt":
                    import msvcrt

                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                    msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return os.access(path, os.R_OK)  # a file that may not be read says nothing
        except OSError:  # no lock file, or a file system without locks
            return False
        return False

    def end(self) -> None:
        """Give the directory free."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def save(self, state: dict, keep: int = 0) -> None:
        """Make `state` the newest checkpoint; at every instant one of the two files is whole.

        keep: how many of the last checkpoints stay, each under the number of its step as well.
        """
        with atomic_torch_save(state, self.checkpoint):
            if self.checkpoint.exists():
                _replace_by_copy_of(self.checkpoint, self.previous)
        if keep:
            _replace_by_copy_of(
                self.checkpoint, self.folder / f"ckpt.step{state['step']:08d}.pt", move=False
            )
        for path in self.kept_checkpoints()[: -keep or None]:
            path.unlink()

    def kept_checkpoints(self) -> list[Path]:
        """The checkpoints that carry the number of their step, oldest first."""
        return sorted(self.folder.glob("ckpt.step*.pt"))

    def save_best(self, state: dict) -> None:
        """Make `state` the best checkpoint."""
        write_checkpoint(state, self.best)

    def load(self) -> dict:
        """The newest training state that can be read; a damaged one is named in a warning."""
        if not self.exists():
            raise RunError(
                f"There is no run to resume in {display(self.folder)}: leave --resume out to "
                "start one, or name the right --out_dir."
            )
        try:
            return _read_state(self.checkpoint)
        except CheckpointError as error:
            if not self.previous.exists():
                raise
            state = _read_state(self.previous)
            lost = max((r["step"] for r in self.records()), default=0) - state["step"]
            again = f", which costs {lost} {'step' if lost == 1 else 'steps'}" if lost > 0 else ""
            logger.warning(
                "%s Continuing from %s at step %d instead%s.",
                error,
                display(self.previous),
                state["step"],
                again,
            )
            return state

    def append(self, record: dict) -> None:
        """Add a line to metrics.jsonl; JSON has no word for a number that is not finite: null."""
        record = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        _append(self.metrics, _METRICS_HEAD, record)

    def add_evaluation(self, result: dict) -> None:
        """Add what gpt.py evaluate measured, with the time, to evaluations.jsonl."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        _append(self.evaluations, _EVALUATIONS_HEAD, {"time": now, **result})

    def evaluated(self) -> list[dict]:
        """The results in evaluations.jsonl, oldest first; a line that is no result is left out."""
        return [
            record
            for record in read_records(self.evaluations, "evaluations")
            if all(isinstance(record.get(name), str) for name in ("data", "time"))
            and (_is_of_tasks(record) or all(_is_finite(record.get(n)) for n in _EVALUATED))
        ]

    def records(self) -> list[dict]:
        """The records of metrics.jsonl; a line that no run writes, or only half, is left out."""
        return [record for record in read_records(self.metrics) if _is_measured(record)]

    def was_evaluated(self, step: int) -> bool:
        """Whether metrics.jsonl has the validation loss of this step."""
        return any(r["step"] == step and "val_loss" in r for r in self.records())

    def cut(self, step: int, with_evaluation: bool = False) -> None:
        """Forget what was recorded after a checkpoint of `step`.

        with_evaluation: keep the evaluation of `step`; a resume makes it once more.
        """

        def is_kept(record: dict) -> bool:
            if record["step"] != step:
                return record["step"] < step
            return with_evaluation or not {"val_loss", "rolled_back"} & set(record)

        kept = [record for record in self.records() if is_kept(record)]
        with atomic_write(self.metrics, "w") as file:
            file.write(_METRICS_HEAD)
            file.writelines(json.dumps(record) + "\n" for record in kept)


def _append(path: Path, head: str, record: dict) -> None:
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        if file.tell() == 0:
            file.write(head)
        file.write(json.dumps(record) + "\n")


def read_records(path: Path, kind: str = "metrics") -> Iterator[dict]:
    """The records of a file, a line each; a line that a kill cut short is left out."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                record = json.loads(line)
                if isinstance(record, dict) and _is_count(record.get("step")):
                    yield record
                elif isinstance(record, dict) and "format_version" in record:
                    check_format_version(record["format_version"], kind, path, RunError)


def _is_of_tasks(record: dict) -> bool:
    """Whether a record has figures of tasks: {task: {metric: number}}."""
    tasks = record.get("tasks")
    return isinstance(tasks, dict) and all(
        isinstance(metrics, dict) and all(map(_is_finite, metrics.values()))
        for metrics in tasks.values()
    )


def _is_finite(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_measured(record: dict) -> bool:
    """Whether all that is measured in a record is a number or null."""
    return all(
        isinstance(value, int | float | None)
        and not isinstance(value, bool)
        and abs(value or 0) < 1 << 63  # false for one that is not finite
        for value in (record.get(name) for name in _MEASURED)
    ) and isinstance(record.get("sample", ""), str)


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _first_line(file) -> str:
    """The first line of an open file, "" where it cannot be read (Windows locks reading too)."""
    try:
        file.seek(0)
        return file.readline().rstrip("\n")
    except OSError:
        return ""


def _replace_by_copy_of(source: Path, target: Path, move: bool = True) -> None:
    """Let `target` be what `source` is now, without a moment in which either is missing.

    move: where there are no hard links, `source` may go (its successor comes at once).
    """
    if target.exists() and os.path.samefile(source, target):
        return  # a kill between two saves: a rename over itself would leave the temporary name
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        if move:
            os.replace(source, target)
            return
        shutil.copyfile(source, temporary)
    try:
        os.replace(temporary, target)
    except OSError:
        temporary.unlink()
        raise


class _Remembering:
    """A file that remembers the OSError of a write, which torch.save turns into another error."""

    def __init__(self, file):
        self.file, self.error = file, None

    def write(self, data):
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self):
        self.file.flush()


@contextlib.contextmanager
def atomic_torch_save(state: dict, path: Path):
    """Write `state` with its SHA-256 beside `path`, run the block, then let it take that name."""
    import torch

    state = {**state, "sha256": content_sha256(state)}
    with atomic_write(path) as file:
        remembering = _Remembering(file)
        try:
            torch.save(state, remembering)
            file.flush()
        except Exception as error:
            cause = remembering.error or error
            if isinstance(cause, OSError):
                cause.filename = cause.filename or str(path)
            raise cause from None
        yield


def write_checkpoint(state: dict, path) -> None:
    """Write `state` with its SHA-256 as the file `path`, atomically."""
    with atomic_torch_save(state, Path(path)):
        pass


def content_sha256(content: dict) -> str:
    """SHA-256 (hex) of everything in a checkpoint: names, plain values, and each tensor's bytes."""
    import torch

    digest = hashlib.sha256()

    def add(value) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)};".encode())
            plain = value.detach().cpu().contiguous().reshape(-1)
            digest.update(plain.view(torch.uint8).numpy())
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


# Reading ------------------------------------------------------------------------------------------


def read_checkpoint(path) -> dict:
    """The content of a checkpoint file, on the CPU. CheckpointError: missing, damaged, foreign."""
    import torch

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint {display(path)}: train a model first (python train.py), or "
            "name an existing run with --out_dir."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd pickles, which are refused all the same
            content = torch.load(path, map_location="cpu", weights_only=True)
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
    step, val_loss = content.get("step", 0), content.get("val_loss")
    if not (
        all(isinstance(content.get(key), dict) for key in ("model_config", "model"))
        and all(isinstance(name, str) for name in content["model"])
        and _is_count(step)
        and (val_loss is None or isinstance(val_loss, float))
    ):
        raise CheckpointError(f"{display(path)} is not a checkpoint of gptlab.")
    return content


def _is_plain(value) -> bool:
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


def _read_state(path: Path) -> dict:
    """A training state that a run can go on from: read_checkpoint, and every weight finite."""
    content = read_checkpoint(path)
    if "optimizer" not in content:
        raise CheckpointError(
            f"{display(path)} has weights only and cannot be continued: start a run from it with "
            f"--init_from {display(path)}."
        )
    _stored_config(content, path)
    if place := _misfit_of_state(content):
        raise CheckpointError(f"{display(path)} cannot be continued: it has no valid {place}.")
    check_finite(content, path)
    return content


def _misfit_of_state(state: dict) -> str | None:
    """The first part of a training state that is there and not what a run writes, or None."""
    import torch

    def shapes(tensors) -> dict | None:
        if not isinstance(tensors, dict):
            return None
        return {name: getattr(value, "shape", None) for name, value in tensors.items()}

    for name in ("sequences_seen", "best_step", "skipped_steps"):
        if not _is_count(state.get(name, 0)):
            return name
    if not isinstance(state.get("best_val_loss", 0.0), float):
        return "best_val_loss"
    for name in ("optimizer", "scaler", "dataset", "train_config", "decided"):
        if not isinstance(state.get(name, {}), dict):
            return name
    weights = shapes(state["model"])
    if state.get("ema") is not None:
        average = shapes(state["ema"]) or {}
        if not (average.items() <= weights.items() and set(state["optimizer"]) <= set(average)):
            return "ema"
    for name, moments in state["optimizer"].items():
        for part, shape in (shapes(moments) or {"": None}).items():
            if shape != (torch.Size() if part == "step" else weights.get(name)):
                return f"optimizer state of {name}"
            if moments[part].dtype != torch.float32:
                return f"optimizer state of {name}"
    if not isinstance(state.get("dataset", {}).get("fingerprint", ""), str):
        return "dataset"
    said = state.get("train_config", {})
    for part in ("values", "sources", "resolved"):
        options = said.get(part, {})
        if not isinstance(options, dict) or not all(map(_is_option, options.values())):
            return f"train_config ({part})"
    if set(said.get("sources", ())) != set(said.get("values", ())):
        return "train_config (sources)"
    return None if all(map(_is_option, state.get("decided", {}).values())) else "decided"


def _is_option(value) -> bool:
    return isinstance(value, bool | int | float | str | None)


def check_finite(content: dict, path) -> None:
    """CheckpointError where a weight is not a number."""
    import torch

    for name, weight in content["model"].items():
        if isinstance(weight, torch.Tensor) and not weight.isfinite().all():
            raise CheckpointError(f"{display(path)} holds weights that are not finite ({name}).")


def _unpickling_sentence(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        looks_whole = file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    if looks_whole and ("weights_only" in str(error) or "unsupported" in str(error).lower()):
        return (
            f"{display(path)} was refused: it holds more than tensors and plain values, and "
            "loading such a file could run somebody's code."
        )
    return f"{display(path)} is damaged or not a checkpoint."


def model_from(content: dict, path, device: str = "cpu", keep_adapters: bool = False, **changes):
    """The model of a checkpoint's content, with other settings where `changes` says so.

    A shorter block_size is fine (learned positions are cropped); a longer one, or other weights'
    shapes, raise CheckpointError. keep_adapters: those of a LoRA training stay beside the weights
    that they adapt, to be trained on; else they are merged into them.
    """
    import torch

    from gptlab.model import lora
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
    with _without_initialisation():
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


def _check_adapters(adapters: dict, expected: dict, content: dict, path: Path) -> None:
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


def _stored_config(content: dict, path: Path):
    """The GPTConfig of a checkpoint; nothing is built from settings that its weights do not bear.

    CheckpointError: a setting of another type or name, or a model larger than what is in the file.
    """
    from gptlab.model.arithmetic import count_parameters
    from gptlab.model.config import GPTConfig

    known, settings = options_of(GPTConfig), content["model_config"]
    try:
        if unknown := [name for name in settings if name not in known]:
            raise ConfigError(f"unknown: {unknown[0]!s:.40}")
        if odd := [name for name, value in settings.items() if not _is_option(value)]:
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
            f"{display(path)} has settings that this model cannot have ({str(error).rstrip('.')})."
        ) from None
    present = sum(getattr(value, "numel", int)() for value in content["model"].values())
    needed = count_parameters(config)
    # a few more are named below, tensor by tensor
    if config.n_layer > 1000 + len(content["model"]) or needed > 2 * present + 1_000_000:
        raise CheckpointError(
            f"{display(path)} does not fit its model: its settings need {needed:,} parameters in "
            f"{config.n_layer:,} layers, and the file has {present:,}."
        )
    return config


def _without_initialisation():
    """A context in which torch.nn.init draws nothing, because the weights come from a file.

    Not the meta device: operations there import torch._dynamo, which takes longer than the rest of
    a start of sample.py.
    """
    from torch.overrides import TorchFunctionMode

    class SkipInitialisation(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if getattr(func, "__module__", None) == "torch.nn.init":
                return kwargs["tensor"] if "tensor" in kwargs else args[0]
            return func(*args, **kwargs)

    return SkipInitialisation()


def _plain_name(name: str) -> str:
    for prefix in WRAPPER_PREFIXES:
        name = name.replace(prefix, "")
    return name


def tokenizer_from(content: dict, path):
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


def load_checkpoint(path, device: str = "cpu", **changes) -> Checkpoint:
    """The model and tokenizer of a checkpoint file, or of a run directory (best.pt, else ckpt.pt).

    device: where the weights go. changes: settings of the model other than the stored ones.
    Raises CheckpointError.
    """
    path = Path(path)
    if path.is_dir():
        run = Run(path)
        found = [file for file in (run.best, run.checkpoint, run.previous) if file.exists()]
        if not found:
            raise CheckpointError(
                f"{display(path)} has no checkpoint: train a model there first (python train.py "
                f"--out_dir {display(path)})."
            )
        path = found[0]
    content = read_checkpoint(path)
    model = model_from(content, path, device, **changes).eval()
    return Checkpoint(
        model=model,
        tokenizer=tokenizer_from(content, path),
        path=path,
        step=content.get("step", 0),
        val_loss=content.get("val_loss"),
        content=content,
    )


def tokenizer_content(tokenizer) -> dict | None:
    """A tokenizer as a checkpoint holds it."""
    if tokenizer is None:
        return None
    return {"kind": tokenizer.kind, "json": tokenizer.to_json()}


def model_content(model, tokenizer, merge: bool = False, **more) -> dict:
    """What every checkpoint holds: version, settings, weights on the CPU, tokenizer, and `more`.

    merge: adapters of a LoRA training become part of the weights; else they stand beside them, and
    `more` has their lora_alpha.
    """
    from gptlab.model.lora import merged_weights

    weights = merged_weights(model) if merge else model.state_dict()
    if model.config.tie_weights:
        weights.pop("lm_head.weight")  # one copy of what is one matrix
    return {
        "format_version": FORMAT_VERSIONS["checkpoint"],
        "model_config": model.config.to_dict(),
        "model": {_plain_name(n): w.detach().to("cpu", copy=False) for n, w in weights.items()},
        "tokenizer": tokenizer_content(tokenizer),
        **more,
    }


def list_runs() -> list[Path]:
    """The run directories under the home that hold a checkpoint, newest first."""
    found = []
    for folder in out_home().glob("*"):
        if folder.name.startswith("."):  # what a deletion had moved aside
            continue
        run = Run(folder)
        times = [p.stat().st_mtime for p in (run.checkpoint, run.best) if p.exists()]
        if times:
            found.append((max(times), folder))
    return [folder for _, folder in sorted(found, reverse=True)]


def newest_run() -> Path:
    """The run that was written to last; RunError when there is none."""
    runs = list_runs()
    if not runs:
        raise RunError(
            f"There is no trained model in {display(out_home())}: train one first with "
            "python train.py, or name one with --out_dir."
        )
    return runs[0]
