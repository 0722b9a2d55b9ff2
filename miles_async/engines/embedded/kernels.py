"""The pieces of a decoder's forward pass that are worth more than one call of torch: which kernel is used where.

Promises: pure functions of tensors, each with the value of the plain formula to rounding; what is chosen depends on shapes,
dtype and device only, so equal calls give equal bits. ``plain``: float32 on a CPU, where torch's fused calls are composites
(``rms_norm``) or slower than the products they stand for (attention); elsewhere the fused ones are taken.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

# From so many rows, and numbers in the matrix, on oneDNN's product is faster than torch's default for float32 on a CPU (up to
# twice, where that default has no AVX-512), its set-up for each call included.
ONEDNN_ROWS = 24
ONEDNN_NUMBERS = 1 << 16
_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: torch.Tensor, *, plain: bool) -> torch.Tensor:
    """Over the last dimension; ``weight`` is broadcast. ``eps``: a float32 scalar tensor on the CPU."""
    size = x.shape[-1]
    if not plain:
        return F.rms_norm(x, (size,), None, eps.item()) * weight
    length = torch.linalg.vector_norm(x, 2, -1, True)
    return (x * torch.addcmul(eps, length, length, value=1 / size).rsqrt_()).mul_(weight)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, plain: bool) -> torch.Tensor:
    """``x`` ``[rows, in]`` times a ``[out, in]`` matrix."""
    rows = x.shape[0]
    if not (plain and _for_onednn(rows, weight)):
        return F.linear(x, weight, bias)
    full = whole_rows(rows)
    if full != rows:
        x = F.pad(x, (0, 0, 0, full - rows))
    return _onednn(x, weight, bias, "none", [], "")[:rows]


def add_linear(
    sum_: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, plain: bool
) -> torch.Tensor:
    """``sum_ + linear(x)``, in the place of ``sum_``."""
    if plain and _for_onednn(x.shape[0], weight):
        return sum_.add_(linear(x, weight, bias, plain=plain))
    sum_.addmm_(x, weight.t())
    return sum_ if bias is None else sum_.add_(bias)


def grouped_linear(x: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """``x`` ``[rows, in]`` times matrices that lie one below the other in ``weight`` ``[matrices * out, in]``.

    ends: int32 ``[matrices]``, the row behind the last one of each matrix; they follow one another.
    """
    matrices = weight.view(len(ends), -1, weight.shape[1])
    if x.device.type != "cpu":
        return F.grouped_mm(x, matrices.transpose(1, 2), offs=ends)
    made, start = x.new_empty(len(x), matrices.shape[1]), 0
    for matrix, end in zip(matrices, ends.tolist(), strict=True):
        if end > start:
            torch.mm(x[start:end], matrix.t(), out=made[start:end])
            start = end
    return made


def _for_onednn(rows: int, weight: torch.Tensor) -> bool:
    return rows >= ONEDNN_ROWS and weight.numel() >= ONEDNN_NUMBERS and _onednn is not None


def whole_rows(rows: int) -> int:
    """``rows`` rounded up by less than a quarter (or 8).

    For every number of rows that it has not seen oneDNN makes a program: half a millisecond, and half a megabyte for good.
    """
    unit = max(8, 1 << (rows - 1).bit_length() >> 3)
    return -(-rows // unit) * unit


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of ``[..., head_dim]`` into ``out``, which may be ``x``; the sign of rotate_half lies in ``sin``."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin, out=out)


def attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scale: float, *, plain: bool
) -> torch.Tensor:
    """One position of each row: ``q`` ``[n, query heads, d]``, keys and values ``[n * kv heads, positions, d]``, ``mask``
    ``[n * kv heads, 1, positions]``, added to the scores. Returns ``[n, query heads * d]``.

    The query heads of one kv head stand at the same position: they are its "sequence", no repeat needed.
    """
    n, heads, size = q.shape
    q = q.reshape(keys.shape[0], -1, size) if n else q.view(0, 1, size)
    if plain:
        weights = torch.baddbmm(mask, q, keys.transpose(1, 2), alpha=scale).softmax(-1)
        return torch.bmm(weights, values).view(n, heads * size)
    a = F.scaled_dot_product_attention(q[None], keys[None], values[None], attn_mask=mask[None], scale=scale)
    return a.reshape(n, heads * size)
