"""A dense Qwen3, Qwen2 or Llama decoder in plain torch, for batched inference only.

Promises: log-probs equal transformers' to float32 rounding; weights are addressed by their Hugging Face names although
q/k/v and gate/up are stored fused (the names are views of the fused storage, ``slots.py``); loading checks every shape
before it writes. Nothing here knows requests, sampling or HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F

from miles_async.engines.embedded.cache import KVCache
from miles_async.engines.embedded.checkpoint import ModelConfig, RopeConfig
from miles_async.engines.embedded.slots import EVERY_ROW, Slot


class WeightError(ValueError):
    """Tensors that do not belong to this model: unknown name, wrong shape, or missing."""


class _Layer:
    """Storage of one decoder layer. ``[out, in]`` matrices; biases are None where the architecture has none."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        def new(*size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        heads = config.num_heads + 2 * config.num_kv_heads
        wide = config.num_heads * config.head_dim
        self.input_norm = new(config.hidden_size)
        self.post_norm = new(config.hidden_size)
        self.qkv = new(heads * config.head_dim, config.hidden_size)
        self.qkv_bias = new(heads * config.head_dim) if config.qkv_bias else None
        # one row for each query head, then one for each key head, so that q and k are normed in one pass
        self.qk_norm = new(config.num_heads + config.num_kv_heads, config.head_dim) if config.qk_norm else None
        self.o = new(config.hidden_size, wide)
        self.o_bias = new(config.hidden_size) if config.o_bias else None
        self.gate_up = new(2 * config.intermediate_size, config.hidden_size)
        self.gate_up_bias = new(2 * config.intermediate_size) if config.mlp_bias else None
        self.down = new(config.hidden_size, config.intermediate_size)
        self.down_bias = new(config.hidden_size) if config.mlp_bias else None

    def slots(self, config: ModelConfig) -> Iterable[Slot]:
        """Every storage and the tensors in it; ``q_norm``/``k_norm`` rows are repeats of one vector."""
        nq, nk, hd, wide = config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size
        qkv = [("q_proj", 0, nq * hd), ("k_proj", nq * hd, nk * hd), ("v_proj", (nq + nk) * hd, nk * hd)]
        gate_up = [("gate_proj", 0, wide), ("up_proj", wide, wide)]
        for kind, suffix in (("weight", ""), ("bias", "_bias")):
            yield Slot(self, "qkv" + suffix, [(f"self_attn.{n}.{kind}", slice(i, i + size)) for n, i, size in qkv])
            yield Slot(self, "o" + suffix, [(f"self_attn.o_proj.{kind}", EVERY_ROW)])
            yield Slot(self, "gate_up" + suffix, [(f"mlp.{n}.{kind}", slice(i, i + size)) for n, i, size in gate_up])
            yield Slot(self, "down" + suffix, [(f"mlp.down_proj.{kind}", EVERY_ROW)])
        yield Slot(self, "input_norm", [("input_layernorm.weight", EVERY_ROW)])
        yield Slot(self, "post_norm", [("post_attention_layernorm.weight", EVERY_ROW)])
        heads = [("q_norm", slice(0, nq)), ("k_norm", slice(nq, None))]
        yield Slot(self, "qk_norm", [(f"self_attn.{n}.weight", rows) for n, rows in heads], repeats=True)


