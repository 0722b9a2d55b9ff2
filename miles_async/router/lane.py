"""The fast lane: a request whose body is here, to an engine that has an idle connection, and its whole answer back.

Most requests need no more than that, and then neither a task nor a future: the events of the two connections carry them.
Whatever else can happen (no connection is open, the answer comes in pieces, is a 5xx or breaks off, the time is over) hands
the request over to a task, as far as it has come: :meth:`RouterApp.go_on`.

Promises: a request is in the lane or in its task, never in both; it is counted as in flight from the choice of its engine to
its end, whoever ends it; the lane sends nothing twice and delivers only answers that are complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Protocol

from miles_async.http.asgi import Scope, Send
from miles_async.http.client import BUFFER_BYTES, Abort, EngineConnection
from miles_async.http.request import Request
from miles_async.router.delivery import Head, comes_whole, passed_on, read_head
from miles_async.router.policies.versions import ANY, Demand, DemandError
from miles_async.router.worker import Worker

PATHS = ("/generate", "/v1/completions", "/v1/chat/completions")


class Router(Protocol):
    """What the lane needs of the router whose it is."""

    concurrency: int
    request_timeout_s: float

    def may_enter(self, scope: Scope, length: int) -> bool: ...
    def choose(self, tried: Collection[str], demand: Demand, key: bytes) -> Worker | None: ...
    def started(self, worker: Worker) -> None: ...
    def finished(self, worker: Worker) -> None: ...
    def is_garbage(self, head: Head, status: int, content: bytes) -> bool: ...
    def report(self, worker: Worker, probing: bool, failure: str | None, *, delivered: bool) -> None: ...
    async def go_on(self, passage: Passage, send: Send) -> None: ...


class Passage:
    """One request that has its engine. ``connection``: on which it was sent to it; None: not yet."""

    def __init__(self, lane: Lane, request: Request, head: Head, worker: Worker, deadline: float) -> None:
        self.request, self.head, self.worker, self.deadline = request, head, worker, deadline  # of the loop's clock
        self.probing = worker.breaker.state == "half_open"
        self.body = request.take()
        self.abort = Abort()
        self.connection: EngineConnection | None = None
        self._lane = lane

    def send(self) -> bool:
        """Whether the engine has a connection for it. A probe has a task."""
        upstream, head = self.worker.upstream, self.head
        if self.probing or (connection := upstream.idle()) is None:
            return False
        self.connection = connection
        self.abort.bind(connection.transport)
        connection.on_news = self._news
        connection.send(upstream.message(head.method, head.target, head.headers, self.body))
        return True

    def _news(self) -> None:
        connection, lane = self.connection, self._lane
        assert connection is not None
        if connection.complete and connection.error is None and connection.status < 500:
            content = connection.take()
            if lane.accepts(self, connection.status, content):
                self.leave()
                self.worker.upstream.release(connection)
                lane.answered(self)
                lane.ended(self)
                self.request.answer(connection.status, passed_on(connection.headers), content)
                return
            connection.chunks.append(content)
        elif self.abort.fired:
            if connection.closed:  # that is what the abort asks for
                self.leave()
                self.worker.upstream.release(connection)
                lane.ended(self)
            return
        elif connection.error is None and not connection.closed and _may_be_whole(connection):
            return
        lane.hand_over(self)

    def leave(self) -> None:
        """The lane has nothing more to do with it."""
        if self.connection is not None:
            self.connection.on_news = None
        self._lane.passages.pop(self, None)


def _may_be_whole(connection: EngineConnection) -> bool:
    """Whether all that has come may be the beginning of an answer that the lane can deliver."""
    if not connection.has_head:
        return True
    return connection.status < 500 and connection.buffered <= BUFFER_BYTES and comes_whole(connection.headers)


class Lane:
    """Of one router. The connections of ``http/protocol.py`` ask it first: about a head, and again when the body is here."""

    def __init__(self, router: Router) -> None:
        self.passages: dict[Passage, None] = {}  # in the order of their deadlines
        self._router = router
        self._timer: asyncio.TimerHandle | None = None

    def wants(self, request: Request, length: int) -> bool:
        """False: a request with a body of ``length`` bytes needs the application's care from its head on."""
        scope = request.scope
        return scope["path"] in PATHS and scope["method"] == "POST" and self._router.may_enter(scope, length)

    def take(self, request: Request) -> bool:
        """False: the application has to see to it."""
        router = self._router
        if not self.wants(request, request.held):
            return False
        try:
            head = read_head(request.scope)
        except DemandError:
            return False  # the application says so
        worker = router.choose((), head.demand, head.key)
        if worker is None:
            return False
        loop = asyncio.get_running_loop()
        passage = Passage(self, request, head, worker, loop.time() + router.request_timeout_s)
        router.concurrency += 1
        router.started(worker)
        if passage.send():
            self.passages[passage] = None
            request.on_disconnect(passage.abort.fire)
            if self._timer is None:
                self._timer = loop.call_at(passage.deadline, self._hurry)
        else:
            self.hand_over(passage)
        return True

    def accepts(self, passage: Passage, status: int, content: bytes) -> bool:
        """Whether the client may have that answer."""
        demand = passage.head.demand
        kept = demand is ANY or demand.broken_by(content) is None
        return kept and not self._router.is_garbage(passage.head, status, content)

    def answered(self, passage: Passage) -> None:
        self._router.report(passage.worker, False, None, delivered=True)

    def ended(self, passage: Passage) -> None:
        router = self._router
        router.finished(passage.worker)
        router.concurrency -= 1

    def hand_over(self, passage: Passage) -> None:
        """To a task, that ends it."""
        passage.leave()

        async def rest(scope: object, receive: object, send: object) -> None:
            await self._router.go_on(passage, send)  # type: ignore[arg-type]

        passage.request.run_as(rest)

    def _hurry(self) -> None:
        """Those whose time is over; their tasks say so."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for passage in list(self.passages):
            if passage.deadline > loop.time():
                self._timer = loop.call_at(passage.deadline, self._hurry)
                break
            self.hand_over(passage)
