"""What stands behind attention in a layer of experts: a router that chooses some of them for each token, and those (Qwen3-MoE).

    x ──router──► softmax ──top k──► (weights, chosen)         chosen stays until the next pass: the token's route
    x ──sorted by expert──► gate and up ──silu──► down ──weighted, summed by token──►

Promises: weights and choices are transformers' to float32 rounding, the router's arithmetic is float32 whatever the model's
dtype is; tensors are addressed by their Hugging Face names, one for each expert and matrix. Apart from what a CPU
needs to know where an expert's tokens end, nothing is read back from the device.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from miles_async.engines.embedded.checkpoint import MixtureConfig
from miles_async.engines.embedded.kernels import grouped_linear
from miles_async.engines.embedded.slots import EVERY_ROW, Slot


class Mixture:
    """The experts of one layer, their matrices one below the other.

    router ``[experts, hidden]``; gate_up ``[experts * 2 * size, hidden]``, of each expert gate before up; down
    ``[experts * hidden, size]``. chosen: int64 ``[tokens, top_k]`` of the last pass, the likeliest expert first.
    """

    def __init__(self, config: MixtureConfig, hidden: int, dtype: torch.dtype, device: torch.device) -> None:
        def new(*size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self._config, self._hidden, self.experts = config, hidden, config.experts
        self._numbers = torch.arange(config.experts, device=device)
        self.router = new(config.experts, hidden)
        self.gate_up = new(config.experts * 2 * config.expert_size, hidden)
        self.down = new(config.experts * hidden, config.expert_size)
        self.chosen = torch.zeros((0, config.top_k), dtype=torch.int64, device=device)

    def slots(self) -> Iterable[Slot]:
        size, experts = self._config.expert_size, range(self._config.experts)
        places = [(expert, part, 2 * expert + i) for expert in experts for i, part in enumerate(("gate", "up"))]
        gate_up = [(f"mlp.experts.{e}.{part}_proj.weight", slice(n * size, (n + 1) * size)) for e, part, n in places]
        down = [(f"mlp.experts.{e}.down_proj.weight", slice(e * self._hidden, (e + 1) * self._hidden)) for e in experts]
        yield Slot(self, "router", [("mlp.gate.weight", EVERY_ROW)])
        yield Slot(self, "gate_up", gate_up)
        yield Slot(self, "down", down)

    def add(self, sum_: torch.Tensor, x: torch.Tensor, *, plain: bool) -> None:
        weights, self.chosen = self.route(x)
        if not len(x):
            return
        each, top_k = self.chosen.view(-1), self._config.top_k  # token by token, top_k of each
        order = each.argsort(stable=True)
        ends = torch.searchsorted(each[order], self._numbers, right=True, out_int32=True)
        sorted_x = x[order.div(top_k, rounding_mode="floor")]
        gate, up = grouped_linear(sorted_x, self.gate_up, ends).chunk(2, -1)
        made = grouped_linear(F.silu(gate).mul_(up), self.down, ends)
        # back in the tokens' order, and summed there: the same bits wherever a token stands in the pass
        made = made[order.argsort()].view(-1, top_k, self._hidden)
        sum_ += made.mul_(weights[:, :, None]).sum(1)

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights (of ``x``'s dtype) and the numbers (int64) of each token's experts, both ``[tokens, top_k]``."""
        odds = F.linear(x.float(), self.router.float()).softmax(-1)
        weights, chosen = odds.topk(self._config.top_k, -1)
        if self._config.normalizes:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(x.dtype), chosen
