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
OF = ": "  # between an actor and a name of its; no actor's name has it


class Column(NamedTuple):
    """Of one metric. A value is None where it was not finite."""

    steps: list[int]
    values: list[float | None]


class Points(NamedTuple):
    """Of one curve. ``steps``: the last of each stretch; the others: None where nothing of it was finite."""

    steps: list[int]
    mean: list[float | None]
    least: list[float | None]
    most: list[float | None]


class Series:
    """The columns of one run. Names of the learner are as it reports them; those of others have the actor before them."""

    def __init__(self) -> None:
        self._columns: dict[str, dict[str, Column]] = {LEARNER: {}}  # by actor and name
        self._last = 0

    def add(self, line: MetricsLine, further: Mapping[str, float] = {}) -> None:
        """``further``: values that belong to the same step."""
        step, columns = line.step, self._columns.setdefault(line.actor, {})
        if is_step(line):
            if step <= self._last:
                self._forget(step)
            self._last = step
        for values in (line.values, further):
            for name, value in values.items():
                column = columns.get(name)
                if column is None:
                    column = columns[name] = Column([], [])
                column.steps.append(step)
                column.values.append(value)

    def _forget(self, step: int) -> None:
        for column in self._columns[LEARNER].values():
            keep = bisect.bisect_left(column.steps, step)
            del column.steps[keep:], column.values[keep:]

    def names(self) -> list[str]:
        """The learner's first."""
        others = (actor for actor in self._columns if actor != LEARNER)
        of_others = sorted(f"{actor}{OF}{name}" for actor in others for name in self._columns[actor])
        return [*sorted(self._columns[LEARNER]), *of_others]

    def points(self, name: str, first: int = 0, last: int | None = None, most: int = MOST) -> Points:
        """Of the steps ``first`` to ``last``; none of a name that is not there."""
        actor, _, of_actor = name.partition(OF) if OF in name else (LEARNER, "", name)
        column = self._columns.get(actor, {}).get(of_actor)
        steps, values = column or ([], [])
        begin = bisect.bisect_left(steps, first)
        end = len(steps) if last is None else bisect.bisect_right(steps, last)
        return decimated(steps[begin:end], values[begin:end], most)


def decimated(steps: Sequence[int], values: Sequence[float | None], most: int) -> Points:
    """At most ``most`` points of a column. Raises ValueError: fewer than one are asked for."""
    if most < 1:
        raise ValueError(f"{most} points: at least 1")
    count = min(most, len(steps))
    if not count:
        return Points([], [], [], [])
    edges = np.linspace(0, len(steps), count + 1).astype(int)
    column = np.asarray(values, dtype=float)  # None is nan
    column = np.where(np.isfinite(column), column, np.nan)
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
