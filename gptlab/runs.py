"""The run directory: its files, its lock, its checkpoints and its metrics.

    ckpt.pt       the newest full training state: what --resume continues
    ckpt.prev.pt  the one before it, in case the newest is damaged
    ckpt.step*.pt the last few of all, where keep_checkpoints asks for them
    best.pt       the weights with the lowest validation loss: what sample.py takes
    ckpt/, ckpt.prev/, ckpt.step*/, best/: the same in shards, of a training whose processes share
        the model; best/ becomes best.pt when it ends (sharded_checkpoints.py)
    metrics.jsonl one record a line; loss.png, the same as a picture
    config.py     the options set for the run, as a recipe
    adapter/      of a LoRA training: the adapters of best.pt alone, as peft reads them
    evaluations.jsonl: what gpt.py evaluate measured
    imported.json: what a model from elsewhere is, for commands that do not load it
    profile.json: a trace of profile_steps, for https://ui.perfetto.dev
    tuned_lens.safetensors: what gpt.py lens --tuned trained beside the model
    provenance.json, source.zip, trace.jsonl: what its first steps rest on (training/provenance.py)

What a `.pt` file holds, and how it is validated, is in checkpoints.py.
"""

import contextlib
import datetime
import json
import logging
import math
import os
import shutil
import socket
import tempfile
import zipfile
from pathlib import Path

from gptlab import sharded_checkpoints
from gptlab.checkpoints import (
    BASE,
    Checkpoint,
    atomic_torch_save,
    model_from,
    proof_in,
    read_checkpoint,
    read_training_state,
    tokenizer_from,
    write_checkpoint,
)
from gptlab.code_changes import code_in_words
from gptlab.errors import CheckpointError, RunError
from gptlab.files import (
    atomic_write,
    display,
    link_or_copy,
    lock_file,
    out_home,
    quoted,
    remove_folder,
    replace_by_copy_of,
)
from gptlab.options import nearest
from gptlab.run_records import (
    EVALUATIONS_HEAD,
    METRICS_HEAD,
    EvaluatedSamples,
    EvaluatedTasks,
    EvaluatedText,
    Measured,
    Origin,
    append_record,
    read_records,
)
from gptlab.typed_json import read_form

logger = logging.getLogger(__name__)

MOST_SOURCE_BYTES = 1 << 24  # of source.zip unpacked; it has some 100 kB
# what may be other than in the checkpoint and changes no logits
_SAME_LOGITS = {
    "block_size", "dropout", "gradient_checkpointing", "init_std", "init_projection",
    "keep_adapters", "expert_balance",
}  # fmt: skip


