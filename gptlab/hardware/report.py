"""The hardware report: devices, precisions and compile support, with a recommendation.

Three separate steps, so that each can be tested without the hardware:

    probe() -> Facts                  query torch and the system, try real operations
    judge(facts) -> Hardware          what works, what is fast, what is recommended, and why
    choose(hardware, ...) -> Choice   resolve --device and --dtype

`detect()` combines the first two. The last two are pure functions.
"""

import re
from dataclasses import asdict, dataclass

from gptlab.errors import HardwareError
from gptlab.hardware.probe import DTYPES, DeviceFacts, Facts, probe

KIND_NAMES = {"cuda": "CUDA", "rocm": "ROCm", "xpu": "Intel XPU", "mps": "Apple MPS", "cpu": "CPU"}

# On a CPU, bfloat16 must be this much faster than float32 in a trial to be worth its lost digits.
CPU_BFLOAT16_GAIN = 1.2

COMPILE_COST = "compiling takes up to a minute, so `auto` uses it only for runs that save more"
# The C++ compiler that torch.compile uses on each system, and how to get it.
CPP_COMPILERS = {
    "Linux": ("g++", "install a C++ compiler (Debian, Ubuntu: sudo apt-get install g++)"),
    "Windows": ("cl", "install the C++ part of the Build Tools for Visual Studio"),
    "Darwin": ("clang++", "install Apple's compiler: xcode-select --install"),
}

# AMD architectures with matrix instructions for bfloat16: MI100 and later, RX 7000 and later.
ROCM_BFLOAT16 = re.compile(r"gfx(908|90a|94|95|11|12)")


@dataclass(frozen=True)
class Precision:
    """Whether a device can train in `dtype`, and whether it is fast."""

    dtype: str
    supported: bool
    fast: bool
    reason: str


@dataclass(frozen=True)
class CompileSupport:
    """Whether torch.compile works for a device. fix: how to get what is missing."""

    available: bool
    reason: str
    fix: str = ""


@dataclass(frozen=True)
class Device:
    """What one device can do. Memory is in bytes; None if the system does not report it."""

    name: str  # torch's name: "cpu", "cuda:0", "mps", "xpu:0"
    kind: str  # cpu | cuda | rocm | mps | xpu
    description: str  # the name of the product
    memory_total: int | None
    memory_free: int | None
    capability: tuple[int, int] | None  # compute capability (CUDA)
    architecture: str  # "gfx942" (ROCm)
    instruction_sets: tuple[str, ...]  # (CPU)
    precisions: tuple[Precision, ...]
    attention_kernels: tuple[str, ...]
    compile: CompileSupport
    usable: bool
    reason: str  # why it is or is not usable

    def precision(self, dtype: str) -> Precision:
        """The judgement of one precision."""
        return next(precision for precision in self.precisions if precision.dtype == dtype)


@dataclass(frozen=True)
class Recommendation:
    """What "auto" means on this machine, with the reasons."""

    device: str
    device_reason: str
    dtype: str
    dtype_reason: str
    compile: bool
    compile_reason: str


@dataclass(frozen=True)
class Hardware:
    """The report on a machine. devices: in order of preference, the CPU last."""

    devices: tuple[Device, ...]
    cores: int  # usable by this process
    system: str
    python_version: str
    torch_version: str
    notes: tuple[HardwareError, ...]  # why an accelerator cannot be used
    recommended: Recommendation

    def device(self, name: str) -> Device:
        """The device of this name."""
        return next(device for device in self.devices if device.name == name)

    def in_words(self, name: str) -> str:
        """The machine and one of its devices in one line."""
        device = self.device(name)
        memory = f", {device.memory_total / 2**30:.0f} GiB" if device.memory_total else ""
        return (
            f"{device.description}{memory}, {self.cores} usable cores, {self.system}, "
            f"Python {self.python_version}, torch {self.torch_version}"
        )

    def to_dict(self) -> dict:
        """The report as plain types, for JSON."""
        return asdict(self) | {"notes": [str(note) for note in self.notes]}


