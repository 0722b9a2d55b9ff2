"""The experts that an engine chose, in the place of a router's own choice (R3, arXiv 2510.11370).

Promises: a forward pass takes the experts that were given last; where its activations are computed again, it takes those of the
same micro-batch, however many others went through the layer in between. Scores are the router's own, of these experts, and so
is their gradient.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

Pair = tuple[torch.Tensor, torch.Tensor]


class GivenExperts:
    """Of one router, as its ``router_replay``.

    Megatron's RouterReplay has to be told before and after each forward pass which kind comes next. Here that shows by itself:
    what is computed again is computed without gradients first, and then with; the micro-batches of a layer go backward in the
    order in which they went forward, in every schedule.
    """

    def __init__(self) -> None:
        self._given: torch.Tensor | None = None
        self._learning = False
        self._again: deque[torch.Tensor | None] = deque()  # of the micro-batches whose activations were not kept

    def begin(self, *, learning: bool) -> None:
        """A pass through micro-batches begins, with gradients if ``learning``."""
        self._given, self._learning = None, learning
        self._again.clear()

    def give(self, experts: torch.Tensor | None) -> None:
        """experts: [tokens, top_k] integers, of the tokens of the next forward pass; None: the router chooses."""
        self._given = experts

    def get_replay_topk(
        self,
        scores: torch.Tensor,
        topk: int,
        num_groups: int | None,
        group_topk: int | None,
        default_compute_topk: Callable[..., Pair],
    ) -> Pair:
        """What Megatron's router asks in the place of top-k: scores [tokens, experts] to those of the chosen, and which these
        are, [tokens, top_k] each."""
        experts = self._next()
        if experts is None:
            return default_compute_topk(scores, topk, num_groups, group_topk)
        chosen: Any = experts.long()
        return scores.gather(1, chosen), chosen

    def _next(self) -> torch.Tensor | None:
        if self._learning and torch.is_grad_enabled() and self._again:
            return self._again.popleft()
        if self._learning and not torch.is_grad_enabled():
            self._again.append(self._given)
        return self._given
