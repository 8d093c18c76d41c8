"""`python gpt.py version`: what runs here, in four lines (no torch is loaded for it)."""

import importlib.metadata
import platform

import gptlab
from gptlab.options import parse_command_line


def main(argv: list[str]) -> int:
    """Print the releases of gptlab, Python and torch, and the platform."""
    parse_command_line(
        argv,
        [],
        prog="gpt.py version",
        summary="Show the releases of gptlab, Python and torch, and the platform.",
        example="python gpt.py version",
    )
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