class Run:
    """One run directory. Nothing is created before `begin`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.metrics = self.folder / "metrics.jsonl"
        self.base = self.folder / BASE
        self.plot = self.folder / "loss.png"
        self.profile = self.folder / "profile.json"
        self.recipe = self.folder / "config.py"
        self.provenance = self.folder / "provenance.json"
        self.sources = self.folder / "source.zip"
        self.trace = self.folder / "trace.jsonl"
        self.adapter = self.folder / "adapter"
        self.evaluations = self.folder / "evaluations.jsonl"
        self.imported = self.folder / "imported.json"
        self.tuned_lens = self.folder / "tuned_lens.safetensors"
        self._lock = None

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint: a file, or the folder of a sharded training."""
        return self._committed("ckpt")

    @property
    def previous(self) -> Path:
        """The checkpoint before the newest."""
        return self._newest("ckpt.prev")

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest validation loss."""
        return self._committed("best")

    def _committed(self, name: str) -> Path:
        """What was saved last; the one before it where a kill came between the two renames."""
        newest, before = self._newest(name), self.folder / f"{name}.prev"
        return before if not newest.exists() and sharded_checkpoints.has_shards(before) else newest

    def _newest(self, name: str) -> Path:
        """What was written last under a name, in either form."""
        file, folder = self.folder / f"{name}.pt", self.folder / name
        if not sharded_checkpoints.has_shards(folder):
            return file
        written = (folder / sharded_checkpoints.STATE).stat().st_mtime_ns
        is_older = file.exists() and file.stat().st_mtime_ns > written
        return file if is_older else folder

    def exists(self) -> bool:
        """Whether there is something here that a new start would destroy."""
        return any(path.exists() for path in (self.checkpoint, self.previous, self.best))

    def start_command(self) -> str:
        """The command that trains this run from its beginning."""
        recipe = ["--config", display(self.recipe)] if self.recipe.is_file() else []
        words = ["python", "train.py", *recipe, "--out_dir", display(self.folder)]
        return " ".join(map(quoted, words))

    def origin(self) -> Origin:
        """What a model from elsewhere is; {} for a run that began here."""
        try:
            return read_form(self.imported, "imported", Origin, RunError, "import the model again")
        except (OSError, RunError):  # the run itself is whole without it
            return {}

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
        folders = [path for path in former if path.is_dir()]
        if not resume:
            if not overwrite:
                self.check_free()
            former += [*self.folder.glob("ckpt*.pt"), self.folder / "best.pt", self.base]
            former += [self.metrics, self.plot, self.profile, self.recipe, self.tuned_lens]
            former += [self.provenance, self.sources, self.trace, self.evaluations, self.imported]
            folders += [*self.folder.glob("ckpt*"), *self.folder.glob("best*"), self.adapter]
        for path in former:
            if not path.is_dir():
                path.unlink(missing_ok=True)
        for path in folders:
            if path.is_dir():
                remove_folder(path)

    def _take_lock(self) -> None:
        # the system frees such a lock when the process ends, however it ends; on a network file
        # system it holds for all machines, or the system says that it cannot lock
        file = open(self.folder / ".lock", "a+", encoding="utf-8")
        try:
            lock_file(file)
        except OSError as error:
            with file:
                owner = _first_line(file)
            if isinstance(error, (BlockingIOError, PermissionError)):
                raise RunError(
                    f"Another process is training in {display(self.folder)}{owner}: wait for it, "
                    "stop it, or choose another --out_dir."
                ) from None
            logger.warning(
                "%s cannot be locked (%s): make sure that no second run uses it.",
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
                lock_file(file, shared=True)
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
        newest = self.folder / "ckpt.pt"
        with atomic_torch_save(state, newest):
            if newest.exists():
                replace_by_copy_of(newest, self.folder / "ckpt.prev.pt")
        if keep:
            kept = self.folder / f"ckpt.step{state['step']:08d}.pt"
            replace_by_copy_of(newest, kept, move=False)
        self._remove(self.folder / "ckpt", self.folder / "ckpt.prev")
        self._remove(*self.kept_checkpoints()[: -keep or None])

    def save_shards(self, state: dict, parallel, keep: int = 0) -> None:
        """As `save`, of a state whose tensors processes share; all of them call it."""
        newest = self.folder / "ckpt"
        sharded_checkpoints.save_shards(state, newest, parallel, self.folder / "ckpt.prev")

        def keep_and_remove() -> None:
            if keep:
                kept = self.folder / f"ckpt.step{state['step']:08d}"
                self._remove(kept)
                shutil.copytree(newest, kept, copy_function=link_or_copy)
            self._remove(self.folder / "ckpt.pt", self.folder / "ckpt.prev.pt")
            self._remove(*self.kept_checkpoints()[: -keep or None])

        parallel.from_first(keep_and_remove)

    def kept_checkpoints(self) -> list[Path]:
        """The checkpoints that carry the number of their step, oldest first."""
        return sorted(
            self.folder.glob("ckpt.step*"), key=lambda path: path.name.removesuffix(".pt")
        )

    @staticmethod
    def _remove(*paths: Path) -> None:
        """Remove checkpoints, in files and in shards, where they are."""
        for path in paths:
            if path.is_dir():
                remove_folder(path)
            else:
                path.unlink(missing_ok=True)

    def keep_base(self, base: dict, source: Path) -> str:
        """Keep the model that adapters are trained beside, as base.pt; its SHA-256.

        It is another name of the file `source` where that has these weights: then it takes no
        space, and stays as it is when `source` is replaced.
        """
        import torch

        # since it was loaded, a run that still trains may have replaced it, and an overwritten run
        # was perhaps its own start
        there = read_checkpoint(source) if source.is_file() else {"model": {}}
        is_same = there["model"].keys() == base["model"].keys() and all(
            torch.equal(weight, base["model"][name]) for name, weight in there["model"].items()
        )
        if is_same and there.get("sha256"):
            replace_by_copy_of(source, self.base, move=False)
            return there["sha256"]
        return write_checkpoint(base, self.base)

    def save_best(self, state: dict) -> None:
        """Make `state` the best checkpoint."""
        write_checkpoint(state, self.folder / "best.pt")
        self._remove(self.folder / "best", self.folder / "best.prev")

    def save_best_shards(self, state: dict, parallel) -> None:
        """As `save_best`, of a state whose tensors processes share; all of them call it."""
        before = self.folder / "best.prev"
        sharded_checkpoints.save_shards(state, self.folder / "best", parallel, before)
        parallel.from_first(lambda: self._remove(before))

    def consolidate_best(self) -> None:
        """Make the best checkpoint one file, where it is in shards and may be written.

        The tensors pass through a file that is mapped into memory, so no memory holds the model.
        """
        if not sharded_checkpoints.has_shards(self.best) or not os.access(self.folder, os.W_OK):
            return
        content = sharded_checkpoints.open_shards(self.best)
        logger.info("Writing %s from its shards.", display(self.folder / "best.pt"))
        with tempfile.TemporaryFile(dir=self.folder) as file:
            self.save_best(sharded_checkpoints.with_tensors(content, file))

    def load(self, mapped: bool = False) -> dict:
        """The newest training state that can be read; a damaged one is named in a warning.

        Tensors in shards are StoredTensors. mapped: of `read_checkpoint`.
        """
        if not self.exists():
            raise RunError(
                f"There is no run to resume in {display(self.folder)}: leave --resume out to "
                "start one, or name the right --out_dir."
            )
        try:
            return read_training_state(self.checkpoint, mapped)
        except CheckpointError as error:
            if not self.previous.exists():
                raise
            state = read_training_state(self.previous, mapped)
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

    def model_to_continue(self, state: dict, device: str, **changes):
        """The model of a training state (`load`), with its adapters beside its weights.

        Raises CheckpointError where the code here computes something else than the code that
        trained it, and names the change.
        """
        changes["keep_adapters"] = True
        model, apart, code = _model_beside_proof(state, self.checkpoint, device, changes)
        self._refuse_other_code(apart, code)
        return model

    def check_code(self, state: dict, model) -> None:
        """The same of a model that has the weights; all processes of a sharded one call it."""
        from gptlab.model import proof

        stored, code = _changed_code(state, self.checkpoint)
        self._refuse_other_code(proof.difference_from(stored, model) if code else "", code)

    def _refuse_other_code(self, apart: str, code: str) -> None:
        if apart:
            raise CheckpointError(
                f"{display(self.checkpoint)} cannot be continued: the model's code computes "
                f"something else now, {apart} ({code}). Undo the change, or start a new run with "
                f"--init_from {display(self.checkpoint)}."
            )
        if code:
            logger.warning(
                "The model's code is not what wrote %s (%s): it computes the same logits, but what "
                "acts in training only, such as the loss, may differ.",
                display(self.checkpoint),
                code,
            )

    def append(self, record: dict) -> None:
        """Add a line to metrics.jsonl; JSON has no word for a number that is not finite: null."""
        record = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        append_record(self.metrics, METRICS_HEAD, record)

    def add_evaluation(self, result: dict) -> None:
        """Add what gpt.py evaluate measured, with the time, to evaluations.jsonl."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        append_record(self.evaluations, EVALUATIONS_HEAD, {"time": now, **result})

    def evaluated(self) -> list[dict]:
        """The results in evaluations.jsonl, oldest first; a line that is no result is left out."""
        forms = EvaluatedText, EvaluatedTasks, EvaluatedSamples
        return list(read_records(self.evaluations, *forms, kind="evaluations"))

    def records(self) -> list[dict]:
        """The records of metrics.jsonl; a line that no run writes, or only half, is left out."""
        return list(read_records(self.metrics, Measured))

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
            file.write(METRICS_HEAD)
            file.writelines(json.dumps(record) + "\n" for record in kept)


