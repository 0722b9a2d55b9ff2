"""The engines, the router's choice among them, and weights that come to them in waves.

Promises: which engine gets a request is the router's own policy, which wave is updated next the broadcaster's own choice
(``weights/fleet.py``); an engine serves a version from the end of its update on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from bus.messages import EngineDown, EngineUp, Snapshot
from miles_async.router.policies.choice import make_policy
from miles_async.simulation.engine import NEVER, SimulatedEngine, speed_of
from miles_async.simulation.events import Events, Rank
from miles_async.simulation.samples import Request, Sample, SimulatedGroup, goal
from miles_async.simulation.settings import SimulationConfig
from miles_async.weights.fleet import Fleet, next_wave


class Told(NamedTuple):
    """Whom the fleet tells. ended: of a sample whose turn has ended. served: engines serve another version. updated: of each
    wave, with the version, the engines, and the seconds that they generated nothing."""

    ended: Callable[[Sample], None]
    served: Callable[[], None]
    updated: Callable[[int, Sequence[str], float], None]


class SimulatedFleet:
    def __init__(self, config: SimulationConfig, events: Events, told: Told) -> None:
        self._config, self._events, self._told = config, events, told
        engines, speed = config.engines, speed_of(config.engines)
        slow = [*engines.slow, *[1.0] * (engines.num_engines - len(engines.slow))]
        self.engines = [SimulatedEngine(index, speed, times) for index, times in enumerate(slow)]
        self._by_name = {engine.name: engine for engine in self.engines}
        self._router = make_policy(config.router.policy, config.simulation.seed)
        self._members = Fleet()
        first = _snapshot(0)
        for engine in self.engines:
            self._join(engine)
            self._members.members[engine.name].serve(first)
            self._router.add(engine.name, 0)
        self.serving: int | None = 0  # the lowest version that a serving engine has confirmed; None: none serves
        self._in_update = False
        self._homeless: list[tuple[Request, list[Sample]]] = []
        self._advancing: SimulatedEngine | None = None
        self.updated = self.lost_tokens = self.failovers = 0
        self.paused_s = 0.0  # of all engines together, for ``updated`` versions

    # requests

    def send(self, request: Request, samples: list[Sample]) -> None:
        """Ask an engine for the next tokens of ``samples``, all of ``request``."""
        name = self._router.choose(key=request.group.group_id.encode())
        if name is None:
            self._homeless.append((request, samples))
            return
        engine = self._by_name[name]
        self._router.started(name)
        cached = self._config.engines.prefix_cache and request.engine == engine.index
        for sample in samples:
            whole = sample.prompt + sample.made
            new = self._config.environment.tool_tokens if cached and request.version == engine.next_version else whole
            sample.due = new if sample.turn else whole
        request.engine, request.version, request.asked = engine.index, engine.next_version, True
        engine.submit(self._events.now, samples)
        self._plan(engine)

    def abort(self, requests: Iterable[Request]) -> None:
        """Nobody wants their answers any more."""
        requests = [*requests]
        for request in requests:
            if request.asked:
                engine = self.engines[request.engine]
                self._router.finished(engine.name)
                engine.abort(self._events.now, request.samples)
                self._plan(engine)
            request.left, request.asked = 0, False
        gone = set(map(id, requests))
        self._homeless = [(request, samples) for request, samples in self._homeless if id(request) not in gone]

    def under_way(self, group: SimulatedGroup) -> int:
        """Tokens of it that engines have made since its samples joined: what a sample has is counted where it leaves."""
        return sum(
            self.engines[request.engine].under_way(self._events.now, sample)
            for request in group.requests
            if request.asked
            for sample in request.samples
        )

    def _plan(self, engine: SimulatedEngine) -> None:
        if engine is self._advancing:
            return  # its event is not over
        engine.stamp += 1
        if (when := engine.next_event()) < NEVER:
            self._events.at(when, Rank.ENGINE, engine.index, self._advance, engine, engine.stamp)

    def _advance(self, engine: SimulatedEngine, stamp: int) -> None:
        if stamp != engine.stamp:
            return
        ended = engine.advance(self._events.now)
        self._advancing = engine
        for sample in ended:
            sample.request.left -= 1
            if not sample.request.left:
                sample.request.asked = False
                self._router.finished(engine.name)
            self._told.ended(sample)
        self._advancing = None
        self._plan(engine)

    # weights

    def offer(self, version: int) -> None:
        """The learner's newest weights are there for whoever is behind."""
        self._members.fold(_snapshot(version))
        self._update()

    def _update(self) -> None:
        snapshot = self._members.newest
        if self._in_update or snapshot is None:
            return
        wave = next_wave(self._members, self._config.weights.update_waves)
        if not wave:
            return
        self._in_update = True
        engines = [self._by_name[member.name] for member in wave]
        took = self._config.engines.update_s + self._config.engines.update_engine_s * len(wave)
        homeless: list[tuple[Request, list[Sample]]] = []
        for engine in engines:
            self._router.set_state(engine.name, "updating")
            engine.pause(self._events.now, snapshot.version)
            if self._config.weights.pause_mode == "abort":
                homeless += self._given_back(engine)
            engine.stamp += 1  # it has no next event
        lives = [(engine, engine.life) for engine in engines]
        self._events.at(self._events.now + took, Rank.SERVED, 0, self._updated, lives, snapshot.version, took)
        for request, samples in homeless:
            self.send(request, samples)

    def _given_back(self, engine: SimulatedEngine) -> list[tuple[Request, list[Sample]]]:
        """The requests that an engine aborts, which go on from the tokens they have, or else from their start."""
        keeps = self._config.rollout.partial_rollout
        lost = engine.clear(self._events.now)
        by_request: dict[int, tuple[Request, list[Sample]]] = {}
        for sample in lost:
            if not keeps:
                self._begin_turn_again(sample)
            by_request.setdefault(id(sample.request), (sample.request, []))[1].append(sample)
        for request, _ in by_request.values():
            self._router.finished(engine.name)
            request.engine, request.asked = -1, False
        return [*by_request.values()]

    def _updated(self, lives: list[tuple[SimulatedEngine, int]], version: int, took: float) -> None:
        prefill = self._config.weights.pause_mode == "retract"
        snapshot = _snapshot(version)
        self._in_update = False
        alive = [engine for engine, life in lives if not engine.down and engine.life == life]
        if alive:
            self._told.updated(version, [engine.name for engine in alive], took)
        for engine in alive:
            self.paused_s += took
            self.updated += 1
            engine.resume(self._events.now, version, prefill=prefill)
            self._members.members[engine.name].serve(snapshot)
            self._router.add(engine.name, version)
            self._plan(engine)
        self._look_who_serves()
        homeless, self._homeless = self._homeless, []
        for request, samples in homeless:
            self.send(request, samples)
        self._update()

    def _look_who_serves(self) -> None:
        alive = [m for m in self._members.members.values() if m.served is not None and not m.down]
        self.serving = min((member.version for member in alive), default=None)
        self._told.served()

    # deaths

    def die(self, index: int) -> None:
        """An engine dies: what it had of its requests is lost, and they begin again elsewhere."""
        engine = self.engines[index]
        engine.down = True
        self._router.set_state(engine.name, "out")
        self._members.fold(EngineDown(engine=engine.name, incarnation=engine.life, reason="died"))
        if not engine.paused:
            engine.pause(self._events.now, engine.version)
        engine.stamp += 1
        lost = {id(sample.request): sample.request for sample in engine.clear(self._events.now)}
        again: list[tuple[Request, list[Sample]]] = []
        for request in lost.values():
            self._router.finished(engine.name)
            self.failovers += 1
            for sample in request.samples:  # also those that had ended: the answer is lost as a whole
                self._begin_turn_again(sample)
            request.engine, request.left, request.asked = -1, len(request.samples), False
            again.append((request, request.samples))
        self._look_who_serves()
        for request, samples in again:
            self.send(request, samples)

    def come_back(self, index: int) -> None:
        """Empty and without a version, until it is given one."""
        engine = self.engines[index]
        engine.life += 1
        engine.down = False
        self._join(engine)
        if self._members.newest is None:
            self._members.fold(_snapshot(0))
        self._update()

    def _join(self, engine: SimulatedEngine) -> None:
        url = f"http://{engine.name}"
        self._members.fold(EngineUp(engine=engine.name, url=url, incarnation=engine.life, version=engine.version))

    def _begin_turn_again(self, sample: Sample) -> None:
        kept = goal(sample.length, sample.turn - 1, self._config.environment.turns) if sample.turn else 0
        self.lost_tokens += sample.made - kept
        spans, left = [], kept
        for version, tokens in sample.spans:
            if left > 0:
                spans.append((version, min(tokens, left)))
                left -= tokens
        sample.spans, sample.made = spans, kept


def _snapshot(version: int) -> Snapshot:
    return Snapshot(version=version, incarnation=0, path=str(version))
