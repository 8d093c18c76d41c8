"""Check that a run will work here; each failed check has a fix.

Each check is a function that returns a Check and does not raise for what it looks for. torch is
imported inside, so that a missing torch is a finding and not a traceback.
"""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from gptlab.checkpoints import check_finite, open_checkpoint
from gptlab.data.baselines import unlike
from gptlab.data.batches import check_ids
from gptlab.data.mixture import open_mixture, open_part
from gptlab.data.task_dataset import TaskDataset
from gptlab.data.token_files import (
    DTYPES,
    SCAN_TOKENS,
    VERIFY_BYTES,
    Meta,
    prepare_again,
    split_files,
)
from gptlab.data.token_shards import SPLITS
from gptlab.errors import ConfigError, DataError, GPTLabError
from gptlab.files import (
    display,
    explain_error,
    in_bytes,
    nearest_existing,
    quoted,
    runnable,
    sha256_file,
)
from gptlab.runs import Run
from gptlab.training.config import TrainConfig
from gptlab.training.disk_space import checkpoint_bytes
from gptlab.training.memory import memory_warning

SPACE_TO_SPARE = 100_000_000  # bytes besides the checkpoints: records, pictures, other programs


@dataclass(frozen=True)
class Check:
    """A check and its result. fix: what to do, "" where nothing is wrong."""

    name: str
    ok: bool
    detail: str
    fix: str = ""

    def __post_init__(self):
        object.__setattr__(self, "fix", runnable(self.fix))


# Packages -----------------------------------------------------------------------------------------


def check_versions(requirements: list[Requirement]) -> Check:
    """The installed packages against the releases that were tested."""
    wrong = []
    for requirement in requirements:
        name, tested = requirement.name, requirement.specifier
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if not tested.contains(found, prereleases=True):
            wrong.append(f"{name} is {found}, but {tested} was tested")
    fix = "install the tested releases: pip install -r requirements.txt"
    if wrong:
        return Check("packages", False, "; ".join(wrong), fix)
    return Check("packages", True, f"{len(requirements)} packages, all of the tested releases")


def read_requirements() -> list[Requirement]:
    """The requirements of gptlab: requirements.txt, else the installed metadata without extras."""
    path = Path(__file__).resolve().parents[2] / "requirements.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        try:
            lines = importlib.metadata.requires("gptlab") or []
        except importlib.metadata.PackageNotFoundError:
            lines = []
    lines = [line.partition("#")[0].strip() for line in lines]
    found = [Requirement(line) for line in lines if line]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


# Places -------------------------------------------------------------------------------------------


def check_writable(name: str, folder: Path, option: str) -> Check:
    """Whether a file can be made in `folder`, or in the nearest folder above that exists."""
    existing = nearest_existing(folder)
    try:
        if not existing.is_dir():
            raise NotADirectoryError(20, "not a folder", str(existing))
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".gptlab-") as file:
            file.write(b"a test")
            file.flush()
    except OSError as error:
        error.filename = str(existing)
        return Check(
            name,
            False,
            explain_error(error).problem,
            f"make it writable for this user, or choose another place with {option}",
        )
    return Check(name, True, f"{display(folder)} can be written")


def check_space(config: TrainConfig, folder: Path) -> Check:
    """Whether this run's checkpoints fit on the disk."""
    needed = checkpoint_bytes(config) + SPACE_TO_SPARE
    free = shutil.disk_usage(nearest_existing(folder)).free
    detail = f"{in_bytes(free)} free, {in_bytes(needed)} needed for the checkpoints of this run"
    if free < needed:
        return Check(
            "disk space", False, detail, "free some space, or choose another disk with --out_dir"
        )
    return Check("disk space", True, detail)


# The machine --------------------------------------------------------------------------------------


def check_device(choice, device, config: TrainConfig | None) -> Check:
    """The device that would be used, and whether the plan fits its memory."""
    name = f"device {choice.device}"
    warning = memory_warning(config, device.memory_free) if config else None
    if warning:
        return Check(name, False, warning.problem, warning.fix)
    if choice.slow:
        return Check(name, False, choice.reason, "leave --dtype out")
    return Check(name, True, choice.reason)


def check_attention(choice, head_dim: int = 64) -> Check:
    """Whether fused attention is right on this device: no position sees later ones."""
    from gptlab.hardware import attention_is_causal

    try:
        right = attention_is_causal(choice.device, choice.dtype, head_dim=head_dim)
    except RuntimeError as error:
        right, why = False, f"it failed ({error})"
    else:
        why = "later tokens leak into earlier ones, or values are not finite"
    if right:
        return Check("attention", True, f"causal and right on {choice.device} in {choice.dtype}")
    return Check(
        "attention",
        False,
        f"fused attention is wrong on {choice.device} in {choice.dtype}: {why}",
        "gptlab uses plain attention there, which is slower; --dtype float32 or another release "
        "of torch or of the driver may be right",
    )


