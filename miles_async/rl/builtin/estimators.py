"""The built-in advantage estimators, as ``algorithm.advantage_estimator`` names them.

Each is ``(terms, algorithm) -> [N] float64``, like one of the user's own; the mathematics is in ``advantages.py``.
"""

from __future__ import annotations

import torch

from miles_async.config.schema import Algorithm
from miles_async.rl import advantages
from miles_async.rl.kl import approx_kl
from miles_async.rl.terms import StepTerms, with_critic


def grpo(terms: StepTerms, algorithm: Algorithm) -> torch.Tensor:
    """The group-relative reward, the same for each token of a sample."""
    if algorithm.disable_rewards_normalization:
        return advantages.plain(terms.rewards, terms.rollout_index)[terms.sample_index]
    per_sample = advantages.grpo(
        terms.rewards,
        terms.group_index,
        rollout_index=terms.rollout_index,
        std_normalization=algorithm.grpo_std_normalization,
    )
    return per_sample[terms.sample_index]


def dr_grpo(terms: StepTerms, algorithm: Algorithm) -> torch.Tensor:
    """GRPO without the division by the deviation; its paper goes with ``loss_aggregation = "constant"``."""
    per_sample = advantages.grpo(
        terms.rewards, terms.group_index, rollout_index=terms.rollout_index, std_normalization=False
    )
    return per_sample[terms.sample_index]


def rloo(terms: StepTerms, algorithm: Algorithm) -> torch.Tensor:
    """The reward less the mean of the group's other ones."""
    per_sample = advantages.rloo(terms.rewards, terms.group_index, rollout_index=terms.rollout_index)
    return per_sample[terms.sample_index]


def reinforce_plus_plus(terms: StepTerms, algorithm: Algorithm) -> torch.Tensor:
    """Discounted returns of each token."""
    return advantages.reinforce_plus_plus(
        terms.rewards,
        terms.mask,
        terms.sample_index,
        kl=reward_kl(terms, algorithm),
        kl_coef=algorithm.kl_coef,
        gamma=algorithm.gamma,
    )


def reinforce_plus_plus_baseline(terms: StepTerms, algorithm: Algorithm) -> torch.Tensor:
    """The reward less its group's mean."""
    return advantages.reinforce_plus_plus_baseline(
        terms.rewards,
        terms.group_index,
        terms.mask,
        terms.sample_index,
        rollout_index=terms.rollout_index,
        kl=reward_kl(terms, algorithm),
        kl_coef=algorithm.kl_coef,
        centred=not algorithm.disable_rewards_normalization,
    )


@with_critic
def ppo(terms: StepTerms, algorithm: Algorithm) -> torch.Tensor:
    """Generalized advantage estimation on the critic's values."""
    assert terms.values is not None
    found, _ = advantages.gae(
        terms.rewards,
        terms.values,
        terms.mask,
        terms.sample_index,
        kl=reward_kl(terms, algorithm),
        kl_coef=algorithm.kl_coef,
        gamma=algorithm.gamma,
        lambd=algorithm.lambd,
    )
    return found


def reward_kl(terms: StepTerms, algorithm: Algorithm) -> torch.Tensor | None:
    """KL of the denominator to the reference, [N]; None where the reward has no KL."""
    if algorithm.kl_coef == 0:
        return None
    assert terms.old is not None and terms.reference is not None
    return approx_kl(terms.old.double(), terms.reference.double(), algorithm.kl_loss_type)
