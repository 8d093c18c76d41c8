"""`python gpt.py hardware`: what this machine has, and what follows from it."""

import json
from dataclasses import dataclass
from typing import Annotated

from gptlab.hardware import KIND_NAMES, Device, Hardware, Precision, detect
from gptlab.options import parse_command_line


@dataclass(frozen=True)
class HardwareOptions:
    """Output"""

    json: Annotated[bool, "print the whole report as JSON"] = False
    recommended: Annotated[bool, "print only what `auto` means here, and why"] = False


def main(argv: list[str]) -> int:
    """Print the report on this machine to stdout."""
    said = parse_command_line(
        argv,
        [HardwareOptions],
        prog="gpt.py hardware",
        summary="Show this machine's devices, the precisions they are fast in, and what is chosen.",
        example="python gpt.py hardware",
    )
    show_hardware(said.get("json", False), said.get("recommended", False))
    return 0


def show_hardware(as_json: bool = False, only_recommended: bool = False) -> None:
    """Detect and print; `train.py --show-hardware` calls it too."""
    hardware = detect()
    if as_json:
        report = hardware.to_dict()
        print(json.dumps(report["recommended"] if only_recommended else report, indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 100
    if not only_recommended:
        for device in hardware.devices:
            console.print(_device_table(device))
        console.print(
            f"{hardware.cores} usable cores, Python {hardware.python_version}, "
            f"torch {hardware.torch_version}, {hardware.system}"
        )
        for note in hardware.notes:
            console.print(note, style="yellow", markup=False)
    console.print(_recommendation_table(hardware))


def _table(title: str):
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    return table


def _device_table(device: Device):
    from rich.text import Text

    table = _table(f"{device.name}  {device.description} ({KIND_NAMES[device.kind]})")
    rows = {
        "usable": f"{'yes' if device.usable else 'no'}: {device.reason}",
        "memory": _memory(device),
        "capability": ".".join(map(str, device.capability or ())) or device.architecture,
        "instructions": ", ".join(device.instruction_sets),
    }
    rows |= {precision.dtype: _precision(precision) for precision in device.precisions}
    rows["attention"] = ", ".join(device.attention_kernels)
    rows["compile"] = f"{'yes' if device.compile.available else 'no'}: {device.compile.reason}"
    for name, value in rows.items():
        if value:
            table.add_row(name, Text(value))  # Text: a name such as "[x]" is no markup
    return table


def _recommendation_table(hardware: Hardware):
    from rich.text import Text

    chosen = hardware.recommended
    table = _table("Recommended (what `auto` means here)")
    table.add_row("device", Text(chosen.device_reason))
    table.add_row("dtype", Text(chosen.dtype_reason))
    table.add_row("compile", Text(f"{'yes' if chosen.compile else 'no'}: {chosen.compile_reason}"))
    return table


def _precision(precision: Precision) -> str:
    word = "fast" if precision.fast else "slow" if precision.supported else "no"
    return f"{word}: {precision.reason}"


def _memory(device: Device) -> str:
    if device.memory_total is None:
        return ""
    free = "" if device.memory_free is None else f", {device.memory_free / 2**30:.1f} GiB free"
    return f"{device.memory_total / 2**30:.1f} GiB{free}"
