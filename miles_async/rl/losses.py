"""The policy loss and its off-policy correction, token by token, and how tokens are averaged.

Promises: plain functions on 1-D tensors with one entry for each response token; masked tokens contribute exactly zero
to every mean, whatever their log-probs hold; a mean does not depend on the split into micro-batches or ranks, because
the weights of :func:`token_weights` are normalised by the whole step.

Names: ``logprobs`` current policy (with gradient), ``old`` the PPO denominator, ``behaviour`` what the engine reported.
"""

from __future__ import annotations

from typing import Literal

import torch

# Miles clamps log-ratios at this magnitude, so that exp() of a broken token stays finite.
MAX_LOG_RATIO = 20.0


def ppo_clip_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    eps_clip: float,
    eps_clip_high: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The clipped surrogate (PPO, arXiv 1707.06347, eq. 7; separate upper bound: DAPO, arXiv 2503.14476).

    ``ratio = exp(logprobs - old)``; ``loss = max(-ratio A, -clip(ratio, 1 - eps_clip, 1 + eps_clip_high) A)``.

    All arguments [N] float. Gradient flows through ``logprobs`` only.
    Returns (loss [N], clipped [N] 0/1: the clipped term is the larger one, ppo_kl [N] = old - logprobs, detached).
    """
    ppo_kl = (old_logprobs.detach() - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = torch.exp(-ppo_kl)
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1.0 - eps_clip, 1.0 + eps_clip_high) * advantages
    return torch.maximum(unclipped, clipped), (clipped > unclipped).to(ratio.dtype), ppo_kl.detach()


def truncated_importance_weights(
    old_logprobs: torch.Tensor, behaviour_logprobs: torch.Tensor, *, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token-level truncated importance sampling: ``clamp(exp(old - behaviour), low, high)``, without gradient.

    It multiplies the policy loss where ``old`` is the learner's own recomputation, so that the mismatch between
    learner and engine, and the lag, are corrected with bounded variance.

    Arguments [N] float. Returns (weights [N], ratio before truncation [N], truncated [N] 0/1).
    """
    log_ratio = (old_logprobs - behaviour_logprobs).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    weights = ratio.clamp(low, high)
    return weights, ratio, (weights != ratio).to(ratio.dtype)


def k3_kl(logprobs: torch.Tensor, behaviour_logprobs: torch.Tensor) -> torch.Tensor:
    """Estimate of KL(behaviour || policy) at tokens drawn from the behaviour policy: ``exp(d) - 1 - d`` with
    ``d = logprobs - behaviour`` (k3 of http://joschu.net/blog/kl-approx.html). [N] float, never negative."""
    d = (logprobs - behaviour_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(d) - d


def token_weights(
    loss_mask: torch.Tensor,
    sample_index: torch.Tensor,
    *,
    aggregation: Literal["token", "sample"],
    total_tokens: float,
    total_samples: float,
) -> torch.Tensor:
    """The weight of each token in a mean over the whole step; the weights of all ranks together sum to 1.

    "token": ``mask / total_tokens`` (mean over tokens, DAPO). "sample": ``mask / (tokens of its sample * total_samples)``
    (mean of per-sample means, GRPO; a sample whose tokens are all masked counts as a zero).

    loss_mask: [N] 0/1. sample_index: [N] int64, from 0; all tokens of a sample must be in the call.
    total_tokens, total_samples: masked-in tokens and samples of the step, all ranks. Returns [N] float64.
    """
    mask = loss_mask.double()
    if aggregation == "token":
        return mask / max(total_tokens, 1.0)
    if not mask.numel():
        return mask
    per_sample = torch.zeros(int(sample_index.max()) + 1, dtype=torch.float64, device=mask.device)
    per_sample.index_add_(0, sample_index, mask)
    return mask / (per_sample.clamp_min(1.0)[sample_index] * max(total_samples, 1.0))


def weighted_sum(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """``sum(values * weights)`` where tokens of weight zero count as zero even if their value is not finite. Scalar."""
    return (values.masked_fill(weights == 0, 0.0) * weights).sum()
