"""Hold `gpt.py plan --gpus` against runs that others have published, and print the table.

docs/SCALE.md has it; tests/benchmarks/test_published_runs.py fails where the two differ. The plans
are of the same model, tokens, micro-batches and GPUs, without evaluations; what remains is how well
each program uses its GPUs, which one assumed share of the peak for all cannot know. A run is here
where its source says the time, the steps and their size, and gptlab has its architecture: later
nanochats are not, whose attention sees half of the sequence in most layers.

    python benchmarks/published_runs.py
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gptlab.model.config import PRESETS
from gptlab.planning.cluster import Cluster, setting
from gptlab.planning.gpus import find_gpu
from gptlab.training.config import build

HOUR = 3600.0
NANOCHAT = dict(
    vocab_size=65536, block_size=2048, bias=False, use_rms_norm=True, use_swiglu=False,
    position_encoding="rope", qk_norm=True, tie_weights=False, activation="relu2",
)  # fmt: skip
LLAMA_8B = dict(
    vocab_size=128256, block_size=8192, n_layer=32, n_head=32, n_kv_head=8, n_embd=4096,
    intermediate_size=14336, bias=False, use_rms_norm=True, use_swiglu=True,
    position_encoding="rope", tie_weights=False,
)  # fmt: skip


def gpt2(preset: str) -> dict:
    """A model of GPT-2's family, whose vocabulary both nanoGPT and llm.c pad."""
    return {**PRESETS[preset], "vocab_size": 50304}


GPT2 = gpt2("gpt2")


def nanochat(depth: int, heads: int) -> dict:
    """nanochat's model of this many layers, each 64 wide."""
    return {**NANOCHAT, "n_layer": depth, "n_embd": 64 * depth, "n_head": heads}


@dataclass(frozen=True)
class Published:
    """A run as it was published. batch: sequences of a process's micro-batch and of a step.

    seconds: of all steps, as published or as follows from the published speed.
    """

    name: str
    source: str
    model: dict
    gpu: str
    gpus: int
    parallelism: str
    batch: tuple[int, int]
    steps: int
    seconds: float
    checkpointing: bool = False


def at_speed(tokens: int, gpus: int, per_gpu: float) -> float:
    """Seconds of a step of these tokens at this many tokens per second on each GPU."""
    return tokens / gpus / per_gpu


