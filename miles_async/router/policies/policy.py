"""What a routing policy is, and what all of ours know of the engines.

Promises: an engine that is not up is never chosen, one that is being updated only where no other will do, and never for
a request that demands one exact version; ``started`` and ``finished`` of an engine that has left meanwhile are harmless.
Any object with the methods of :class:`RoutingPolicy` can take the place of ours.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from miles_async.router.policies.versions import ANY, Demand

# updating: answers, but not before its update is done. out: gets nothing
EngineState = Literal["up", "updating", "out"]


class RoutingPolicy(Protocol):
    """What the router asks of a policy."""

    def add(self, engine: str, version: int = -1) -> None: ...
    def remove(self, engine: str) -> None: ...
    def set_state(self, engine: str, state: EngineState) -> None: ...
    def choose(self, exclude: Collection[str] = (), demand: Demand = ANY, key: bytes = b"") -> str | None: ...
    def started(self, engine: str) -> None: ...
    def finished(self, engine: str) -> None: ...


@dataclass(slots=True)
class Load:
    """What a policy knows of one engine."""

    name: str
    version: int
    state: EngineState = "up"
    inflight: int = 0  # requests
    chosen: int = 0  # number of the choice that took it last


class EngineLoads:
    """The engines of a policy and their loads: the part that all policies share."""

    def __init__(self) -> None:
        self.loads: dict[str, Load] = {}
        self._up: list[Load] | None = None  # those in state "up"; None: to be made again
        self._choices = 0

    def add(self, engine: str, version: int = -1) -> None:
        """A new engine, or a new version of a known one (its requests in flight stay counted). It is up."""
        load = self.loads.setdefault(engine, Load(engine, version))
        load.version, load.state, self._up = version, "up", None

    def remove(self, engine: str) -> None:
        """Unknown engines are ignored."""
        self.loads.pop(engine, None)
        self._up = None

    def set_state(self, engine: str, state: EngineState) -> None:
        """Unknown engines are ignored."""
        if engine in self.loads:
            self.loads[engine].state, self._up = state, None

    def started(self, engine: str) -> None:
        if engine in self.loads:
            self.loads[engine].inflight += 1

    def finished(self, engine: str) -> None:
        load = self.loads.get(engine)
        if load is not None and load.inflight:
            load.inflight -= 1

    def candidates(self, exclude: Collection[str], demand: Demand) -> Sequence[Load]:
        """Engines that are up and will do; if there are none, those being updated that will do."""
        if self._up is None:
            self._up = [load for load in self.loads.values() if load.state == "up"]
        if not exclude and demand is ANY and self._up:
            return self._up
        fit = [load for load in self._up if load.name not in exclude and demand.met_by(load.version)]
        if fit or demand.exact is not None:
            return fit
        return [
            load
            for load in self.loads.values()
            if load.state == "updating" and load.name not in exclude and demand.met_by(load.version)
        ]

    def least_loaded(self, loads: Sequence[Load]) -> Load | None:
        """The one with the fewest requests in flight, among equals the one chosen longest ago."""
        if not loads:
            return None
        best = loads[0]
        fewest, oldest = best.inflight, best.chosen
        for load in loads:
            inflight = load.inflight
            if inflight < fewest or (inflight == fewest and load.chosen < oldest):
                best, fewest, oldest = load, inflight, load.chosen
        return best

    def take(self, load: Load | None) -> str | None:
        """The name of the choice, which is noted."""
        if load is None:
            return None
        self._choices += 1
        load.chosen = self._choices
        return load.name
