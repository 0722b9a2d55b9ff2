"""The less loaded one of two engines drawn at random (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing",
2001): nearly as even as looking at all, and routers that do not know of each other do not all choose the same engine.
"""

from __future__ import annotations

from collections.abc import Collection
from random import Random

from miles_async.router.policies.policy import EngineLoads
from miles_async.router.policies.versions import ANY, Demand


class PowerOfTwo(EngineLoads):
    """Draws from a generator of its own: the same ``seed`` and events give the same choices."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._rng = Random(seed)

    def choose(self, exclude: Collection[str] = (), demand: Demand = ANY, key: bytes = b"") -> str | None:
        """An engine not in ``exclude`` that meets ``demand``; None if there is none. ``key`` plays no part."""
        fit = self.candidates(exclude, demand)
        if len(fit) > 2:
            one = self._rng.randrange(len(fit))
            other = self._rng.randrange(len(fit) - 1)
            fit = (fit[one], fit[other + (other >= one)])
        return self.take(self.least_loaded(fit))
