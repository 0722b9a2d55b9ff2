"""The objective once more, slowly: loops over samples and tokens in float64, written from the papers' formulas.

Independent of ``miles_async.rl``: nothing here imports it. Only what the configuration's names mean is shared. Log-ratios
are taken to be small, so no clamp at ±20 appears; that clamp has tests of its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import torch
from rl_step import VERSION, Row, Step

from miles_async.config.schema import Algorithm, RunConfig

PerToken = list[list[float]]  # for each row, for each token


def old(row: Row, mode: str) -> list[float]:
    """The denominator."""
    if mode == "rollout":
        return list(row.behaviour)
    if mode == "recompute":
        return list(row.before)
    lags = [VERSION - version for version in row.versions]
    shares = [(lag - 1) / lag if lag >= 1 else 0.0 for lag in lags]
    return [b + a * (p - b) for a, b, p in zip(shares, row.behaviour, row.before, strict=True)]


def advantages(rows: Sequence[Row], algorithm: Algorithm) -> list[float]:
    """Of each row, by GRPO (arXiv 2402.03300): a rollout counts once."""
    found = []
    for row in rows:
        rewards = list({other.rollout: other.reward for other in rows if other.group == row.group}.values())
        deviation = statistics.stdev(rewards) if len(rewards) > 1 and algorithm.grpo_std_normalization else 0.0
        found.append((row.reward - statistics.fmean(rewards)) / (deviation + 1e-6 if deviation > 0 else 1.0))
    return found


def token_weights(rows: Sequence[Row], config: RunConfig) -> PerToken:
    """Of each token in the policy loss."""
    return _weights(rows, config, config.algorithm.loss_aggregation)


def mean_weights(rows: Sequence[Row], config: RunConfig) -> PerToken:
    """Of each token in everything else: a reducer is the policy loss's alone."""
    return _weights(rows, config, "token" if config.algorithm.loss_aggregation == "token" else "sample")


def step_mean(rows: Sequence[Row], config: RunConfig, value: Callable[[Row, int], float]) -> float:
    """The step's mean of ``value(row, t)``."""
    weights = mean_weights(rows, config)
    return sum(w * value(row, t) for row, ws in zip(rows, weights, strict=True) for t, w in enumerate(ws) if w)


def _weights(rows: Sequence[Row], config: RunConfig, kind: str) -> PerToken:
    rollouts: dict[tuple[int, int], int] = {}
    for row in rows:
        rollouts[row.group, row.rollout] = rollouts.get((row.group, row.rollout), 0) + sum(row.mask)
    tokens = sum(max(sum(row.mask), 1) for row in rows)

    def weight(row: Row) -> float:
        if kind == "token":
            return 1 / tokens
        if kind == "sample":
            return 1 / (max(rollouts[row.group, row.rollout], 1) * len(rollouts))
        return 1 / (config.rollout.rollout_max_response_len * len(rollouts))

    return [[weight(row) if kept else 0.0 for kept in row.mask] for row in rows]


# policy losses: of one row, for every token; the masked ones' entries mean nothing


def policy_losses(
    name: str, row: Row, logprobs: torch.Tensor, denominator: list[float], advantage: Sequence[float], cfg: Algorithm
) -> list:
    low, high = 1 - cfg.eps_clip, 1 + (cfg.eps_clip if cfg.eps_clip_high is None else cfg.eps_clip_high)
    changes = [lp - o for lp, o in zip(logprobs, denominator, strict=True)]
    if name == "gspo":
        kept = [change for change, m in zip(changes, row.mask, strict=True) if m]
        mean = sum(kept) / len(kept) if kept else changes[0] * 0
        changes = [mean] * len(changes)
    losses = []
    for change, lp, o, a in zip(changes, logprobs, denominator, advantage, strict=True):
        ratio = torch.exp(change)
        if name in ("ppo_clip", "gspo"):
            clipped = min(max(ratio, torch.tensor(low)), torch.tensor(high))
            surrogate = torch.min(ratio * a, clipped * a)
            if cfg.eps_clip_c is not None and a < 0:
                surrogate = torch.max(surrogate, torch.tensor(cfg.eps_clip_c * a))
            losses.append(-surrogate)
        elif name in ("cispo", "truncated_reinforce"):
            floor = low if name == "cispo" else 0.0
            losses.append(-min(max(float(ratio.detach()), floor), high) * a * lp)
        else:
            moved = math.exp(float(lp.detach())) - math.exp(o)
            limit = cfg.dppo_tv_threshold
            held = (a > 0 and moved > limit) or (a < 0 and moved < -limit)
            losses.append((0.0 if held else -a * ratio) + cfg.dppo_kl_coef * change**2)
    return losses


# corrections: weights of all rows' tokens


