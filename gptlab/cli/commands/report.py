"""`python gpt.py report`: write runs as one HTML page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.console import write_page
from gptlab.cli.ui.progress import Bars
from gptlab.errors import ConfigError
from gptlab.files import display


@dataclass(frozen=True)
class ReportOptions:
    """Output"""

    output: Annotated[
        str | None, "the file [RUN/report.html; for several runs report.html beside the first]"
    ] = None


def main(argv: list[str]) -> int:
    """Write the report; the exit code."""
    overrides = COMMANDS["report"].parse(argv)
    from gptlab.reports.run_report import make_report
    from gptlab.runs import find_run, newest_run

    folders = [find_run(word) for word in overrides.get("runs") or ()] or [newest_run()]
    if len(set(map(Path.resolve, folders))) < len(folders):
        raise ConfigError("The same run is named twice", "name each once")
    default = (folders[0] if len(folders) == 1 else beside(folders[0])) / "report.html"
    path = Path(overrides["output"]).expanduser() if overrides.get("output") else default
    if path.is_dir():
        raise ConfigError(f"{display(path)} is a folder", "name a file with --output")
    with Bars(unit="token") as bars:
        page = make_report(folders, bars.progress)
    write_page(path, page)
    return 0


def beside(run: Path) -> Path:
    """The folder in which a run lies; the run's own where that would be a checkout's root."""
    parent = run.resolve().parent
    return run if (parent / "gpt.py").exists() else run.parent
