"""The keys and values of tokens already seen, so that the next token costs one position."""

import torch

from gptlab.model.config import GPTConfig


class KVCache:
    """Preallocated keys and values of a batch: the token at position p of a row lies in slot p.

    `keys[layer]` and `values[layer]` are [B, n_kv_head, block_size, head_dim]. `lengths[b]` counts
    the tokens that row b holds; the model writes behind them and adds to them. What lies in slots
    beyond a row's length is never seen: a later write covers it, the mask hides it until then. So
    prompts of unequal length are padded on the right, and their true lengths are set afterwards.
    """

    def __init__(self, config: GPTConfig, batch_size: int, device=None, dtype=None):
        shape = (batch_size, config.n_kv_head, config.block_size, config.head_dim)
        self.config = config
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        self.lengths = [0] * batch_size

    @property
    def block_size(self) -> int:
        """Number of slots of a row."""
        return self.config.block_size

    def set_lengths(self, lengths: list[int]) -> None:
        """Say how many tokens each row really holds, after a padded batch was written."""
        self.lengths = list(lengths)

    def select(self, rows: torch.Tensor) -> None:
        """Let row i of the batch become a copy of row `rows[i]` (beam search). rows: int64 [B']."""
        self.keys = [keys.index_select(0, rows) for keys in self.keys]
        self.values = [values.index_select(0, rows) for values in self.values]
        self.lengths = [self.lengths[row] for row in rows.tolist()]

    def take_row(self, row: int, other: "KVCache", other_row: int = 0) -> None:
        """Copy `other_row` of another cache into `row` (one row of a batch slid its window)."""
        for layer in range(self.config.n_layer):
            self.keys[layer][row].copy_(other.keys[layer][other_row])
            self.values[layer][row].copy_(other.values[layer][other_row])
        self.lengths[row] = other.lengths[other_row]

    def positions(self, length: int) -> torch.Tensor:
        """Positions of the next `length` tokens: [length] when all rows agree, else [B, length]."""
        device = self.keys[0].device
        ahead = torch.arange(length, device=device)
        if len(set(self.lengths)) == 1:
            return ahead + self.lengths[0]
        return torch.tensor(self.lengths, device=device)[:, None] + ahead

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor):
        """Write new keys and values behind each row, and return (keys, values, mask) to attend to.

        keys, values: [B, n_kv_head, T, head_dim]. The returned ones hold every slot in use, and
        mask is bool [T, slots] or [B, 1, T, slots]; None where plain causality says the same.
        """
        length = keys.size(2)
        start, end = min(self.lengths), max(self.lengths) + length
        positions = self.positions(length)
        if positions.dim() == 1:
            self.keys[layer][:, :, start:end] = keys
            self.values[layer][:, :, start:end] = values
        else:
            rows = torch.arange(keys.size(0), device=keys.device)[:, None]
            self.keys[layer][rows, :, positions] = keys.transpose(1, 2)
            self.values[layer][rows, :, positions] = values.transpose(1, 2)
            positions = positions[:, None, :, None]  # [B, 1, T, 1]
        mask = None
        if positions.dim() > 1 or (length > 1 and end > length):
            slots = torch.arange(end, device=keys.device)
            mask = slots <= (positions if positions.dim() > 1 else positions[:, None])
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end], mask

    def advance(self, length: int) -> None:
        """Count `length` more tokens in every row (after the last layer has written them)."""
        self.lengths = [before + length for before in self.lengths]
