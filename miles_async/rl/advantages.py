"""Advantages from rewards.

Promises: plain functions on tensors; the result depends on the rewards of a sample's own group only, never on how
groups are spread over ranks or micro-batches.
"""

from __future__ import annotations

import torch


def grpo_advantages(
    rewards: torch.Tensor, group_index: torch.Tensor, *, std_normalization: bool = True, eps: float = 1e-6
) -> torch.Tensor:
    """Group-relative advantages (GRPO, arXiv 2402.03300, eq. 3), with Miles' conventions.

    ``A = r - mean(r)`` in each group; with ``std_normalization``, groups of two or more whose standard deviation
    (unbiased, ddof = 1) is positive are divided by ``std + eps``.

    rewards: [S] any float dtype. group_index: [S] int64, the group of each sample, from 0. Returns [S] float64.
    Raises ValueError if a reward is not finite.
    """
    if not bool(torch.isfinite(rewards).all()):
        raise ValueError(f"rewards must be finite, got {rewards.tolist()}")
    rewards = rewards.double()
    count = torch.bincount(group_index).double()
    zeros = torch.zeros_like(count)
    mean = zeros.index_add(0, group_index, rewards) / count.clamp_min(1)
    centred = rewards - mean[group_index]
    if not std_normalization:
        return centred
    # A group of one has centred = 0, so its divisor never matters; the clamp only avoids 0 / 0.
    std = (zeros.index_add(0, group_index, centred.square()) / (count - 1).clamp_min(1)).sqrt()
    divisor = torch.where(std > 0, std + eps, torch.ones_like(std))
    return centred / divisor[group_index]
