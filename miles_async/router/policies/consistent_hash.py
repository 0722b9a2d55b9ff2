"""Requests with the same routing key go to the same engine, which has their prefix cached.

Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016): an
engine holds many points of a ring, a key goes to the engine of the next point, and further along the ring where that
engine has more than ``SLACK`` times the mean load already.

Promises: an engine that joins takes keys and moves no others; those of one that leaves are spread over the rest; no engine
gets a request beyond ``ceil(SLACK * mean)``, whatever the keys. A request without a key goes to the least loaded engine.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Collection
from hashlib import blake2b

from miles_async.router.policies.policy import EngineLoads, Load
from miles_async.router.policies.versions import ANY, Demand

POINTS = 128  # of an engine on the ring: the shares of two engines then differ by some 10 %
SLACK = 1.25  # an engine's load over the mean of all


def _place(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest())


class ConsistentHash(EngineLoads):
    """The ring is made again when an engine joins or leaves, not when one is down for a while."""

    def __init__(self) -> None:
        super().__init__()
        self._places: list[int] = []  # the points of the ring in order, and whose they are
        self._owners: list[Load] = []

    def add(self, engine: str, version: int = -1) -> None:
        """Take in an engine, as all policies do; a new one gets its points."""
        new = engine not in self.loads
        super().add(engine, version)
        if new:
            points = [(_place(b"%d %s" % (i, engine.encode())), self.loads[engine]) for i in range(POINTS)]
            self._set_ring([*zip(self._places, self._owners, strict=True), *points])

    def remove(self, engine: str) -> None:
        """Unknown engines are ignored."""
        if engine in self.loads:
            ring = zip(self._places, self._owners, strict=True)
            self._set_ring([point for point in ring if point[1].name != engine])
        super().remove(engine)

    def _set_ring(self, points: list[tuple[int, Load]]) -> None:
        points.sort(key=lambda point: (point[0], point[1].name))
        self._places, self._owners = [place for place, _ in points], [load for _, load in points]

    def choose(self, exclude: Collection[str] = (), demand: Demand = ANY, key: bytes = b"") -> str | None:
        """An engine not in ``exclude`` that meets ``demand``, the one of ``key`` if it may; None if there is none."""
        fit = self.candidates(exclude, demand)
        if not key or len(fit) < 2:
            return self.take(self.least_loaded(fit))
        capacity = math.ceil(SLACK * (sum([load.inflight for load in fit]) + 1) / len(fit))
        start = bisect(self._places, _place(key))
        for index in range(start - len(self._owners), start):  # from there all around
            load = self._owners[index]
            free = load.inflight < capacity and load.state == fit[0].state
            if free and load.name not in exclude and demand.met_by(load.version):
                return self.take(load)
        return None  # never: one of those that fit is at or below their mean
