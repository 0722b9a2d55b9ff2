"""How tokens are averaged: the weight of each in the mean over the whole step.

Promises: a mean does not depend on the split into micro-batches or ranks, because the weights are normalised by totals of
the whole step; masked tokens contribute exactly zero, whatever their values hold.

mask [N] 0/1; sample_index [N] int64 from 0; rollout_index [S] int64 from 0: samples of one rollout (branches of an agent's
run) share it and lie on one rank. Results are [N] float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from miles_async.rl.segments import segment_sum


@dataclass(frozen=True)
class Totals:
    """Numbers of the whole step, of all ranks."""

    tokens: float  # sum over the samples of max(unmasked tokens, 1), as in Miles
    rollouts: float


def sample_mean(
    mask: torch.Tensor, sample_index: torch.Tensor, rollout_index: torch.Tensor, totals: Totals
) -> torch.Tensor:
    """Mean over the rollouts of each one's mean over its tokens (GRPO, arXiv 2402.03300).

    A rollout whose tokens are all masked counts as a zero; the samples of one rollout share its denominator.
    """
    m = mask.double()
    if not m.numel():
        return m
    per_sample = segment_sum(m, sample_index, len(rollout_index))
    per_rollout = segment_sum(per_sample, rollout_index, int(rollout_index.max()) + 1)
    return m / (per_rollout.clamp_min(1)[rollout_index[sample_index]] * max(totals.rollouts, 1.0))


def token_mean(
    mask: torch.Tensor, sample_index: torch.Tensor, rollout_index: torch.Tensor, totals: Totals
) -> torch.Tensor:
    """Mean over all tokens (DAPO, arXiv 2503.14476; Miles' ``calculate_per_token_loss``)."""
    return mask.double() / max(totals.tokens, 1.0)


def constant(
    mask: torch.Tensor, sample_index: torch.Tensor, rollout_index: torch.Tensor, totals: Totals, *, length: float
) -> torch.Tensor:
    """Sum over a rollout's tokens divided by a constant ``length``, mean over the rollouts (Dr. GRPO, arXiv 2503.20783)."""
    return mask.double() / (length * max(totals.rollouts, 1.0))


def weighted_sum(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``sum(values * weights)`` where tokens of weight zero count as zero even if their value is not finite; over the last
    dimension of ``values`` [..., n]."""
    return (values.masked_fill(weights == 0, 0.0) * weights).sum(-1)


def weighted_sums(values: Mapping[str, torch.Tensor], weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """:func:`weighted_sum` of each of the ``values`` [n], without gradient, float64."""
    if not values:
        return {}
    stacked = torch.stack([value.detach() for value in values.values()]).double()
    return dict(zip(values, weighted_sum(stacked, weights).unbind(), strict=True))
