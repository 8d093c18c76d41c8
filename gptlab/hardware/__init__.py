"""Detect the hardware of this machine, and choose device, precision and compile mode for it.

The names below are imported on first use (PEP 562): `gptlab.hardware` itself imports no torch.
"""

import importlib

_HOME_OF = {
    "Choice": "choice",
    "CompileSupport": "report",
    "Device": "report",
    "Hardware": "report",
    "KIND_NAMES": "report",
    "PeakFlops": "trials",
    "Precision": "report",
    "Recommendation": "report",
    "attention_is_causal": "trials",
    "choose": "choice",
    "detect": "report",
    "judge": "report",
    "peak_flops": "trials",
    "synchronize": "trials",
}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'gptlab.hardware' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gptlab.hardware.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
