"""The built-in policy losses, as ``algorithm.policy_loss`` names them.

Each is ``(terms, algorithm) -> (loss [n] with gradient, metrics)``, like one of the user's own; the mathematics is in
``losses.py``.
"""

from __future__ import annotations

import torch

from miles_async.config.schema import Algorithm
from miles_async.rl import losses
from miles_async.rl.terms import LossTerms, Metrics

Result = tuple[torch.Tensor, Metrics]


def ppo_clip(terms: LossTerms, algorithm: Algorithm) -> Result:
    """PPO with a clip for each token."""
    return _reported(
        losses.ppo_clip(
            terms.logprobs,
            terms.old,
            terms.advantages,
            eps_clip=algorithm.eps_clip,
            eps_clip_high=algorithm.upper_clip,
            eps_clip_c=algorithm.eps_clip_c,
        )
    )


def gspo(terms: LossTerms, algorithm: Algorithm) -> Result:
    """PPO with a clip for the ratio of the whole sample."""
    return _reported(
        losses.gspo(
            terms.logprobs,
            terms.old,
            terms.advantages,
            terms.mask,
            terms.sample_index,
            eps_clip=algorithm.eps_clip,
            eps_clip_high=algorithm.upper_clip,
            eps_clip_c=algorithm.eps_clip_c,
        )
    )


def cispo(terms: LossTerms, algorithm: Algorithm) -> Result:
    """Clipped importance weights, no clipped gradients."""
    return _reported(
        losses.cispo(
            terms.logprobs, terms.old, terms.advantages, eps_clip=algorithm.eps_clip, eps_clip_high=algorithm.upper_clip
        )
    )


def truncated_reinforce(terms: LossTerms, algorithm: Algorithm) -> Result:
    """REINFORCE with truncated importance weights."""
    high = algorithm.upper_clip
    return _reported(losses.truncated_reinforce(terms.logprobs, terms.old, terms.advantages, eps_clip_high=high))


def dppo(terms: LossTerms, algorithm: Algorithm) -> Result:
    """The surrogate where the token's probability may still move."""
    return _reported(
        losses.dppo(
            terms.logprobs,
            terms.old,
            terms.advantages,
            tv_threshold=algorithm.dppo_tv_threshold,
            kl_coef=algorithm.dppo_kl_coef,
        )
    )


def _reported(found: losses.PolicyLoss) -> Result:
    return found.loss, {"pg_clipfrac": found.clipped, "ppo_kl": found.ppo_kl}
