"""Megatron's own layers, for models whose layers several processes compute together, where TransformerEngine is absent.

Promises: attention is CausalAttention, norms are PyTorch's; the gradient of what tensor-parallel ranks compute a part of each
(``sequence_parallel``) is added up.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import multi_latent_attention

from miles_async.train.attention import CausalAttention
from miles_async.train.router import with_router


class SplitNorm(torch.nn.RMSNorm):
    """RMSNorm over the last dimension, of a part of the sequence where the configuration says so."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]


class DownProjection(torch.nn.Linear):
    """To a latent vector, of which tensor-parallel ranks have all, each of its part of the sequence.

    Megatron's own has a part of it on each rank, and then the gradient of the rotary key lacks the heads of the others: they
    are gathered by a function that in backward only splits (multi_latent_attention.py, get_query_key_value_tensors).
    """

    def __init__(self, input_size: int, output_size: int, *, config: Any, **_: Any) -> None:
        super().__init__(input_size, output_size, bias=False)
        weight: Any = self.weight
        weight.sequence_parallel = config.sequence_parallel

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        """[s, b, hidden] to [s, b, rank]; no bias beside it."""
        return super().forward(hidden), None


def split_block_spec(config: Any, vp_stage: int | None) -> Any:
    """The layers of this process' part of a model with this TransformerConfig, and the norm of their output."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

    block: Any = get_gpt_decoder_block_spec(
        config, use_transformer_engine=False, normalization=config.normalization, vp_stage=vp_stage
    )
    for layer in {id(layer): layer for layer in block.layer_specs}.values():
        parts = layer.submodules
        parts.input_layernorm = parts.pre_mlp_layernorm = SplitNorm
        attention = parts.self_attention.submodules
        attention.core_attention = CausalAttention
        if config.multi_latent_attention:
            multi_latent_attention.Linear = DownProjection  # by its class it knows what is not split
            attention.q_layernorm = attention.kv_layernorm = SplitNorm
            attention.linear_q_down_proj = attention.linear_kv_down_proj = DownProjection
        elif config.qk_layernorm:
            attention.q_layernorm = attention.k_layernorm = SplitNorm
    block.layer_norm = SplitNorm
    return with_router(block) if config.num_moe_experts else block