GITHUB = "https://github.com"
LLM_C = f"{GITHUB}/karpathy/llm.c/blob/master/scripts"
TITAN = f"{GITHUB}/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md"
RUNS = (
    Published(  # 40 GB each; "about 4 days" in the README, "~5 days" in config/train_gpt2.py
        "nanoGPT, GPT-2 124M, 300B tokens",
        f"{GITHUB}/karpathy/nanoGPT#reproducing-gpt-2",
        GPT2, "a100", 8, "ddp", (12, 480), 600_000, 96 * HOUR,
    ),
    Published(  # "in ~300ms/iter"
        "llm.c, GPT-2 124M, 10B tokens",
        f"{LLM_C}/run_gpt2_124M.sh",
        GPT2, "a100", 8, "ddp", (64, 512), 18_865, 18_865 * 0.300,
    ),
    Published(  # "The mean per-step time was 140ms"
        "llm.c, GPT-2 124M, 10B tokens",
        f"{GITHUB}/KellerJordan/modded-nanogpt/tree/master/records/track_1_short/2024-10-13_llmc",
        GPT2, "h100", 8, "ddp", (64, 512), 19_560, 19_560 * 0.140,
    ),
    Published(  # "in ~820ms/iter"
        "llm.c, GPT-2 350M, 31B tokens",
        f"{LLM_C}/run_gpt2_350M.sh",
        gpt2("gpt2-medium"), "a100", 8, "ddp", (64, 512), 60_000, 60_000 * 0.820,
    ),
    Published(  # "in ~1.7s/iter"
        "llm.c, GPT-2 774M, 150B tokens",
        f"{LLM_C}/run_gpt2_774M.sh",
        gpt2("gpt2-large"), "a100", 8, "ddp", (32, 512), 286_102, 286_102 * 1.7,
    ),
    Published(  # "24 hours", also in discussion 677
        "llm.c, GPT-2 1558M, 34B tokens",
        f"{LLM_C}/run_gpt2_1558M.sh",
        gpt2("gpt2-xl"), "h100", 8, "ddp", (16, 1024), 32_000, 24 * HOUR,
    ),
    Published(  # "Total training time: 172.57m", the report of a user's run of speedrun.sh
        "nanochat d20, 561M, 11B tokens",
        f"{GITHUB}/royam0820/nanochat-speedrun-001/blob/main/report.md",
        nanochat(20, 10), "h100", 8, "ddp", (32, 256), 21_400, 172.57 * 60,
    ),
    Published(  # "71,680 * 1.574s"
        "nanochat d32, 1.9B, 38B tokens",
        f"{GITHUB}/karpathy/nanochat/blob/fae3aca/run1000.sh",
        nanochat(32, 16), "h100", 8, "ddp", (8, 256), 71_680, 71_680 * 1.574,
    ),
    Published(  # "~100 hours (~4 days)"
        "nanochat d34, 2.2B, 89B tokens",
        "https://huggingface.co/karpathy/nanochat-d34",
        nanochat(34, 17), "h100", 8, "ddp", (4, 256), 169_150, 100 * HOUR,
    ),
    Published(  # 500 W each; "FSDP + torch.compile", 6,667 tokens per second on each GPU
        "torchtitan, Llama 3.1 8B, a step of 16 sequences",
        TITAN,
        LLAMA_8B, "h100", 8, "fsdp", (2, 16), 1, at_speed(16 * 8192, 8, 6667),
    ),
    Published(  # 6,514 tokens per second
        "torchtitan, Llama 3.1 8B, a step of 256 sequences",
        TITAN,
        LLAMA_8B, "h100", 128, "fsdp", (2, 256), 1, at_speed(256 * 8192, 128, 6514),
    ),
)  # fmt: skip


def planned_seconds(run: Published) -> tuple[float, float]:
    """(seconds, MFU) of the run's steps as `gpt.py plan --gpus` estimates them."""
    size, sequences = run.batch
    values = {**run.model, "batch_size": sequences, "max_iters": run.steps}
    config = build({**values, "device": "cuda", "dtype": "bfloat16"})
    gpu = find_gpu(run.gpu)
    cluster = Cluster(gpu, run.gpus, 8, gpu.network, gpu.dollars_per_hour)
    one = setting(config, cluster, run.parallelism, run.checkpointing, size)
    return run.steps * one.step, one.mfu


def in_units(seconds: float) -> str:
    """Days, hours, minutes or seconds with three digits."""
    for size, unit in ((2 * 24 * HOUR, "days"), (2 * HOUR, "h"), (120.0, "min")):
        if seconds >= size:
            whole = {"days": 24 * HOUR, "h": HOUR, "min": 60.0}[unit]
            return f"{seconds / whole:.3g} {unit}"
    return f"{seconds:.3g} s"


def rows() -> list[tuple[str, ...]]:
    """The cells of the table: run, GPUs, published, planned, error, and the share of the peak."""
    found = []
    for run in RUNS:
        planned, mfu = planned_seconds(run)
        reached = mfu * planned / run.seconds
        found.append(
            (
                f"[{run.name}]({run.source})",
                f"{run.gpus} x {find_gpu(run.gpu).name}",
                in_units(run.seconds),
                in_units(planned),
                f"{planned / run.seconds - 1:+.0%}",
                f"{reached:.0%}",
            )
        )
    return found


def table() -> str:
    """The table of errors as Markdown."""
    head = ("run", "GPUs", "published", "planned", "error", "its share of the peak")
    lines = [head, ("---", "---", "---:", "---:", "---:", "---:"), *rows()]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(table())
