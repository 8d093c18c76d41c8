"""Units for people: bits per byte of a text, and durations."""

import math

BASELINES = {"unigram": "unigram", "lzma": "lzma", "5gram": "5-gram"}


class TextUnits:
    """Converts between nats per token and bits per byte of a dataset's text."""

    def __init__(self, meta: dict | None):
        meta = meta or {}
        part = "val_counted" if meta.get("val_counted_tokens") else "val"
        tokens, size = meta.get(f"{part}_tokens"), meta.get(f"{part}_bytes")
        self.tokens_per_byte = tokens / size if tokens and size else None
        found = meta.get("baselines") or {}
        # older datasets counted bytes: a model of the same tokens only where a token is a byte
        is_of_tokens = "train_tokens_used" in found or self.tokens_per_byte == 1
        self.baselines = {
            label: float(found[key])
            for key, label in BASELINES.items()
            if found.get(key) and (is_of_tokens or key == "lzma")
        }

    def bits_per_byte(self, loss: float) -> float | None:
        """A loss in nats per token as bits per byte of text, where the sizes are known."""
        if self.tokens_per_byte is None:
            return None
        return loss / math.log(2) * self.tokens_per_byte

    def levels(self) -> dict[str, float]:
        """Each baseline as a loss in nats per token."""
        if self.tokens_per_byte is None:
            return {}
        return {
            label: bits * math.log(2) / self.tokens_per_byte
            for label, bits in self.baselines.items()
        }


def in_words(words: list[str], last: str = "and") -> str:
    """One, two and three."""
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 20 s, 2 h 05 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def in_dollars(amount: float) -> str:
    """US dollars with no more digits than an estimate has."""
    if amount < 0.01:
        return "< $0.01"
    return f"${amount:.2f}" if amount < 10 else f"${amount:,.0f}"


def in_time(seconds: float) -> str:
    """Seconds in words, in at most two units; days from two days on."""
    if seconds < 0.1:
        return "< 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    return duration(seconds) if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def in_short(number: float) -> str:
    """A large number with three digits: 2.05M, 31.2G, 1.5e21."""
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 1e15:
            return f"{number:.3g}"
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.3g}"
