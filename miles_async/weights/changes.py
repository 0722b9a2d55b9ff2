"""Which tensors differ between versions of the weights: engines that have the earlier version need no others.

    snapshots 1, 2, 3 ──► Changes ──► between(1, 3): what differs between 1 and 2, or between 2 and 3

Promises: every bit counts; of a version that was not looked at, or that has other tensors than the next one, nothing is said to
be known. Besides the newest version nothing is held: it is mapped, and its own file may be gone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from miles_async.weights.buckets import by_item_size

# what lies between changed tensors goes with them if it is at most this part of them: a bucket that has all is no copy
GAP = 1 / 16
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Tensors = Mapping[str, torch.Tensor]


class Changes:
    """Of one version after the other. Versions are told apart by the numbers that :meth:`see` gives."""

    def __init__(self) -> None:
        self._tensors: Tensors = {}
        self._changed: dict[str, int] = {}  # the number of the version that a tensor is as it was in
        self._first = self._newest = 0

    def see(self, tensors: Tensors) -> int:
        """The next version; its number."""
        self._newest += 1
        if not _alike(tensors, self._tensors):
            self._first, self._changed = self._newest, dict.fromkeys(tensors, self._newest)
        for name in tensors if self._first < self._newest else ():
            if not same_bits(tensors[name], self._tensors[name]):
                self._changed[name] = self._newest
        self._tensors = tensors
        return self._newest

    def between(self, held: int, number: int) -> Tensors | None:
        """What has to be sent of version ``number``, the newest, to who has ``held``; never nothing. None: all of it."""
        if not self._first <= held < number == self._newest:
            return None
        changed = {name for name, when in self._changed.items() if when > held}
        return to_send(self._tensors, changed or {min(self._tensors, key=lambda name: self._tensors[name].nbytes)})


def to_send(tensors: Tensors, changed: set[str]) -> dict[str, torch.Tensor]:
    """The changed ones, and of the others what little lies between them in a snapshot."""
    found: dict[str, torch.Tensor] = {}
    between: dict[str, torch.Tensor] = {}
    row = gap = 0  # bytes
    for name, tensor in by_item_size(tensors):
        if name not in changed:
            between[name] = tensor
            gap += tensor.nbytes
            continue
        if found and gap <= GAP * row:
            found |= between
            row += gap
        elif gap:
            row = 0
        found[name] = tensor
        row, gap, between = row + tensor.nbytes, 0, {}
    return found


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Of tensors of one type and shape; of different ones it ends at the first difference."""
    kind = _BITS.get(one.element_size(), torch.uint8)
    return torch.equal(one.contiguous().view(kind), other.contiguous().view(kind))


def _alike(some: Tensors, others: Tensors) -> bool:
    """Whether they have the same names, types and shapes."""

    def forms(tensors: Tensors) -> dict[str, tuple[torch.dtype, torch.Size]]:
        return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}

    return forms(some) == forms(others)
