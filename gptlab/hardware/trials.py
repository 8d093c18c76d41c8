"""Try real operations on a device: whether it computes, how fast, and whether attention is right.

A device may be "available" although its first operation fails (a wheel without kernels for this
card). A precision may be "supported" although it runs 90 times slower than float32 (bfloat16 on a
CPU without the instructions: measured 0.7 against 64 GFLOP/s). Both are therefore tried.
"""

import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Dense peak TFLOP/s of bfloat16 and float16 matrix products with float32 accumulation, from the
# vendors' data sheets. The whole name must match, so that a laptop or partitioned card is measured
# instead. Older cards have only the float16 figure.
PEAK_TFLOPS = (
    (r"GB200.*", 2500.0),
    (r"B200.*", 2250.0),
    (r"(H100 80GB HBM3|H100 SXM.*|H800|H200.*|GH200.*)", 989.4),
    (r"H100 NVL", 835.0),
    (r"(H100|H800) PCIe", 756.0),
    (r"H20", 148.0),
    (r"(A100|A800)[- ].*", 312.0),
    (r"A30", 165.0),
    (r"A40", 149.7),
    (r"A10", 125.0),
    (r"L40S", 362.0),
    (r"L40", 181.0),
    (r"L4", 121.0),
    (r"RTX 6000 Ada Generation", 364.2),
    (r"RTX A6000", 154.8),
    (r"RTX A5000", 111.1),
    (r"GeForce RTX 5090", 209.5),
    (r"GeForce RTX 4090", 165.2),
    (r"GeForce RTX 4080", 97.5),
    (r"GeForce RTX 4070 Ti", 80.2),
    (r"GeForce RTX 4070", 58.3),
    (r"GeForce RTX 3090 Ti", 80.0),
    (r"GeForce RTX 3090", 71.0),
    (r"GeForce RTX 3080", 59.5),
    (r"GeForce RTX 3070", 40.6),
    (r"Instinct (MI300X|MI325X).*", 1307.4),
    (r"Instinct MI250X.*", 191.5),  # one of its two dies, each of which is a device
    (r"Instinct MI210.*", 181.0),
    (r"Radeon RX 7900 XTX", 122.8),
)
PEAK_TFLOPS_FLOAT16 = ((r"V100-SXM.*", 125.0), (r"V100-PCIE.*", 112.0), (r"T4", 65.0))

SLOW_FLOPS = 4e9  # a CPU core in a precision without its own instructions stays below this

PRODUCT = re.compile(r"^(NVIDIA |Tesla |AMD )*")


@dataclass(frozen=True)
class Trial:
    """The result of one real matrix product."""

    error: str = ""  # "" if it worked
    flops: float | None = None  # FLOP/s of one core; only on a CPU, where speed decides


@dataclass(frozen=True)
class PeakFlops:
    """The peak FLOP/s of a device in one precision, and the source of the figure."""

    value: float
    source: str  # "table" | "measured"


def synchronize(device) -> None:
    """Wait until the device has finished all queued work."""
    import torch

    device = torch.device(device)
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(*([device] if device.type != "mps" else []))


def describe_error(error: BaseException) -> str:
    """The first line of an error, without the full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__


def try_precisions(device: str, dtypes: Sequence[str]) -> dict[str, Trial]:
    """Try one product, forward and backward, in each precision; on a CPU also measure its speed."""
    trials = {}
    for dtype in dtypes:
        try:
            _try_product(device, dtype)
            trials[dtype] = Trial()
        except (RuntimeError, TypeError, NotImplementedError, AssertionError) as error:
            trials[dtype] = Trial(error=describe_error(error))
    if device == "cpu":
        speeds = _cpu_flops([dtype for dtype, trial in trials.items() if not trial.error])
        trials |= {dtype: Trial(flops=flops) for dtype, flops in speeds.items()}
    return trials


def _try_product(device: str, dtype: str) -> None:
    """Raise RuntimeError unless a 32 x 32 product is right on `device`, forward and backward."""
    import torch

    x = torch.arange(32 * 32, dtype=torch.float32).view(32, 32) % 7 - 3  # exact in every precision
    weight = x.T.contiguous().to(device=device, dtype=getattr(torch, dtype)).requires_grad_()
    product = x.to(device=device, dtype=getattr(torch, dtype)) @ weight
    product.sum().backward()
    if not torch.allclose(product.detach().float().cpu(), x @ x.T, rtol=0.01):
        raise RuntimeError(f"a matrix product in {dtype} came out wrong")
    expected = x.sum(0)[:, None].expand(32, 32)
    if not torch.allclose(weight.grad.float().cpu(), expected, rtol=0.01):
        raise RuntimeError(f"the gradient of a matrix product in {dtype} came out wrong")


def _cpu_flops(dtypes: Sequence[str]) -> dict[str, float]:
    """The FLOP/s of one CPU core in each precision, measured in about 0.2 s.

    One thread, and the best of alternating rounds: two threads wait for each other, so a busy
    machine would distort the comparison (float32 has been measured 60 times too slow).
    """
    import torch

    best = dict.fromkeys(dtypes, 0.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(3):
            for dtype in dtypes:
                flops = measure_flops("cpu", dtype, seconds=0.0, size=128)
                if flops > SLOW_FLOPS:  # otherwise a larger product takes too long
                    flops = measure_flops("cpu", dtype, seconds=0.02, size=512)
                best[dtype] = max(best[dtype], flops)
    finally:
        torch.set_num_threads(threads)
    return best


def measure_flops(device: str, dtype: str, seconds: float = 0.2, size: int | None = None) -> float:
    """The best FLOP/s of square matrix products in `dtype` within about `seconds`.

    size: rows and columns; None doubles it until one product takes 2 ms. On a CPU this uses torch's
    current number of threads.
    """
    import torch

    def run(a, b) -> float:
        synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        return time.perf_counter() - start

    def operands(size):
        shape = dict(device=device, dtype=getattr(torch, dtype))
        return torch.ones(size, size, **shape), torch.ones(size, size, **shape)

    with torch.no_grad():
        doubling = size is None
        size = size or 512
        a, b = operands(size)
        run(a, b)  # the first call loads libraries and picks a kernel
        best = run(a, b)
        while doubling and best < 0.002 and size < 8192:
            size *= 2
            a, b = operands(size)
            run(a, b)
            best = run(a, b)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            best = min(best, run(a, b))
    return 2 * size**3 / best


def peak_flops(device: str, dtype: str, description: str | None = None) -> PeakFlops:
    """The peak FLOP/s of a device in `dtype`, from the data sheet or measured in about 0.2 s.

    description: the name of the product; None asks torch. float32 is always measured, because its
    speed depends on whether TF32 is currently allowed.
    """
    if description is None:
        description = product_name(device)
    listed = listed_peak_flops(description, dtype)
    if listed:
        return PeakFlops(listed, "table")
    return PeakFlops(measure_flops(device, dtype), "measured")


def listed_peak_flops(description: str, dtype: str) -> float | None:
    """The data sheet's FLOP/s of this product, or None if the table does not list it."""
    table = PEAK_TFLOPS if dtype in ("bfloat16", "float16") else ()
    if dtype == "float16":
        table += PEAK_TFLOPS_FLOAT16
    name = PRODUCT.sub("", description)
    if " MIG " in description:
        return None  # a slice of a card
    for pattern, tflops in table:
        if re.fullmatch(pattern, name):
            return tflops * 1e12
    return None


