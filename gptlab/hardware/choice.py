"""Resolve --device and --dtype on a machine: pure functions of the hardware report."""

from dataclasses import dataclass

from gptlab.errors import HardwareError
from gptlab.hardware.probe import DTYPES
from gptlab.hardware.report import Device, Hardware, best_device, best_dtype


@dataclass(frozen=True)
class Choice:
    """The device and precision of a run, and why.

    use_scaler: whether to scale the loss, so that float16 gradients do not underflow.
    slow: True if an explicit request costs speed; `reason` then deserves a warning.
    """

    device: str
    dtype: str
    use_scaler: bool
    reason: str
    slow: bool = False


def choose(hardware: Hardware, device: str = "auto", dtype: str = "auto") -> Choice:
    """The device and precision of a run: a pure function of the report and the two options.

    device: "auto", a name in the report ("cuda:1"), a kind ("cuda", "rocm", "xpu", "mps", "cpu")
    or "gpu" for any accelerator. dtype: "auto", "float32", "bfloat16" or "float16".
    A request that is slow on this machine is obeyed. Raises HardwareError for one that is
    impossible.
    """
    chosen, device_reason = _choose_device(hardware, device.strip().lower())
    dtype, dtype_reason, slow = _choose_dtype(chosen, dtype.strip().lower())
    # _choose_dtype accepts float16 only on devices that have a scaler
    return Choice(chosen.name, dtype, dtype == "float16", f"{device_reason}; {dtype_reason}", slow)


def _choose_device(hardware: Hardware, request: str) -> tuple[Device, str]:
    if request == "auto":
        return best_device(hardware.devices)
    matches = [device for device in hardware.devices if _matches(device, request)]
    if not matches:
        names = ", ".join(device.name for device in hardware.devices)
        note = f" {hardware.notes[0]}" if hardware.notes else ""
        raise HardwareError(
            f"There is no device {request!r} here: this machine has {names}",
            f"use --device {hardware.recommended.device}, or leave out --device.{note}",
            sep="; ",
        )
    for device in matches:
        if device.usable:
            return device, f"{device.name} ({device.description}) was requested"
    raise HardwareError(f"{matches[0].name} cannot be used: {matches[0].reason}.")


def _matches(device: Device, request: str) -> bool:
    """Whether a request such as "gpu", "cuda" or "cuda:1" means this device."""
    if request == "gpu":
        return device.kind != "cpu"
    kind, _, index = request.partition(":")
    if device.kind == kind == "rocm":
        kind = "cuda"  # torch uses this name for both
    own_kind, _, own_index = device.name.partition(":")
    return kind == own_kind and index in ("", own_index or "0")


def _choose_dtype(device: Device, request: str) -> tuple[str, str, bool]:
    """(dtype, reason, slow)"""
    if request == "auto":
        return *best_dtype(device), False
    if request not in DTYPES:
        raise HardwareError(f"{request!r} is not a precision", f"use auto, {' or '.join(DTYPES)}")
    precision = device.precision(request)
    if not precision.supported:
        raise HardwareError(
            f"{device.name} cannot train in {request}, because {precision.reason}",
            f"use --dtype {best_dtype(device)[0]}, or leave out --dtype",
        )
    but = "and" if precision.fast else "but"
    return request, f"{request} was requested, {but} {precision.reason}", not precision.fast
