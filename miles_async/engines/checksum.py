"""Checksums of weights: what /weights_checker of the embedded engine gives, and what everybody compares with it.

Promises: pure; equal bytes have equal checksums, whatever dtype and shape are said of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

Bytes = npt.NDArray[np.uint8]


def as_bytes(tensor: torch.Tensor) -> Bytes:
    """The raw bytes of a tensor, row-major: a view where it lies on the CPU without gaps."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def checksum(tensor: torch.Tensor) -> str:
    """First 16 hex digits of the SHA-256 of a tensor's raw bytes."""
    return hashlib.sha256(as_bytes(tensor).data).hexdigest()[:16]


def checksums(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The checksum of each tensor, by name."""
    return {name: checksum(tensor) for name, tensor in tensors.items()}


def overall_checksum(sums: Mapping[str, str]) -> str:
    """One checksum over all tensors, independent of their order."""
    lines = "\n".join(f"{name}:{sums[name]}" for name in sorted(sums))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
