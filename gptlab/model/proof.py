"""A model's proof: what it makes of fixed tokens, and the hash of the code that computes it.

Weights mean something only together with the code that they were trained in. So a checkpoint
carries what this code made of a few tokens, and whatever computes the model again, or loads it
under edited code, is held against that.
"""

import contextlib
import copy
import functools
import hashlib
import sys
from pathlib import Path

import torch

CODE = Path(__file__).parent
# files that count, compare or build a model; no edit of them changes what it computes
BESIDE_THE_MODEL = {
    "__init__.py", "arithmetic.py", "building.py", "memory.py", "proof.py", "quantization.py",
    "reference.py", "shapes.py",
}  # fmt: skip
TOKENS, POSITIONS, IDS = 256, 8, 256  # at most: of the probe, and of the logits that are kept
TOLERANCE = 1e-3  # times the largest logit; rounding stays below 1e-5, an edited eps makes 2e-2


# The code -----------------------------------------------------------------------------------------


@functools.cache
def code_texts() -> dict[str, str]:
    """The text of each file that defines the model, by its path; as at the first call.

    A training calls it when it begins: a file that is edited while it runs is not what it computes.
    """
    return {
        f"gptlab/model/{path.name}": path.read_text(encoding="utf-8")
        for path in sorted(CODE.glob("*.py"))
        if path.name not in BESIDE_THE_MODEL
    }


def code_hashes() -> dict[str, str]:
    """The SHA-256 (hex) of each file that defines the model, by its path."""
    return {path: hashlib.sha256(text.encode()).hexdigest() for path, text in code_texts().items()}


def changed_files(proof: dict) -> list[str]:
    """The files that are not what they were when a proof was made, in alphabetical order."""
    before, now = proof["code"], code_hashes()
    return [path for path in sorted({*before, *now}) if before.get(path) != now.get(path)]


# The probe ----------------------------------------------------------------------------------------


def probe_tokens(length: int, vocab_size: int) -> torch.Tensor:
    """Fixed ids, int64 [length], spread over the vocabulary; a shorter probe begins alike."""
    # Knuth's multiplicative hashing: neighbours fall far apart
    return torch.tensor([(n * 2654435769 % 2**32 * vocab_size) >> 32 for n in range(length)])


def spread(size: int, count: int) -> list[int]:
    """At most `count` of the numbers below `size`, the first and the last among them."""
    count = min(size, count)
    return [n * (size - 1) // max(1, count - 1) for n in range(count)]


@contextlib.contextmanager
def computing_plainly(model: torch.nn.Module):
    """A context in which the model computes in float32: no dropout, gradient, autocast or compiler.

    Nothing is drawn, and afterwards the model is in the mode that it was in.
    """
    kind = next(model.parameters()).device.type
    was_training, precision = model.training, torch.get_float32_matmul_precision()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if torch.amp.is_autocast_available(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if "torch._dynamo" in sys.modules:  # imported with the first compilation, in seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        model.eval()
        torch.set_float32_matmul_precision("highest")  # TF32 rounds more than the tolerance
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
            model.train(was_training)


def plain_logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """The model's own logits [T, V] of tokens int64 [T], in float32."""
    if any(weight.dtype != torch.float32 for weight in model.parameters()):
        model = copy.deepcopy(model).float()
    with computing_plainly(model):
        device = next(model.parameters()).device
        return model(tokens[None].to(device))[0][0].float()


def difference(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> str:
    """By how much logits differ, in words; "" where that is rounding.

    tolerance: times the largest of them.
    """
    apart = (found - expected).abs()
    apart[found.isnan() & expected.isnan()] = 0
    apart = apart.nan_to_num(nan=torch.inf).max().item()
    largest = expected.abs().nan_to_num(posinf=0).max().item()
    return "" if apart <= tolerance * max(1, largest) else f"logits differ by up to {apart:.2g}"


# The proof ----------------------------------------------------------------------------------------


def proof_of(model: torch.nn.Module) -> dict:
    """The proof of a model's weights as plain types and tensors, about 10 kB.

    code: SHA-256 by file. log_sum_exp: float32 [T] of the logits after each of T tokens. logits:
    float32 [<= 8, <= 256] at `positions`, of ids that are spread over the vocabulary.
    """
    config = model.config
    length = min(config.block_size, TOKENS)
    logits = plain_logits(model, probe_tokens(length, config.vocab_size))  # [T, V]
    positions, ids = spread(length, POSITIONS), spread(config.vocab_size, IDS)
    # row by row: the exponentials of all at once would take as much memory again
    sums = torch.stack([row.logsumexp(-1) for row in logits])
    return {
        "code": code_hashes(),
        "log_sum_exp": sums.cpu(),
        "positions": positions,
        "logits": logits[positions][:, ids].cpu(),
    }


def is_proof(value, config) -> bool:
    """Whether a value is a proof that a model of these settings can be compared with."""
    if not isinstance(value, dict):
        return False
    length = min(config.block_size, TOKENS)
    positions, ids = spread(length, POSITIONS), spread(config.vocab_size, IDS)
    shapes = {"log_sum_exp": (length,), "logits": (len(positions), len(ids))}
    tables = {name: value.get(name) for name in shapes}
    code = value.get("code")
    return (
        all(isinstance(table, torch.Tensor) for table in tables.values())
        and all(table.dtype == torch.float32 for table in tables.values())
        and all(tables[name].shape == shape for name, shape in shapes.items())
        and isinstance(value.get("positions"), list)
        and value["positions"] == positions
        and isinstance(code, dict)
        and all(isinstance(word, str) for item in code.items() for word in item)
    )


def difference_from(proof: dict, model: torch.nn.Module) -> str:
    """How the model's logits differ from its proof's, in words; "" where that is rounding.

    A model with a shorter window is compared within it.
    """
    length = min(model.config.block_size, len(proof["log_sum_exp"]))
    logits = plain_logits(model, probe_tokens(length, model.config.vocab_size)).cpu()
    positions = [position for position in proof["positions"] if position < length]
    kept = logits[positions][:, spread(model.config.vocab_size, IDS)]
    sums = torch.stack([row.logsumexp(-1) for row in logits])
    return difference(kept, proof["logits"][: len(positions)]) or difference(
        sums, proof["log_sum_exp"][:length]
    )