def correction_weights(name: str, rows: Sequence[Row], mode: str, advantage: list[float], cfg: Algorithm) -> PerToken:
    logs = [[o - b for o, b in zip(old(row, mode), row.behaviour, strict=True)] for row in rows]
    if name in ("uncorrected", "behaviour"):
        return [[1.0] * len(row) for row in rows]
    if name == "mis":
        return _mis(rows, logs, cfg)
    if name == "m2po":
        return _m2po(rows, logs, cfg.m2po_threshold)
    found = []
    for row, log, a in zip(rows, logs, advantage, strict=True):
        if name == "tis":
            found.append([min(max(math.exp(x), cfg.tis_clip_low), cfg.tis_clip) for x in log])
        elif name == "icepop":
            found.append([math.exp(x) if cfg.tis_clip_low <= math.exp(x) <= cfg.tis_clip else 0.0 for x in log])
        elif name == "span_tis":
            means = [
                _mean([y for y, v, m in zip(log, row.versions, row.mask, strict=True) if m and v == version])
                for version in row.versions
            ]
            found.append([min(max(math.exp(x), cfg.tis_clip_low), cfg.tis_clip) for x in means])
        elif name == "rs":
            lower = 1 / cfg.rs_upper if cfg.rs_lower is None else cfg.rs_lower
            found.append([float(lower <= math.exp(x) <= cfg.rs_upper) for x in _level(row, log, cfg.rs_level)])
        elif name == "veto":
            ratios = [math.exp(x) for x, m in zip(log, row.mask, strict=True) if m]
            found.append([float(all(ratio >= cfg.rs_veto_threshold for ratio in ratios))] * len(row))
        else:
            assert name == "opsm"
            apart = [b - p for b, p, m in zip(row.behaviour, row.logprobs, row.mask, strict=True) if m]
            found.append([float(not (a < 0 and _mean(apart) > cfg.opsm_delta))] * len(row))
    return found


def _mis(rows: Sequence[Row], logs: PerToken, cfg: Algorithm) -> PerToken:
    lower, upper = 1 / cfg.mis_upper if cfg.mis_lower is None else cfg.mis_lower, cfg.mis_upper
    bound: dict[str, Callable[[float], float]] = {
        "truncate": lambda r: min(r, upper),
        "clip": lambda r: min(max(r, lower), upper),
        "mask": lambda r: r,
    }
    ratios = [[math.exp(x) for x in _level(row, log, cfg.mis_level)] for row, log in zip(rows, logs, strict=True)]
    weights = [[bound[cfg.mis_mode](r) for r in rs] for rs in ratios]
    if cfg.mis_batch_normalize:
        kept = [[w for w, m in zip(ws, row.mask, strict=True) if m] for row, ws in zip(rows, weights, strict=True)]
        # the mean counts what "mask" rejects, and an empty sample as 0
        mean = _mean([w for ws in kept for w in ws] if cfg.mis_level == "token" else [_mean(ws) for ws in kept])
        weights = [[w / mean for w in ws] for ws in weights]
    if cfg.mis_mode == "mask":
        weights = [
            [w if lower <= r <= upper else 0.0 for w, r in zip(ws, rs, strict=True)]
            for ws, rs in zip(weights, ratios, strict=True)
        ]
    return weights


def _m2po(rows: Sequence[Row], logs: PerToken, threshold: float) -> PerToken:
    staying = sorted(
        x * x for row, log in zip(rows, logs, strict=True) for x, m in zip(log, row.mask, strict=True) if m
    )
    while staying and _mean(staying) > threshold:
        worst = staying[-1]
        staying = [x for x in staying if x < worst]
    return [[float(bool(staying) and x * x <= staying[-1]) for x in log] for log in logs]


def _level(row: Row, log: list[float], level: str) -> list[float]:
    if level == "token":
        return log
    kept = [x for x, m in zip(log, row.mask, strict=True) if m]
    return [sum(kept) if level == "sequence" else _mean(kept)] * len(log)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


class Reference:
    """The steps of one set of rows, one policy loss and one denominator, whatever corrects and averages them. per_token:
    advantages; None: GRPO's."""

    def __init__(
        self, rows: Sequence[Row], policy_loss: str, mode: str, cfg: Algorithm, per_token: PerToken | None = None
    ) -> None:
        self.rows, self.mode, self.advantage = rows, mode, advantages(rows, cfg)
        self.logprobs = [torch.tensor(row.logprobs, dtype=torch.float64, requires_grad=True) for row in rows]
        if per_token is None:
            per_token = [[a] * len(row) for row, a in zip(rows, self.advantage, strict=True)]
        self.losses = torch.stack(
            [
                torch.as_tensor(loss, dtype=torch.float64)
                for row, lp, a in zip(rows, self.logprobs, per_token, strict=True)
                for loss in policy_losses(policy_loss, row, lp, old(row, mode), a, cfg)
            ]
        )
        self._weights: dict[str, PerToken] = {}

    def step(self, config: RunConfig, corrections: Sequence[str]) -> Step:
        """The policy loss and its gradient; no metrics."""
        factors = [weight for weights in token_weights(self.rows, config) for weight in weights]
        for name in corrections:
            if name not in self._weights:
                self._weights[name] = correction_weights(name, self.rows, self.mode, self.advantage, config.algorithm)
            flat = [weight for weights in self._weights[name] for weight in weights]
            factors = [factor * weight for factor, weight in zip(factors, flat, strict=True)]
        factor = torch.tensor(factors, dtype=torch.float64)
        gradients = torch.autograd.grad(self.losses, self.logprobs, grad_outputs=factor, retain_graph=True)
        return Step(float((self.losses * factor).sum().detach()), [g.tolist() for g in gradients], {})
