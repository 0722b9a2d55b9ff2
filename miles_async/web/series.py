"""What a run's metrics come to as curves: a column for each name, and as many points of it as a picture has room for. Pure.

Promises: a step that is trained again takes the place of the one before and of all behind it; a column with more points than
are asked for is given by stretches of equal length, each with its mean, least and greatest value, so that no peak is lost;
what is not finite is left out of them.
"""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from miles_async.monitor.record_lines import LEARNER, MetricsLine, is_step

MOST = 600  # points of a curve, where nobody asks for another number


class Points(NamedTuple):
    """Of one curve. ``steps``: the last of each stretch; the others: None where nothing of it was finite."""

    steps: list[int]
    mean: list[float | None]
    least: list[float | None]
    most: list[float | None]


class Series:
    """The columns of one run. Names of the learner are as it reports them; those of others have the actor before them."""

    def __init__(self) -> None:
        self._columns: dict[str, tuple[list[int], list[float]]] = {}
        self._learners: set[str] = set()
        self._last = 0

    def add(self, line: MetricsLine, further: Mapping[str, float] = {}) -> None:
        """``further``: values that belong to the same step."""
        if is_step(line):
            if line.step <= self._last:
                self._forget(line.step)
            self._last = line.step
        mine = line.actor == LEARNER
        for name, value in (*line.values.items(), *further.items()):
            key = name if mine else f"{line.actor}: {name}"
            if mine:
                self._learners.add(key)
            steps, values = self._columns.setdefault(key, ([], []))
            steps.append(line.step)
            values.append(math.nan if value is None else value)

    def _forget(self, step: int) -> None:
        for name in self._learners:
            steps, values = self._columns[name]
            keep = bisect.bisect_left(steps, step)
            del steps[keep:], values[keep:]

    def names(self) -> list[str]:
        """The learner's first."""
        return sorted(self._columns, key=lambda name: (name not in self._learners, name))

    def points(self, name: str, first: int = 0, last: int | None = None, most: int = MOST) -> Points:
        """Of the steps ``first`` to ``last``; none of a name that is not there."""
        steps, values = self._columns.get(name, ([], []))
        begin = bisect.bisect_left(steps, first)
        end = len(steps) if last is None else bisect.bisect_right(steps, last)
        return decimated(steps[begin:end], values[begin:end], most)


def decimated(steps: Sequence[int], values: Sequence[float], most: int) -> Points:
    """At most ``most`` points of a column. Raises ValueError: fewer than one are asked for."""
    if most < 1:
        raise ValueError(f"{most} points: at least 1")
    count = min(most, len(steps))
    if not count:
        return Points([], [], [], [])
    edges = np.linspace(0, len(steps), count + 1).astype(int)
    column = np.where(np.isfinite(values), values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a stretch without a finite value
        least, greatest = np.fmin.reduceat(column, edges[:-1]), np.fmax.reduceat(column, edges[:-1])
    finite = np.isfinite(column)
    counts = np.add.reduceat(finite.astype(float), edges[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.add.reduceat(np.where(finite, column, 0.0), edges[:-1]) / counts
    return Points([steps[edge - 1] for edge in edges[1:]], _plain(mean), _plain(least), _plain(greatest))


def _plain(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
