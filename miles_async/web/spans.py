"""The spans of one actor, and what a window of them looks like. Pure.

Promises: of a window either each span is given, or, for each kind and each of so many equal stretches, how much of it was
spent so, which is as much however long a run was.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Span(NamedTuple):
    """Seconds since the epoch. ``share``: of the time between, what was spent so."""

    begin: float
    end: float
    kind: str
    says: str
    share: float = 1.0


class Track:
    """Spans may come in any order, and lie over each other."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._sorted = 0  # of them, how many are known to be in order
        self._longest = 0.0
        self.begin, self.end = float("inf"), float("-inf")
        self._columns: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]] = {}

    def __len__(self) -> int:
        return len(self._spans)

    def add(self, span: Span) -> None:
        self._spans.append(span)
        self._longest = max(self._longest, span.end - span.begin)
        self.begin, self.end = min(self.begin, span.begin), max(self.end, span.end)

    def spans(self) -> list[Span]:
        """All of them, by their beginnings."""
        if self._sorted < len(self._spans):
            self._spans.sort()
            self._sorted, self._columns = len(self._spans), {}
        return self._spans

    def between(self, first: float, last: float) -> list[Span]:
        """Those that are in the window at least in part."""
        spans = self.spans()
        begin = bisect.bisect_left(spans, (first - self._longest,))
        end = bisect.bisect_right(spans, (last, float("inf")))
        return [span for span in spans[begin:end] if span.end >= first]

    def levels(self, first: float, last: float, count: int) -> dict[str, list[float]]:
        """By kind, for each of ``count`` equal stretches of the window: how many such spans there were on the mean."""
        edges = np.linspace(first, last, count + 1)
        found: dict[str, list[float]] = {}
        for kind in dict.fromkeys(span.kind for span in self.spans()):
            begins, ends = self._column(kind)
            spent = np.diff(_before(begins, edges) - _before(ends, edges)) * (count / (last - first))
            if spent.any():
                found[kind] = [round(float(level), 3) for level in spent]
        return found

    def _column(self, kind: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Beginnings and ends of a kind, each sorted; a share of less than 1 shortens its span."""
        if kind not in self._columns:
            mine = [span for span in self.spans() if span.kind == kind]
            ends = [span.begin + (span.end - span.begin) * span.share for span in mine]
            self._columns[kind] = np.sort([span.begin for span in mine]), np.sort(ends)
        return self._columns[kind]


def _before(moments: npt.NDArray[np.float64], edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """For each edge the sum of (edge - moment) over the moments before it."""
    origin = moments[0] if len(moments) else 0.0  # sums of seconds since the epoch would lose digits
    sums = np.concatenate([[0.0], np.cumsum(moments - origin)])
    count = np.searchsorted(moments, edges)
    return count * (edges - origin) - sums[count]