def _first_line(file) -> str:
    """The first line of an open file, "" where it cannot be read (Windows locks reading too)."""
    try:
        file.seek(0)
        return file.readline().rstrip("\n")
    except OSError:
        return ""


def _model_beside_proof(content: dict, path: Path, device: str, changes: dict):
    """(model, how its logits differ from the proof, which code changed), the latter in words.

    Both are "" where the model's code did not change; then nothing is computed. changes: of
    `model_from`; with others than _SAME_LOGITS nothing is compared.
    """
    from gptlab.model import proof

    stored, code = _changed_code(content, path)
    try:
        model = model_from(content, path, device, **changes)
    except CheckpointError as error:
        if not code:
            raise
        raise CheckpointError(f"{error} It was trained by other code ({code}).") from None
    if not (code and changes.keys() <= _SAME_LOGITS):
        return model, "", ""
    return model, proof.difference_from(stored, model), code


def _changed_code(content: dict, path: Path) -> tuple[dict | None, str]:
    """(the proof in a checkpoint, which code changed since in words)."""
    from gptlab.model import proof

    stored = proof_in(content, path)
    if stored is None or not proof.changed_files(stored):
        return stored, ""
    texts = read_sources(Run(path.parent))
    return stored, code_in_words(stored["code"], texts, proof.code_texts())


