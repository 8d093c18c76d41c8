"""The raw facts about this machine, from torch, the operating system and a few trials.

Nothing is judged here; report.py does that from these facts alone. No vendor command is called:
nvidia-smi may be missing, as it is on ROCm, in many containers and on Windows.
"""

import ctypes
import importlib.util
import math
import os
import platform
import re
import shutil
import subprocess
import sysconfig
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gptlab.hardware.trials import Trial, describe_error, try_attention_kernels, try_precisions

DTYPES = ("float32", "bfloat16", "float16")
SHOWN_INSTRUCTIONS = re.compile(r"avx2$|avx512_(f|vnni|bf16|fp16)$|amx_|neon$|sve|sme|bf16$|fp16$")


@dataclass(frozen=True)
class DeviceFacts:
    """What torch and the operating system report about one device."""

    name: str  # torch's name: "cpu", "cuda:0", "mps", "xpu:0"
    kind: str  # cpu | cuda | rocm | mps | xpu
    description: str  # the name of the product
    memory_total: int | None = None  # bytes
    memory_free: int | None = None  # bytes
    capability: tuple[int, int] | None = None  # compute capability (CUDA)
    architecture: str = ""  # "gfx942" (ROCm)
    instruction_sets: tuple[str, ...] = ()  # (CPU)
    trials: Mapping[str, Trial] = field(default_factory=dict)  # by dtype; empty if not tried
    attention_kernels: tuple[str, ...] = ()  # those that ran when no other was allowed


@dataclass(frozen=True)
class Facts:
    """What torch and the operating system report about the machine."""

    devices: tuple[DeviceFacts, ...]  # accelerators in torch's order, then the CPU
    cores: int  # usable by this process
    system: str  # Linux | Darwin | Windows
    python_version: str
    torch_version: str
    torch_architectures: tuple[str, ...] = ()  # targets of torch's CUDA kernels: "sm_90"
    cpp_compiler: str = ""  # its path, or ""
    python_headers: bool = False
    torch_folder: str = ""  # where torch is installed
    triton: bool = False
    driver: str = ""  # the vendor of an accelerator driver, whether torch uses it or not
    complaints: tuple[str, ...] = ()  # torch's warnings during the probe


def probe(only: str | None = None) -> Facts:
    """Query torch and the operating system about this machine, and try its devices.

    only: the one device to try; the others are listed without trials and free memory.
    """
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        devices = [*_cuda_devices(only), *_xpu_devices(only), *_mps_devices(only)]
    complaints = tuple(dict.fromkeys(describe_error(warning.message) for warning in caught))
    include = sysconfig.get_path("include")
    return Facts(
        devices=(*devices, _cpu_device(only)),
        cores=usable_cores(),
        system=platform.system(),
        python_version=platform.python_version(),
        torch_version=torch.__version__,
        torch_architectures=tuple(torch.cuda.get_arch_list()) if devices else (),
        cpp_compiler=_cpp_compiler(),
        python_headers=bool(include) and (Path(include) / "Python.h").exists(),
        torch_folder=str(Path(torch.__file__).parent),
        triton=importlib.util.find_spec("triton") is not None,
        driver=accelerator_driver(),
        complaints=complaints,
    )


def _tried(name: str, only: str | None, kernels_in: str) -> dict:
    """The trials of a device, as fields of DeviceFacts; {} for a device that is not to be tried."""
    if only not in (None, name, name.split(":")[0]):
        return {}
    trials = try_precisions(name, DTYPES)
    if trials[kernels_in].error:
        return {"trials": trials}
    return {"trials": trials, "attention_kernels": try_attention_kernels(name, kernels_in)}


def _cuda_devices(only: str | None) -> list[DeviceFacts]:
    """NVIDIA and AMD devices: torch calls both "cuda", and torch.version.hip tells them apart."""
    import torch

    if not torch.cuda.is_available():
        return []
    devices = []
    for index in range(torch.cuda.device_count()):
        name = f"cuda:{index}"
        properties = torch.cuda.get_device_properties(index)
        tried = _tried(name, only, kernels_in="float16")
        devices.append(
            DeviceFacts(
                name=name,
                kind="rocm" if torch.version.hip else "cuda",
                description=properties.name,
                memory_total=properties.total_memory,
                memory_free=torch.cuda.mem_get_info(index)[0] if tried else None,
                capability=None if torch.version.hip else (properties.major, properties.minor),
                architecture=getattr(properties, "gcnArchName", "").split(":")[0],
                **tried,
            )
        )
    return devices


