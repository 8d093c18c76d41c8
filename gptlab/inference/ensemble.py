"""Several models as one: the average of their probabilities (Hansen & Salamon 1990)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from gptlab.checkpoints import Checkpoint
from gptlab.errors import ConfigError
from gptlab.model.config import GPTConfig
from gptlab.model.documents import document_mask
from gptlab.model.kv_cache import KVCache
from gptlab.model.transformer import GPT


@dataclass(frozen=True)
class EnsembleConfig:
    """What a generator and a cache ask of a model's settings, for several models together."""

    members: tuple[GPTConfig, ...]

    @property
    def block_size(self) -> int:
        """The window that every member has."""
        return min(config.block_size for config in self.members)

    @property
    def vocab_size(self) -> int:
        """The ids that every member has; some models have rows beyond their tokenizer's."""
        return min(config.vocab_size for config in self.members)

    @property
    def cached_layers(self) -> tuple[tuple[int, int], ...]:
        """The layers of one member after those of the other."""
        return tuple(layer for config in self.members for layer in config.cached_layers)


class Ensemble(nn.Module):
    """Models of one tokenizer, whose logits are the logarithm of their averaged probabilities.

    It answers what a `GPT` does to those that read or write text: `config`, `features` and
    `unembed`. The features of all members lie side by side. Members compute one after the other.
    vocab_size: of the logits, at most what each member has; by default all that each has.
    separators: of each member, the id at which its attention begins anew, or None; a member reads
    as it was trained. With a cache, as with one model, attention does not begin anew.
    """

    def __init__(
        self,
        members: Sequence[GPT],
        vocab_size: int | None = None,
        separators: Sequence[int | None] | None = None,
    ):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.config = EnsembleConfig(tuple(model.config for model in members))
        self.vocab_size = vocab_size or self.config.vocab_size
        self.separators = separators or [None] * len(members)

    def features(self, tokens, cache: KVCache | None = None):
        """The last hidden states of all members: int64 [B, T] -> [B, T, sum of C]."""
        found, first = [], 0
        for model, separator in zip(self.members, self.separators, strict=True):
            part = documents = None
            if cache is None:
                documents = document_mask(tokens, separator)
            else:
                part = cache.of_layers(first, first + model.config.n_layer)
                first += model.config.n_layer
            found.append(model.features(tokens, cache=part, documents=documents))
        if cache is not None:
            cache.advance(tokens.size(1))
        return torch.cat(found, dim=-1)

    def unembed(self, hidden):
        """Log-probabilities of the next token, float32: [..., sum of C] -> [..., V]."""
        total = None  # of the probabilities, as a logarithm
        parts = hidden.split([model.config.n_embd for model in self.members], dim=-1)
        for model, part in zip(self.members, parts, strict=True):
            found = model.unembed(part)[..., : self.vocab_size].float().log_softmax(-1)
            total = found if total is None else torch.logaddexp(total, found)
        return total - math.log(len(self.members))


def model_words(word: str) -> list[str]:
    """The models that a word names: those between its commas, unless a path has commas itself."""
    if "," not in word or Path(word).expanduser().exists():
        return [word]
    words = [part.strip() for part in word.split(",")]
    if "" in words:
        raise ConfigError(f"{word!r} names no model between two commas", "remove one of them")
    return words


def ensemble_of(members: Sequence[Checkpoint]) -> Checkpoint:
    """Models as one. ConfigError where they are no two, or not of one tokenizer."""
    first = members[0]
    if len(members) < 2:
        raise ConfigError(
            f"{first.name} alone is no ensemble", "name two models or more, with commas between"
        )
    for other in members[1:]:
        if fingerprint(other) != fingerprint(first):
            raise ConfigError(
                f"{other.name} has another tokenizer than {first.name}, so their probabilities "
                "are not of the same tokens",
                "leave one of them out",
            )
        if is_reversed(other) != is_reversed(first):
            raise ConfigError(
                f"One of {first.name} and {other.name} writes answers last character first",
                "leave one of them out",
            )
    templates = {member.content.get("chat_template") or "" for member in members}
    content = {
        "reversed_answers": is_reversed(first),
        "chat_template": templates.pop() if len(templates) == 1 else "",
    }
    separators = [member.separator for member in members]
    model = Ensemble([member.model for member in members], None, separators).eval()
    return replace(first, model=model, val_loss=None, content=content, members=tuple(members))


def is_reversed(checkpoint: Checkpoint) -> bool:
    """Whether the model writes the answers of a task last character first."""
    return bool(checkpoint.content.get("reversed_answers"))


def fingerprint(checkpoint: Checkpoint) -> str:
    """What two models of the same token ids have in common."""
    if checkpoint.tokenizer is None:
        return f"{checkpoint.model.config.vocab_size} ids"
    return checkpoint.tokenizer.fingerprint
