"""Megatron's router of a mixture of experts, which takes no token of the padding into account.

Promises: experts are chosen as Megatron chooses them, unless they are given (given_experts.py); what is counted, and what is
lost for the balance of experts, is of real tokens only, once for each micro-batch whatever is recomputed; both losses are means
over the sequences, and the tokens, of the optimizer step, so that neither micro-batches nor ranks change them.
Sources: balance of each sequence, DeepSeek-V3, arXiv 2412.19437, equation 17 (Megatron: "seq_aux_loss"), here of the experts
that it chooses itself, whichever are given; z-loss, ST-MoE, arXiv 2202.08906, equation 5.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler, compute_routing_scores_for_aux_loss
from megatron.core.transformer.moe.router import TopKRouter


class MixtureRouter(TopKRouter):
    """Takes the place of Megatron's in a layer's spec. The padding mask of its calls is [s, b] bool, True where there is no
    token."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # of the optimizer step: what one sequence's balance, and one token's z-loss, count for; set before its passes
        self.balance_weight = self.z_weight = 0.0
        self.balance = self.z = self.counts = torch.zeros(())
        self.forget()

    def forget(self) -> None:
        """Begin an optimizer step."""
        device = self.weight.device
        self.counts = torch.zeros(self.weight.shape[0], dtype=torch.float64, device=device)  # tokens of each expert
        self.balance, self.z = (
            torch.zeros((), dtype=torch.float64, device=device) for _ in range(2)
        )  # with their weights

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See Megatron's: logits [s, b, experts] to probabilities and choice [s * b, experts]."""
        probs, chosen = super().routing(logits, padding_mask)
        if self.balance_weight and torch.is_grad_enabled():
            loss = self._balance_of(logits, padding_mask) * self.balance_weight
            self.balance += loss.detach()
            probs = MoEAuxLossAutoScaler.apply(probs, loss)
        return probs, chosen

    def apply_z_loss(self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None) -> torch.Tensor:
        """logits [s * b, experts], with the gradient of the z-loss."""
        if not (self.z_weight and torch.is_grad_enabled()):
            return logits
        squares = logits.float().logsumexp(dim=-1).square()
        if padding_mask is not None:
            squares = squares.masked_fill(padding_mask, 0.0)
        loss = squares.sum() * self.z_weight
        self.z += loss.detach()
        found: Any = MoEAuxLossAutoScaler.apply(logits, loss)
        return found

    def _apply_expert_bias(self, routing_map: torch.Tensor, padding_mask: torch.Tensor | None = None) -> None:
        """Megatron calls it with each choice, [s * b, experts]."""
        if torch.is_grad_enabled():
            real = routing_map if padding_mask is None else routing_map & ~padding_mask[:, None]
            self.counts += real.sum(dim=0)

    def _balance_of(self, logits: torch.Tensor, padding_mask: torch.Tensor | None) -> torch.Tensor:
        """The sum over the sequences of ``experts * sum of (share of choices * mean probability)``, of this rank's tokens."""
        columns, rows, experts = logits.shape
        mask = None if padding_mask is None else padding_mask.reshape(-1)
        chosen, scores = compute_routing_scores_for_aux_loss(
            logits.view(-1, experts), self.topk, self.score_function, padding_mask=mask
        )
        counts = chosen.view(columns, rows, experts).sum(dim=0).float()
        if self.tp_cp_group.size() > 1:  # which have the other tokens of these sequences
            dist.all_reduce(counts, group=self.tp_cp_group)
        lengths = (counts.sum(dim=-1) / self.topk).clamp(min=1.0)  # real tokens
        mass = scores.float().view(columns, rows, experts).sum(dim=0)
        return ((counts * mass).sum(dim=-1) * experts / (self.topk * lengths.square())).sum()


def with_router(block: Any) -> Any:
    """A spec of layers, those of experts with this router."""
    for layer in block.layer_specs:
        parts = layer.submodules.mlp.submodules
        if hasattr(parts, "router"):
            parts.router = MixtureRouter
    return block
