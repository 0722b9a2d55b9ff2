"""Core attention of the local (non-TransformerEngine) layers: PyTorch's fused scaled-dot-product attention.

Promises: causal attention over right-padded [s, b, h, d] activations, the same numbers as Megatron's own unfused core to
rounding, without its [b * h, s, s] scores in memory; grouped keys and values are not repeated before the kernel. With context
parallelism a rank has its two pieces of each sequence (:func:`own_places`) and attends to the keys and values of all.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class CausalAttention(MegatronModule):
    """Drop-in for ``DotProductAttention`` in a Megatron layer spec. Takes no mask: padding is on the right."""

    def __init__(
        self, config: TransformerConfig, softmax_scale: float | None = None, pg_collection: Any = None, **_: Any
    ):
        super().__init__(config=config)
        self.softmax_scale = softmax_scale
        self._group = pg_collection.cp if pg_collection is not None and config.context_parallel_size > 1 else None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """query: [s, b, heads, d]; key, value: [s, b, groups, d]; s: this rank's. Returns [s, b, heads * d]."""
        if attention_mask is not None:
            raise ValueError("CausalAttention takes no attention mask: pad on the right")
        mask = None
        if self._group is not None:
            key, value = _gathered(key, self._group), _gathered(value, self._group)
            mask = _mask(len(query), self._group.size(), self._group.rank(), query.device)
        out = torch.nn.functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.softmax_scale,
            enable_gqa=True,
        )
        return out.permute(2, 0, 1, 3).flatten(2)


def own_places(size: int, ranks: int, rank: int) -> torch.Tensor:
    """[size] int64: which places of a sequence of ``size * ranks`` a context-parallel rank has: piece ``rank`` of 2 * ranks,
    and the one as far from the end, so that all have as much to attend to. Megatron's order (its rotary embedding uses it)."""
    half = size // 2
    last = 2 * ranks - 1 - rank
    return torch.cat([torch.arange(rank * half, (rank + 1) * half), torch.arange(last * half, (last + 1) * half)])


@lru_cache(maxsize=1)  # the layers of a model ask for the same one
def _mask(size: int, ranks: int, rank: int, device: torch.device) -> torch.Tensor:
    """[size, size * ranks] bool: what each of a rank's places sees of all ranks' places, one rank after the other."""
    places = [own_places(size, ranks, other) for other in range(ranks)]
    return (places[rank][:, None] >= torch.cat(places)[None]).to(device)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group, ctx.size = group, len(mine)
        parts = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in range(group.size())]
        dist.all_gather(parts, mine.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = grads[0].float().contiguous()  # parts of a sum
        dist.all_reduce(total, group=ctx.group)
        begin = ctx.group.rank() * ctx.size
        return total[begin : begin + ctx.size].to(grads[0].dtype), None


def _gathered(mine: torch.Tensor, group: Any) -> torch.Tensor:
    """The first dimension of all ranks, one rank after the other; what they do with it is added up in the gradient."""
    found: Any = _Gathered.apply(mine, group)
    return found
