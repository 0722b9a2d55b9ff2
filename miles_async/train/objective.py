"""The loss the configuration asks for, put together from the functions of ``miles_async.rl``.

Promises: pure; the value for a micro-batch is its share of the whole step's mean, so shares add up over micro-batches and
ranks, for the loss and for every metric.
"""

from __future__ import annotations

import torch

from miles_async.config import Algorithm
from miles_async.rl import losses
from miles_async.rl.advantages import grpo_advantages
from miles_async.train.intake import Admitted

METRICS = (
    "loss",
    "pg_loss",
    "pg_clipfrac",
    "ppo_kl",
    "entropy_loss",
    "train_rollout_logprob_abs_diff",
    "train_rollout_kl",
    "tis",
    "tis_clipfrac",
)


def token_terms(admitted: Admitted, algorithm: Algorithm) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantage [N] float32 and weight in the step's mean [N] float64 of every response token, on the CPU."""
    batch = admitted.batch
    sample_index = torch.from_numpy(batch.sample_index)
    advantages = grpo_advantages(
        torch.from_numpy(batch.rewards),
        torch.from_numpy(batch.group_index),
        std_normalization=algorithm.grpo_std_normalization,
    )
    weights = losses.token_weights(
        torch.from_numpy(batch.sequences.mask),
        sample_index,
        aggregation=algorithm.loss_aggregation,
        total_tokens=admitted.total_tokens,
        total_samples=admitted.total_samples,
    )
    return advantages[sample_index].float(), weights


def policy_loss(
    algorithm: Algorithm,
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    behaviour: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The share of n tokens in the step's loss (scalar float64, with gradient) and in METRICS ([9] float64, without).

    logprobs, entropy, behaviour, advantages: [n] float32. weights: [n] float64, see ``losses.token_weights``.
    """
    current = logprobs.detach()
    # There is one optimizer step for each batch, so a separate pass before it would recompute exactly `current`.
    old = behaviour if algorithm.old_log_probs == "rollout" else current
    pg_loss, clipped, ppo_kl = losses.ppo_clip_loss(
        logprobs,
        old,
        advantages,
        eps_clip=algorithm.eps_clip,
        eps_clip_high=algorithm.eps_clip if algorithm.eps_clip_high is None else algorithm.eps_clip_high,
    )
    tis, tis_clipped = torch.ones_like(current), torch.zeros_like(current)
    if algorithm.use_tis:
        correction, tis, tis_clipped = losses.truncated_importance_weights(
            old, behaviour, low=algorithm.tis_clip_low, high=algorithm.tis_clip
        )
        pg_loss = pg_loss * correction
    loss = losses.weighted_sum(pg_loss, weights)
    if algorithm.entropy_coef > 0:
        loss = loss - algorithm.entropy_coef * losses.weighted_sum(entropy, weights)
    with torch.no_grad():
        rest = (
            pg_loss,
            clipped,
            ppo_kl,
            entropy,
            (current - behaviour).abs(),
            losses.k3_kl(current, behaviour),
            tis,
            tis_clipped,
        )
        sums = [loss.detach(), *(losses.weighted_sum(value, weights) for value in rest)]
    return loss, torch.stack(sums)


def named(sums: torch.Tensor, algorithm: Algorithm) -> dict[str, float]:
    """The METRICS by name; those of a correction that is off are left out."""
    values = dict(zip(METRICS, sums.tolist(), strict=True))
    return {name: value for name, value in values.items() if algorithm.use_tis or not name.startswith("tis")}
