"""`python gpt.py version`: show the installed releases in four lines (no torch)."""

import importlib.metadata
import platform

import gptlab
from gptlab.cli.declarations import COMMANDS


def main(argv: list[str]) -> int:
    """Print the releases of gptlab, Python and torch, and the platform."""
    COMMANDS["version"].parse(argv)
    for name, value in versions().items():
        print(f"{name:8} {value}")
    return 0


def versions() -> dict[str, str]:
    """Releases by name."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        torch = "not installed: bash setup.sh installs it"
    return {
        "gptlab": gptlab.__version__,
        "python": platform.python_version(),
        "torch": torch,
        "platform": platform.platform(),
    }
