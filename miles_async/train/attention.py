"""Core attention of the local (non-TransformerEngine) layers: PyTorch's fused scaled-dot-product attention.

Promises: causal attention over right-padded [s, b, h, d] activations, or over sequences one after the other (thd.py), of which
those of one length are computed together and nothing is padding; the same numbers as Megatron's own unfused core to
rounding, without its [b * h, s, s] scores in memory; grouped keys and values are not repeated before the kernel. With context
parallelism a rank has its two pieces of each sequence (:func:`own_places`) and attends to the keys and values of all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
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
        packed_seq_params: Any = None,
        **_: Any,
    ) -> torch.Tensor:
        """query: [s, b, heads, d]; key, value: [s, b, groups, d]; s: this rank's. Returns [s, b, heads * d].

        With ``packed_seq_params`` there is no b, and s is the tokens of all sequences.
        """
        if attention_mask is not None:
            raise ValueError("CausalAttention takes no attention mask: pad on the right")
        if self._group is not None:
            key, value = _gathered(key, self._group), _gathered(value, self._group)
        if packed_seq_params is not None:
            return self._of_row(query, key, value, packed_seq_params.cu_seqlens_q.diff().tolist())
        found = self._attended(*(part.transpose(0, 1) for part in (query, key, value)))
        return found.transpose(0, 1).flatten(2)

    def _of_row(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """The same of [t, heads, d] and, of all context-parallel ranks, [ranks * t, groups, d]. lengths: of the sequences,
        before those ranks split them. Returns [t, heads * d]."""
        ranks = self._group.size() if self._group is not None else 1
        alike = [(length // ranks, count) for length, count in runs(lengths)]
        sizes = [size * count for size, count in alike]
        found = []
        queries = query.split(sizes)
        keys, values = (part.unflatten(0, (ranks, len(query))).split(sizes, dim=1) for part in (key, value))
        for (size, count), mine, *theirs in zip(alike, queries, keys, values, strict=True):
            # [ranks, count * size, ..] to [count, ranks * size, ..]
            of_all = (part.unflatten(1, (count, size)).transpose(0, 1).flatten(1, 2) for part in theirs)
            found.append(self._attended(mine.unflatten(0, (count, size)), *of_all).flatten(0, 1))
        return torch.cat(found).flatten(1)

    def _attended(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """[b, s, heads, d] and [b, ranks * s, groups, d] to [b, s, heads, d]."""
        mask = None
        if self._group is not None:
            mask = _mask(query.shape[1], self._group.size(), self._group.rank(), query.device)
        out = torch.nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.softmax_scale,
            enable_gqa=True,
        )
        return out.transpose(1, 2)


def own_places(size: int, ranks: int, rank: int) -> torch.Tensor:
    """[size] int64: which places of a sequence of ``size * ranks`` a context-parallel rank has: piece ``rank`` of 2 * ranks,
    and the one as far from the end, so that all have as much to attend to. Megatron's order (its rotary embedding uses it)."""
    half = size // 2
    last = 2 * ranks - 1 - rank
    return torch.cat([torch.arange(rank * half, (rank + 1) * half), torch.arange(last * half, (last + 1) * half)])


def runs(lengths: Iterable[int]) -> list[tuple[int, int]]:
    """Each length, and how many sequences in a row have it."""
    return [(length, sum(1 for _ in same)) for length, same in itertools.groupby(lengths)]


@lru_cache(maxsize=1)  # the layers of a model ask for the same one
def _mask(size: int, ranks: int, rank: int, device: torch.device) -> torch.Tensor:
    """[size, size * ranks] bool: what each of a rank's places sees of all ranks' places, one rank after the other."""
    places = [own_places(size, ranks, other).to(device) for other in range(ranks)]
    return places[rank][:, None] >= torch.cat(places)[None]


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
