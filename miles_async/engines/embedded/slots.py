"""Where the weights of a model lie: storages, each with one or several of the checkpoint's tensors in its rows.

Promises: a storage is replaced by memory that came from outside only as a whole, and only where the numbers computed from it
are the same ones: same dtype and device, every tensor in its place, aligned as memory of torch's own is.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, replace

import torch

EVERY_ROW = slice(None)
ALIGNMENT = 64  # bytes, of torch's allocator; kernels may add in another order elsewhere


@dataclass(frozen=True)
class Slot:
    """The storage ``owner.attribute`` and the (name, rows) of its tensors, in order and without gaps.

    ``repeats``: the rows of a tensor are copies of it.
    """

    owner: object
    attribute: str
    parts: Sequence[tuple[str, slice]]
    repeats: bool = False

    @property
    def storage(self) -> torch.Tensor | None:
        """None: this architecture has none."""
        return getattr(self.owner, self.attribute)

    def named(self, prefix: str) -> Slot:
        return replace(self, parts=[(prefix + name, rows) for name, rows in self.parts])

    def views(self) -> Iterable[tuple[str, torch.Tensor]]:
        storage = self.storage
        assert storage is not None
        for name, rows in self.parts:
            yield name, storage if rows is EVERY_ROW else storage[rows]

    def adopt(self, tensors: MutableMapping[str, torch.Tensor]) -> bool:
        """Take the memory of its tensors over and out of ``tensors``, if all of them are there and lie as in the storage."""
        storage, found = self.storage, [tensors.get(name) for name, _ in self.parts]
        assert storage is not None
        parts = [tensor for tensor in found if tensor is not None]
        if self.repeats or len(parts) != len(found) or not _fit(storage, parts):
            return False
        setattr(self.owner, self.attribute, parts[0].as_strided(storage.shape, storage.stride()))
        for name, _ in self.parts:
            del tensors[name]
        return True


def _fit(storage: torch.Tensor, parts: Sequence[torch.Tensor]) -> bool:
    first = parts[0]
    memory, end = first.untyped_storage().data_ptr(), first.data_ptr()
    if end % ALIGNMENT or not storage.is_contiguous():
        return False
    for part in parts:
        alike = (part.dtype, part.device) == (storage.dtype, storage.device) and part.is_contiguous()
        if not alike or part.data_ptr() != end or part.untyped_storage().data_ptr() != memory:
            return False
        end += part.nbytes
    return True