class DenseModel:
    """The decoder. Token ids and positions are int64; hidden states and caches have ``dtype``; logits are float32."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self.layers = [_Layer(config, dtype, device) for _ in range(config.num_layers)]
        self.embed = torch.zeros(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.norm = torch.zeros(config.hidden_size, dtype=dtype, device=device)
        self.head = self.embed if config.tie_word_embeddings else torch.zeros_like(self.embed)
        self._scale = 1.0 / math.sqrt(config.head_dim)
        # the plain product is faster than the fused kernel for float32 on a CPU, the fused one elsewhere (and exact)
        self._plain_attention = device.type == "cpu" and dtype == torch.float32
        self._grow_rope(256)
        self._slots = [slot for slot in self._all_slots() if slot.storage is not None]
        self._views = {name: view for slot in self._slots for name, view in slot.views()}

    # -- weights ------------------------------------------------------------------------------------------------

    def _all_slots(self) -> Iterable[Slot]:
        yield Slot(self, "embed", [("model.embed_tokens.weight", EVERY_ROW)])
        for index, layer in enumerate(self.layers):
            for slot in layer.slots(self.config):
                yield slot.named(f"model.layers.{index}.")
        yield Slot(self, "norm", [("model.norm.weight", EVERY_ROW)])
        if not self.config.tie_word_embeddings:
            yield Slot(self, "head", [("lm_head.weight", EVERY_ROW)])

    def named_tensors(self) -> dict[str, torch.Tensor]:
        """Hugging Face name to tensor, in checkpoint layout (views, not copies)."""
        return {name: _as_stored(name, view) for name, view in self._views.items()}

    def target(self, name: str, shape: Sequence[int]) -> torch.Tensor | None:
        """Where a tensor of this Hugging Face name goes; None: it is ignored. Raises WeightError."""
        if name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and self.config.tie_word_embeddings):
            return None
        view = self._views.get(name)
        if view is None:
            raise WeightError(f"{name} is not a tensor of this {self.config.architecture}")
        stored = _as_stored(name, view).shape
        if tuple(shape) != tuple(stored):
            raise WeightError(f"{name} has shape {list(shape)}, this model has {list(stored)}")
        return view

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]], *, complete: bool, adopt: bool = False) -> None:
        """Take tensors by Hugging Face name, converting to the model's dtype and device.

        ``adopt``: their memory is the model's from now on where they fit as they are (see :meth:`Slot.adopt`); what does not
        is copied. ``lm_head.weight`` of a tied model and rotary buffers are ignored. Raises WeightError, with nothing
        written, for an unknown name, another shape, or (``complete``) a tensor that is missing.
        """
        accepted: dict[str, torch.Tensor] = {}
        for name, tensor in tensors:
            if self.target(name, tensor.shape) is not None:
                accepted[name] = tensor
        missing = self._views.keys() - accepted.keys()
        if complete and missing:
            raise WeightError(f"{len(missing)} tensors are missing, for example {min(missing)}")
        with torch.inference_mode():
            for slot in self._slots if adopt else ():
                if slot.adopt(accepted):
                    self._views.update(slot.views())
            if self.config.tie_word_embeddings:
                self.head = self.embed
            for name, tensor in accepted.items():
                self._views[name].copy_(tensor)  # a norm of shape [head_dim] is spread over its heads

    def storages(self) -> set[int]:
        """The addresses of the memory that the weights lie in."""
        return {view.untyped_storage().data_ptr() for view in self._views.values()}

    # -- forward ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def prefill(
        self, ids: torch.Tensor, cache: KVCache, rows: torch.Tensor, source: torch.Tensor, *, want_hidden: bool
    ) -> torch.Tensor | None:
        """Run prompts ``[unique, length]`` (right-padded) and store their keys and values.

        Cache row ``rows[i]`` gets those of prompt ``source[i]`` (int64 ``[requests]``), so equal prompts are computed
        once. Causality makes right padding harmless. With ``want_hidden``, returns the final hidden states
        ``[unique, length, hidden]``; without, the work above the last keys and values is left out.
        """
        cfg = self.config
        unique, length = ids.shape
        self._grow_rope(length)
        cos, sin = self._cos[:length, None], self._sin[:length, None]
        x = F.embedding(ids, self.embed)
        for index, layer in enumerate(self.layers):
            q, k, v = self._qkv(layer, x, cos, sin)
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [unique, heads, length, head_dim]
            cache.keys[index, :, :, :length].index_copy_(0, rows, k.index_select(0, source))
            cache.values[index, :, :, :length].index_copy_(0, rows, v.index_select(0, source))
            if index == cfg.num_layers - 1 and not want_hidden:
                return None
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=cfg.num_heads != cfg.num_kv_heads)
            x = self._mix(layer, x, a.transpose(1, 2).reshape(unique, length, -1))
        return F.rms_norm(x, (cfg.hidden_size,), self.norm, cfg.rms_norm_eps)

    @torch.inference_mode()
    def decode(self, ids: torch.Tensor, positions: torch.Tensor, cache: KVCache, length: int) -> torch.Tensor:
        """One token for each of the first rows of the cache. ``ids``, ``positions`` ``[rows]``; logits ``[rows, vocab]``.

        The token of row ``i`` is written at ``positions[i]`` and attends to positions ``0..positions[i]``;
        ``length`` exceeds every position and is at most the cache's.
        """
        cfg = self.config
        n = ids.shape[0]
        self._grow_rope(length)
        cos, sin = self._cos[positions, None], self._sin[positions, None]
        index = cache.decode_index(positions)
        later = torch.arange(length, device=self.device) > positions[:, None]
        mask = torch.where(later, float("-inf"), 0.0).to(self.dtype)[:, None, None]
        x = F.embedding(ids, self.embed)
        group = cfg.num_heads // cfg.num_kv_heads
        for layer_index, layer in enumerate(self.layers):
            q, k, v = self._qkv(layer, x, cos, sin)
            cache.flat_keys[layer_index].index_copy_(0, index, k.reshape(-1, cfg.head_dim))
            cache.flat_values[layer_index].index_copy_(0, index, v.reshape(-1, cfg.head_dim))
            keys = cache.keys[layer_index, :n, :, :length]
            values = cache.values[layer_index, :n, :, :length]
            # the query heads of one kv head stand at the same position: they are its "sequence", no repeat needed
            q = q.reshape(n, cfg.num_kv_heads, group, cfg.head_dim)
            if self._plain_attention:
                weights = torch.matmul(q, keys.transpose(2, 3)).mul_(self._scale).add_(mask).softmax(-1)
                a = torch.matmul(weights, values)
            else:
                a = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            x = self._mix(layer, x, a.reshape(n, -1))
        return self.logits(F.rms_norm(x, (cfg.hidden_size,), self.norm, cfg.rms_norm_eps))

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits ``[..., vocab]`` of final hidden states ``[..., hidden]``."""
        return F.linear(hidden, self.head).float()

    def _qkv(
        self, layer: _Layer, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rotated queries and keys, and values, each ``[..., heads, head_dim]``."""
        cfg = self.config
        nq, nk, hd = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim
        x = F.rms_norm(x, (cfg.hidden_size,), layer.input_norm, cfg.rms_norm_eps)
        heads = F.linear(x, layer.qkv, layer.qkv_bias).view(*x.shape[:-1], nq + 2 * nk, hd)
        qk, v = heads[..., : nq + nk, :], heads[..., nq + nk :, :]
        if layer.qk_norm is not None:
            qk = F.rms_norm(qk, (hd,), None, cfg.rms_norm_eps) * layer.qk_norm
        # rotate_half(x) is x rolled by half a head with its first half negated; the sign lives in the sine table
        qk = torch.addcmul(qk * cos, qk.roll(hd // 2, -1), sin)
        return qk[..., :nq, :], qk[..., nq:, :], v

    def _mix(self, layer: _Layer, x: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Output projection, residual, gated MLP, residual."""
        x = x + F.linear(attention, layer.o, layer.o_bias)
        y = F.rms_norm(x, (self.config.hidden_size,), layer.post_norm, self.config.rms_norm_eps)
        gate, up = F.linear(y, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
        return x + F.linear(F.silu(gate).mul_(up), layer.down, layer.down_bias)

    def _grow_rope(self, length: int) -> None:
        """Cosine and signed sine tables ``[positions, head_dim]`` for at least ``length`` positions."""
        known = getattr(self, "_cos", None)
        if known is not None and known.shape[0] >= length:
            return
        positions = torch.arange(1 << (length - 1).bit_length(), dtype=torch.float32)
        angles = torch.outer(positions, inverse_frequencies(self.config.rope, self.config.head_dim))
        cos, sin = angles.cos(), angles.sin()
        self._cos = torch.cat((cos, cos), -1).to(self.device, self.dtype)
        self._sin = torch.cat((-sin, sin), -1).to(self.device, self.dtype)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """Float32 ``[head_dim / 2]`` angular frequencies (RoFormer, section 3.2.2; llama3 scaling as in transformers)."""
    freqs = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    if rope.kind == "linear":
        return freqs / rope.factor
    if rope.kind != "llama3":
        return freqs
    wavelengths = 2 * math.pi / freqs
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = (rope.original_max_positions / wavelengths - low) / (high - low)
    blended = (1 - smooth) * freqs / rope.factor + smooth * freqs
    scaled = torch.where(wavelengths > rope.original_max_positions / low, freqs / rope.factor, blended)
    return torch.where(wavelengths < rope.original_max_positions / high, freqs, scaled)


def _as_stored(name: str, view: torch.Tensor) -> torch.Tensor:
    """The checkpoint's tensor of a view: per-head copies of a q/k norm are one vector there."""
    return view[0] if name.endswith(("q_norm.weight", "k_norm.weight")) else view
