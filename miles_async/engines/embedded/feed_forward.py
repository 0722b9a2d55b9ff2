"""What stands behind attention in a dense layer: gate and up, silu, down.

Promises: its tensors are addressed by their Hugging Face names although gate and up are stored as one matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
import torch.nn.functional as F

from miles_async.engines.embedded.checkpoint import ModelConfig
from miles_async.engines.embedded.kernels import add_linear, linear
from miles_async.engines.embedded.slots import EVERY_ROW, Slot


class FeedForward(Protocol):
    """The second half of a layer; a mixture's is ``mixture.py``."""

    def slots(self) -> Iterable[Slot]:
        """Every storage and the tensors in it, named from ``mlp.`` on."""
        ...

    def add(self, sum_: torch.Tensor, x: torch.Tensor, *, plain: bool) -> None:
        """Add what it makes of ``x`` ``[tokens, hidden]``, which is normed, to ``sum_``, in its place."""
        ...


class DenseFeedForward:
    """One for all tokens. ``[out, in]`` matrices; biases are None where the architecture has none."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        def new(*size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self._size = config.intermediate_size
        self.gate_up = new(2 * self._size, config.hidden_size)
        self.gate_up_bias = new(2 * self._size) if config.mlp_bias else None
        self.down = new(config.hidden_size, self._size)
        self.down_bias = new(config.hidden_size) if config.mlp_bias else None

    def slots(self) -> Iterable[Slot]:
        parts = [("gate_proj", slice(0, self._size)), ("up_proj", slice(self._size, 2 * self._size))]
        for kind, suffix in (("weight", ""), ("bias", "_bias")):
            yield Slot(self, "gate_up" + suffix, [(f"mlp.{name}.{kind}", rows) for name, rows in parts])
            yield Slot(self, "down" + suffix, [(f"mlp.down_proj.{kind}", EVERY_ROW)])

    def add(self, sum_: torch.Tensor, x: torch.Tensor, *, plain: bool) -> None:
        gate, up = linear(x, self.gate_up, self.gate_up_bias, plain=plain).chunk(2, -1)
        add_linear(sum_, F.silu(gate).mul_(up), self.down, self.down_bias, plain=plain)