def detect(only: str | None = None) -> Hardware:
    """Probe and judge this machine: tenths of a second after `import torch`.

    only: the one device to try; the others are judged without a trial. Each rank of torchrun names
    its own device, so that eight processes do not open eight devices each.
    """
    return judge(probe(only))


def judge(facts: Facts) -> Hardware:
    """The report on these facts: a pure function."""
    devices = tuple(_judge_device(device, facts) for device in facts.devices)
    device, device_reason = best_device(devices)
    dtype, dtype_reason = best_dtype(device)
    return Hardware(
        devices=devices,
        cores=facts.cores,
        system=facts.system,
        python_version=facts.python_version,
        torch_version=facts.torch_version,
        notes=_notes(facts),
        recommended=Recommendation(
            device=device.name,
            device_reason=device_reason,
            dtype=dtype,
            dtype_reason=dtype_reason,
            compile=device.compile.available,
            compile_reason=device.compile.reason,
        ),
    )


def _judge_device(device: DeviceFacts, facts: Facts) -> Device:
    usable, reason = _judge_usable(device, facts)
    return Device(
        name=device.name,
        kind=device.kind,
        description=device.description,
        memory_total=device.memory_total,
        memory_free=device.memory_free,
        capability=device.capability,
        architecture=device.architecture,
        instruction_sets=device.instruction_sets,
        precisions=tuple(_judge_precision(device, dtype) for dtype in DTYPES),
        attention_kernels=device.attention_kernels,
        compile=_judge_compile(device, facts),
        usable=usable,
        reason=reason,
    )


def _judge_usable(device: DeviceFacts, facts: Facts) -> tuple[bool, str]:
    if not device.trials:
        return True, "not tried"
    error = device.trials["float32"].error
    if not error:
        return True, "a trial operation worked"
    if device.kind not in ("cuda", "rocm") or "kernel image" not in error:
        return False, f"a trial operation failed with {error!r}"
    architecture = device.architecture or "sm_{}{}".format(*device.capability)
    return False, (
        f"torch {facts.torch_version} has no kernels for {device.description} ({architecture}; "
        f"it has {', '.join(facts.torch_architectures)}), so install the build of torch for this "
        "card from https://pytorch.org/get-started/locally"
    )


def _judge_precision(device: DeviceFacts, dtype: str) -> Precision:
    trial = device.trials.get(dtype)
    if trial and trial.error:
        return Precision(dtype, False, False, f"a trial operation failed with {trial.error!r}")
    if dtype == "float32":
        return Precision(dtype, True, True, "float32 works everywhere")
    if dtype == "float16" and device.kind not in ("cuda", "rocm"):
        kind = KIND_NAMES[device.kind]
        reason = f"float16 needs a loss scaler and torch has none that is safe on {kind}"
        return Precision(dtype, False, False, reason)
    fast, reason = {
        "cpu": _judge_cpu_bfloat16,
        "cuda": _judge_cuda_half,
        "rocm": _judge_rocm_half,
        "xpu": lambda device, dtype: (True, "Intel GPUs have matrix units for bfloat16"),
        "mps": lambda device, dtype: (True, "a trial operation in bfloat16 worked"),
    }[device.kind](device, dtype)
    return Precision(dtype, True, fast, reason)


def _judge_cpu_bfloat16(device: DeviceFacts, dtype: str) -> tuple[bool, str]:
    has = any("bf16" in name for name in device.instruction_sets)
    without = "" if has else "this CPU has no instructions for bfloat16"
    if "bfloat16" not in device.trials or "float32" not in device.trials:
        return False, without or "the speed of bfloat16 was not tried"
    ratio = device.trials["bfloat16"].flops / device.trials["float32"].flops
    measured = (
        f"bfloat16 products run {ratio:.1f} times as fast as float32 here"
        if ratio >= 1
        else f"bfloat16 products run {1 / ratio:.1f} times slower than float32 here"
    )
    if without:
        return False, f"{without} ({measured})" if ratio < 1 else without
    return ratio >= CPU_BFLOAT16_GAIN, measured


