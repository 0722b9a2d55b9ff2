"""Figures as the fleet's benchmark reports them."""

from __future__ import annotations

import statistics


def max_to_mean(counts: list[int]) -> float:
    return max(counts) / max(statistics.mean(counts), 1e-9) if counts else 1.0


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values) or [float("nan")]
    return {"median": quantile(ordered, 0.5), "p95": quantile(ordered, 0.95), "max": quantile(ordered, 1.0)}


def quantile(ordered: list[float], share: float) -> float:
    return rounded(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2) if ordered else float("nan")


def rounded(value: float, digits: int = 2) -> float:
    return round(value, digits)
