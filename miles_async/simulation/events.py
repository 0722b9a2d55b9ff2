"""What is still to happen, in the order of time; at the same time in the order of :class:`Rank`, then of a key.

Promises: the order is the same whenever the same events are planned in the same order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from enum import IntEnum
from typing import Any


class Rank(IntEnum):
    """Who comes first of what happens at the same time."""

    SERVED = 0  # weights that arrive
    TRAINED = 1
    ENGINE = 2
    REQUEST = 3
    PUBLISHED = 4
    DEATH = 5


class Events:
    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._deaths = 0  # that are planned: they are no progress

    def at(self, time: float, rank: Rank, key: int, function: Callable[..., None], *given: Any) -> None:
        """Call ``function(*given)`` at ``time``."""
        self._count += 1
        self._deaths += rank is Rank.DEATH
        heapq.heappush(self._heap, (time, rank, key, self._count, function, given))

    @property
    def none_left(self) -> bool:
        """Whether nothing but deaths is still to happen."""
        return len(self._heap) == self._deaths

    def next(self) -> None:
        """Let the next one happen."""
        self.now, rank, _, _, function, given = heapq.heappop(self._heap)
        self._deaths -= rank is Rank.DEATH
        function(*given)
