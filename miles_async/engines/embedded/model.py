"""A Qwen3, Qwen2, Llama or Qwen3-MoE decoder in plain torch, for batched inference only.

Promises: log-probs equal transformers' to float32 rounding; weights are addressed by their Hugging Face names although
q/k/v, gate/up and experts are stored fused (the names are views of the fused storage, ``slots.py``); loading checks every
shape before it writes. Nothing here knows requests, sampling or HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F

from miles_async.engines.embedded.cache import KVCache
from miles_async.engines.embedded.checkpoint import ModelConfig, RopeConfig
from miles_async.engines.embedded.feed_forward import DenseFeedForward, FeedForward
from miles_async.engines.embedded.kernels import add_linear, attend, linear, rms_norm, rotate
from miles_async.engines.embedded.mixture import Mixture
from miles_async.engines.embedded.prompts import Prompts
from miles_async.engines.embedded.slots import EVERY_ROW, Slot
from miles_async.models.rotary import longer


class WeightError(ValueError):
    """Tensors that do not belong to this model: unknown name, wrong shape, or missing."""


class _Layer:
    """Storage of one decoder layer: attention's, and ``mlp``. ``[out, in]`` matrices; biases are None where the architecture
    has none."""

    def __init__(self, config: ModelConfig, mlp: FeedForward, dtype: torch.dtype, device: torch.device) -> None:
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
        self.mlp = mlp

    def slots(self, config: ModelConfig) -> Iterable[Slot]:
        """Every storage and the tensors in it; ``q_norm``/``k_norm`` rows are repeats of one vector."""
        nq, nk, hd = config.num_heads, config.num_kv_heads, config.head_dim
        qkv = [("q_proj", 0, nq * hd), ("k_proj", nq * hd, nk * hd), ("v_proj", (nq + nk) * hd, nk * hd)]
        for kind, suffix in (("weight", ""), ("bias", "_bias")):
            yield Slot(self, "qkv" + suffix, [(f"self_attn.{n}.{kind}", slice(i, i + size)) for n, i, size in qkv])
            yield Slot(self, "o" + suffix, [(f"self_attn.o_proj.{kind}", EVERY_ROW)])
        yield Slot(self, "input_norm", [("input_layernorm.weight", EVERY_ROW)])
        yield Slot(self, "post_norm", [("post_attention_layernorm.weight", EVERY_ROW)])
        heads = [("q_norm", slice(0, nq)), ("k_norm", slice(nq, None))]
        yield Slot(self, "qk_norm", [(f"self_attn.{n}.weight", rows) for n, rows in heads], repeats=True)
        yield from self.mlp.slots()


class Decoder:
    """The decoder. Token ids and positions are int64; hidden states and caches have ``dtype``; logits are float32."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        layers, mixture, hidden = range(config.num_layers), config.mixture, config.hidden_size
        # none: its layers are dense
        self.mixtures = [] if mixture is None else [Mixture(mixture, hidden, dtype, device) for _ in layers]
        each = self.mixtures or [DenseFeedForward(config, dtype, device) for _ in layers]
        self.layers = [_Layer(config, mlp, dtype, device) for mlp in each]
        self.embed = torch.zeros(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.norm = torch.zeros(config.hidden_size, dtype=dtype, device=device)
        self.head = self.embed if config.tie_word_embeddings else torch.zeros_like(self.embed)
        self._scale = 1.0 / math.sqrt(config.head_dim)
        self._plain = device.type == "cpu" and dtype == torch.float32  # see kernels.py
        self._eps = torch.tensor(config.rms_norm_eps)
        self._most = 0
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

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        rows: int,
        length: int,
        prompts: Prompts | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One token for each of the first ``rows`` of the cache, and whole prompts for rows behind or among them.

        ``ids`` and ``positions``: int64 ``[rows + unique * width]``, the newest tokens, then the prompts, right-padded
        (causality makes that harmless). The token of row ``i`` is written at ``positions[i]`` and attends to what lies before
        it, what this pass writes included; ``length`` exceeds every position of a row and is at most the cache's.
        Returns logits ``[rows, vocab]``, and with ``prompts.want_hidden`` the prompts' final hidden states
        ``[unique, width, hidden]``. Belongs into ``torch.inference_mode``.
        """
        cfg, plain = self.config, self._plain
        nq, nk, hd, eps = cfg.num_heads, cfg.num_kv_heads, cfg.head_dim, self._eps
        self._grow_rope(max(length, prompts.width if prompts else 0))
        cos, sin = torch.embedding(self._rope, positions)[:, None].chunk(2, -1)
        targets = cache.targets(positions[:rows])
        mask = self._mask(positions[:rows], length)
        x = torch.embedding(self.embed, ids)
        for index, layer in enumerate(self.layers):
            y = rms_norm(x, layer.input_norm, eps, plain=plain)
            heads = linear(y, layer.qkv, layer.qkv_bias, plain=plain).view(-1, nq + 2 * nk, hd)
            qk = heads.narrow(1, 0, nq + nk)
            normed = qk if layer.qk_norm is None else rms_norm(qk, layer.qk_norm, eps, plain=plain)
            rotate(normed, cos, sin, qk)
            of_prompts: list[torch.Tensor] = []
            if prompts is not None:  # first: a shorter one is padded where the newest token of its row goes
                whole = heads[rows:].unflatten(0, (-1, prompts.width))
                cache.fill(index, prompts.first, prompts.source, whole[:, :, nq:])
                if index == len(self.layers) - 1 and not prompts.want_hidden:
                    x, prompts = x[:rows], None  # nothing reads what their last layer gives beyond keys and values
                else:
                    q, k, v = whole.transpose(1, 2).split((nq, nk, nk), 1)
                    a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=nq != nk)
                    of_prompts = [a.transpose(1, 2).reshape(-1, nq * hd)]
            newest = heads if len(ids) == rows else heads[:rows]
            cache.write(index, targets, newest.narrow(1, nq, 2 * nk))
            keys, values = cache.read(index, rows, length)
            attention = attend(newest.narrow(1, 0, nq), keys, values, mask, self._scale, plain=plain)
            if of_prompts:
                attention = torch.cat((attention, *of_prompts))
            add_linear(x, attention, layer.o, layer.o_bias, plain=plain)
            layer.mlp.add(x, rms_norm(x, layer.post_norm, eps, plain=plain), plain=plain)
        x = rms_norm(x, self.norm, eps, plain=plain)
        hidden = None if prompts is None else x[rows:].view(-1, prompts.width, cfg.hidden_size)
        return self.logits(x[:rows]), hidden

    def routes(self) -> torch.Tensor:
        """Of a mixture: the experts that the last pass chose for its tokens, in the order of their ids: int64
        ``[tokens, layers, top_k]``.

        That pass must have wanted the prompts' hidden states: else their last layer was left out.
        """
        return torch.stack([mixture.chosen for mixture in self.mixtures], 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits ``[rows, vocab]`` of final hidden states ``[rows, hidden]``."""
        return linear(hidden, self.head, None, plain=self._plain).float()

    def _mask(self, positions: torch.Tensor, length: int) -> torch.Tensor:
        """What is added to the scores of each row's kv heads ``[rows * kv heads, 1, length]``: -inf behind its position."""
        starts = torch.rsub(positions, self._most - 1)[:, None].expand(-1, self.config.num_kv_heads)
        return self._open_then_closed.as_strided((self._most, length), (1, 1))[starts].view(-1, 1, length)

    def _grow_rope(self, length: int) -> None:
        """Cosines and signed sines ``[positions, 2 * head_dim]``, and masks, for at least ``length`` positions."""
        if length <= self._most:
            return
        positions = torch.arange(1 << (length - 1).bit_length(), dtype=torch.float32)
        angles = torch.outer(positions, inverse_frequencies(self.config.rope, self.config.head_dim))
        cos, sin = angles.cos(), angles.sin()
        self._rope = torch.cat((cos, cos, -sin, sin), -1).to(self.device, self.dtype)
        self._most = positions.shape[0]
        # as many zeros, then as many -inf: the mask of a position is what lies from (most - 1 - position) on
        self._open_then_closed = torch.zeros(2 * self._most, dtype=self.dtype, device=self.device)
        self._open_then_closed[self._most :] = float("-inf")


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """Float32 ``[head_dim / 2]`` angular frequencies (RoFormer, section 3.2.2; llama3 scaling as in transformers)."""
    freqs = 1.0 / rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    low, high, original = rope.low_freq_factor, rope.high_freq_factor, rope.original_max_positions
    return longer(freqs, rope.kind, rope.factor, low=low, high=high, original=original)


def _as_stored(name: str, view: torch.Tensor) -> torch.Tensor:
    """The checkpoint's tensor of a view: per-head copies of a q/k norm are one vector there."""
    return view[0] if name.endswith(("q_norm.weight", "k_norm.weight")) else view
