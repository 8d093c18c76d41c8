"""The same training on well-known GPUs: does it fit, how long does it take, what does it cost.

Nothing is measured: the peaks come from data sheets (`hardware.trials.PEAK_TFLOPS`), the prices
from one cloud's list, and the share of the peak is an assumption.
"""

from dataclasses import dataclass

from gptlab.hardware.trials import listed_peak_flops
from gptlab.model.arithmetic import flops_per_token
from gptlab.model.config import GPTConfig
from gptlab.training.times import SHARE_OF_PEAK

GIB = 1 << 30


@dataclass(frozen=True)
class Gpu:
    """A GPU that can be rented. dollars_per_hour: on demand, as listed in the month `seen`."""

    name: str
    product: str  # as torch names it
    memory: int
    dollars_per_hour: float
    seen: str


# On-demand list prices in US dollars per GPU and hour, as price collections quote them for RunPod
# (T4: Google Cloud, without the rest of the machine), rounded. For the same card other clouds
# charge from half to three times as much, and prices change within weeks: a guide to the order of
# magnitude.
GPUS = (
    Gpu("T4", "Tesla T4", 16 * GIB, 0.35, "2025"),
    Gpu("L4", "NVIDIA L4", 24 * GIB, 0.44, "2026-03"),
    Gpu("RTX 4090", "NVIDIA GeForce RTX 4090", 24 * GIB, 0.60, "2026-03"),
    Gpu("A100 80 GB", "NVIDIA A100-SXM4-80GB", 80 * GIB, 1.79, "2026-11"),
    Gpu("H100 SXM", "NVIDIA H100 80GB HBM3", 80 * GIB, 3.99, "2026-11"),
    Gpu("H200", "NVIDIA H200", 141 * GIB, 4.59, "2026-10"),
    Gpu("B200", "NVIDIA B200", 180 * GIB, 6.79, "2026-10"),
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


def assumed_share(config: GPTConfig) -> float:
    """The share of a GPU's peak that training this model is assumed to reach."""
    width = min(1.0, config.n_embd / FULL_WIDTH)
    return max(LEAST_SHARE, SHARE_OF_PEAK * width**2)


def estimate(gpu: Gpu, config: GPTConfig, tokens: float, batch_size: int) -> GpuEstimate:
    """The time and the cost of a training on this GPU.

    tokens: of the training, plus a third of those of its evaluations, which have no backward pass.
    batch_size: what fits, from `training.memory.largest_batch_size`.
    """
    dtype = "bfloat16"
    peak = listed_peak_flops(gpu.product, dtype)
    if peak is None:  # a card from before bfloat16
        dtype = "float16"
        peak = listed_peak_flops(gpu.product, dtype)
    assert peak is not None, f"the data sheets list no peak of {gpu.product}"
    seconds = tokens * flops_per_token(config) / (assumed_share(config) * peak)
    dollars = seconds / 3600 * gpu.dollars_per_hour
    return GpuEstimate(
        gpu.name, gpu.memory, dtype, batch_size, seconds, dollars, gpu.dollars_per_hour, gpu.seen
    )
