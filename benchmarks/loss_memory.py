"""Peak memory and time of the loss over a large vocabulary, forward and backward, as ratios.

    python benchmarks/loss_memory.py
    python benchmarks/loss_memory.py --compile --tokens 8192

Each method of computing the same loss runs in its own process. The memory is the peak of the
process beyond the hidden states, the head and the targets.
"""

import argparse
import json
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import processes
import report

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
    from gptlab.model.transformer import ChunkedCrossEntropy, CrossEntropy

    chunk = loss_chunk_rows(targets.numel(), weight.size(0))
    return ChunkedCrossEntropy.apply(
        lambda rows: rows @ weight.T, CrossEntropy.apply, targets, chunk, True, hidden, weight
    )


WAYS = {way.__name__: way for way in (plain, loop, checkpointed, gptlab)}


def measure(name: str, tokens: int, vocab_size: int, n_embd: int, compiled: bool = False) -> dict:
    """One forward and backward pass in this process: megabytes, seconds, the loss per token."""
    import torch

    torch.manual_seed(0)
    hidden = torch.randn(tokens, n_embd, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(vocab_size, n_embd).mul_(0.02))
    targets = torch.randint(vocab_size, (tokens,))
    compute = torch.compile(WAYS[name]) if compiled else WAYS[name]
    if compiled:  # on a small part of the work, so that neither figure includes compiling
        few = (hidden[:8].detach().requires_grad_(), weight.detach()[:8].requires_grad_())
        torch.compile(lambda h, w: (h @ w.T).sum())(*few).backward()
    before, start = processes.own_peak(), time.perf_counter()
    loss = compute(hidden, weight, targets)
    loss.backward()
    return {
        "megabytes": (processes.own_peak() - before) / 1e6,
        "seconds": time.perf_counter() - start,
        "loss": loss.item() / tokens,
    }


def main() -> None:
    """Run every method in its own process, print a table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=4096, help="rows of hidden states [4096]")
    parser.add_argument("--vocab_size", type=int, default=50257, help="token ids [50257]")
    parser.add_argument("--n_embd", type=int, default=768, help="channels [768]")
    parser.add_argument("--compile", action="store_true", help="through torch.compile (minutes)")
    parser.add_argument("--quick", action="store_true", help="a fourth of the tokens and channels")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # for the child process
    options = parser.parse_args()
    share = 4 if options.quick else 1
    sizes = (options.tokens // share, options.vocab_size, options.n_embd // share)
    if options.way:
        print(json.dumps(measure(options.way, *sizes, options.compile)))
        return
    found = {
        name: processes.in_a_process_of_its_own(__file__, [*sys.argv[1:], "--way", name])
        for name in WAYS
    }
    base = found["plain"]
    rows = [
        [
            name,
            f"{row['megabytes']:,.0f}",
            f"{row['megabytes'] / base['megabytes']:.2f}",
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / base['seconds']:.2f}",
            f"{row['loss']:.4f}",
        ]
        for name, row in found.items()
    ]
    print(f"{sizes[0]:,} tokens, {sizes[1]:,} ids, {sizes[2]:,} channels:\n")
    print(report.table(["way", "MB", "of plain", "seconds", "of plain", "loss"], rows))
    report.finish({"loss_memory": found}, options.json)


if __name__ == "__main__":
    main()