def _judge_cuda_half(device: DeviceFacts, dtype: str) -> tuple[bool, str]:
    capability = "compute capability {}.{}".format(*device.capability)
    needed = (8, 0) if dtype == "bfloat16" else (7, 0)
    if device.capability >= needed:
        return True, f"{capability} has tensor cores for {dtype}"
    return False, f"{capability} is below {needed[0]}.{needed[1]}, which fast {dtype} needs"


def _judge_rocm_half(device: DeviceFacts, dtype: str) -> tuple[bool, str]:
    if dtype == "float16":
        return True, f"{device.architecture} runs float16 at twice the speed of float32"
    if ROCM_BFLOAT16.match(device.architecture):
        return True, f"{device.architecture} has matrix instructions for bfloat16"
    return False, f"{device.architecture} has no matrix instructions for bfloat16"


def _judge_compile(device: DeviceFacts, facts: Facts) -> CompileSupport:
    no_headers = CompileSupport(
        False,
        "Python's headers (Python.h) are missing",
        "install Python's headers (Debian, Ubuntu: sudo apt-get install python3-dev)",
    )
    if device.kind == "mps":
        return CompileSupport(False, "torch.compile is still immature on Apple GPUs")
    if device.kind == "cpu":
        if not facts.cpp_compiler:
            wanted, fix = CPP_COMPILERS.get(facts.system, CPP_COMPILERS["Linux"])
            return CompileSupport(False, f"there is no C++ compiler here ({wanted})", fix)
        if not facts.python_headers:
            return no_headers
        if " " in facts.torch_folder:  # torch 2.13 does not quote its folder for the compiler
            return CompileSupport(
                False,
                "torch cannot compile if its folder has a space in it",
                "install torch in a folder without one",
            )
        return CompileSupport(True, f"{facts.cpp_compiler} was found; {COMPILE_COST}")
    if not facts.triton:
        return CompileSupport(
            False,
            "the package triton is not installed",
            "pip install triton (Windows: triton-windows)",
        )
    if device.kind == "cuda" and device.capability < (7, 0):
        return CompileSupport(
            False, "triton needs compute capability 7.0", "nothing can be done for this card"
        )
    if not facts.python_headers and facts.system != "Windows":
        return no_headers
    return CompileSupport(True, f"triton was found; {COMPILE_COST}")


def _notes(facts: Facts) -> tuple[HardwareError, ...]:
    """Problems: torch's warnings, and an accelerator that torch does not use."""
    notes = [HardwareError(f"torch says: {complaint}.") for complaint in facts.complaints]
    seen = {"NVIDIA": "cuda", "AMD": "rocm", "Apple": "mps"}
    if facts.driver and seen[facts.driver] not in {device.kind for device in facts.devices}:
        notes.append(
            HardwareError(
                f"This machine has an {facts.driver} device that torch {facts.torch_version} does "
                "not use",
                "install the build of torch for it from https://pytorch.org/get-started/locally",
            )
        )
    return tuple(notes)


def best_device(devices: tuple[Device, ...]) -> tuple[Device, str]:
    device = next((device for device in devices if device.usable), devices[-1])
    broken = [other for other in devices if not other.usable]
    if device.kind != "cpu":
        return device, f"{device.name} is {device.description}"
    if broken:
        return device, f"cpu, because {broken[0].name} cannot be used: {broken[0].reason}"
    return device, "cpu, because there is no accelerator that torch can use"


def best_dtype(device: Device) -> tuple[str, str]:
    if device.kind == "mps":
        return "float32", "float32, which is correct on every version of macOS"
    for dtype in ("bfloat16", "float16"):
        precision = device.precision(dtype)
        if precision.supported and precision.fast:
            return dtype, f"{dtype}, because {precision.reason}"
    return "float32", f"float32, because {device.precision('bfloat16').reason}"
