"""What --device and --dtype come to on a machine: pure functions of the report."""

from dataclasses import dataclass

from gptlab.errors import HardwareError
from gptlab.hardware.probe import DTYPES
from gptlab.hardware.report import Device, Hardware, best_device, best_dtype


@dataclass(frozen=True)
class Choice:
    """The device and precision of a run, and why.

    use_scaler: float16 gradients underflow without a loss scaler, which CUDA and ROCm have.
    slow: an explicit wish was obeyed although it costs speed; `reason` is worth a warning then.
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
    What this machine can only do slowly is obeyed; HardwareError for what it cannot do.
    """
    chosen, device_reason = _choose_device(hardware, device.strip().lower())
    dtype, dtype_reason, slow = _choose_dtype(chosen, dtype.strip().lower())
    # float16 passes _choose_dtype only where there is a scaler
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
            f"write --device {hardware.recommended.device}, or leave --device out.{note}",
            sep="; ",
        )
    for device in matches:
        if device.usable:
            return device, f"{device.name} ({device.description}) was asked for"
    raise HardwareError(f"{matches[0].name} cannot be used: {matches[0].reason}.")


def _matches(device: Device, request: str) -> bool:
    """Whether a request such as "gpu", "cuda" or "cuda:1" means this device."""
    if request == "gpu":
        return device.kind != "cpu"
    kind, _, index = request.partition(":")
    if device.kind == kind == "rocm":
        kind = "cuda"  # torch's own word for both
    own_kind, _, own_index = device.name.partition(":")
    return kind == own_kind and index in ("", own_index or "0")


def _choose_dtype(device: Device, request: str) -> tuple[str, str, bool]:
    """(dtype, reason, slow)"""
    if request == "auto":
        return *best_dtype(device), False
    if request not in DTYPES:
        raise HardwareError(f"{request!r} is no precision", f"write auto, {' or '.join(DTYPES)}")
    precision = device.precision(request)
    if not precision.supported:
        raise HardwareError(
            f"{device.name} cannot train in {request}, because {precision.reason}",
            f"write --dtype {best_dtype(device)[0]}, or leave --dtype out",
        )
    but = "and" if precision.fast else "but"
    return request, f"{request} was asked for, {but} {precision.reason}", not precision.fast
