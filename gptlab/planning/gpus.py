"""Well-known GPUs, and the same training on one of each: does it fit, its time, its cost.

Nothing is measured: the peaks come from data sheets (`hardware.trials.PEAK_TFLOPS`), the prices
from one cloud's list, and the share of the peak is an assumption.
"""

import re
from dataclasses import dataclass

from gptlab.errors import ConfigError
from gptlab.hardware.trials import listed_peak_flops
from gptlab.model.arithmetic import flops_per_token
from gptlab.model.config import GPTConfig
from gptlab.training.times import SHARE_OF_PEAK

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """A GPU that can be rented. dollars_per_hour: on demand, as listed in the month `seen`.

    link: bytes/s in one direction to the other GPUs of its machine. network: bytes/s to other
    machines, for each GPU.
    """

    name: str
    product: str  # as torch names it
    memory: int
    dollars_per_hour: float
    seen: str
    link: float
    network: float

    @property
    def word(self) -> str:
        """What names it on a command line: h100, rtx4090."""
        return self.name.lower().replace("rtx ", "rtx").split()[0]

    @property
    def peak(self) -> tuple[float, str]:
        """(FLOP/s, precision) of its matrix products: float16 on cards from before bfloat16."""
        for dtype in ("bfloat16", "float16"):
            if peak := listed_peak_flops(self.product, dtype):
                return peak, dtype
        raise AssertionError(f"the data sheets list no peak of {self.product}")


# Links, from the vendors' data sheets: NVLink has 300 GB/s (V100), 600 (A100), 900 (H100, H200) and
# 1,800 (B200), Infinity Fabric 896 (MI300X), each both ways together; PCIe has 16 GB/s (3.0) or 32
# (4.0) one way. Networks are those of the usual machine of eight: 100 Gb/s for all (V100), 200 Gb/s
# for each GPU (A100) and 400 (H100 and later), 25 Gb/s for a machine of cards on PCIe.
GB = 1e9
SLOW_NETWORK = 25 / 8 / 8 * GB

# On-demand list prices in US dollars per GPU and hour, as price collections quote them for RunPod
# (T4 and V100: Google Cloud, without the rest of the machine), rounded. For the same card other
# clouds charge from half to three times as much, and prices change within weeks: a guide to the
# order of magnitude.
GPUS = (
    Gpu("T4", "Tesla T4", 16 * GIB, 0.35, "2025", 16 * GB, SLOW_NETWORK),
    Gpu("L4", "NVIDIA L4", 24 * GIB, 0.44, "2026-03", 32 * GB, SLOW_NETWORK),
    Gpu("V100", "Tesla V100-SXM2-32GB", 32 * GIB, 2.48, "2025", 150 * GB, 100 / 8 / 8 * GB),
    Gpu("RTX 3090", "NVIDIA GeForce RTX 3090", 24 * GIB, 0.43, "2025", 32 * GB, SLOW_NETWORK),
    Gpu("RTX 4090", "NVIDIA GeForce RTX 4090", 24 * GIB, 0.60, "2026-03", 32 * GB, SLOW_NETWORK),
    Gpu("A100 80 GB", "NVIDIA A100-SXM4-80GB", 80 * GIB, 1.79, "2026-11", 300 * GB, 25 * GB),
    Gpu("H100 SXM", "NVIDIA H100 80GB HBM3", 80 * GIB, 3.99, "2026-11", 450 * GB, 50 * GB),
    Gpu("H200", "NVIDIA H200", 141 * GIB, 4.59, "2026-10", 450 * GB, 50 * GB),
    Gpu("B200", "NVIDIA B200", 180 * GIB, 6.79, "2026-10", 900 * GB, 50 * GB),
    Gpu("MI300X", "AMD Instinct MI300X", 192 * GIB, 2.49, "2025", 448 * GB, 50 * GB),
)

FULL_WIDTH = 768  # n_embd from which this holds; below it, the share falls with the width's square
LEAST_SHARE = 0.005


@dataclass(frozen=True)
class GpuEstimate:
    """A training on one GPU. batch_size: the run's, or the largest smaller one that fits."""

    name: str
    memory: int
    dtype: str
    batch_size: int  # 0: not even one sequence fits
    seconds: float
    dollars: float
    dollars_per_hour: float
    seen: str


def find_gpu(word: str) -> Gpu:
    """The GPU of this name: h100, a100, "RTX 4090". Raises ConfigError."""
    asked = re.sub(r"[\s_-]", "", word.lower())
    for gpu in GPUS:
        if asked == gpu.word:
            return gpu
    raise ConfigError(
        f"No figures of a GPU {word!r} are known", f"choose from {', '.join(g.word for g in GPUS)}"
    )


def assumed_share(config: GPTConfig) -> float:
    """The share of a GPU's peak that training this model is assumed to reach."""
    width = min(1.0, config.n_embd / FULL_WIDTH)
    return max(LEAST_SHARE, SHARE_OF_PEAK * width**2)


def estimate(gpu: Gpu, config: GPTConfig, tokens: float, batch_size: int) -> GpuEstimate:
    """The time and the cost of a training on this GPU.

    tokens: of the training, plus a third of those of its evaluations, which have no backward pass.
    batch_size: what fits, from `training.memory.largest_batch_size`.
    """
    peak, dtype = gpu.peak
    seconds = tokens * flops_per_token(config) / (assumed_share(config) * peak)
    dollars = seconds / 3600 * gpu.dollars_per_hour
    return GpuEstimate(
        gpu.name, gpu.memory, dtype, batch_size, seconds, dollars, gpu.dollars_per_hour, gpu.seen
    )