def _read_best(run: Run, mapped: bool) -> tuple[Path, dict]:
    """(the best checkpoint of a run, else its newest, and its content).

    A training may put another in its place meanwhile; then that one is read.
    """
    if not run.is_running():
        run.consolidate_best()
    while True:
        found = [path for path in (run.best, run.checkpoint, run.previous) if path.exists()]
        if not found:
            raise CheckpointError(
                f"{display(run.folder)} has no checkpoint",
                f"train a model there first: {run.start_command()}",
            )
        path, before = found[0], _identity(found[0])
        try:
            return path, read_checkpoint(path, mapped)
        except CheckpointError:
            if _identity(path) == before:
                raise


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a checkpoint from a later one of the same name; None where there is none."""
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def load_checkpoint(path, device: str = "cpu", mapped: bool = False, **changes) -> Checkpoint:
    """The model and tokenizer of a checkpoint file, or of a run directory (best.pt, else ckpt.pt).

    device: where the weights go. mapped: of `read_checkpoint`. changes: settings of the model other
    than the stored ones.
    Raises CheckpointError.
    """
    path = Path(path)
    if path.is_dir() and not sharded_checkpoints.has_shards(path):
        path, content = _read_best(Run(path), mapped)
    else:
        content = read_checkpoint(path, mapped)
    model, apart, code = _model_beside_proof(content, path, device, changes)
    if apart:
        logger.warning(
            "%s was trained by other code, and here its %s (%s): what follows is not what it "
            "learned.",
            display(path),
            apart,
            code,
        )
    elif code:
        logger.warning(
            "%s was trained by other code (%s), which computes the same.", display(path), code
        )
    return Checkpoint(
        model=model.eval(),
        tokenizer=tokenizer_from(content, path),
        path=path,
        step=content.get("step", 0),
        val_loss=content.get("val_loss"),
        content=content,
    )


def read_sources(run: Run) -> dict[str, str]:
    """The texts of the code that a run began with, by path; {} where they are gone."""
    try:
        with zipfile.ZipFile(run.sources) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_SOURCE_BYTES:
                return {}
            return {name: archive.read(name).decode("utf-8") for name in archive.namelist()}
    except Exception:  # zipfile and zlib meet damage with errors of every kind
        return {}


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


def find_run(word: str) -> Path:
    """The directory that `word` names: a path, or a name under out/; a run before any other.

    Raises RunError, with the nearest name, if there is none.
    """
    places = (Path(word).expanduser(), out_home() / word)
    folders = [folder for folder in places if folder.is_dir()]
    for folder in folders:
        run = Run(folder)
        if run.exists() or run.recipe.exists() or run.metrics.exists():
            return folder
    if folders:
        return folders[0]
    names = [folder.name for folder in list_runs()]
    close = nearest(word, names)
    holds = f"{display(out_home())} holds {', '.join(names[:8])}"
    there = holds if names else "nothing is trained yet"
    there = f"did you mean {close}? {holds}" if close and len(names) > 1 else there
    raise RunError(f"There is no run {word!r}", f"{there}; name one, or the path of its directory")


def newest_run() -> Path:
    """The run that was written to last; RunError when there is none."""
    runs = list_runs()
    if not runs:
        raise RunError(
            f"There is no trained model in {display(out_home())}: train one first with "
            "python train.py, or name one with --out_dir."
        )
    return runs[0]
