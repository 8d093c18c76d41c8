"""An export is what the live module computes, or it is refused with the difference."""

import copy

from gptlab.errors import ConfigError

# how far a weight may be from the model's, as a share of the largest of its tensor
ROUNDING = {"f32": 0.0, "f16": 2**-10, "bf16": 2**-8, "q8_0": 1 / 127, "int8": 1 / 127}
# 16 steps of an eighth of the largest value, with its sign: its opposite loses a whole one
ROUNDING["q4_0"] = 1 / 8 + 2**-10


def check_architecture(model, format: str) -> None:
    """Raise ConfigError where the live module is none of those that other programs compute."""
    from gptlab.model.reference import disagreement

    if reason := disagreement(model):
        raise ConfigError(
            f"This model cannot be exported as {format}: gptlab/model/ computes something else "
            f"than other programs do with its settings ({reason}). Undo that change, or use "
            "--format onnx with the package onnxruntime installed, which holds the graph itself."
        )


def check_weights(checkpoint, config, weights: dict, format: str, stored: str = "f32") -> None:
    """Raise ConfigError where what was written is not the model.

    config, weights: as they are read back, in float32 by our names. stored: a key of ROUNDING. The
    logits of the live module with these weights are those of `reference.logits`.
    """
    from gptlab.model import reference
    from gptlab.model.proof import difference, plain_logits, probe_tokens

    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    known = min(config.vocab_size, tokenizer.vocab_size if tokenizer else config.vocab_size)
    rounded = model if stored == "f32" else copy.deepcopy(model)
    held = rounded.state_dict()
    for name, value in weights.items():
        own = held.get(name)
        if own is None:  # GPT-2 outside has biases, and zeros compute the same
            reason = f"{name} is not zero" if value.any() else ""
        else:  # a table may have more rows than there are ids, or one for an end of text
            rows = slice(known if name in ("token_embedding.weight", "lm_head.weight") else None)
            own, value = own[rows], value[rows].to(own.device)
            error = (value - own).abs().max() if value.shape == own.shape else float("inf")
            far = error > ROUNDING[stored] * own.abs().max()
            reason = f"{name} is another tensor" if far else ""
            if not reason and rounded is not model:
                own.copy_(value)
        if reason:
            raise _came_back_different(format, reason)
    tokens = probe_tokens(min(config.block_size, reference.SHORT), known)
    found = reference.logits(config, weights, tokens)[:, :known]
    if reason := difference(found, plain_logits(rounded, tokens).cpu()[:, :known]):
        raise _came_back_different(format, reason)


def _came_back_different(format: str, reason: str) -> ConfigError:
    return ConfigError(
        f"The export as {format} was read back and is not this model ({reason}), so it was not "
        "kept: use another --format, and report this as an error of the exporter."
    )
