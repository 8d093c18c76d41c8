"""`python gpt.py hardware`: show this machine's devices and the recommended choice."""

import json
import platform
from dataclasses import dataclass
from typing import Annotated

from gptlab.cli.declarations import COMMANDS
from gptlab.cli.ui.command_line import command_line
from gptlab.cli.ui.console import facts_table, make_console
from gptlab.hardware import KIND_NAMES, Device, Hardware, choose, detect
from gptlab.hardware.trials import describe_error, measure_flops
from gptlab.training.times import SHARE_OF_PEAK

COLOURS = {"yes": "green", "fast": "green", "slow": "yellow", "no": "red"}


@dataclass(frozen=True)
class HardwareOptions:
    """Output"""

    json: Annotated[bool, "print the whole report as JSON"] = False
    recommended: Annotated[bool, "print only what `auto` means here, and why"] = False
    interactive: Annotated[bool, "choose a device, and measure its speed in each precision"] = False


def main(argv: list[str]) -> int:
    """Print the report on this machine to stdout."""
    overrides = COMMANDS["hardware"].parse(argv)
    if overrides.get("interactive"):
        return _ask()
    show_hardware(overrides.get("json", False), overrides.get("recommended", False))
    return 0


def show_hardware(as_json: bool = False, only_recommended: bool = False) -> None:
    """Detect and print; `train.py --show-hardware` calls it too."""
    hardware = detect()
    if as_json:
        report = hardware.to_dict()
        print(json.dumps(report["recommended"] if only_recommended else report, indent=2))
        return
    console = make_console()
    if not only_recommended:
        for device in hardware.devices:
            console.print(_device_table(device))
        console.print(_absent_table(hardware))
        console.print(
            f"{hardware.cores} usable cores, Python {hardware.python_version}, "
            f"torch {hardware.torch_version}, {hardware.system}"
        )
        for note in hardware.notes:
            console.print(str(note), style="yellow", markup=False)
    console.print(_recommendation_table(hardware))
    if not only_recommended:
        chosen = hardware.recommended
        console.print(f"Measured: {_speed(chosen.device, chosen.dtype)}", markup=False)


def _ask() -> int:
    """Ask for devices; show each with its measured speeds; 0."""
    from gptlab.cli.ui import questions
    from gptlab.cli.ui.questions import MenuItem

    questions.refuse_without_terminal("leave --interactive out, or use --json")
    console = questions.open_console()
    hardware = detect()
    choices = [MenuItem(device, device.name, device.description) for device in hardware.devices]
    while True:
        try:
            device = questions.select(
                console,
                "Which device?",
                [MenuItem(None, "leave"), *choices],
                1,
                "A device does the multiplications of training. Measuring its speed in each "
                "precision takes about a second.",
            )
        except questions.Back:
            device = None
        if device is None:
            return 0
        console.print(_device_table(device))
        for precision in device.precisions:
            if device.usable and precision.supported:
                console.print(_speed(device.name, precision.dtype), markup=False)
        if device.usable:
            choice = choose(hardware, device.name)
            options = {"device": choice.device, "dtype": choice.dtype}
            console.print("To train on it, with the other options that you need:")
            console.print(f"  {command_line('train.py', options)}", markup=False, soft_wrap=True)


def _speed(device: str, dtype: str) -> str:
    """The speed of matrix products in words, measured in tenths of a second."""
    try:
        flops = measure_flops(device, dtype)
    except (RuntimeError, AssertionError, TypeError) as error:
        return f"{device} in {dtype} could not be measured ({describe_error(error)})"
    unit, size = ("TFLOP/s", 1e12) if flops >= 1e12 else ("GFLOP/s", 1e9)
    tokens = SHARE_OF_PEAK * flops / (6 * 10e6)
    return (
        f"{device} multiplies matrices in {dtype} at {flops / size:,.3g} {unit}, enough to train a "
        f"model of 10 million parameters on about {float(f'{tokens:.2g}'):,.0f} tokens/s"
    )


def _absent_table(hardware: Hardware):
    """The kinds of accelerator that are not here, each with the reason."""
    from rich.text import Text

    table = facts_table("Not available here")
    present = {device.kind for device in hardware.devices}
    for kind, name in KIND_NAMES.items():
        if kind not in present:
            table.add_row(Text(name, "red"), Text(_why_absent(kind, hardware)))
    return table


def _why_absent(kind: str, hardware: Hardware) -> str:
    """Why torch shows no device of this kind."""
    import torch

    if kind == "mps":
        apple = platform.system() == "Darwin" and platform.machine() == "arm64"
        return "this torch does not find it" if apple else "only Macs with Apple silicon have it"
    built = {"cuda": torch.version.cuda, "rocm": torch.version.hip, "xpu": torch.version.xpu}[kind]
    if not built:
        return f"torch {hardware.torch_version} is a build without {KIND_NAMES[kind]}"
    return "torch is built for it, but finds no device or driver"


def _device_table(device: Device):
    from rich.text import Text

    table = facts_table(f"{device.name}  {device.description} ({KIND_NAMES[device.kind]})")
    rows = {
        "available": _judged("yes" if device.usable else "no", device.reason),
        "memory": Text(_memory(device)),
        "capability": Text(".".join(map(str, device.capability or ())) or device.architecture),
        "instructions": Text(", ".join(device.instruction_sets)),
    }
    for precision in device.precisions:
        word = "fast" if precision.fast else "slow" if precision.supported else "no"
        rows[precision.dtype] = _judged(word, precision.reason)
    rows["attention"] = Text(", ".join(device.attention_kernels))
    rows["compile"] = _judged("yes" if device.compile.available else "no", device.compile.reason)
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    return table


def _judged(word: str, reason: str):
    from rich.text import Text

    return Text.assemble((word, COLOURS[word]), f": {reason}")


def _recommendation_table(hardware: Hardware):
    from rich.text import Text

    chosen = hardware.recommended
    table = facts_table("Recommended (what `auto` means here)")
    table.add_row("device", Text(chosen.device_reason))
    table.add_row("dtype", Text(chosen.dtype_reason))
    table.add_row("compile", Text(f"{'yes' if chosen.compile else 'no'}: {chosen.compile_reason}"))
    return table


def _memory(device: Device) -> str:
    if device.memory_total is None:
        return ""
    free = "" if device.memory_free is None else f", {device.memory_free / 2**30:.1f} GiB free"
    return f"{device.memory_total / 2**30:.1f} GiB{free}"
