"""What must hold at the first step of a synchronous run: the policy that is trained is the one that is measured.

Promises: where a forward pass without gradient and the training pass differ (dropout, a temperature left out, other
packing), or the clip already holds tokens, the run ends before its first update, in one line. Sources: Miles' CI checks
the same two quantities.
"""

from __future__ import annotations

import torch

from miles_async.config.schema import Algorithm
from miles_async.rl.losses import log_ratio
from miles_async.rl.reduce import weighted_sum

MAX_PPO_KL = 1e-6


class NotOnPolicyError(ValueError):
    """The two passes over the first batch differ. Nothing was changed; a restart would not help."""


def drift(logprobs: torch.Tensor, before: torch.Tensor, weights: torch.Tensor, algorithm: Algorithm) -> torch.Tensor:
    """A micro-batch's share of (ppo_kl, clip fraction) between the training pass and the one before it, [2] float64.

    logprobs, before: [n] float32. weights: [n] float64, in the step's mean.
    """
    change = log_ratio(logprobs, before).double()
    ratio = change.exp()
    clipped = ((ratio < 1 - algorithm.eps_clip) | (ratio > 1 + algorithm.upper_clip)).double()
    return torch.stack([weighted_sum(-change, weights), weighted_sum(clipped, weights)])


def check(totals: torch.Tensor, step: int) -> None:
    """totals: [2], :func:`drift` summed over micro-batches and ranks. Raises NotOnPolicyError."""
    ppo_kl, clipped = totals.tolist()
    if abs(ppo_kl) >= MAX_PPO_KL or clipped > 0:
        raise NotOnPolicyError(
            f"step {step} of a synchronous run: ppo_kl = {ppo_kl:.2e} (allowed: below {MAX_PPO_KL:g}) and clip fraction "
            f"{clipped:.2e} (allowed: 0) between the training pass and a pass before it: the model is not deterministic "
            "(dropout?), or the two passes do not compute the same"
        )
