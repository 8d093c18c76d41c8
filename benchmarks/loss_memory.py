"""Peak memory and time of the loss over a large vocabulary, forward and backward, as ratios.

    python benchmarks/loss_memory.py
    python benchmarks/loss_memory.py --compile --tokens 8192

Each way of computing the same loss runs in a process of its own; the memory is what the process
needed at its peak beyond the hidden states, the head and the targets.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

CHUNK_ROWS = 512  # of the two loops; ours chooses its own


def plain(hidden, weight, targets):
    """All logits, torch's cross-entropy."""
    import torch.nn.functional as F

    return F.cross_entropy(hidden @ weight.T, targets, reduction="sum")


def loop(hidden, weight, targets):
    """Chunk by chunk; autograd keeps every chunk's logits for the backward pass."""
    pairs = zip(hidden.split(CHUNK_ROWS), targets.split(CHUNK_ROWS), strict=True)
    return sum(plain(rows, weight, labels) for rows, labels in pairs)


def checkpointed(hidden, weight, targets):
    """Chunk by chunk; the backward pass computes each chunk's logits again."""
    from torch.utils.checkpoint import checkpoint

    pairs = zip(hidden.split(CHUNK_ROWS), targets.split(CHUNK_ROWS), strict=True)
    return sum(
        checkpoint(plain, rows, weight, labels, use_reentrant=False) for rows, labels in pairs
    )


def gptlab(hidden, weight, targets):
    """Chunk by chunk; the gradient is computed in the forward pass."""
    from gptlab.model.arithmetic import loss_chunk_rows
    from gptlab.model.transformer import ChunkedCrossEntropy

    chunk = loss_chunk_rows(targets.numel(), weight.size(0))
    return ChunkedCrossEntropy.apply(hidden, weight, targets, chunk, True)


WAYS = {way.__name__: way for way in (plain, loop, checkpointed, gptlab)}


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def measure(name: str, tokens: int, vocab_size: int, n_embd: int, compiled: bool) -> dict:
    """One forward and backward pass in this process: megabytes, seconds, the loss per token."""
    import torch

    torch.manual_seed(0)
    hidden = torch.randn(tokens, n_embd, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(vocab_size, n_embd).mul_(0.02))
    targets = torch.randint(vocab_size, (tokens,))
    compute = torch.compile(WAYS[name]) if compiled else WAYS[name]
    if compiled:  # in a small piece of the work, so that compiling is in neither figure
        few = (hidden[:8].detach().requires_grad_(), weight.detach()[:8].requires_grad_())
        torch.compile(lambda h, w: (h @ w.T).sum())(*few).backward()
    before, start = peak_bytes(), time.perf_counter()
    loss = compute(hidden, weight, targets)
    loss.backward()
    return {
        "megabytes": (peak_bytes() - before) / 1e6,
        "seconds": time.perf_counter() - start,
        "loss": loss.item() / tokens,
    }


def main(argv: list[str]) -> int:
    """Run every way in its own process and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4096, help="rows of hidden states [4096]")
    parser.add_argument("--vocab_size", type=int, default=50257, help="token ids [50257]")
    parser.add_argument("--n_embd", type=int, default=768, help="channels [768]")
    parser.add_argument("--compile", action="store_true", help="through torch.compile (minutes)")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # the child's part
    options = parser.parse_args(argv)
    sizes = (options.tokens, options.vocab_size, options.n_embd, options.compile)
    if options.way:
        print(json.dumps(measure(options.way, *sizes)))
        return 0

    print(f"{'':14s}{'MB':>8s}{'of plain':>10s}{'seconds':>10s}{'of plain':>10s}{'loss':>10s}")
    base = None
    for name in WAYS:
        command = [sys.executable, str(Path(__file__).resolve()), *argv, "--way", name]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(answer.stdout)
        base = base or row
        print(
            f"{name:14s}{row['megabytes']:8.0f}{row['megabytes'] / base['megabytes']:10.2f}"
            f"{row['seconds']:10.2f}{row['seconds'] / base['seconds']:10.2f}{row['loss']:10.4f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    raise SystemExit(main(sys.argv[1:]))
