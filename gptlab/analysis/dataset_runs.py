"""Which runs were trained on a dataset, and which of its versions they still need (no torch)."""

from dataclasses import dataclass
from pathlib import Path

from gptlab.analysis.diagnosis import RunRecord, read_run
from gptlab.data.versions import forget_versions, noted_runs
from gptlab.errors import DataError, RunError
from gptlab.files import out_home, read_json
from gptlab.runs import Run


@dataclass(frozen=True)
class DatasetRun:
    """A run that was trained on a dataset. fingerprint: of the version that it began with."""

    record: RunRecord
    fingerprint: str

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.record.folder

    @property
    def is_unfinished(self) -> bool:
        """Whether it may go on with the tokens that it began with."""
        return self.record.state in ("running", "interrupted")


def runs_on(folder: Path) -> list[DatasetRun]:
    """The runs that were trained on the dataset in a folder, the newest first: those under out/,
    and others that have noted themselves there."""
    below = out_home().iterdir() if out_home().is_dir() else ()
    places = {path.resolve(): path for path in (*noted_runs(folder), *below)}
    found = []
    for path in places.values():
        run = Run(path)
        if path.name.startswith(".") or not run.provenance.is_file():
            continue
        try:
            data = read_json(run.provenance).get("data") or {}
            record = read_run(path)
        except (OSError, DataError, RunError):
            continue
        parts = data.get("parts") or {data.get("name"): data.get("fingerprint")}
        if folder.name in parts and (record.is_running or run.exists()):
            time = max(p.stat().st_mtime for p in (run.provenance, run.metrics))
            found.append((time, DatasetRun(record, str(parts[folder.name]))))
    return [run for _, run in sorted(found, key=lambda pair: -pair[0])]


def forget_unneeded_versions(folder: Path, runs: list[DatasetRun]) -> list[Path]:
    """Delete the older versions of a dataset that no unfinished run needs; which these were."""
    needed = {run.fingerprint for run in runs if run.is_unfinished}
    return forget_versions(folder, needed)
