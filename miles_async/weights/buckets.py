"""HF-named tensors to flattened uint8 buckets, in SGLang's ``flattened_bucket`` layout.

Promises: pure; every tensor is in exactly one bucket; within a bucket the widest dtypes come first, so that each
tensor starts at a multiple of its own item size (the receiver views the bytes in place and refuses anything else).
Tensors that lie one after the other in memory, as those of a snapshot do, are not copied: the bucket is a view.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby

import torch

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@dataclass(frozen=True)
class Bucket:
    """What one broadcast carries: ``flat`` holds the bytes of the tensors, in the order of ``names``, without gaps."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]  # "float32", "bfloat16", ...
    shapes: tuple[tuple[int, ...], ...]
    flat: torch.Tensor  # uint8 [n_bytes]

    @property
    def n_bytes(self) -> int:
        return self.flat.numel()


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def by_item_size(tensors: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """Widest dtype first, then by name, with those that engines keep in one matrix side by side: the order of our snapshots."""
    return sorted(tensors.items(), key=lambda item: order(item[0], item[1].dtype))


def order(name: str, dtype: torch.dtype) -> tuple[int, str, tuple[str, int], str]:
    """What :func:`by_item_size` sorts by."""
    return -dtype.itemsize, dtype_name(dtype), _fused(name), name


def _fused(name: str) -> tuple[str, int]:
    """The matrix that a tensor is a part of, and which part of it."""
    head, _, kind = name.rpartition(".")
    block, _, part = head.rpartition(".")
    for whole, parts in FUSED.items():
        if part in parts:
            return f"{block}.{whole}.{kind}", parts.index(part)
    return name, 0


def make_buckets(tensors: Mapping[str, torch.Tensor], bucket_bytes: int) -> list[Bucket]:
    """Buckets of at most ``bucket_bytes`` bytes; a tensor larger than that has one of its own. All tensors on the CPU.

    Parts of one matrix of the engines share a bucket where they fit into one.

    Raises ValueError: no tensors (there is nothing to serve).
    """
    if not tensors:
        raise ValueError("a set of weights without any tensor")
    buckets: list[Bucket] = []
    open_bucket: list[tuple[str, torch.Tensor]] = []
    used = 0
    for _, group in groupby(by_item_size(tensors), key=lambda item: (item[1].dtype, _fused(item[0])[0])):
        together = list(group)
        whole = sum(tensor.nbytes for _, tensor in together)
        for items in [together] if whole <= bucket_bytes else [[item] for item in together]:
            size = sum(tensor.nbytes for _, tensor in items)
            if open_bucket and used + size > bucket_bytes:
                buckets.append(_close(open_bucket))
                open_bucket, used = [], 0
            open_bucket += items
            used += size
    buckets.append(_close(open_bucket))
    return buckets


def _close(items: list[tuple[str, torch.Tensor]]) -> Bucket:
    names, tensors = zip(*items, strict=True)
    return Bucket(
        names=names,
        dtypes=tuple(dtype_name(t.dtype) for t in tensors),
        shapes=tuple(tuple(t.shape) for t in tensors),
        flat=flatten(tensors),
    )


def flatten(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The bytes of all tensors in order, uint8 [total]: a view if they are neighbours in one storage, else a copy."""
    tensors = [t.detach().contiguous() for t in tensors]
    filled = [t for t in tensors if t.numel()]
    if not filled:
        return torch.empty(0, dtype=torch.uint8)
    base = filled[0].untyped_storage()
    start = end = filled[0].data_ptr()
    for tensor in filled:
        if tensor.data_ptr() != end or tensor.untyped_storage().data_ptr() != base.data_ptr():
            return torch.cat([t.reshape(-1).view(torch.uint8) for t in filled])
        end += tensor.nbytes
    whole = torch.empty(0, dtype=torch.uint8).set_(base)
    return whole[start - base.data_ptr() : end - base.data_ptr()]


def unflatten(bucket: Bucket) -> dict[str, torch.Tensor]:
    """The tensors of a bucket, as views: the receiver's half, used by the embedded engine's tests and by ours."""
    tensors: dict[str, torch.Tensor] = {}
    offset = 0
    for name, dtype, shape in zip(bucket.names, bucket.dtypes, bucket.shapes, strict=True):
        kind: torch.dtype = getattr(torch, dtype)
        size = torch.Size(shape).numel() * kind.itemsize
        tensors[name] = bucket.flat[offset : offset + size].view(kind).reshape(shape)
        offset += size
    return tensors
