"""What the graded samples of one dataset amount to: pure functions, with Miles' names.

Promises: every sample counts, also one without a reward (as 0, and in ``none_reward_ratio``); the branches of one rollout
count once, with the mean of their rewards; a prompt with fewer than k rollouts says nothing about pass@k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

import msgspec


class EvalSample(msgspec.Struct, frozen=True, kw_only=True):
    """One graded response: a line of ``eval/NAME-VERSION.jsonl``.

    prompt_index: of the dataset's prompts. sample_index, rollout_index: of the prompt's samples, and which of its rollouts
    that belongs to. reward: None where grading failed, for the reason in ``error``. response_len: tokens of the policy.
    """

    prompt_index: int
    sample_index: int
    rollout_index: int
    prompt: str
    response: str
    label: str | None
    reward: float | None
    finish_reason: str
    response_len: int
    reward_parts: dict[str, float] = {}
    error: str = ""


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k samples is right, estimated from c right ones among n, without bias.

    1 - C(n - c, k) / C(n, k) = 1 - prod over i = n - c + 1 .. n of (1 - k / i): Chen et al. 2021 (arXiv:2107.03374), eq. 1.
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} from {c} right ones among {n}: there are no such samples")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def dataset_metrics(name: str, groups: Sequence[Sequence[EvalSample]]) -> dict[str, float]:
    """Metrics of the dataset ``name`` from the samples of each of its prompts; to be published under ``eval/``.

    Raises ValueError: there is no sample.
    """
    samples = [sample for group in groups for sample in group]
    if not samples:
        raise ValueError(f"{name}: no sample was made")
    rewards = [rollout_rewards(group) for group in groups]
    metrics = {
        name: fmean(reward for group in rewards for reward in group),
        f"{name}-truncated_ratio": fmean(sample.finish_reason == "length" for sample in samples),
        f"{name}-none_reward_ratio": fmean(sample.reward is None for sample in samples),
        f"{name}/response_len/mean": fmean(sample.response_len for sample in samples),
    }
    k = 1
    while of_use := [group for group in rewards if len(group) >= k]:
        estimates = [pass_at_k(len(group), sum(reward >= 1 for reward in group), k) for group in of_use]
        metrics[f"{name}-pass@{k}"] = fmean(estimates)
        k *= 2
    return metrics


def rollout_rewards(group: Sequence[EvalSample]) -> list[float]:
    """The reward of each rollout of one prompt: the mean over its branches; a sample without one counts 0."""
    rollouts: dict[int, list[float]] = {}
    for sample in group:
        rollouts.setdefault(sample.rollout_index, []).append(sample.reward or 0.0)
    return [fmean(branches) for branches in rollouts.values()]
