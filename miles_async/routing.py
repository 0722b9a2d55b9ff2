"""Which engine gets the next request: pure state machines, without I/O and without a clock.

Promises: an engine that is not up is never chosen; ``started`` and ``finished`` of an engine that has left meanwhile are
harmless; among equals the one that was chosen longest ago comes first, so that idle engines share the work.
Any object with the methods of :class:`RoutingPolicy` can take the place of :class:`LeastInflight`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, Protocol

EngineHealth = Literal["up", "updating", "dead"]


class RoutingPolicy(Protocol):
    """What the router asks of a policy."""

    def add(self, engine: str, version: int = -1) -> None: ...
    def remove(self, engine: str) -> None: ...
    def set_state(self, engine: str, state: EngineHealth) -> None: ...
    def choose(self, exclude: Collection[str] = (), min_version: int | None = None) -> str | None: ...
    def started(self, engine: str) -> None: ...
    def finished(self, engine: str) -> None: ...


@dataclass
class Load:
    """What the policy knows of one engine."""

    version: int
    state: EngineHealth = "up"
    inflight: int = 0  # requests
    chosen: int = 0  # number of the choice that took it last


class LeastInflight:
    """The engine with the fewest requests in flight; one that is being updated only where no other is up."""

    def __init__(self) -> None:
        self.loads: dict[str, Load] = {}
        self._choices = 0

    def add(self, engine: str, version: int = -1) -> None:
        """A new engine, or a new version of a known one (its requests in flight stay counted). It is up."""
        load = self.loads.setdefault(engine, Load(version))
        load.version, load.state = version, "up"

    def remove(self, engine: str) -> None:
        self.loads.pop(engine, None)

    def set_state(self, engine: str, state: EngineHealth) -> None:
        """``updating``: answers, but not before its update is done. ``dead``: gets nothing. Unknown engines are ignored."""
        if engine in self.loads:
            self.loads[engine].state = state

    def choose(self, exclude: Collection[str] = (), min_version: int | None = None) -> str | None:
        """An engine not in ``exclude`` that serves at least ``min_version``; None if there is none."""
        best: str | None = None
        best_rank: tuple[bool, int, int] | None = None
        for engine, load in self.loads.items():
            if load.state == "dead" or engine in exclude or (min_version is not None and load.version < min_version):
                continue
            rank = (load.state == "updating", load.inflight, load.chosen)
            if best_rank is None or rank < best_rank:
                best, best_rank = engine, rank
        if best is not None:
            self._choices += 1
            self.loads[best].chosen = self._choices
        return best

    def started(self, engine: str) -> None:
        if engine in self.loads:
            self.loads[engine].inflight += 1

    def finished(self, engine: str) -> None:
        load = self.loads.get(engine)
        if load is not None and load.inflight:
            load.inflight -= 1
