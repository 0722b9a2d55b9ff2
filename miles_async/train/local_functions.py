"""What the local layers compute, each with its gradient in one piece: autograd would keep a node and a copy for each operation
of torch.

Promises: values and gradients of the plain formula to rounding; equal calls give equal bits. float32 on a CPU; elsewhere the
layers take torch's own kernels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from miles_async.train import packed

# From so many rows and numbers in the matrix on oneDNN's product is up to twice as fast as torch's default for float32, which
# has no AVX-512 on every CPU.
ONEDNN_ROWS = 256
ONEDNN_NUMBERS = 1 << 11
_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def is_plain(x: torch.Tensor) -> bool:
    """Whether what is here pays for ``x``."""
    return x.dtype is torch.float32 and x.device.type == "cpu"


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x`` [rows, in] times a matrix [out, in]."""
    if _onednn is None or not is_plain(x) or len(x) < ONEDNN_ROWS or weight.numel() < ONEDNN_NUMBERS:
        return F.linear(x, weight, bias)
    found: Any = Product.apply(x, weight)
    return found if bias is None else found + bias


class Product(torch.autograd.Function):
    """``x @ weight.T`` by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, None, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        return (
            _onednn(grad, weight.t(), None, "none", [], "") if of_x else None,
            _onednn(grad.t(), x.t(), None, "none", [], "") if of_weight else None,
        )


class Raised(torch.autograd.Function):
    """``found + scale * inner @ b.T``: found [rows, out], inner [rows, rank], b [out, rank]. Where the rank is small, torch's
    default takes up to fifty times as long for the gradient of ``b`` on a CPU."""

    @staticmethod
    def forward(ctx: Any, found: torch.Tensor, inner: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(inner, b)
        ctx.scale = scale
        return torch.addmm(found, inner, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        (grad,) = grads
        inner, b = ctx.saved_tensors
        fast = _onednn is not None and is_plain(grad) and len(grad) >= ONEDNN_ROWS and b.numel() >= ONEDNN_NUMBERS

        def product(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
            return _onednn(x, matrix, None, "none", [], "") if fast else F.linear(x, matrix)

        return grad, product(grad, b.t()) * ctx.scale, product(inner.t(), grad.t()).t() * ctx.scale, None


class Norm(torch.autograd.Function):
    """``(x, x / sqrt(mean(x^2) + eps) * weight)``, over the last dimension of x; weight: of x's last dimensions. Gradients of
    the two are added up."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        length = torch.linalg.vector_norm(x, 2, -1, True)
        scale = (length * length).mul_(1 / x.shape[-1]).add_(eps).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(weight, scale, normed)
        ctx.set_materialize_grads(False)
        return x, normed * weight

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        of_x, of_norm = grads
        if of_norm is None:
            return of_x, None, None
        weight, scale, normed = ctx.saved_tensors
        product = of_norm * normed
        of_weight = product.sum(list(range(product.ndim - weight.ndim))) if ctx.needs_input_grad[1] else None
        if weight.ndim == 1:
            along = (product @ weight).unsqueeze(-1)
        else:
            along = product.mul_(weight).sum(-1, keepdim=True)
        # d/dx of normed * w * g: scale * (w * g - normed * mean(normed * w * g))
        out = (of_norm * weight).addcmul_(normed, along.mul_(1 / normed.shape[-1]), value=-1.0).mul_(scale)
        return (out if of_x is None else out.add_(of_x)), of_weight, None


class Rotary(torch.autograd.Function):
    """Rotary positions of x [T, ..., d]; cos, sin: [T, 1.., d], the sign of rotate_half in ``sin``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = grads
        cos, sin = ctx.saved_tensors
        return (grad * sin).roll(grad.shape[-1] // 2, -1).addcmul_(grad, cos), None, None


class SwiGLU(torch.autograd.Function):
    """silu of the first half of x's last dimension, times the second half."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        active = F.silu(gate)
        ctx.save_for_backward(x, active)
        return active * up

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (grad,) = grads
        x, active = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        out = torch.empty_like(x)
        of_gate, of_up = out.chunk(2, dim=-1)
        torch.mul(grad, active, out=of_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=of_gate)
        return out


class Spread(torch.autograd.Function):
    """x [size, ...] to [places, ...], each of them the row of x that ``how`` names."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, how: packed.Spread) -> torch.Tensor:
        ctx.how, ctx.shape = how, x.shape
        return x.index_select(0, how.source)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (grad,), how = grads, ctx.how
        # the sum over the places of each row: where the places are no bags, index_add_ takes three times as long
        return F.embedding_bag(how.order, grad.flatten(1), how.offsets, mode="sum").view(ctx.shape), None


class Picked(torch.autograd.Function):
    """The rows of x [size, ...] at ``places``; of these the first ``count`` are different, and the others without meaning."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, places: torch.Tensor, count: int) -> torch.Tensor:
        ctx.places, ctx.size = places[:count], len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,), places = grads, ctx.places
        out = torch.zeros(ctx.size, *grad.shape[1:], dtype=grad.dtype, device=grad.device)
        return out.index_copy_(0, places, grad[: len(places)]), None, None
