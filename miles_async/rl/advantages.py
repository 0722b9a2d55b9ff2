"""Advantages from rewards: one number for each response token.

Promises: plain functions on tensors; an advantage depends on the sample's own group only (whitening aside), never on how
groups are spread over ranks or micro-batches; the samples of one rollout (branches of an agent's run) count once.

N response tokens of S samples lie one after the other; rewards [S] float, sample_index [N], group_index [S], rollout_index
[S] int64 from 0 (None: each sample is a rollout of its own), mask [N] 0/1. All results are float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from miles_async.rl.segments import Compressed, segment_sum

WHITEN_EPS = 1e-8

# adds a tensor of partial sums over all data-parallel ranks
AllSum = Callable[[torch.Tensor], torch.Tensor]


def _alone(values: torch.Tensor) -> torch.Tensor:
    return values


def grpo(
    rewards: torch.Tensor,
    group_index: torch.Tensor,
    *,
    rollout_index: torch.Tensor | None = None,
    std_normalization: bool = True,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Group-relative advantages (GRPO, arXiv 2402.03300, eq. 3), with Miles' conventions.

    ``A = r - mean(r)`` in each group; with ``std_normalization``, groups of two or more rollouts whose standard deviation
    (unbiased, ddof = 1) is positive are divided by ``std + eps``. Without it: Dr. GRPO (arXiv 2503.20783).

    Returns [S]. Raises ValueError: a reward is not finite, or samples of one rollout have different rewards.
    """
    groups = _Groups(rewards, group_index, rollout_index)
    centred = groups.centred
    if std_normalization:
        # a group of one has centred = 0, so its divisor never matters; the clamp only avoids 0 / 0
        std = (segment_sum(centred.square(), groups.of_rollout, groups.n) / (groups.count - 1).clamp_min(1)).sqrt()
        centred = centred / torch.where(std > 0, std + eps, torch.ones_like(std))[groups.of_rollout]
    return centred[groups.rollout_of_sample]


def rloo(
    rewards: torch.Tensor, group_index: torch.Tensor, *, rollout_index: torch.Tensor | None = None
) -> torch.Tensor:
    """Leave-one-out (RLOO, arXiv 2402.14740): ``A = r - mean of the other rollouts' r = n / (n - 1) (r - mean)``.

    A group of one has nobody to compare with: 0. Returns [S]. Raises like :func:`grpo`.
    """
    groups = _Groups(rewards, group_index, rollout_index)
    centred = groups.centred
    factor = groups.count / (groups.count - 1).clamp_min(1)
    return (centred * factor[groups.of_rollout])[groups.rollout_of_sample]


def plain(rewards: torch.Tensor, rollout_index: torch.Tensor | None) -> torch.Tensor:
    """The reward itself (Miles: --disable-rewards-normalization). Returns [S]. Raises like :func:`grpo`."""
    groups = _Groups(rewards, torch.zeros(len(rewards), dtype=torch.int64, device=rewards.device), rollout_index)
    return groups.rewards[groups.rollout_of_sample]


class _Groups:
    """The rewards of R rollouts and the statistics of their groups."""

    def __init__(self, rewards: torch.Tensor, group_index: torch.Tensor, rollout_index: torch.Tensor | None) -> None:
        if not bool(torch.isfinite(rewards).all()):
            raise ValueError(f"rewards must be finite, got {rewards.tolist()}")
        rewards = rewards.double()
        if rollout_index is None:
            rollout_index = torch.arange(len(rewards), device=rewards.device)
        names, rollout_index = torch.unique(rollout_index, return_inverse=True)
        n_rollouts = len(names)
        self.rollout_of_sample = rollout_index
        # whichever of its samples comes last: they agree
        self.rewards = torch.zeros(n_rollouts, dtype=torch.float64, device=rewards.device)
        self.rewards[rollout_index] = rewards
        if not bool((self.rewards[rollout_index] == rewards).all()):
            raise ValueError("samples of one rollout have different rewards")
        self.of_rollout = torch.zeros(n_rollouts, dtype=torch.int64, device=rewards.device)
        self.of_rollout[rollout_index] = group_index
        self.n = int(group_index.max()) + 1 if len(rewards) else 0
        self.count = torch.bincount(self.of_rollout, minlength=self.n).double()
        # from one reward of the group on, so that equal ones have no deviation, however large they are
        base = torch.zeros(self.n, dtype=torch.float64, device=rewards.device)
        base[self.of_rollout] = self.rewards
        above = self.rewards - base[self.of_rollout]
        self.centred = above - (segment_sum(above, self.of_rollout, self.n) / self.count.clamp_min(1))[self.of_rollout]


