"""`python gpt.py info`: show environment, datasets and runs on one screen (no torch)."""

import importlib.metadata
import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gptlab import __version__
from gptlab.analysis.diagnosis import RunRecord, read_run
from gptlab.checkpoints import BASE
from gptlab.cli.commands.dataset import size_of
from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui import questions
from gptlab.cli.ui.command_line import program
from gptlab.cli.ui.questions import MenuItem
from gptlab.data.corpora import dataset_name
from gptlab.data.token_files import list_datasets
from gptlab.errors import ConfigError, GPTLabError, RunError
from gptlab.files import display, home, in_bytes, nearest_existing, out_home, remove_folder
from gptlab.interop.read.imported_model import origin_in_words
from gptlab.runs import Run, find_run, list_runs

MOST_RUNS, MOST_DATASETS = 10, 5  # on one screen; --runs shows all runs


@dataclass(frozen=True)
class InfoOptions:
    """Runs."""

    runs: Annotated[bool, "all runs with their disk use; at a terminal: rename, delete"] = False
    rename: Annotated[str | None, "rename this run, to the name in --to"] = None
    to: Annotated[str | None, "the new name, with --rename"] = None
    delete: Annotated[str | None, "delete this run, after confirmation"] = None
    yes: Annotated[bool, "with --delete: do not ask"] = False