def check_compiler(device, wanted: bool = True) -> Check:
    """Whether torch.compile finds its tools; without it training works, but takes longer."""
    support = device.compile
    if support.available or not wanted or device.kind == "mps":
        return Check("torch.compile", True, support.reason if wanted else "not wanted")
    return Check(
        "torch.compile",
        False,
        f"{support.reason}, so training is not compiled and long runs are slower",
        f"{support.fix}, or use --compile_model false",
    )


# Datasets and runs --------------------------------------------------------------------------------


def check_dataset(
    name: str, vocab_size: int | None = None, progress: Callable[[int], None] | None = None
) -> Check:
    """A dataset against its meta.json, however large: sizes, hashes, ids, tokenizer.

    progress: called with bytes read.
    """
    try:
        dataset = open_part(name, vocab_size)
        if isinstance(dataset, TaskDataset):
            tests = len(dataset.test_problems["unseen"])
            return Check(f"dataset {dataset.name}", True, f"a task, {tests:,} problems test")
        recorded = (dataset.meta or {}).get("sha256") or {}
        for split in SPLITS:
            path, tokens = dataset.folder / f"{split}.bin", getattr(dataset, split)
            for start in range(0, len(tokens), SCAN_TOKENS):
                check_ids(tokens[start : start + SCAN_TOKENS], dataset.vocab_size, path, start)
            if tokens.size * tokens.itemsize <= VERIFY_BYTES:  # open_dataset has just checked it
                continue
            for path, _ in split_files(dataset.folder, split, dataset.meta) if recorded else ():
                if recorded.get(path.name) not in (None, sha256_file(path, progress)):
                    raise DataError(
                        f"{display(path)} has changed since it was prepared",
                        prepare_again(dataset.name, dataset.meta),
                    )
    except (ConfigError, DataError, OSError) as error:
        found = explain_error(error)
        return Check(f"dataset {name}", False, found.problem, found.fix or "prepare it again")
    sizes = f"{len(dataset.train):,} + {len(dataset.val):,} tokens"
    how = "as its meta.json says" if recorded else "without a meta.json to compare with"
    return Check(f"dataset {dataset.name}", True, f"{sizes}, {how}")


def check_mixture(word: str) -> Check:
    """Whether the datasets of a mix can be trained on together."""
    try:
        data = open_mixture(word)
    except GPTLabError as error:
        return Check("mix", False, error.problem, error.fix)
    return Check("mix", True, data.name)


def check_validation(name: str, meta: Meta | None) -> Check | None:
    """What preparing found about the validation text if it is unlike the training text."""
    split = (meta or {}).get("split") or {}
    sentence = unlike(split)
    if not sentence:
        return None
    if split.get("how") == "file":
        fix = "validate on a text of the same kind: prepare it with another --val, or without"
    else:
        unit = "--split document" if meta.get("documents") != 1 else "--document paragraph"
        fix = f"cut off its end if it does not belong there, or prepare it with {unit}"
    return Check(f"validation text of {name}", False, sentence, fix)


def dataset_bytes(meta: dict | None) -> int:
    """Bytes of both token files, for a progress bar."""
    meta = meta or {}
    tokens = int(meta.get("train_tokens") or 0) + int(meta.get("val_tokens") or 0)
    return tokens * DTYPES.get(meta.get("dtype"), DTYPES["uint16"]).itemsize


def check_run(folder: Path) -> Iterator[Check]:
    """Whether each checkpoint of a run is complete, and its weights are finite."""
    run = Run(folder)
    files = (run.checkpoint, run.previous, run.best, *run.kept_checkpoints())
    paths = [path for path in files if path.exists()]
    for path in paths:
        name = f"{run.folder.name}/{path.name}"
        try:
            content = open_checkpoint(path)
            check_finite(content, path)
        except (GPTLabError, OSError) as error:
            yield Check(name, False, explain_error(error).problem, _checkpoint_fix(run, path))
            continue
        size = sum(file.stat().st_size for file in (path, *path.glob("*")) if file.is_file())
        yield Check(name, True, f"step {content.get('step', 0):,}, {in_bytes(size)}")


def _checkpoint_fix(run: Run, path: Path) -> str:
    here = quoted(display(run.folder))
    if path == run.checkpoint and run.previous.exists():
        before = run.previous.name
        return f"python train.py --out_dir {here} --resume continues from {before} instead"
    if path == run.best and run.checkpoint.exists():
        return f"delete {display(path)}: then sample.py uses {run.checkpoint.name}"
    if path == run.previous:
        return f"delete {display(path)}: {run.checkpoint.name} is the newer one"
    return f"copy it from a backup, or train again: {run.start_command()} --overwrite"