def reinforce_plus_plus(
    rewards: torch.Tensor,
    mask: torch.Tensor,
    sample_index: torch.Tensor,
    *,
    kl: torch.Tensor | None = None,
    kl_coef: float = 0.0,
    gamma: float = 1.0,
) -> torch.Tensor:
    """Returns of each token (REINFORCE++, arXiv 2501.03262): ``G_t = r_t + gamma G_{t+1}``, ``r_t = -kl_coef kl_t``, and
    the sample's reward added at its last unmasked token.

    To be whitened (:func:`whiten`). kl: [N]. Returns [N]; 0 for a sample without an unmasked token.
    """
    n_samples = len(rewards)
    every = Compressed(torch.ones_like(mask), sample_index, n_samples)
    terminal = _at_last_unmasked(rewards, mask, sample_index)
    per_token = terminal - kl_coef * _masked(kl, mask)
    matrix = every.rows(per_token)
    returns = torch.zeros_like(matrix)
    carry = torch.zeros(n_samples, dtype=matrix.dtype, device=matrix.device)
    for t in reversed(range(matrix.shape[1])):
        carry = matrix[:, t] + gamma * carry
        returns[:, t] = carry
    return every.flat(returns)


def reinforce_plus_plus_baseline(
    rewards: torch.Tensor,
    group_index: torch.Tensor,
    mask: torch.Tensor,
    sample_index: torch.Tensor,
    *,
    rollout_index: torch.Tensor | None = None,
    kl: torch.Tensor | None = None,
    kl_coef: float = 0.0,
    centred: bool = True,
) -> torch.Tensor:
    """``A_t = r - mean(r of the group) - kl_coef kl_t`` (REINFORCE++-baseline, arXiv 2501.03262). To be whitened.

    centred: false leaves the mean out. Returns [N]. Raises like :func:`grpo`.
    """
    if centred:
        of_sample = grpo(rewards, group_index, rollout_index=rollout_index, std_normalization=False)
    else:
        of_sample = plain(rewards, rollout_index)
    return of_sample[sample_index] - kl_coef * _masked(kl, mask)


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    sample_index: torch.Tensor,
    *,
    kl: torch.Tensor | None = None,
    kl_coef: float = 0.0,
    gamma: float = 1.0,
    lambd: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalized advantage estimation (arXiv 1506.02438) on each sample's unmasked tokens alone.

    ``delta_t = r_t + gamma V_{t+1} - V_t`` (V is 0 behind the last one), ``A_t = delta_t + gamma lambd A_{t+1}``, return
    ``A + V``; ``r_t = -kl_coef kl_t``, and the sample's reward is added at its last unmasked token. A masked token gets 0
    and stands between nothing: it neither decays nor carries.

    values: [N]. Returns (advantages [N], returns [N]).
    """
    kept = Compressed(mask, sample_index, len(rewards))
    v = kept.rows(values.double())
    r = kept.add_to_last(kept.rows(-kl_coef * _masked(kl, mask)), rewards.double())
    advantages = torch.zeros_like(v)
    carry = torch.zeros(len(rewards), dtype=v.dtype, device=v.device)
    following = torch.zeros_like(carry)
    for t in reversed(range(v.shape[1])):
        # behind a sample's end r, v, carry and following are all 0
        carry = r[:, t] + gamma * following - v[:, t] + gamma * lambd * carry
        following = v[:, t]
        advantages[:, t] = carry
    return kept.flat(advantages), kept.flat(advantages + v)


def distil(advantages: torch.Tensor, reverse_kl: torch.Tensor, *, coef: float) -> torch.Tensor:
    """On-policy distillation (Miles' OPD): ``A_t - coef kl_t``, with the reverse KL to the teacher at the sampled token
    (``logprobs - teacher``) or over several (``opd.py``). All [N]."""
    return advantages - coef * reverse_kl


def whiten(advantages: torch.Tensor, mask: torch.Tensor, *, all_sum: AllSum = _alone) -> torch.Tensor:
    """``(A - mean) / sqrt(var + 1e-8)`` over the unmasked tokens of all ranks, variance with Bessel's correction.

    all_sum: adds a [3] tensor over the ranks. Returns [N], masked tokens 0. Raises ValueError if no token is unmasked
    anywhere.
    """
    kept = mask != 0
    a = torch.where(kept, advantages.double(), 0.0)
    count, total = all_sum(torch.stack([kept.double().sum(), a.sum(), a.new_zeros(())]))[:2]
    if float(count) == 0:
        raise ValueError("no token is unmasked: there is nothing to whiten")
    centred = torch.where(kept, a - total / count, 0.0)
    squares = all_sum(torch.stack([centred.square().sum(), a.new_zeros(()), a.new_zeros(())]))[0]
    variance = squares / (count - 1).clamp_min(1)
    return centred * torch.rsqrt(variance + WHITEN_EPS)


def _at_last_unmasked(rewards: torch.Tensor, mask: torch.Tensor, sample_index: torch.Tensor) -> torch.Tensor:
    """[N]: each sample's reward at its last unmasked token, 0 elsewhere."""
    kept = Compressed(mask, sample_index, len(rewards))
    empty = kept.rows(torch.zeros(len(mask), dtype=torch.float64, device=mask.device))
    return kept.flat(kept.add_to_last(empty, rewards.double()))


def _masked(kl: torch.Tensor | None, mask: torch.Tensor) -> torch.Tensor:
    if kl is None:
        return torch.zeros(len(mask), dtype=torch.float64, device=mask.device)
    return torch.where(mask != 0, kl.double(), 0.0)
