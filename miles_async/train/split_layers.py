"""Megatron's own layers, for models whose layers several processes compute together, where TransformerEngine is absent.

Promises: attention is CausalAttention, norms are PyTorch's; the gradient of what tensor-parallel ranks compute a part of each
(``sequence_parallel``) is added up.
"""

from __future__ import annotations

from typing import Any

import torch

from miles_async.train.attention import CausalAttention


class SplitNorm(torch.nn.RMSNorm):
    """RMSNorm over the last dimension, of a part of the sequence where the configuration says so."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]


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
        if config.qk_layernorm:
            attention.q_layernorm = attention.k_layernorm = SplitNorm
    block.layer_norm = SplitNorm
    return block