def main(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    overrides = COMMANDS["info"].parse(argv)
    options = InfoOptions(**overrides)
    if (options.rename is None) != (options.to is None):
        raise ConfigError("--rename OLD and --to NEW belong together", "use both")
    if options.yes and options.delete is None:
        raise ConfigError("--yes belongs to --delete", "name the run with --delete")
    if options.rename is not None:
        return rename_run(options.rename, options.to)
    if options.delete is not None:
        return delete_run(options.delete, options.yes)
    console = questions.open_console()
    if options.runs:
        return _manage(console)
    _show_environment(console)
    _show_datasets(console)
    _show_runs(console, list_all_runs()[:MOST_RUNS])
    return 0


# One screen ---------------------------------------------------------------------------------------


def _show_environment(console) -> None:
    from rich.text import Text

    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "not installed"
    console.print(
        f"gptlab {__version__}, Python {platform.python_version()}, torch {torch}, "
        f"{platform.system()} {platform.machine()}"
    )
    place = home()
    free = shutil.disk_usage(nearest_existing(place)).free
    from_variable = " (GPTLAB_HOME)" if os.environ.get("GPTLAB_HOME") else ""
    console.print(Text(f"data/ and out/ in {place}{from_variable}, {in_bytes(free)} free"))


def _table(title: str):
    from rich.table import Table

    return Table(
        title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )


def _show_datasets(console) -> None:
    from rich.text import Text

    console.print()
    datasets = list_datasets()
    if not datasets:
        console.print(f"No dataset yet: {program('prepare.py')} shakespeare prepares one.")
        return
    table = _table("Datasets")
    table.add_column("name", overflow="fold", style="cyan")
    table.add_column("size")
    for name, meta in datasets[:MOST_DATASETS]:
        table.add_row(Text(name), size_of(meta))
    console.print(table)
    if len(datasets) > MOST_DATASETS:
        more = len(datasets) - MOST_DATASETS
        line = f"... and {more} more; all: {program('gpt.py')} dataset list"
        console.print(line, soft_wrap=True)


def list_all_runs() -> list[Path]:
    """The runs below out/ with a checkpoint or records, the newest first."""
    found = {folder: _last_written(folder) for folder in list_runs()}
    if out_home().is_dir():
        for folder in out_home().iterdir():
            if not folder.name.startswith(".") and Run(folder).metrics.exists():
                found.setdefault(folder, _last_written(folder))
    return sorted(found, key=found.get, reverse=True)


def _last_written(folder: Path) -> float:
    run = Run(folder)
    files = (run.checkpoint, run.best, run.metrics)
    return max((path.stat().st_mtime for path in files if path.exists()), default=0.0)


def _show_runs(console, folders: list[Path], numbered: bool = False) -> None:
    from rich.text import Text

    console.print()
    if not folders:
        console.print(f"No run yet: {program('gpt.py')} train starts one.")
        return
    table = _table("Runs")
    if numbered:
        table.add_column("", justify="right", style="cyan")
    table.add_column("name", overflow="fold", style="cyan")
    table.add_column("state")
    table.add_column("step", justify="right")
    table.add_column("val loss", justify="right")
    table.add_column("size", justify="right")
    table.add_column("age", justify="right")
    colours = {"running": "bold green", "interrupted": "yellow"}
    for number, folder in enumerate(folders, start=1):
        run = _read(folder)
        best = f"{run.best[1]:.4f}" if run.best else "-"
        state = Text(run.state, colours.get(run.state, ""))
        row = [Text(folder.name), state, f"{run.step:,}", best]
        row += [in_bytes(disk_use(folder)), age(time.time() - _last_written(folder))]
        table.add_row(*([str(number)] if numbered else []), *row)
    console.print(table)
    for folder in folders:
        if origin := Run(folder).origin():
            console.print(Text(f"{folder.name} is {origin_in_words(origin)}"))
    total = len(list_all_runs())
    if not numbered and total > len(folders):
        line = f"The {len(folders)} newest of {total}; all: {program('gpt.py')} info --runs"
        console.print(line, soft_wrap=True)  # a command stays in one line


def _read(folder: Path) -> RunRecord:
    try:
        return read_run(folder)
    except GPTLabError:  # without records: another program's run, or a deleted file
        return RunRecord(folder, [], {}, {}, Run(folder).is_running())


def disk_use(folder: Path) -> int:
    """Bytes of all files below a folder; a file with two names (ckpt.prev.pt) counts once.

    The base of adapters counts where it is not another name of the model that they were made for.
    """
    sizes = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        if path.name == BASE and status.st_nlink > 1:
            continue
        if path.is_file() and not path.is_symlink():
            sizes[status.st_dev, status.st_ino or str(path)] = status.st_size
    return sum(sizes.values())


def age(seconds: float) -> str:
    """A duration in the largest suitable unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (unit == "min" and seconds >= size):
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


# Rename and delete --------------------------------------------------------------------------------


def _manage(console) -> int:
    """Show all runs with their disk use; at a terminal ask what to rename or delete."""
    while True:
        folders = list_all_runs()
        _show_runs(console, folders, numbered=True)
        if not folders:
            return 0
        console.print(f"{in_bytes(sum(map(disk_use, folders)))} in all, in {display(out_home())}")
        if not questions.at_terminal():
            return 0
        try:
            what = questions.select(
                console,
                "What would you like to do?",
                [
                    MenuItem("leave", "leave", "change nothing"),
                    MenuItem("rename", "rename a run"),
                    MenuItem("delete", "delete a run", "asks once more"),
                ],
                explanation="A run is a folder below out/ with a trained model and its records.",
                is_first=True,
            )
            if what == "leave":
                return 0
            choices = [MenuItem(folder.name, folder.name) for folder in folders]
            name = questions.select(console, f"{what.capitalize()} which run?", choices)
            if what == "delete":
                questions.attempt(console, lambda name=name: delete_run(name))
            else:
                questions.ask(
                    console,
                    f"New name of {name}?",
                    lambda word, name=name: rename_run(name, word),
                )
        except questions.Back:
            continue


def _find(name: str) -> Path:
    """A run below out/ by its name, or by its path. RunError."""
    folder = find_run(name).absolute()
    if folder not in [run.absolute() for run in list_all_runs()]:
        raise RunError(
            f"{display(folder)} is not a run in {display(out_home())}", "name one of those"
        )
    return folder


def _refuse_running(folder: Path) -> None:
    if Run(folder).is_running():
        raise RunError(
            f"{display(folder)} is being trained right now", "stop the training first (Ctrl-C)"
        )


def rename_run(old: str, new: str) -> int:
    """Give a run another name; 0."""
    folder = _find(old)
    if dataset_name(new) != new:
        raise ConfigError(
            f"A run cannot be called {new!r}",
            f"a name has letters, digits, - _ and . only; for example {dataset_name(new)}",
        )
    target = folder.with_name(new)
    if target.exists():
        raise RunError(f"{display(target)} exists already", "choose another name")
    _refuse_running(folder)
    os.rename(folder, target)
    print(f"Renamed {display(folder)} to {display(target)}.")
    return 0


def delete_run(name: str, yes: bool = False) -> int:
    """Delete a run after a yes; 0, or 1 when it stays."""
    folder = _find(name)
    _refuse_running(folder)
    size = in_bytes(disk_use(folder))
    if not yes:
        questions.refuse_without_terminal(f"add --yes to delete {name}")
        run = _read(folder)
        loss = f", validation loss {run.best[1]:.4f}" if run.best else ""
        title = f"Delete {display(folder)} ({size}, {run.step:,} steps{loss})?"
        if not questions.confirm(questions.open_console(), title):
            print("Nothing was deleted.")
            return 1
    remove_folder(folder)
    print(f"Deleted {display(folder)} ({size}).")
    return 0
