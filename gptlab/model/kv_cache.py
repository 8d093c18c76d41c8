"""The cached keys and values of earlier tokens, so that the next token costs one position."""

import copy

import torch

from gptlab.model.config import GPTConfig


class KVCache:
    """Preallocated keys and values of a batch: slot p of a row holds the token at position p.

    config: it has `block_size` and `cached_layers`. `keys[layer]` and `values[layer]` are
    [B, n_kv_head, block_size, head_dim]. `lengths[b]` is the
    number of tokens in row b; the model writes after them and increases it. The mask hides slots
    beyond a row's length until they are overwritten. So prompts of unequal length are padded on the
    right, and their true lengths are set afterwards.
    """

    def __init__(self, config: GPTConfig, batch_size: int, device=None, dtype=None):
        rows, slots = batch_size, config.block_size
        self.config = config
        # hidden slots must hold numbers (0 * nan is nan); with one row none are hidden, and
        # filling the unused slots would take a tenth of the time to read a prompt
        make = torch.empty if batch_size == 1 else torch.zeros
        self.keys, self.values = (
            [
                make((rows, heads, slots, channels), device=device, dtype=dtype)
                for heads, channels in config.cached_layers
            ]
            for _ in range(2)
        )
        self.lengths = [0] * batch_size

    @property
    def block_size(self) -> int:
        """Number of slots of a row."""
        return self.config.block_size

    def of_layers(self, first: int, end: int) -> "KVCache":
        """The layers from `first` to before `end`, in the same storage, as a model of its own fills
        them: `lengths` here do not follow."""
        part = copy.copy(self)
        part.keys, part.values = self.keys[first:end], self.values[first:end]
        return part

    def set_lengths(self, lengths: list[int]) -> None:
        """Set the true number of tokens of each row after writing a padded batch."""
        self.lengths = list(lengths)

    def select(self, rows: torch.Tensor) -> None:
        """Make row i of the batch a copy of row `rows[i]` (beam search). rows: int64 [B']."""
        self.keys = [keys.index_select(0, rows) for keys in self.keys]
        self.values = [values.index_select(0, rows) for values in self.values]
        self.lengths = [self.lengths[row] for row in rows.tolist()]

    def take_row(self, row: int, other: "KVCache", other_row: int = 0) -> None:
        """Copy `other_row` of another cache into `row` (after one row has slid its window)."""
        length = other.lengths[other_row]  # the slots after it may hold NaN
        for layer in range(len(self.keys)):
            self.keys[layer][row, :, :length] = other.keys[layer][other_row, :, :length]
            self.values[layer][row, :, :length] = other.values[layer][other_row, :, :length]
        self.lengths[row] = length

    def reserve(self, length: int) -> torch.Tensor:
        """Positions of the next `length` tokens: [length] when all rows agree, else [B, length].

        Called once before the layers append. Prepares their mask: bool [length, slots in use] or
        [B, 1, length, slots]; None if plain causal attention is enough.
        """
        device = self.keys[0].device
        self.end = max(self.lengths) + length
        slots = torch.arange(self.end, device=device)
        ahead = torch.arange(length, device=device)
        if len(set(self.lengths)) == 1:
            self.positions = ahead + self.lengths[0]
            plain = length in (1, self.end)  # one token that sees all slots, or an empty cache
            self.mask = None if plain else slots <= self.positions[:, None]
        else:
            self.positions = torch.tensor(self.lengths, device=device)[:, None] + ahead
            self.mask = slots <= self.positions[:, None, :, None]
        return self.positions

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor):
        """Write keys and values [B, n_kv_head, T, head_dim] at the reserved positions.

        Returns (keys, values, mask) of all slots in use.
        """
        for kept, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if self.positions.dim() == 1:
                kept[:, :, self.end - new.size(2) : self.end] = new
            else:
                rows = torch.arange(new.size(0), device=new.device)[:, None]
                kept[rows, :, self.positions] = new.transpose(1, 2)
        return self.keys[layer][:, :, : self.end], self.values[layer][:, :, : self.end], self.mask

    def advance(self, length: int) -> None:
        """Add `length` tokens to every row, after the last layer has written them."""
        self.lengths = [before + length for before in self.lengths]
