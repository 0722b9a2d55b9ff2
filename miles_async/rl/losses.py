"""Policy losses, token by token: plain functions on 1-D tensors with one entry for each response token.

Promises: gradients flow through ``logprobs`` only; values and gradients are finite for any finite log-probs, since
log-ratios are clamped at ``MAX_LOG_RATIO`` (as in Miles) before they are exponentiated.

Names: ``logprobs`` current policy (with gradient), ``old`` the PPO denominator, ``advantages`` without gradient; all [N]
float. ``mask`` [N] 0/1 and ``sample_index`` [N] int64 (from 0) where a whole sample is looked at.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from miles_async.rl.segments import masked_mean, most_segments, n_segments

MAX_LOG_RATIO = 20.0


class PolicyLoss(NamedTuple):
    """loss [N] with gradient; clipped [N] 0/1: the clip holds this token; ppo_kl [N] = old - logprobs, detached."""

    loss: torch.Tensor
    clipped: torch.Tensor
    ppo_kl: torch.Tensor


def log_ratio(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> torch.Tensor:
    """``logprobs - old``, 0 where that is no finite number. Gradient through ``logprobs``. [N]."""
    difference = logprobs - old_logprobs.detach()
    return torch.where(torch.isfinite(difference), difference, torch.zeros_like(difference))


def bounded_exp(difference: torch.Tensor) -> torch.Tensor:
    """``exp`` of a log-ratio that is clamped at ``MAX_LOG_RATIO``, so that it is finite. [N]."""
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def ppo_clip(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    eps_clip: float,
    eps_clip_high: float,
    eps_clip_c: float | None = None,
) -> PolicyLoss:
    """The clipped surrogate (PPO, arXiv 1707.06347, eq. 7; separate upper bound: DAPO, arXiv 2503.14476).

    ``ratio = exp(logprobs - old)``; ``loss = max(-ratio A, -clip(ratio, 1 - eps_clip, 1 + eps_clip_high) A)``. With
    ``eps_clip_c`` > 1, tokens with A < 0 get ``min(-eps_clip_c A, loss)`` (dual clip, arXiv 1912.09729).
    """
    difference = log_ratio(logprobs, old_logprobs)
    return _clip(bounded_exp(difference), difference, advantages, eps_clip, eps_clip_high, eps_clip_c)


def gspo(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    sample_index: torch.Tensor,
    *,
    eps_clip: float,
    eps_clip_high: float,
    eps_clip_c: float | None = None,
) -> PolicyLoss:
    """PPO's clip on the sample's ratio ``exp(mean over its unmasked tokens of logprobs - old)`` (GSPO, arXiv 2507.18071).

    The mean's gradient goes to every token of the sample (as in Miles; no stop-gradient). It needs a far smaller eps_clip
    than a token's ratio does: 3e-4 and 4e-4 in the paper.
    """
    difference = log_ratio(logprobs, old_logprobs)
    per_sample = masked_mean(difference, mask, sample_index, most_segments(sample_index))
    spread = per_sample[sample_index]
    return _clip(bounded_exp(spread), spread, advantages, eps_clip, eps_clip_high, eps_clip_c)


def _clip(
    ratio: torch.Tensor,
    difference: torch.Tensor,
    advantages: torch.Tensor,
    eps_clip: float,
    eps_clip_high: float,
    eps_clip_c: float | None,
) -> PolicyLoss:
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1.0 - eps_clip, 1.0 + eps_clip_high) * advantages
    loss = torch.maximum(unclipped, clipped)
    if eps_clip_c is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -eps_clip_c * advantages), loss)
    return PolicyLoss(loss, (clipped > unclipped).to(ratio.dtype), -difference.detach())


def cispo(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    eps_clip: float,
    eps_clip_high: float,
) -> PolicyLoss:
    """``-sg(clip(ratio, 1 - eps_clip, 1 + eps_clip_high)) A logprobs`` (CISPO, MiniMax-M1, arXiv 2506.13585).

    No token loses its gradient; the paper has no lower bound, which is ``eps_clip`` = 1.
    """
    difference = log_ratio(logprobs, old_logprobs)
    ratio = bounded_exp(difference).detach()
    weight = ratio.clamp(1.0 - eps_clip, 1.0 + eps_clip_high)
    return PolicyLoss(-weight * advantages * logprobs, (weight != ratio).to(ratio.dtype), -difference.detach())


def truncated_reinforce(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, *, eps_clip_high: float
) -> PolicyLoss:
    """``-sg(min(ratio, 1 + eps_clip_high)) A logprobs``: REINFORCE with truncated importance sampling (PipelineRL)."""
    return cispo(logprobs, old_logprobs, advantages, eps_clip=1.0, eps_clip_high=eps_clip_high)


def dppo(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    tv_threshold: float = 0.2,
    kl_coef: float = 1e-3,
) -> PolicyLoss:
    """``-A ratio`` where the token's probability may still move, plus ``kl_coef (log ratio)^2`` (DPPO with the binary
    total-variation mask, prime-rl; the square is the KL term of Kimi k1.5, arXiv 2501.12599).

    Masked: A > 0 and ``p - p_old > tv_threshold``, or A < 0 and ``p - p_old < -tv_threshold``.
    """
    difference = log_ratio(logprobs, old_logprobs)
    clamped = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    moved = logprobs.detach().exp() - old_logprobs.detach().exp()
    held = ((advantages > 0) & (moved > tv_threshold)) | ((advantages < 0) & (moved < -tv_threshold))
    surrogate = torch.where(held, torch.zeros_like(clamped), -clamped.exp() * advantages)
    loss = surrogate + kl_coef * clamped.square()
    return PolicyLoss(loss, held.to(loss.dtype), -difference.detach())


def sft(logprobs: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of each token. [N]."""
    return -logprobs


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, *, value_clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``max((V - R)^2, (clip(V, V_old - value_clip, V_old + value_clip) - R)^2)``, without the usual 1/2 (as in Miles).

    All [N]; gradient through ``values``. Returns (loss [N], clipped [N] 0/1: V has left the interval).
    """
    held = old_values + (values - old_values).clamp(-value_clip, value_clip)
    loss = torch.maximum((values - returns).square(), (held - returns).square())
    return loss, ((values - old_values).abs() > value_clip).to(loss.dtype)


def ess_ratio(
    log_weights: torch.Tensor, mask: torch.Tensor, sample_index: torch.Tensor, n_samples: int | None = None
) -> torch.Tensor:
    """Effective sample size over size, ``(sum w)^2 / (n sum w^2)`` of each sample's unmasked tokens, ``w = exp(log_weights)``.

    Returns [n_samples] (None: as many as there are) in [1 / n, 1]; 0 for a sample without an unmasked token, as in Miles.
    """
    count = n_segments(sample_index) if n_samples is None else n_samples
    kept = (mask != 0).to(log_weights.dtype)
    w = torch.where(mask != 0, bounded_exp(log_weights), torch.zeros_like(log_weights)).double()
    n = torch.zeros(count, dtype=w.dtype, device=w.device).index_add(0, sample_index, kept.double())
    total = torch.zeros_like(n).index_add(0, sample_index, w)
    squares = torch.zeros_like(n).index_add(0, sample_index, w.square())
    return torch.where(n > 0, total.square() / (n * squares).clamp_min(1e-300), torch.zeros_like(n))
