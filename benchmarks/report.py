"""The output of every benchmark: the machine, a table of medians, JSON."""

import json
import os
import platform
import statistics
from pathlib import Path

# the default place of a copy of tiny Shakespeare
SHAKESPEARE = Path(__file__).resolve().parents[2] / "shared" / "data" / "tinyshakespeare.txt"


def machine() -> dict:
    """The properties of the machine that affect the figures."""
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    flags = ""
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            if key.strip() == "flags":
                flags = value
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": [i for i in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if i in flags],
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def spread(values: list[float]) -> dict:
    """Minimum, median and maximum of the runs of one figure."""
    return {
        "min": min(values),
        "median": statistics.median(values),
        "max": max(values),
        "runs": len(values),
    }


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def finish(results: dict, path: str | None) -> None:
    """Print the machine and, if there is a path, write it with `results` as JSON."""
    results = {"machine": machine(), **results}
    print(f"Machine: {json.dumps(results['machine'])}")
    if path:
        Path(path).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        print(f"Wrote {path}")
