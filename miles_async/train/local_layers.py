"""Dense models that one process holds whole, without TransformerEngine and dropout: their forward pass over packed tokens.

    tokens [T] ─► layer ─► … ─► last layer, behind its attention the wanted positions only ─► norm ─► output layer [n, width]

Promises: modules, parameters and checkpoints are Megatron's own, numbers and gradients equal its own layers' to rounding;
nothing is computed of padding, nor of positions that no wanted output depends on. Megatron's own ``forward`` computes the
padding, asks at each call for some forty features that none of these models has, and leaves norms, rotations and SwiGLU to
autograd piece by piece. Where several processes hold a model there is split_layers.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer

from miles_async.train.attention import CausalAttention
from miles_async.train.local_functions import Norm, Picked, Rotary, Spread, SwiGLU, is_plain, linear
from miles_async.train.lora import adapter_of
from miles_async.train.packed import Packed


@dataclass(frozen=True)
class Pass:
    """What the layers of a forward pass share. cos, sin: [T, groups, query heads of a group and key, d] of the rotary
    positions, the sign of rotate_half in ``sin``."""

    packed: Packed
    cos: torch.Tensor
    sin: torch.Tensor


class LocalNorm(torch.nn.RMSNorm):
    """RMSNorm over the last dimension."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.beside(x)[1]

    def beside(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``x``, for whoever needs it besides, and its norm."""
        if is_plain(x):
            return Norm.apply(x, self.weight, self.eps)
        return x, super().forward(x)  # torch has a kernel for it


class LocalAttention(SelfAttention):
    """Causal self-attention with rotary positions."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden: torch.Tensor, shared: Pass, *, last: bool
    ) -> torch.Tensor:
        """[T, hidden] to as much; of the ``last`` layer [U, hidden]."""
        packed, core = shared.packed, self.core_attention
        assert isinstance(core, CausalAttention)
        groups, size = shared.cos.shape[1], shared.cos.shape[-1]
        parts = _product(self, "linear_qkv", hidden).view(len(hidden), groups, -1, size)
        heads = parts.shape[-2] - 2  # query heads of a group, followed by its key and its value
        turned, value = parts.split([heads + 1, 1], dim=-2)
        query, key = Rotary.apply(self._normed(turned), shared.cos, shared.sin).split([heads, 1], dim=-2)
        query, key, value = (_in_rows(part, packed) for part in (query, key, value))
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=core.softmax_scale, enable_gqa=True
        )
        where = (packed.wanted_place, packed.wanted_count) if last else (packed.place, packed.count)
        found: Any = Picked.apply(attended.transpose(1, 2).flatten(0, 1).flatten(1), *where)
        return _product(self, "linear_proj", found)

    def _normed(self, turned: torch.Tensor) -> torch.Tensor:
        """Of [T, groups, query heads and key, d] the norm of each head."""
        of_query: Any = self.q_layernorm
        of_key: Any = self.k_layernorm
        if not isinstance(of_query, LocalNorm):
            return turned
        heads = turned.shape[-2] - 1
        if is_plain(turned):
            weight = torch.cat([of_query.weight.expand(heads, -1), of_key.weight[None]])
            return Norm.apply(turned, weight, of_query.eps)[1]
        return torch.cat([of_query(turned[..., :heads, :]), of_key(turned[..., heads:, :])], dim=-2)


class LocalMLP(MLP):
    """``down(silu(gate(x)) * up(x))``; gate and up are one matrix."""

    def __init__(self, config: Any, **kwargs: Any) -> None:
        parts = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
        super().__init__(config, parts, **kwargs)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        active: Any = SwiGLU.apply(_product(self, "linear_fc1", hidden))
        return _product(self, "linear_fc2", active)


class LocalLayer(TransformerLayer):
    """Attention and MLP, each of the norm of what its output is added to."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden: torch.Tensor, shared: Pass, *, last: bool
    ) -> torch.Tensor:
        """As LocalAttention's."""
        before_attention: Any = self.input_layernorm
        before_mlp: Any = self.pre_mlp_layernorm
        residual, normed = before_attention.beside(hidden)
        attended = self.self_attention(normed, shared, last=last)
        if last:
            residual = Picked.apply(residual, shared.packed.wanted, shared.packed.wanted_count)
        residual, normed = before_mlp.beside(residual + attended)
        return residual + self.mlp(normed)


def is_local(model: Any) -> bool:
    """Whether it is a GPTModel of these layers and of nothing else."""
    from megatron.core.models.gpt import GPTModel

    return type(model) is GPTModel and all(type(layer) is LocalLayer for layer in model.decoder.layers)


def local_hidden(model: Any, packed: Packed) -> torch.Tensor:
    """[n, rounded up, hidden]: what the output layer of a GPTModel of these layers is given at the wanted positions."""
    hidden = F.embedding(packed.tokens, model.embedding.word_embeddings.weight)
    *earlier, final = model.decoder.layers
    shared = _shared(model, packed, hidden.dtype)
    for layer in earlier:
        hidden = layer(hidden, shared, last=False)
    normed = model.decoder.final_layernorm(final(hidden, shared, last=True))
    found: Any = Spread.apply(normed, packed.outputs)
    return found


def local_head(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The output layer: [rows, hidden] to [rows, width]."""
    head = model.output_layer
    if model.share_embeddings_and_output_weights:
        return linear(hidden, model.shared_embedding_or_output_weight())
    if isinstance(head, ColumnParallelLinear) and head.weight is not None:
        return linear(hidden, head.weight)
    return head(hidden)[0]


def local_outputs(model: Any, packed: Packed) -> torch.Tensor:
    """[n, width]: what the output layer gives at the wanted positions."""
    return local_head(model, local_hidden(model, packed))[: packed.output_count]


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
    if config.qk_layernorm:
        attention.submodules.q_layernorm = attention.submodules.k_layernorm = LocalNorm
    norm: Any = LocalNorm
    return TransformerBlockSubmodules(layer_specs=[spec] * get_num_layers_to_build(config, vp_stage), layer_norm=norm)


def _product(owner: torch.nn.Module, name: str, x: torch.Tensor) -> torch.Tensor:
    """``x`` [rows, in] times the matrix ``name`` of ``owner``, and what an adapter beside it adds."""
    base: Any = owner._modules[name]
    found, adapter = linear(x, base.weight, base.bias), adapter_of(owner, name)
    return found if adapter is None else adapter.added(found, linear(x, adapter.a))


def _shared(model: Any, packed: Packed, dtype: torch.dtype) -> Pass:
    config = model.config
    groups, angles = config.num_query_groups, model.rotary_pos_emb(packed.columns)[:, 0, 0]
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    sin[:, : sin.shape[-1] // 2].neg_()

    def of_heads(of_columns: torch.Tensor) -> torch.Tensor:
        # for every head: what is broadcast over so few numbers is computed one head at a time
        of_tokens = of_columns.index_select(0, packed.column)[:, None, None]
        return of_tokens.expand(-1, groups, config.num_attention_heads // groups + 1, -1).contiguous()

    return Pass(packed, of_heads(cos), of_heads(sin))


def _in_rows(part: torch.Tensor, packed: Packed) -> torch.Tensor:
    """[T, groups, heads of a group, d] to [rows, all heads, columns, d]."""
    found: Any = Spread.apply(part, packed.in_rows)
    return found.view(packed.rows, packed.columns, -1, part.shape[-1]).transpose(1, 2)