def _xpu_devices(only: str | None) -> list[DeviceFacts]:
    """Intel GPUs."""
    import torch

    if not (hasattr(torch, "xpu") and torch.xpu.is_available()):
        return []
    devices = []
    for index in range(torch.xpu.device_count()):
        name = f"xpu:{index}"
        properties = torch.xpu.get_device_properties(index)
        tried = _tried(name, only, kernels_in="bfloat16")
        free = None
        if tried:
            try:
                free = torch.xpu.mem_get_info(index)[0]
            except RuntimeError:  # some drivers do not report it
                pass
        devices.append(
            DeviceFacts(
                name=name,
                kind="xpu",
                description=properties.name,
                memory_total=properties.total_memory,
                memory_free=free,
                **tried,
            )
        )
    return devices


def _mps_devices(only: str | None) -> list[DeviceFacts]:
    """The GPU of Apple silicon, which shares the machine's memory."""
    import torch

    if not torch.backends.mps.is_available():
        return []
    total = torch.mps.recommended_max_memory()
    return [
        DeviceFacts(
            name="mps",
            kind="mps",
            description=f"{torch.cpu.get_capabilities().get('cpu_name', 'Apple')} GPU",
            memory_total=total,
            memory_free=total - torch.mps.driver_allocated_memory(),
            **_tried("mps", only, kernels_in="float32"),
        )
    ]


def _cpu_device(only: str | None) -> DeviceFacts:
    import torch

    known = torch.cpu.get_capabilities()
    total, free = system_memory()
    return DeviceFacts(
        name="cpu",
        kind="cpu",
        description=known.get("cpu_name") or platform.processor() or platform.machine(),
        memory_total=total,
        memory_free=free,
        instruction_sets=tuple(
            sorted(k for k, has in known.items() if has is True and SHOWN_INSTRUCTIONS.match(k))
        ),
        **_tried("cpu", only, kernels_in="float32"),
    )


def usable_cores() -> int:
    """The CPU cores that this process may use, by its affinity and a container's quota."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quota = _read("/sys/fs/cgroup/cpu.max").split()  # "max 100000" or "150000 100000"
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, math.ceil(int(quota[0]) / int(quota[1])))
    return max(1, cores)


def system_memory() -> tuple[int | None, int | None]:
    """(total, free) bytes of main memory; None for what the system does not report.

    On Linux a container's limit applies, and memory that only caches files is free.
    """
    if platform.system() == "Windows":
        return _windows_memory()
    if platform.system() == "Darwin":
        return _mac_memory()
    lines = dict(re.findall(r"(\w+):\s+(\d+) kB", _read("/proc/meminfo")))
    if "MemTotal" not in lines:
        return None, None
    total = int(lines["MemTotal"]) * 1024
    free = int(lines.get("MemAvailable", lines["MemFree"])) * 1024
    limit, used = _read("/sys/fs/cgroup/memory.max"), _read("/sys/fs/cgroup/memory.current")
    if limit.isdigit() and used.isdigit():
        cache = re.search(r"^inactive_file (\d+)", _read("/sys/fs/cgroup/memory.stat"), re.M)
        taken = int(used) - (int(cache[1]) if cache else 0)
        total, free = min(total, int(limit)), min(free, int(limit) - taken)
    return total, max(0, free)


def _mac_memory() -> tuple[int | None, int | None]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        text = subprocess.run(
            ["vm_stat"], capture_output=True, encoding="utf-8", timeout=5, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return total, None
    pages = dict(re.findall(r"Pages (\w+):\s+(\d+)", text))
    available = sum(int(pages.get(name, 0)) for name in ("free", "inactive", "purgeable"))
    return total, available * os.sysconf("SC_PAGE_SIZE")


def _windows_memory() -> tuple[int | None, int | None]:
    # MEMORYSTATUSEX: two 32-bit numbers, then seven 64-bit ones
    names = "total free total_page free_page total_virtual free_virtual extended".split()

    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            *((name, ctypes.c_uint64) for name in names),
        )

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None, None
    return status.total, status.free


def accelerator_driver() -> str:
    """The vendor whose accelerator driver is installed ("NVIDIA", "AMD", "Apple"), or "".

    Needs no torch: setup uses it to decide which build of torch to install.
    """
    if platform.system() == "Darwin":
        return "Apple" if platform.machine() == "arm64" else ""
    if platform.system() == "Windows":
        drivers = Path(os.environ.get("SystemRoot", r"C:\Windows")) / "System32"
        return "NVIDIA" if (drivers / "nvcuda.dll").exists() else ""
    nvidia = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/usr/lib/wsl/lib/libcuda.so.1")
    if any(os.path.exists(path) for path in nvidia):
        return "NVIDIA"
    return "AMD" if os.path.exists("/dev/kfd") else ""


def _cpp_compiler() -> str:
    """The path of the C++ compiler that torch.compile uses for CPU code, or ""."""
    default = {"Darwin": "clang++", "Windows": "cl"}.get(platform.system(), "g++")
    return shutil.which(os.environ.get("CXX") or default) or ""


def _read(path: str) -> str:
    """The text of a small system file, or "" if it is missing."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
