"""What the local layers compute besides products and attention, each with its gradient in one piece.

Promises: output and gradients have the bits of torch's own operations, one after the other; autograd would keep a node and a
copy for each of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


class Norm(torch.autograd.Function):
    """``(x, x / sqrt(mean(x^2) + eps) * weight)``, over the last dimension of x, float32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        scale = x.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(x, weight, scale, normed)
        ctx.set_materialize_grads(False)
        return x, normed * weight

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        of_x, of_norm = grads
        if of_norm is None:
            return of_x, None, None
        x, weight, scale, normed = ctx.saved_tensors
        of_weight = (of_norm * normed).sum(list(range(of_norm.ndim - 1)))
        out = of_norm * weight
        of_scale = (out * x).sum(-1, keepdim=True)
        of_square = of_scale.mul_(-0.5).mul_(scale.pow(3)).div_(x.shape[-1])
        out *= scale
        if of_x is not None:
            out += of_x
        return out.add_(x * of_square.mul_(2)), of_weight, None


class Rotary(torch.autograd.Function):
    """Rotary positions of x [s, b, heads, d]; cos, sin: [s, 1, 1, d]. Its gradient is contiguous."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        out = x * cos
        out[..., :half] -= x[..., half:] * sin[..., :half]
        out[..., half:] += x[..., :half] * sin[..., half:]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (grad,) = grads
        cos, sin = ctx.saved_tensors
        half = grad.shape[-1] // 2
        out = torch.mul(grad, cos, out=torch.empty(grad.shape, dtype=grad.dtype, device=grad.device))
        turned = grad * sin
        out[..., :half] += turned[..., half:]
        out[..., half:] -= turned[..., :half]
        return out, None, None


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
