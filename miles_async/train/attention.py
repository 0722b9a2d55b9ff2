"""Core attention of the local (non-TransformerEngine) layers: PyTorch's fused scaled-dot-product attention.

Promises: causal attention over right-padded [s, b, h, d] activations, the same numbers as Megatron's own unfused core to
rounding, without its [b * h, s, s] scores in memory; grouped keys and values are not repeated before the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class CausalAttention(MegatronModule):
    """Drop-in for ``DotProductAttention`` in a Megatron layer spec. Takes no mask: padding is on the right."""

    def __init__(self, config: TransformerConfig, softmax_scale: float | None = None, **_: Any):
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """query: [s, b, heads, d]; key, value: [s, b, groups, d]. Returns [s, b, heads * d]."""
        if attention_mask is not None:
            raise ValueError("CausalAttention takes no attention mask: pad on the right")
        out = torch.nn.functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            key.permute(1, 2, 0, 3),
            value.permute(1, 2, 0, 3),
            is_causal=True,
            scale=self.softmax_scale,
            enable_gqa=True,
        )
        return out.permute(2, 0, 1, 3).flatten(2)
