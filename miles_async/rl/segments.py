"""Sums and means over the tokens of each sample, where samples lie one after the other in flat tensors.

Promises: a masked token counts as absent, whatever its value holds; a sample without a token sums to zero.
"""

from __future__ import annotations

import torch


def segment_sum(values: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """The sum of ``values`` [N] in each of ``count`` segments; ``index`` [N] int64 says in which. Returns [count]."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add(0, index, values)


def masked_sum(values: torch.Tensor, mask: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """Like :func:`segment_sum`, of the tokens whose ``mask`` [N] is not 0. A masked value may be infinite or NaN."""
    return segment_sum(torch.where(mask != 0, values, torch.zeros_like(values)), index, count)


def masked_mean(values: torch.Tensor, mask: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """Mean over the unmasked tokens of each segment, 0 for a segment without one. Returns [count]."""
    tokens = segment_sum((mask != 0).to(values.dtype), index, count)
    return masked_sum(values, mask, index, count) / tokens.clamp_min(1)


def n_segments(index: torch.Tensor) -> int:
    """How many segments ``index`` names: its largest entry and one."""
    return int(index.max()) + 1 if index.numel() else 0


def most_segments(index: torch.Tensor) -> int:
    """No fewer than :func:`n_segments`, without a look at the numbers, for which the process would wait for a GPU. For what is
    asked for by ``index`` again."""
    return index.numel()


class Compressed:
    """The unmasked tokens of each sample as the rows of a padded matrix, and back.

    mask, sample_index: [N]; the tokens of a sample lie together, in order. lengths: [S] unmasked tokens of each sample.
    """

    def __init__(self, mask: torch.Tensor, sample_index: torch.Tensor, n_samples: int) -> None:
        self._kept = torch.nonzero(mask != 0)[:, 0]
        self._row = sample_index[self._kept]
        self.lengths = torch.bincount(self._row, minlength=n_samples)
        first = self.lengths.cumsum(0) - self.lengths
        self._column = torch.arange(len(self._kept), device=mask.device) - first[self._row]
        self._size = len(mask)

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """[N] to [S, longest], padded with 0 on the right."""
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        matrix = torch.zeros(len(self.lengths), longest, dtype=values.dtype, device=values.device)
        matrix[self._row, self._column] = values[self._kept]
        return matrix

    def flat(self, matrix: torch.Tensor) -> torch.Tensor:
        """[S, longest] to [N], masked tokens 0."""
        values = torch.zeros(self._size, dtype=matrix.dtype, device=matrix.device)
        values[self._kept] = matrix[self._row, self._column]
        return values

    def add_to_last(self, matrix: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """``matrix`` [S, longest] with ``values`` [S] added at each sample's last unmasked token, where it has one."""
        has_any = self.lengths > 0
        added = matrix.clone()
        added[has_any, self.lengths[has_any] - 1] += values[has_any].to(matrix.dtype)
        return added