def product_name(device: str) -> str:
    """Torch's name of the product behind an accelerator; "" for the CPU and MPS."""
    import torch

    if device.startswith(("cuda", "xpu")):
        return getattr(torch, device.split(":")[0]).get_device_name(device)
    return ""


def try_attention_kernels(device: str, dtype: str) -> tuple[str, ...]:
    """The kernels of scaled_dot_product_attention that run forward and backward on their own."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    names = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
        "vendor": SDPBackend.OVERRIDEABLE,
        "plain": SDPBackend.MATH,
    }
    works = []
    for name, backend in names.items():
        x = torch.ones(1, 2, 64, 64, device=device, dtype=getattr(torch, dtype))
        x.requires_grad_()
        try:
            with warnings.catch_warnings(), sdpa_kernel(backend):
                warnings.simplefilter("ignore")  # torch warns about each kernel that does not fit
                out = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
                out.sum().backward()
                synchronize(device)
            works.append(name)
        except (RuntimeError, NotImplementedError):
            pass
    return tuple(works)


def attention_is_causal(
    device: str, dtype: str, attention: Callable | None = None, head_dim: int = 64
) -> bool:
    """Whether fused attention on this device is right: a check of milliseconds before a run.

    Fused attention has been silently wrong on some devices: future tokens leaked in half precision
    on MPS, and ROCm returned NaN. With `is_causal=True` and with a mask, this checks that outputs
    equal the plain formula in float32, that earlier outputs do not change when the last token does,
    that no gradient of earlier outputs reaches the last token, and that all values are finite.

    attention: a function with the signature of scaled_dot_product_attention, which is the default.
    """
    import torch

    attention = attention or torch.nn.functional.scaled_dot_product_attention
    T, tolerance = 64, {"float32": 1e-3}.get(dtype, 3e-2)
    generator = torch.Generator().manual_seed(0)
    # q, k, v: [3, B=2, H=2, T, D]; the copy differs in the last token of k and v only
    first = torch.randn(3, 2, 2, T, head_dim, generator=generator)
    second = first.clone()
    second[1:, :, :, -1] = 4.0
    causal = torch.ones(T, T, dtype=torch.bool).tril()  # [T, T]

    def plain(q, k, v):
        scores = q @ k.transpose(-2, -1) / head_dim**0.5  # [B, H, T, T]
        return scores.masked_fill(~causal, float("-inf")).softmax(-1) @ v  # [B, H, T, D]

    def fused(qkv, **mask):
        leaves = qkv.to(device=device, dtype=getattr(torch, dtype)).requires_grad_()
        out = attention(*leaves, **mask)
        out[:, :, :-1].float().sum().backward()
        return out.detach().float().cpu(), leaves.grad.float().cpu()

    for mask in ({"is_causal": True}, {"attn_mask": causal.to(device)}):
        out, gradient = fused(first, **mask)
        changed, _ = fused(second, **mask)
        if not (out.isfinite().all() and gradient.isfinite().all()):
            return False
        if (out - plain(*first)).abs().max() > tolerance:
            return False
        if not torch.equal(out[:, :, :-1], changed[:, :, :-1]):
            return False
        if gradient[1:, :, :, -1].any():
            return False
    return True
