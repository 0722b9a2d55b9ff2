"""The engine with the fewest requests in flight; among equals the one chosen longest ago, so that idle ones share the work."""

from __future__ import annotations

from collections.abc import Collection

from miles_async.router.policies.policy import EngineLoads
from miles_async.router.policies.versions import ANY, Demand


class LeastInflight(EngineLoads):
    """Sees every engine at each choice."""

    def choose(self, exclude: Collection[str] = (), demand: Demand = ANY, key: bytes = b"") -> str | None:
        """An engine not in ``exclude`` that meets ``demand``; None if there is none. ``key`` plays no part."""
        return self.take(self.least_loaded(self.candidates(exclude, demand)))
