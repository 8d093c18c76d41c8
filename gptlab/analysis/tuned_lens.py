"""The tuned lens: a translator for each layer, trained on the validation text, kept in the run.

An early layer writes for later layers, not for the output. So an affine map translates its stream
to what the last layer would have: h + h W^T + b, trained for the smallest KL divergence from the
model's own prediction (Belrose et al. 2023). The model itself does not change.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gptlab.analysis.lens import layer_logits, validation_sequences
from gptlab.errors import CheckpointError, DataError
from gptlab.files import FORMAT_VERSIONS, atomic_write, check_format_version
from gptlab.inference.capture import capture
from gptlab.model.transformer import GPT
from gptlab.runs import Run

STEPS, LEARNING_RATE = 250, 1e-3
SEQUENCES, TOKENS = 4, 128  # of a step
HELD_OUT = 8  # sequences at the end of the validation text, which tell how good they are

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Translators:
    """weights: [L, C, C], biases: [L, C] of the L streams before the last. tokens: trained on.

    before, after: mean KL divergence from the model's prediction, in nats per token, of the plain
    lens and of this one, on text that they were not trained on.
    """

    weights: torch.Tensor
    biases: torch.Tensor
    tokens: int
    before: float
    after: float


def tuned_lens(
    model: GPT,
    run: Run,
    progress: Progress = lambda stage, advance, total: None,
    note: Callable[[str], object] = lambda sentence: None,
) -> Translators:
    """The translators of a run's model, from its folder where they are those of these weights.

    Else they are trained on its validation text (up to STEPS * SEQUENCES * TOKENS tokens) and
    written there. note: told why. Raises a GPTLabError without validation text.
    """
    weights = weights_sha256(model)
    if run.tuned_lens.exists():
        try:
            return _read(run, weights)
        except CheckpointError as error:
            note(f"{error.problem}: it is trained again.")
    size = min(TOKENS, model.config.block_size)
    sequences = validation_sequences(run, 10_000, size)
    if len(sequences) < 2 * HELD_OUT:
        raise DataError(
            f"it has {len(sequences)} sequences of {size} tokens, fewer than {2 * HELD_OUT}"
        )
    found = train_translators(model, sequences, progress)
    _write(run, found, weights)
    return found


def weights_sha256(model: GPT) -> str:
    """SHA-256 (hex) of all weights, by their names."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)};".encode())
        digest.update(weight.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def train_translators(
    model: GPT, sequences: Sequence[Sequence[int]], progress: Progress
) -> Translators:
    """Train the translators on sequences of equal length; the last ones tell how good they are."""
    layers, channels = model.config.n_layer, model.config.n_embd
    weights = torch.zeros(layers, channels, channels, requires_grad=True)  # the plain lens
    biases = torch.zeros(layers, channels, requires_grad=True)
    optimizer = torch.optim.Adam([weights, biases], lr=LEARNING_RATE)
    trained, held_out = sequences[:-HELD_OUT], sequences[-HELD_OUT:]
    needing = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        before = _divergence(model, held_out, weights, biases)
        random = torch.Generator().manual_seed(0)
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 - step / STEPS)
            chosen = torch.randint(len(trained), (SEQUENCES,), generator=random).tolist()
            for number in chosen:
                loss = _losses(model, trained[number], weights, biases).sum() / SEQUENCES
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            progress("training the tuned lens", 1, STEPS)
        after = _divergence(model, held_out, weights, biases)
    finally:
        for parameter in needing:
            parameter.requires_grad_()
    tokens = min(STEPS * SEQUENCES, len(trained)) * len(sequences[0])
    return Translators(weights.detach(), biases.detach(), tokens, before, after)


def _losses(model: GPT, tokens: Sequence[int], weights, biases) -> torch.Tensor:
    """KL divergence of each layer's prediction from the model's, mean over the tokens: [L]."""
    captured = capture(model, tokens)
    said = captured.logits.log_softmax(-1)  # [T, V]
    losses = []
    for residual, weight, bias in zip(captured.residual, weights, biases, strict=False):
        guessed = layer_logits(model, residual, weight, bias).float().log_softmax(-1)
        losses.append((said.exp() * (said - guessed)).sum(-1).mean())
    return torch.stack(losses)


@torch.no_grad()
def _divergence(model: GPT, sequences, weights, biases) -> float:
    """The mean of `_losses` over sequences and layers."""
    return float(
        torch.stack([_losses(model, tokens, weights, biases).mean() for tokens in sequences]).mean()
    )


def _write(run: Run, found: Translators, weights: str) -> None:
    import safetensors.torch

    about = {
        "format_version": str(FORMAT_VERSIONS["tuned_lens"]),
        "weights_sha256": weights,
        "tokens": str(found.tokens),
        "before": str(found.before),
        "after": str(found.after),
    }
    tensors = {"weights": found.weights, "biases": found.biases}
    with atomic_write(run.tuned_lens) as file:
        file.write(safetensors.torch.save(tensors, about))


def _read(run: Run, weights: str) -> Translators:
    """What the file holds; CheckpointError where it is damaged or of other weights."""
    from safetensors import SafetensorError, safe_open

    name = run.tuned_lens.name
    try:
        with safe_open(run.tuned_lens, "pt") as file:
            about = file.metadata() or {}
            version = about.get("format_version", "")
            known = int(version) if version.isdecimal() else None
            check_format_version(known, "tuned_lens", run.tuned_lens, CheckpointError)
            if about.get("weights_sha256") != weights:
                raise CheckpointError(f"{name} belongs to other weights")
            found = Translators(
                file.get_tensor("weights"),
                file.get_tensor("biases"),
                int(about["tokens"]),
                float(about["before"]),
                float(about["after"]),
            )
    except (SafetensorError, KeyError, ValueError):
        raise CheckpointError(f"{name} is damaged") from None
    return found
