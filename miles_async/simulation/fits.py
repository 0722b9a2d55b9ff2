"""What timings and lengths say of the parts of a run: least squares without negative costs, and distributions. Pure.

Promises: a cost is never negative; a few outliers (a stopped process, a cold start) do not decide, but what a busy machine
takes longer now and then is in the mean, as it is in a run; times made by a simulation's own rules give back what they were
made with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FAR = 4.0  # standard deviations, by the median: what is further off is left out
FEW = 0.02  # share of the delays that a mean leaves out, the greatest ones
BLOCKS = 512  # numbers that stand for a distribution of lengths
KS_AT_5_PERCENT = 1.36  # of Kolmogorov's distribution: over the root of the number of draws


class Fit(NamedTuple):
    """``costs``: of each column. ``error``: mean distance of what was measured from the fit, over the mean of what was."""

    costs: tuple[float, ...]
    error: float


def costs_of(columns: Sequence[Floats], measured: Floats, constant: int | None = None) -> Fit:
    """Costs >= 0 of each column that sum up to what was ``measured``, as nearly as can be; outliers count only once.

    constant: the column that has what the outliers take more, on average, but for the few that are furthest off.
    """
    matrix = np.stack(columns, axis=1)
    costs = _nonnegative(matrix, measured)
    off = every = measured - matrix @ costs
    spread = 1.4826 * float(np.median(np.abs(off - np.median(off))))
    kept = np.abs(off - np.median(off)) <= FAR * spread + 1e-9
    if 2 * kept.sum() > len(kept) and not kept.all() and kept.sum() > matrix.shape[1]:
        costs = _nonnegative(matrix[kept], measured[kept])
        every = measured - matrix @ costs
        off = every[kept]
    if constant is not None and costs[constant]:
        costs[constant] = max(0.0, costs[constant] + usual(every) / float(matrix[:, constant].mean()))
    mean = float(np.abs(measured).mean())
    return Fit(tuple(map(float, costs)), float(np.abs(off).mean()) / mean if mean else 0.0)


def _nonnegative(matrix: Floats, measured: Floats) -> Floats:
    """The least squares over all subsets of the columns, of those whose costs are all >= 0. There are a handful of columns."""
    scale = np.abs(matrix).max(axis=0)
    there = [index for index in range(matrix.shape[1]) if scale[index] > 0]
    best, least = np.zeros(matrix.shape[1]), float(measured @ measured)
    for size in range(1, len(there) + 1):
        for chosen in map(list, itertools.combinations(there, size)):
            part = matrix[:, chosen] / scale[chosen]
            found, *_ = np.linalg.lstsq(part, measured, rcond=1e-9)
            off = measured - part @ found
            if found.min() >= 0 and float(off @ off) < least * (1.0 - 1e-9):
                least, best = float(off @ off), np.zeros(matrix.shape[1])
                best[chosen] = found / scale[chosen]
    return best


def lognormal_of(values: Floats) -> tuple[float, float]:
    """Mean, and sigma of the logarithm. values: > 0."""
    logs = np.log(np.maximum(values, 1e-9))
    return float(values.mean()), float(logs.std())


def usual(values: Sequence[float] | Floats) -> float:
    """The mean without the greatest FEW of them (a stopped process). 0 where there are none."""
    ordered = np.sort(np.asarray(values, np.float64))
    kept = ordered[: len(ordered) - math.floor(FEW * len(ordered))]
    return float(kept.mean()) if len(kept) else 0.0


def quartile(values: Sequence[float]) -> float:
    """The lower one: of a delay, on top of which there is also waiting for something else. 0 where there are none."""
    return float(np.quantile(values, 0.25)) if values else 0.0


def median(values: Sequence[float]) -> float:
    """0 where there are none."""
    return float(np.median(values)) if values else 0.0


class LengthsFit(NamedTuple):
    """As ``[lengths]`` has it; ``values`` of "empirical" alone."""

    kind: str
    mean: float
    sigma: float
    values: list[float]
    alike: float


def lengths_of(groups: Sequence[Sequence[int]]) -> LengthsFit:
    """The distribution of the responses' tokens, and how much those of one group are alike.

    "lognormal" where no test at 5 % tells the two apart (Kolmogorov and Smirnov, with as many independent draws as there are),
    "constant" where all are the same, else "empirical": means of BLOCKS parts of the sorted lengths, whose mean is theirs.
    """
    every = np.sort(np.array([length for group in groups for length in group], np.float64))
    alike = alike_of(groups)
    mean, sigma = lognormal_of(every)
    if every[0] == every[-1]:
        return LengthsFit("constant", mean, 0.0, [], alike)
    of_group = len(every) / len(groups)
    draws = len(every) / (1.0 + (of_group - 1.0) * alike)
    if _distance(every, mean, sigma) <= KS_AT_5_PERCENT / math.sqrt(draws):
        return LengthsFit("lognormal", mean, sigma, [], alike)
    return LengthsFit("empirical", mean, sigma, [round(value, 1) for value in _blocks(every)], alike)


def _blocks(ordered: Floats) -> list[float]:
    """Means of BLOCKS parts that are equally large, also where the lengths cannot be divided by it."""
    count = min(BLOCKS, len(ordered))
    upto = np.interp(
        np.linspace(0, len(ordered), count + 1),
        np.arange(len(ordered) + 1),
        np.concatenate([[0.0], np.cumsum(ordered)]),
    )
    return (np.diff(upto) * count / len(ordered)).tolist()


def _distance(ordered: Floats, mean: float, sigma: float) -> float:
    """Greatest distance of the distribution functions, of these and of a lognormal rounded to whole tokens."""
    values, first, counts = np.unique(ordered, return_index=True, return_counts=True)
    middle = math.log(mean) - sigma**2 / 2.0
    normal = NormalDist()
    below = np.array([normal.cdf((math.log(value + 0.5) - middle) / sigma) for value in values])
    return float(np.abs(below - (first + counts) / len(ordered)).max())


def alike_of(groups: Sequence[Sequence[int]]) -> float:
    """Correlation of two samples of a group, by the normal scores of the ranks of all lengths: ``lengths.alike``.

    (Normal scores: B. L. van der Waerden, "Order tests for the two-sample problem", 1952.)
    """
    every = np.array([length for group in groups for length in group], np.float64)
    _, where, counts = np.unique(every, return_inverse=True, return_counts=True)
    if len(counts) == 1:
        return 1.0
    middle = (np.cumsum(counts) - counts / 2.0) / len(every)
    scores = np.array([NormalDist().inv_cdf(share) for share in middle])
    scores = (scores - (scores * counts).sum() / len(every))[where.ravel()]
    shared, pairs, first = 0.0, 0, 0
    for group in groups:
        mine = scores[first : first + len(group)]
        first += len(group)
        shared += float(mine.sum() ** 2 - (mine**2).sum())
        pairs += len(mine) * (len(mine) - 1)
    return min(1.0, max(0.0, shared / pairs / float((scores**2).mean()))) if pairs else 0.0
