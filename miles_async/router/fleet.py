"""The engines behind a router: who is there, who gets requests, and how one leaves.

Promises: an engine that drains gets no request and keeps those it has; whatever takes an engine out (given up, tripped,
draining, removed) acts through one place, so that none of these brings back what another one took out; a request waits for
an engine up to ``wait_s``, and is woken by every change that could give it one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from miles_async.http.client import Abort, Upstream
from miles_async.http.refusals import Refusals
from miles_async.router.access import is_allowed
from miles_async.router.policies.breaker import Breaker
from miles_async.router.policies.policy import RoutingPolicy
from miles_async.router.policies.versions import ANY, Demand
from miles_async.router.worker import Worker

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
        on_dead: Callable[[Worker, str], None] | None,
        clock: Callable[[], float],
        engine_key: str | None,
        breaker_failures: int,
        breaker_open_s: float,
        refusals: Refusals | None = None,
    ) -> None:
        self.policy = policy
        self.workers: dict[str, Worker] = {}
        self.wait_s = wait_s
        self.clock = clock
        self.tripped = asyncio.Event()  # a breaker opened: whoever looks after the engines' health clears it
        self.refusals = Refusals() if refusals is None else refusals
        self.concurrency = 0  # requests that wait or are in flight
        self.failovers = 0  # requests given to another engine
        self.suspects: dict[str, str] = {}  # engine -> what it does wrong; kept also while it is not here
        self._breaker = breaker_failures, breaker_open_s
        self._open: set[Worker] = set()  # whose breaker is not closed
        self._engine_key = engine_key
        self._on_dead = on_dead
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
        known = self.workers.get(name)
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
        worker = self.workers.get(name)
        if worker is None or worker.url != url.rstrip("/") or worker.incarnation != incarnation:
            worker = Worker(name, url, version, incarnation, key, Breaker(*self._breaker))
            self.remove(name)
            self.workers[name] = worker
        worker.version, worker.dead, worker.updating = version, "", False
        worker.suspected = self.suspects.get(name, "")
        self.policy.add(name, version)
        self._settle(worker)

    def remove(self, name: str) -> None:
        """Forget an engine at once. Its requests in flight are given to others."""
        worker = self.workers.pop(name, None)
        self.policy.remove(name)
        if worker is not None:
            self._open.discard(worker)
            worker.upstream.close()
            worker.gone.set()

    def drain(self, name: str) -> None:
        """No new requests for an engine; it is removed when those it has are answered. Unknown ones are ignored."""
        worker = self.workers.get(name)
        if worker is not None:
            worker.draining = True
            self._settle(worker)
            if not worker.inflight:
                self.remove(name)

    async def drained(self, name: str, within_s: float) -> bool:
        """Wait until an engine is removed. False: after ``within_s`` seconds it still has requests in flight."""
        worker = self.workers.get(name)
        if worker is not None:
            try:
                async with asyncio.timeout(within_s):
                    await worker.gone.wait()
            except TimeoutError:
                return False
        return True

    # health

    def mark_dead(self, worker: Worker, why: str) -> None:
        """No more requests for it; those it has are given to others."""
        if self._knows(worker) and not worker.dead:
            worker.dead = why
            self._settle(worker)
            worker.upstream.close()
            if self._on_dead is not None:
                self._on_dead(worker, why)

    def revive(self, worker: Worker) -> None:
        """One that was given up answers again: it begins anew."""
        if self._knows(worker) and worker.dead:
            worker.dead = ""
            worker.breaker.reset()
            self._settle(worker)

    def suspect(self, name: str, why: str) -> None:
        """It misbehaves: no more requests for it until it is trusted again; those it has are given to others."""
        self.suspects[name] = why
        worker = self.workers.get(name)
        if worker is not None:
            worker.suspected = why
            self._settle(worker)
            worker.upstream.close()

    def trust(self, name: str) -> None:
        """It behaves again: it begins anew."""
        self.suspects.pop(name, None)
        worker = self.workers.get(name)
        if worker is not None:
            worker.suspected = ""
            worker.breaker.reset()
            self._settle(worker)

    def set_updating(self, name: str, updating: bool) -> None:
        """Whether its weights are being updated: others are preferred then. Unknown engines are ignored."""
        worker = self.workers.get(name)
        if worker is not None:
            worker.updating = updating
            self._settle(worker)

    def succeeded(self, worker: Worker, probing: bool) -> None:
        """It answered a request with less than 500. ``probing``: the one that its open breaker let pass."""
        if not probing:
            worker.breaker.succeeded()
        else:
            worker.breaker.probed(True, self.clock())
            self._settle(worker)
            _log.info("engine %s answers again", worker.name)

    def failed(self, worker: Worker, probing: bool, why: str) -> None:
        """It gave no answer to a request, a torn one, or a 5xx."""
        worker.failure = why
        if probing:
            worker.breaker.probed(False, self.clock())
        elif not worker.breaker.failed(self.clock()):
            return
        self._settle(worker)
        self.tripped.set()
        _log.warning("engine %s gets no requests: %s", worker.name, ascii(worker.trouble)[:300])

    def unprobed(self, worker: Worker) -> None:
        """A probing request ended without showing anything."""
        worker.breaker.unprobed()
        self._settle(worker)

    # which engine

    async def pick(
        self, tried: Collection[str] = (), demand: Demand = ANY, key: bytes = b"", abort: Abort | None = None
    ) -> Worker | None:
        """The engine for a request, best one that has not failed it; waits up to ``wait_s`` for one to come.

        None: none came, or the client left (``abort`` has fired). One whose breaker is ``half_open`` is to be probed: what
        it does has to be reported as that.
        """
        end = self.clock() + self.wait_s
        while abort is None or not abort.fired:
            worker = self.choose(tried, demand, key) or (self.choose((), demand, key) if tried else None)
            now = self.clock()
            if worker is not None or now >= end:
                return worker
            await self._news(min([end, *self._probes_after(now)]) - now, abort)
        return None

    async def _news(self, within_s: float, abort: Abort | None) -> None:
        """Wait until something changes that could give a request an engine, or its client leaves."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        if abort is not None:
            abort.waiter = waiter
        try:
            async with asyncio.timeout(within_s):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._waiting.discard(waiter)

    def choose(self, tried: Collection[str], demand: Demand, key: bytes) -> Worker | None:
        """As :meth:`pick`, of those that are here at the moment."""
        for worker in self._open:
            fit = worker.state == "tripped" and not worker.updating and worker.name not in tried
            if fit and demand.met_by(worker.version) and worker.breaker.probe(self.clock()):
                return worker
        name = self.policy.choose(tried, demand, key)
        return None if name is None else self.workers[name]

    def _probes_after(self, now: float) -> list[float]:
        return [worker.breaker.reopens_at for worker in self._open if worker.breaker.reopens_at > now]

    def nobody(self, demand: Demand = ANY) -> str:
        """What a request is told that waited in vain."""
        known = ", ".join(
            f"{w.name} (weight version {w.version}, {w.state}{': ' * bool(w.trouble)}{w.trouble})"
            for w in self.workers.values()
        )
        wanted = "is up" if demand is ANY else f"is up and serves {demand}"
        return (
            f"waited {self.wait_s:g} s for an engine that {wanted}; known: {known or 'none, no engine has joined yet'}"
        )

    def _knows(self, worker: Worker) -> bool:
        return self.workers.get(worker.name) is worker

    def _settle(self, worker: Worker) -> None:
        """Bring the policy in line with what is known of ``worker``, and wake those who wait."""
        if not self._knows(worker):
            return
        if worker.breaker.state == "closed":
            self._open.discard(worker)
        else:
            self._open.add(worker)
        self.policy.set_state(worker.name, worker.for_policy)
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
