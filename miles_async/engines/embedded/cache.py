"""Padded key/value slots for the running requests: row ``i`` of the batch owns row ``i`` of the cache.

Promises: rows in use are always the first ones, so a decode step reads plain slices; rows and length grow by doubling
within a token budget; what lies behind a row's length is garbage that the attention mask must hide.
"""

from __future__ import annotations

import torch

ALIGN = 16  # lengths are rounded up to this many positions


def align(length: int) -> int:
    """``length`` rounded up to a whole number of ``ALIGN``."""
    return -(-length // ALIGN) * ALIGN


class KVCache:
    """Keys and values of shape ``[layers, rows, kv_heads, positions, head_dim]``.

    ``max_tokens`` bounds rows x positions; ``fits`` says whether a shape stays within it.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, *, dtype: torch.dtype, device: torch.device, max_tokens: int
    ) -> None:
        self.shape = (layers, kv_heads, head_dim)
        self.dtype = dtype
        self.device = device
        self.max_tokens = max_tokens
        self.release()

    def release(self) -> None:
        """Give the memory back; every row is lost."""
        self._allocate(0, 0)

    def fits(self, rows: int, length: int) -> bool:
        """Whether ``rows`` requests of up to ``length`` positions are within the budget."""
        return rows * align(length) <= max(self.max_tokens, align(length))

    def reserve(self, rows: int, length: int, used_rows: int) -> None:
        """Make room for ``rows`` rows of ``length`` positions, keeping the first ``used_rows``."""
        length = align(length)
        if rows <= self.rows and length <= self.length:
            return
        new_length = self.length if length <= self.length else max(length, 2 * self.length)
        new_rows = self.rows if rows <= self.rows else max(rows, 2 * self.rows)
        if new_rows * new_length > self.max_tokens:  # doubling is a convenience, the budget is not
            new_rows, new_length = rows, length
        keys, values, kept = self.keys, self.values, min(self.length, new_length)
        self._allocate(new_rows, new_length)
        if used_rows and kept:
            self.keys[:, :used_rows, :, :kept] = keys[:, :used_rows, :, :kept]
            self.values[:, :used_rows, :, :kept] = values[:, :used_rows, :, :kept]

    def move(self, source: torch.Tensor, target: torch.Tensor, length: int) -> None:
        """Copy the first ``length`` positions of rows ``source`` over rows ``target`` (int64 ``[n]``, disjoint)."""
        length = min(align(length), self.length)
        for store in (self.keys, self.values):
            view = store[:, :, :, :length]
            view.index_copy_(1, target, view.index_select(1, source))

    def decode_index(self, positions: torch.Tensor) -> torch.Tensor:
        """Flat index ``[rows * kv_heads]`` at which each row's next key goes; ``positions`` is int64 ``[rows]``."""
        heads = self.shape[1]
        base = self._row_head[: positions.shape[0] * heads]
        return base + positions.repeat_interleave(heads)

    def _allocate(self, rows: int, length: int) -> None:
        layers, kv_heads, head_dim = self.shape
        self.rows, self.length = rows, length
        size = (layers, rows, kv_heads, length, head_dim)
        # zeros, not empty: a masked position still enters a product with 0, and 0 * nan is nan
        self.keys = torch.zeros(size, dtype=self.dtype, device=self.device)
        self.values = torch.zeros(size, dtype=self.dtype, device=self.device)
        self.flat_keys = [self.keys[layer].view(-1, head_dim) for layer in range(layers)]
        self.flat_values = [self.values[layer].view(-1, head_dim) for layer in range(layers)]
        self._row_head = torch.arange(rows * kv_heads, device=self.device) * length
