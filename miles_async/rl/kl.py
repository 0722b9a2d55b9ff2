"""Estimators of KL(policy || base) at tokens that the policy sampled (http://joschu.net/blog/kl-approx.html).

Promises: value and gradient are finite whatever the log-probs differ by, as long as they are finite, and so is the sum of
the gradients' squares in float32, which a gradient's norm is; gradients flow through ``logprobs``.
"""

from __future__ import annotations

from typing import Literal

import torch

KlType = Literal["k1", "k2", "k3", "low_var_kl"]

# of low_var_kl, as in Miles, and of k3: exp of it, times an importance ratio of at most as much, has a square in float32
MAX_LOG_RATIO = 20.0
MAX_LOW_VAR_KL = 10.0


def approx_kl(
    logprobs: torch.Tensor,
    base_logprobs: torch.Tensor,
    kind: KlType,
    *,
    importance_ratio: torch.Tensor | None = None,
) -> torch.Tensor:
    """KL of each token, with ``d = logprobs - base``.

    "k1": ``d``. "k2": ``d^2 / 2``. "k3": ``exp(-d) - 1 + d``, held where ``-d`` exceeds 20. "low_var_kl": k3 with ``-d``
    clamped to ±20 and the result to ±10 (Miles, verl). importance_ratio: ``policy / behaviour``, a factor that makes the
    estimate unbiased where tokens were sampled by another policy (DeepSeek-V3.2, arXiv 2512.02556), applied before the last
    clamp.

    All [N] float. Returns [N]. Raises ValueError for another kind.
    """
    d = logprobs - base_logprobs
    if kind == "k1":
        kl = d
    elif kind == "k2":
        kl = d.square() / 2
    elif kind in ("k3", "low_var_kl"):
        inverse = (-d).clamp_max(MAX_LOG_RATIO)
        if kind == "low_var_kl":
            inverse = inverse.clamp_min(-MAX_LOG_RATIO)
        kl = torch.expm1(inverse) - inverse
    else:
        raise ValueError(f'kl_loss_type = "{kind}": one of "k1", "k2", "k3", "low_var_kl"')
    if importance_ratio is not None:
        kl = kl * importance_ratio
    return kl.clamp(-MAX_LOW_VAR_KL, MAX_LOW_VAR_KL) if kind == "low_var_kl" else kl


def reverse_k3(logprobs: torch.Tensor, behaviour_logprobs: torch.Tensor) -> torch.Tensor:
    """Estimate of KL(behaviour || policy) at tokens drawn from the behaviour policy: ``exp(d) - 1 - d`` with
    ``d = logprobs - behaviour``, at most 10 (Miles' low_var_kl). [N] float, never negative."""
    d = (logprobs - behaviour_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (torch.expm1(d) - d).clamp_max(MAX_LOW_VAR_KL)
