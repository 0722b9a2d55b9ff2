"""The advantages that a configuration names, once more, slowly: loops over samples and tokens in float64.

As in ``rl_reference.py`` nothing of ``miles_async.rl`` is imported.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from rl_reference import PerToken, old
from rl_step import Row

from miles_async.config.schema import Algorithm, RunConfig, old_log_probs

ESTIMATORS = ("grpo", "gspo", "dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "ppo")
WITH_KL = ("reinforce_plus_plus", "reinforce_plus_plus_baseline", "ppo")
KL: dict[str, Callable[[float], float]] = {
    "k1": lambda d: d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: math.exp(-d) - 1 + d,
    "low_var_kl": lambda d: min(math.exp(-d) - 1 + d, 10.0),
}


def raw(cfg: Algorithm, rows: Sequence[Row], mode: str) -> PerToken:
    """What the estimator gives before distillation and whitening."""
    result = []
    for row in rows:
        group = {other.rollout: other.reward for other in rows if other.group == row.group}
        rewards, n = list(group.values()), len(group)
        centred = row.reward - statistics.fmean(rewards)
        kl = [
            cfg.kl_coef * KL[cfg.kl_loss_type](o - r) if m else 0.0
            for o, r, m in zip(old(row, mode), row.reference, row.mask, strict=True)
        ]
        kept = [t for t in range(len(row)) if row.mask[t]]
        name = cfg.advantage_estimator
        if name in ("grpo", "gspo"):
            deviation = statistics.stdev(rewards) if n > 1 and cfg.grpo_std_normalization else 0.0
            per_token = [centred / (deviation + 1e-6) if deviation else centred] * len(row)
        elif name == "dr_grpo":
            per_token = [centred] * len(row)
        elif name == "rloo":
            others = [reward for rollout, reward in group.items() if rollout != row.rollout]
            per_token = [row.reward - statistics.fmean(others) if others else 0.0] * len(row)
        elif name == "reinforce_plus_plus_baseline":
            per_token = [centred - k for k in kl]
        elif name == "reinforce_plus_plus":
            gains = [(row.reward if kept and t == kept[-1] else 0.0) - k for t, k in enumerate(kl)]
            per_token = [sum(cfg.gamma ** (u - t) * gains[u] for u in range(t, len(row))) for t in range(len(row))]
        else:
            per_token, carry, after = [0.0] * len(row), 0.0, 0.0
            for t in reversed(kept):
                gain = (row.reward if t == kept[-1] else 0.0) - kl[t]
                carry = gain + cfg.gamma * after - row.values[t] + cfg.gamma * cfg.lambd * carry
                per_token[t], after = carry, row.values[t]
        result.append(per_token)
    return result


def token_advantages(cfg: RunConfig, rows: Sequence[Row]) -> PerToken:
    """Of every token, 0 where it is masked: distilled and whitened where the configuration says so."""
    algorithm, mode = cfg.algorithm, old_log_probs(cfg.algorithm)
    result = raw(algorithm, rows, mode)
    if algorithm.use_opd:
        result = [
            [
                a - algorithm.opd_kl_coef * (o - t)
                for a, o, t in zip(per_token, old(row, mode), row.teacher, strict=True)
            ]
            for row, per_token in zip(rows, result, strict=True)
        ]
    result = [[a if m else 0.0 for a, m in zip(x, row.mask, strict=True)] for x, row in zip(result, rows, strict=True)]
    if algorithm.normalize_advantages or algorithm.advantage_estimator.startswith("reinforce"):
        kept = [a for x, row in zip(result, rows, strict=True) for a, m in zip(x, row.mask, strict=True) if m]
        mean, scale = statistics.fmean(kept), 1 / math.sqrt(statistics.variance(kept) + 1e-8)
        result = [
            [(a - mean) * scale if m else 0.0 for a, m in zip(x, row.mask, strict=True)]
            for x, row in zip(result, rows, strict=True)
        ]
    return result
