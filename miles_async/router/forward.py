"""The way of a request through the router: to an engine that the policy chooses, and to others while its client has nothing.

Promises: a request is given to another engine only while its client has not received a byte of an answer, and its
connection to the first one is closed before, which aborts it there; an answer in pieces is passed on piece by piece,
unchanged; a client that leaves takes its request at the engine with it, which says nothing of the engine; without a fitting
engine a request waits up to a deadline and then gets a 503 that says which engines there are and why they do not fit.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import NamedTuple

from miles_async.http.client import UpstreamAnswer
from miles_async.http.client_connection import UpstreamError
from miles_async.router.engine import RoutedEngine
from miles_async.router.fleet import RouterFleet
from miles_async.router.head import Head, comes_whole
from miles_async.router.passage import Passage
from miles_async.router.policies.versions import ANY


class Failure(NamedTuple):
    """``why`` an engine is not asked again, and another one is. ``reached`` False: nobody was there, which is no try, and
    cannot happen without end."""

    why: str
    reached: bool = True


class Outcome(NamedTuple):
    """What an answer says. ``of_engine``: what its breaker hears of it, None is well. ``retry``: why the client does not get
    it; None: it has it."""

    of_engine: str | None = None
    retry: str | None = None


class Forwarder:
    """Carries the requests of one router, each in the task that calls :meth:`carry`."""

    def __init__(self, fleet: RouterFleet, max_retries: int) -> None:
        self._fleet, self.max_retries = fleet, max_retries

    async def carry(self, head: Head, body: bytes, passage: Passage) -> None:
        """Have the request answered. Raises UpstreamError where an answer that has begun breaks off."""
        fleet = self._fleet
        tried: dict[str, str] = {}
        retries_left = self.max_retries
        while retries_left >= 0:
            engine = await fleet.pick(tried, head.demand, head.key)
            if engine is None:
                why = "".join(f"; {name} {failure}" for name, failure in tried.items())
                return await passage.say(503, fleet.nobody(head.demand) + why)
            failure = await self._attempt(engine, head, body, passage, retries_left == 0)
            if failure is None:
                return None
            tried[engine.name] = failure.why
            retries_left -= failure.reached
            fleet.failovers += 1
        await passage.say(502, "no engine gave an answer: " + "; ".join(f"{k}: {v}" for k, v in tried.items()))

    async def _attempt(
        self, engine: RoutedEngine, head: Head, body: bytes, passage: Passage, last: bool
    ) -> Failure | None:
        """Ask one engine. None: the client has its answer."""
        fleet, version, probing = self._fleet, engine.version, engine.breaker.state == "half_open"
        fleet.started(engine)
        try:
            answer = await engine.upstream.request(head.method, head.target, head.headers, body)
            try:
                outcome = await self._deliver(engine, version, head, answer, passage, last)
            finally:
                answer.done()
            if outcome.retry is None:
                engine.answered += 1
                engine.moved(fleet.clock())
            if outcome.of_engine is not None:
                fleet.failed(engine, probing, outcome.of_engine)
            elif probing or engine.breaker.in_a_row:
                fleet.succeeded(engine, probing)
            return None if outcome.retry is None else Failure(outcome.retry)
        except UpstreamError as error:
            self._note(engine, probing, error)
            if passage.begun:
                raise  # the server closes the client's connection: a torn answer must not look whole
            return Failure(str(error), reached=not error.refused)
        except asyncio.CancelledError:
            if not passage.begun and not passage.left:  # else the client may be the slow one
                fleet.failed(engine, probing, "no answer in time")
            raise
        finally:
            if probing and engine.breaker.state == "half_open":
                fleet.unprobed(engine)
            fleet.finished(engine)

    async def _deliver(
        self, engine: RoutedEngine, version: int, head: Head, answer: UpstreamAnswer, passage: Passage, last: bool
    ) -> Outcome:
        """Give the client the answer, if it may have it. ``version``: the engine's when it was asked. Raises UpstreamError."""
        fault = f"HTTP {answer.status}" if answer.status >= 500 else None
        if answer.status == 503 and not last and len(self._fleet.engines) > 1:
            why = f"HTTP 503 {(await answer.body())[:200]!r}"
            return Outcome(why, why)
        if not comes_whole(answer.headers):
            await passage.pieces(answer, partial(self._moved, engine))
            return Outcome(fault)
        content = await answer.body()
        if self._is_garbage(head, answer.status, content):
            why = f"answered /generate with {content[:60]!r}"
            self._fleet.said_garbage(engine, why)
            return Outcome(why, why)
        if head.demand is not ANY and (other := head.demand.broken_by(content)) is not None:
            why = f"answered with weight version {other}"
            return Outcome(None if other.isdigit() and int(other) >= version else why, why)
        await passage.whole(answer, content)
        return Outcome(fault)

    def _note(self, engine: RoutedEngine, probing: bool, error: UpstreamError) -> None:
        fleet = self._fleet
        fleet.failed(engine, probing, str(error))
        if error.garbage:
            fleet.said_garbage(engine, str(error))
        if error.refused:
            fleet.mark_dead(engine, str(error))

    def _is_garbage(self, head: Head, status: int, content: bytes) -> bool:
        """Whether it cannot be JSON. Two bytes tell; an answer is too long to be parsed here."""
        if self._fleet.on_garbage is None or status != 200 or head.target != b"/generate":
            return False
        return content[:1] not in (b"{", b"[") or content[-1:] not in (b"}", b"]", b"\n")

    def _moved(self, engine: RoutedEngine) -> None:
        engine.moved(self._fleet.clock())
