"""The engines behind a router: who is there, who gets requests, and how one leaves.

Promises: an engine that drains gets no request and keeps those it has; whatever takes an engine out (given up, tripped,
draining, removed) acts through one place, so that none of these brings back what another one took out; a request waits for
an engine up to ``wait_s``, and is woken by every change that could give it one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from miles_async.http.client import Upstream
from miles_async.http.refusals import Refusals
from miles_async.router.addresses import is_allowed
from miles_async.router.engine import RoutedEngine
from miles_async.router.policies.breaker import Breaker
from miles_async.router.policies.policy import RoutingPolicy
from miles_async.router.policies.versions import ANY, Demand

_log = logging.getLogger("router")


class NotAllowedError(PermissionError):
    """No engine may be added so. ``status``: as HTTP says it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class RouterFleet:
    """Not a web application; :class:`miles_async.router.app.RouterApp` is one on top of it."""

    def __init__(
        self,
        policy: RoutingPolicy,
        *,
        wait_s: float,
        on_dead: Callable[[RoutedEngine, str], None] | None,
        clock: Callable[[], float],
        engine_key: str | None,
        breaker_failures: int,
        breaker_open_s: float,
        refusals: Refusals | None = None,
    ) -> None:
        self.policy = policy
        self.engines: dict[str, RoutedEngine] = {}
        self.wait_s = wait_s
        self.clock = clock
        self.tripped = asyncio.Event()  # a breaker opened: whoever looks after the engines' health clears it
        self.refusals = Refusals() if refusals is None else refusals
        self.concurrency = 0  # requests that wait or are in flight
        self.failovers = 0  # requests given to another engine
        self.suspects: dict[str, str] = {}  # engine -> what it does wrong; kept also while it is not here
        self._breaker = breaker_failures, breaker_open_s
        self._open: set[RoutedEngine] = set()  # whose breaker is not closed
        self._engine_key = engine_key
        self._on_dead = on_dead
        self.paused = False  # by a client, through this router
        # told what an engine said in the place of an answer; None: whatever it says is passed on
        self.on_garbage: Callable[[RoutedEngine, str], None] | None = None
        self.allowed_engines: tuple[str, ...] = ()  # where they may be added by hand
        self._waiting: set[asyncio.Future[None]] = set()  # one of each request that waits for an engine

    # membership

    def add(self, name: str, url: str, version: int = -1, incarnation: int = 0) -> None:
        """A new engine, or news of a known one: it lives and serves ``version``. Raises ValueError: not such a URL.

        It is the run's, and gets the key of its engines. A known one that drains goes on draining, and one whose breaker is
        open still has to show that it serves.
        """
        self._add(name, url, version, incarnation, self._engine_key)

    def add_by_hand(self, name: str, url: str, version: int = -1, key: str | None = None) -> None:
        """Somebody's engine, with a ``key`` of its own. Raises ValueError: not such a URL; NotAllowedError: not there."""
        known = self.engines.get(name)
        if known is not None and known.url == url.rstrip("/"):  # it lives, whatever was thought of it
            return self.add(name, url, version, known.incarnation)
        if known is not None:
            raise NotAllowedError(f"worker {name!r} is at {known.url}: remove it first", 409)
        if not is_allowed(url, self.allowed_engines):
            Upstream(url)  # that it is no URL at all is said first
            allowed = ", ".join(self.allowed_engines) or "none"
            raise NotAllowedError(f"{url[:100]}: engines are added at router.allowed_engines only: {allowed}", 403)
        self._add(name, url, version, 0, key)

    def _add(self, name: str, url: str, version: int, incarnation: int, key: str | None) -> None:
        engine = self.engines.get(name)
        if engine is None or engine.url != url.rstrip("/") or engine.incarnation != incarnation:
            engine = RoutedEngine(name, url, version, incarnation, key, Breaker(*self._breaker))
            self.remove(name)
            self.engines[name] = engine
        engine.version, engine.dead, engine.updating = version, "", False
        engine.suspected = self.suspects.get(name, "")
        self.policy.add(name, version)
        self._settle(engine)

    def remove(self, name: str) -> None:
        """Forget an engine at once. Its requests in flight are given to others."""
        engine = self.engines.pop(name, None)
        self.policy.remove(name)
        if engine is not None:
            self._open.discard(engine)
            engine.upstream.close()

    def drain(self, name: str) -> None:
        """No new requests for an engine; it is removed when those it has are answered. Unknown ones are ignored."""
        engine = self.engines.get(name)
        if engine is not None:
            engine.draining = True
            self._settle(engine)
            if not engine.inflight:
                self.remove(name)

    # health

    def mark_dead(self, engine: RoutedEngine, why: str) -> None:
        """No more requests for it; those it has are given to others."""
        if self._knows(engine) and not engine.dead:
            engine.dead = why
            self._settle(engine)
            engine.upstream.close()
            if self._on_dead is not None:
                self._on_dead(engine, why)

    def revive(self, engine: RoutedEngine) -> None:
        """One that was given up answers again: it begins anew."""
        if self._knows(engine) and engine.dead:
            engine.dead = ""
            engine.breaker.reset()
            self._settle(engine)

    def suspect(self, name: str, why: str) -> None:
        """Suspect an engine that misbehaves: no more requests until it is trusted again, others get those it has."""
        self.suspects[name] = why
        engine = self.engines.get(name)
        if engine is not None:
            engine.suspected = why
            self._settle(engine)
            engine.upstream.close()

    def trust(self, name: str) -> None:
        """Trust an engine that behaves again: it begins anew."""
        self.suspects.pop(name, None)
        engine = self.engines.get(name)
        if engine is not None:
            engine.suspected = ""
            engine.breaker.reset()
            self._settle(engine)

    def set_updating(self, name: str, updating: bool) -> None:
        """Whether its weights are being updated: others are preferred then. Unknown engines are ignored."""
        engine = self.engines.get(name)
        if engine is not None:
            engine.updating = updating
            self._settle(engine)

    def succeeded(self, engine: RoutedEngine, probing: bool) -> None:
        """The engine answered a request with less than 500. ``probing``: the one that its open breaker let pass."""
        if not probing:
            engine.breaker.succeeded()
        else:
            engine.breaker.probed(True, self.clock())
            self._settle(engine)
            _log.info("engine %s answers again", engine.name)

    def failed(self, engine: RoutedEngine, probing: bool, why: str) -> None:
        """The engine gave no answer to a request, a torn one, or a 5xx."""
        engine.failure = why
        if probing:
            engine.breaker.probed(False, self.clock())
        elif not engine.breaker.failed(self.clock()):
            return
        self._settle(engine)
        self.tripped.set()
        _log.warning("engine %s gets no requests: %s", engine.name, ascii(engine.trouble)[:300])

    def unprobed(self, engine: RoutedEngine) -> None:
        """A probing request ended without showing anything."""
        engine.breaker.unprobed()
        self._settle(engine)

    # what an engine has in flight

    def started(self, engine: RoutedEngine) -> None:
        """A request goes to it."""
        engine.started(self.clock())
        self.policy.started(engine.name)

    def finished(self, engine: RoutedEngine) -> None:
        """A request to it has ended, however that went."""
        engine.finished(self.clock())
        if self._knows(engine):
            self.policy.finished(engine.name)
            if engine.draining and not engine.inflight:
                self.remove(engine.name)

    def said_garbage(self, engine: RoutedEngine, said: str) -> None:
        """The engine said something in the place of an answer."""
        if self.on_garbage is not None:
            self.on_garbage(engine, said)

    # which engine

    async def pick(self, tried: Collection[str] = (), demand: Demand = ANY, key: bytes = b"") -> RoutedEngine | None:
        """The engine for a request, best one that has not failed it; waits up to ``wait_s`` for one to come.

        None: none came. One whose breaker is ``half_open`` is to be probed: what it does has to be reported as that.
        """
        end = self.clock() + self.wait_s
        while True:
            engine = self.choose(tried, demand, key) or (self.choose((), demand, key) if tried else None)
            now = self.clock()
            if engine is not None or now >= end:
                return engine
            await self._news(min([end, *self._probes_after(now)]) - now)

    async def _news(self, within_s: float) -> None:
        """Wait until something changes that could give a request an engine."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            async with asyncio.timeout(within_s):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(waiter)

    def choose(self, tried: Collection[str], demand: Demand, key: bytes) -> RoutedEngine | None:
        """The choice of :meth:`pick` among those that are here at the moment."""
        for engine in self._open:
            fit = engine.state == "tripped" and not engine.updating and engine.name not in tried
            if fit and demand.met_by(engine.version) and engine.breaker.probe(self.clock()):
                return engine
        name = self.policy.choose(tried, demand, key)
        return None if name is None else self.engines[name]

    def _probes_after(self, now: float) -> list[float]:
        return [engine.breaker.reopens_at for engine in self._open if engine.breaker.reopens_at > now]

    def nobody(self, demand: Demand = ANY) -> str:
        """What a request is told that waited in vain."""
        known = ", ".join(
            f"{w.name} (weight version {w.version}, {w.state}{': ' * bool(w.trouble)}{w.trouble})"
            for w in self.engines.values()
        )
        wanted = "is up" if demand is ANY else f"is up and serves {demand}"
        return (
            f"waited {self.wait_s:g} s for an engine that {wanted}; known: {known or 'none, no engine has joined yet'}"
        )

    def _knows(self, engine: RoutedEngine) -> bool:
        return self.engines.get(engine.name) is engine

    def _settle(self, engine: RoutedEngine) -> None:
        """Bring the policy in line with what is known of ``engine``, and wake those who wait."""
        if not self._knows(engine):
            return
        if engine.breaker.state == "closed":
            self._open.discard(engine)
        else:
            self._open.add(engine)
        self.policy.set_state(engine.name, engine.for_policy)
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
