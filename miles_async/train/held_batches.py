"""What a step of several batches reports, from what each of them did. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

SUMS = ("n_tokens", "n_samples", "zero_std_groups", "empty_steps", "overrun_tokens", "overrun_samples")
GREATEST, LEAST = ("max_token_lag", "max_overrun", "reward_max"), ("reward_min",)
OF_THE_STEP = ("grad_norm", "lr", "optimizer_steps", "skipped_steps")  # the last one's, which changed the weights
BATCHES = "batches"


def of_all_parts(reported: Sequence[dict[str, float]]) -> dict[str, float]:
    """Counts are added up, means are over the samples of all batches; with how many there are, where it is more than one."""
    if len(reported) == 1:
        return reported[0]
    last = reported[-1]
    found = {
        name: _together(name, [part for part in reported if name in part])
        for name in dict.fromkeys(n for p in reported for n in p)
    }
    of_the_step = {name: value for name, value in last.items() if name.endswith(OF_THE_STEP)}
    return found | of_the_step | {BATCHES: float(len(reported))}


def _together(name: str, parts: Sequence[dict[str, float]]) -> float:
    values = [part[name] for part in parts]
    if name in SUMS:
        return math.fsum(values)
    if name in GREATEST or name in LEAST:
        return max(values) if name in GREATEST else min(values)
    weights = [part.get("n_samples", 1.0) for part in parts]
    total = math.fsum(weights)
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / total if total else values[-1]
