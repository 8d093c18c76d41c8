"""Detect the hardware of this machine, and choose device, precision and compile mode for it.

The names below are imported on first use (PEP 562): `gptlab.hardware` itself imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what __getattr__ finds, for type checkers
    from gptlab.hardware.choice import Choice, choose
    from gptlab.hardware.report import (
        KIND_NAMES,
        CompileSupport,
        Device,
        Hardware,
        Precision,
        Recommendation,
        detect,
        judge,
    )
    from gptlab.hardware.trials import PeakFlops, attention_is_causal, peak_flops, synchronize

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

__all__ = [
    "KIND_NAMES",
    "Choice",
    "CompileSupport",
    "Device",
    "Hardware",
    "PeakFlops",
    "Precision",
    "Recommendation",
    "attention_is_causal",
    "choose",
    "detect",
    "judge",
    "peak_flops",
    "synchronize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'gptlab.hardware' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gptlab.hardware.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
