"""When processes die, as ``[failures]`` says.

Promises: the moments are of a process and its life alone, whatever else happens; what dies comes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from miles_async.simulation.draws import DEATH, uniform
from miles_async.simulation.events import Events, Rank
from miles_async.simulation.settings import SimulationConfig

ROLES = ("engine", "worker", "learner")
MEMBERS = 1 << 20  # more than there are of a role
LIVES = 1 << 20


class Failures:
    """``die`` is called with the index of who dies, ``come_back`` after its time with the same."""

    def __init__(self, config: SimulationConfig, events: Events) -> None:
        self._seed, self._events = config.simulation.seed, events

    def plan(
        self,
        role: str,
        count: int,
        interval_s: float | None,
        down_s: float,
        die: Callable[[int], None],
        come_back: Callable[[int], None],
    ) -> None:
        """Deaths of ``count`` processes, each ``interval_s`` on average after it came; None: none."""
        if interval_s is None:
            return
        now, number = self._events, ROLES.index(role)

        def alive(index: int, life: int) -> None:
            drawn = uniform(self._seed, DEATH, (number * MEMBERS + index) * LIVES + life)
            now.at(now.now - interval_s * math.log(drawn), Rank.DEATH, number * MEMBERS + index, dead, index, life)

        def dead(index: int, life: int) -> None:
            die(index)
            now.at(now.now + down_s, Rank.REQUEST, index, back, index, life)

        def back(index: int, life: int) -> None:
            come_back(index)
            alive(index, life + 1)

        for index in range(count):
            alive(index, 0)
