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
    """Keys and values of shape ``[layers, rows, kv_heads, 2, positions, head_dim]``: a head's keys, then its values.

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
        store, kept = self.store, min(self.length, new_length)
        self._allocate(new_rows, new_length)
        if used_rows and kept:
            self.store[:, :used_rows, :, :, :kept] = store[:, :used_rows, :, :, :kept]

    def move(self, source: torch.Tensor, target: torch.Tensor, length: int) -> None:
        """Copy the first ``length`` positions of rows ``source`` over rows ``target`` (int64 ``[n]``, disjoint)."""
        view = self.store[:, :, :, :, : min(align(length), self.length)]
        view.index_copy_(1, target, view.index_select(1, source))

    def targets(self, positions: torch.Tensor) -> torch.Tensor:
        """Where the next keys, then values, of the first rows go: flat indices ``[rows * 2 * kv_heads]`` for :meth:`write`.

        ``positions``: int64 ``[rows]``.
        """
        return (self._starts[: positions.shape[0]] + positions[:, None]).view(-1)

    def write(self, layer: int, targets: torch.Tensor, heads: torch.Tensor) -> None:
        """Store one position of the first rows: ``heads`` ``[rows, 2 * kv_heads, head_dim]``, keys before values."""
        self._flat[layer].index_copy_(0, targets, heads.reshape(-1, heads.shape[-1]))

    def fill(self, layer: int, first: int, source: torch.Tensor, heads: torch.Tensor) -> None:
        """Store prompts: row ``first + i`` gets prompt ``source[i]`` of ``[prompts, positions, 2 * kv_heads, head_dim]``."""
        prompts, length, both, size = heads.shape
        heads = heads.view(prompts, length, 2, both // 2, size).permute(0, 3, 2, 1, 4)
        rows = self.store[layer, first : first + source.shape[0], :, :, :length]
        rows.copy_(heads if prompts == 1 else heads[source])

    def read(self, layer: int, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the first ``rows``, each a view ``[rows * kv_heads, length, head_dim]``."""
        _, kv_heads, size = self.shape
        head = self.length * size
        at = layer * self.rows * kv_heads * 2 * head
        shape, strides = (rows * kv_heads, length, size), (2 * head, size, 1)
        return self.store.as_strided(shape, strides, at), self.store.as_strided(shape, strides, at + head)

    def _allocate(self, rows: int, length: int) -> None:
        layers, kv_heads, head_dim = self.shape
        self.rows, self.length = rows, length
        # zeros, not empty: a masked position still enters a product with 0, and 0 * nan is nan
        self.store = torch.zeros((layers, rows, kv_heads, 2, length, head_dim), dtype=self.dtype, device=self.device)
        self._flat = [self.store[layer].view(-1, head_dim) for layer in range(layers)]
        starts = torch.arange(rows * kv_heads * 2, device=self.device) * length
        self._starts = starts.view(rows, kv_heads, 2).transpose(1, 2).reshape(rows, 2 * kv_heads)
