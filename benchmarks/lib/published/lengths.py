"""Responses' lengths from what a source says of them: a lognormal, cut at the cap, by its mean and how many are cut. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

QUANTILES = 500  # that stand for a distribution
NORMAL = NormalDist()


def by_two_shares(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Median and sigma, by two lengths and the share of the responses that are longer."""
    (a, above_a), (b, above_b) = first, second
    za, zb = NORMAL.inv_cdf(1 - above_a), NORMAL.inv_cdf(1 - above_b)
    sigma = math.log(b / a) / (zb - za)
    return a * math.exp(-za * sigma), sigma


def by_mean_and_cap(mean: float, cap: float, at_cap: float) -> list[float]:
    """Quantiles, such that they have this mean, and this share of them is cut."""

    def of(sigma: float) -> list[float]:
        return quantiles(cap * math.exp(-NORMAL.inv_cdf(1 - at_cap) * sigma), sigma, cap)

    return of(solved(lambda sigma: mean - sum(of(sigma)) / QUANTILES, 0.01, 5.0))


def by_mean_and_median(mean: float, median: float, cap: float) -> list[float]:
    """Quantiles, such that they have this mean and median, those beyond the cap cut."""
    return quantiles(median, solved(lambda s: sum(quantiles(median, s, cap)) / QUANTILES - mean, 0.01, 5.0), cap)


def quantiles(median: float, sigma: float, cap: float) -> list[float]:
    """Of a lognormal, ascending, cut at ``cap``."""
    drawn = (median * math.exp(sigma * NORMAL.inv_cdf((n + 0.5) / QUANTILES)) for n in range(QUANTILES))
    return [min(cap, max(1.0, value)) for value in drawn]


def solved(rises: Callable[[float], float], low: float, high: float, times: int = 40) -> float:
    """Where a function that rises is 0, by bisection."""
    for _ in range(times):
        middle = (low + high) / 2
        low, high = (middle, high) if rises(middle) < 0 else (low, middle)
    return (low + high) / 2
