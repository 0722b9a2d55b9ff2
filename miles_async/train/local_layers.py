"""Megatron's local (non-TransformerEngine) layers for dense models whose layers are each computed by one process, without
dropout; for others there is split_layers.py.

Promises: modules, parameters and checkpoints are Megatron's own, and so are the bits of the output and of every gradient (but
for the sign of a zero): the same operations on the same numbers in the same order. Megatron's own ``forward`` asks at each call
for some forty features that none of these models has, wraps each product in functions for tensor parallelism, and leaves
norms, rotations and SwiGLU to autograd piece by piece.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer

from miles_async.train.attention import CausalAttention
from miles_async.train.local_functions import Norm, Rotary, SwiGLU


class LocalNorm(torch.nn.RMSNorm):
    """RMSNorm over the last dimension."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.beside(x)[1]

    def beside(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``x``, for whoever needs it besides, and its norm: gradients of both are added up in Megatron's order."""
        if x.dtype is torch.float32 and x.device.type == "cpu":
            return Norm.apply(x, self.weight, self.eps)
        return x, super().forward(x)  # torch has a kernel for it


class LocalColumnLinear(ColumnParallelLinear):
    """A matrix whose only column of blocks is this rank's: ``(x @ weight.T + bias, None)``."""

    def forward(self, input_: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        weight: Any = self.weight
        out = F.linear(input_, weight)
        return (out if self.bias is None else out + self.bias), None


class LocalRowLinear(RowParallelLinear):
    """A matrix without a bias, whose only row of blocks is this rank's."""

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, None]:
        return F.linear(input_, self.weight), None


class LocalAttention(SelfAttention):
    """Causal self-attention with rotary positions over right-padded [s, b, h]."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **kwargs: Any) -> Any:
        qkv: Any = self.get_query_key_value_tensors(hidden_states)
        query, key, value = qkv
        cos, sin = _rotation(kwargs["rotary_pos_emb"], query.dtype)
        core: Any = self.core_attention
        projection: Any = self.linear_proj
        return projection(core(Rotary.apply(query, cos, sin), Rotary.apply(key, cos, sin), value))


class LocalMLP(MLP):
    """``down(silu(gate(x)) * up(x))``; gate and up are one matrix."""

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(config, MLPSubmodules(linear_fc1=LocalColumnLinear, linear_fc2=LocalRowLinear), **kwargs)

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        return self.linear_fc2(SwiGLU.apply(self.linear_fc1(hidden_states)[0]))


class LocalLayer(TransformerLayer):
    """Attention and MLP, each of the norm of what its output is added to."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        before_attention: Any = self.input_layernorm
        before_mlp: Any = self.pre_mlp_layernorm
        residual, normed = before_attention.beside(hidden_states)
        attended, _ = self.self_attention(normed, rotary_pos_emb=kwargs["rotary_pos_emb"])
        residual, normed = before_mlp.beside(residual + attended)
        return residual + self.mlp(normed)[0], None


def is_local(model: Any) -> bool:
    """Whether it is a GPTModel of these layers and of nothing else."""
    from megatron.core.models.gpt import GPTModel

    return type(model) is GPTModel and all(type(layer) is LocalLayer for layer in model.decoder.layers)


def local_outputs(model: Any, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[n, width]: what the output layer of a GPTModel of these layers gives at ``positions`` [n] of [columns, rows]."""
    hidden = F.embedding(tokens, model.embedding.word_embeddings.weight).transpose(0, 1).contiguous()
    rotary = model.rotary_pos_emb(tokens.shape[1])
    for layer in model.decoder.layers:
        hidden, _ = layer(hidden, rotary_pos_emb=rotary)
    wanted = model.decoder.final_layernorm(hidden).flatten(0, 1).index_select(0, positions)
    if model.share_embeddings_and_output_weights:
        return F.linear(wanted, model.shared_embedding_or_output_weight())
    return model.output_layer(wanted[:, None])[0][:, 0]


def local_block_spec(config: Any, vp_stage: int | None = None) -> Any:
    """The layers of this process' part of a model with this TransformerConfig, and the norm of their output."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

    spec: Any = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization=config.normalization)
    spec.module, spec.submodules.mlp = LocalLayer, LocalMLP
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = LocalNorm
    attention = spec.submodules.self_attention
    attention.module = LocalAttention
    attention.submodules.core_attention = CausalAttention
    attention.submodules.linear_qkv, attention.submodules.linear_proj = LocalColumnLinear, LocalRowLinear
    if config.qk_layernorm:
        attention.submodules.q_layernorm = attention.submodules.k_layernorm = LocalNorm
    norm: Any = LocalNorm
    return TransformerBlockSubmodules(layer_specs=[spec] * get_num_layers_to_build(config, vp_stage), layer_norm=norm)


@lru_cache(maxsize=1)  # the layers of a model ask with one tensor
def _rotation(angles: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return angles.cos().to(dtype), angles.sin().to(dtype)
