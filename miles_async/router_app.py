"""The router's web application: requests in, the least loaded engine's answers out.

Promises: a request is given to another engine only while its client has not received a byte of an answer; an answer in
pieces is passed on piece by piece; a client that leaves takes its request at the engine with it; without an engine a
request waits up to a deadline and then gets a 503 that says which engines are missing and why. What is refused (no key, too
long, no such page) is counted by status and logged; the router's key never reaches an engine, which gets its own.

    POST /generate, /v1/...          raw bytes to one engine (no JSON is parsed)    GET /workers, POST, DELETE /workers/ID
    POST /abort_request, /flush_cache, ...   to all engines                         GET /health, /metrics
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial

from miles_async.http_limits import (
    BodyTooLongError,
    Receive,
    Refusals,
    Scope,
    Send,
    bounded,
    has_key,
    read_body,
    say,
    send_whole,
)
from miles_async.router_admin import admin_app
from miles_async.routing import LeastInflight, RoutingPolicy
from miles_async.upstream import Abort, Answer, Header, Upstream, UpstreamError

OWN_PATHS = ("/workers", "/health", "/metrics")
# what must reach the engine that has the request, or all of them
EVERY_ENGINE = ("/abort_request", "/flush_cache", "/pause_generation", "/continue_generation")
_NOT_PASSED_ON = {
    b"host", b"connection", b"keep-alive", b"content-length", b"transfer-encoding", b"te", b"trailer", b"upgrade",
    b"expect", b"proxy-connection", b"authorization",
}  # fmt: skip
WHOLE_ANSWER_BYTES = 64 << 20  # an answer of known length up to this is read to its end before any of it is sent


class Worker:
    """An engine, the requests it has, and for how long it had any."""

    def __init__(self, name: str, url: str, version: int, incarnation: int, api_key: str | None = None) -> None:
        """``api_key``: what the engine asks for. Raises ValueError: not such a URL."""
        self.name, self.version, self.incarnation = name, version, incarnation
        self.upstream = Upstream(url, api_key)
        self.trouble = ""  # why it gets no requests
        self.inflight = 0
        self.answered = 0
        self.moved_at = 0.0  # when it last gave something: some of an answer, or a token
        self._busy_s = 0.0
        self._busy_since = 0.0

    @property
    def url(self) -> str:
        return self.upstream.url

    def started(self, now: float) -> None:
        if self.inflight == 0:
            self._busy_since = now
        self.inflight += 1

    def finished(self, now: float) -> None:
        self.inflight -= 1
        if self.inflight == 0:
            self._busy_s += now - self._busy_since

    def quiet_seconds(self, now: float) -> float:
        """How long its requests in flight have had nothing from it; 0 if there are none."""
        return now - max(self._busy_since, self.moved_at) if self.inflight else 0.0

    def busy_seconds(self, now: float) -> float:
        """Time with at least one request in flight, since the worker was added."""
        return self._busy_s + (now - self._busy_since if self.inflight else 0.0)


class RouterApp:
    """The ASGI application. Make it with :func:`create_app`."""

    def __init__(
        self,
        policy: RoutingPolicy,
        *,
        wait_s: float,
        request_timeout_s: float,
        max_retries: int,
        on_dead: Callable[[Worker, str], None] | None,
        clock: Callable[[], float],
        api_key: str | None,
        engine_key: str | None,
        max_body_bytes: int,
        refusals: Refusals | None,
    ) -> None:
        self.policy = policy
        self.workers: dict[str, Worker] = {}
        self.wait_s, self.request_timeout_s, self.max_retries = wait_s, request_timeout_s, max_retries
        self.failovers = 0
        self.refusals = Refusals() if refusals is None else refusals
        self.max_body_bytes = max_body_bytes
        self._key, self._engine_key = api_key, engine_key
        self.clock = clock
        self._on_dead = on_dead
        self._arrival = asyncio.Event()
        self._admin = admin_app(self)

    # membership

    def add(self, name: str, url: str, version: int = -1, incarnation: int = 0) -> None:
        """A new engine, or news of a known one: it is up and serves ``version``. Raises ValueError: not such a URL."""
        worker = self.workers.get(name)
        if worker is None or worker.url != url.rstrip("/") or worker.incarnation != incarnation:
            worker = Worker(name, url, version, incarnation, self._engine_key)
            self.remove(name)
            self.workers[name] = worker
        worker.version, worker.trouble = version, ""
        self.policy.add(name, version)
        self._wake()

    def remove(self, name: str) -> None:
        """Forget an engine. Its requests in flight are given to others."""
        worker = self.workers.pop(name, None)
        self.policy.remove(name)
        if worker is not None:
            worker.upstream.close()

    def mark_dead(self, worker: Worker, why: str) -> None:
        """No more requests for it; those it has are given to others."""
        if self.workers.get(worker.name) is worker and not worker.trouble:
            worker.trouble = why
            self.policy.set_state(worker.name, "dead")
            worker.upstream.close()
            if self._on_dead is not None:
                self._on_dead(worker, why)

    def revive(self, worker: Worker) -> None:
        """It answers again."""
        if self.workers.get(worker.name) is worker and worker.trouble:
            worker.trouble = ""
            self.policy.set_state(worker.name, "up")
            self._wake()

    def _wake(self) -> None:
        self._arrival.set()
        self._arrival = asyncio.Event()

    # requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refused = self.refusals.watching(scope, send)
        receive = bounded(scope, receive, self.max_body_bytes)
        try:
            if self._key is not None and scope["path"] != "/health" and not has_key(scope, self._key):
                await say(refused, 401, "the router asks for its key: Authorization: Bearer KEY")
            elif scope["path"].startswith(OWN_PATHS):
                await self._admin(scope, receive, refused)
            elif scope["method"] not in ("GET", "POST", "PUT"):
                await say(refused, 405, f"{scope['method']} is not passed on to engines")
            elif (body := await read_body(receive)) is not None:
                await self._forward(scope, body, receive, send)
        except BodyTooLongError as error:
            await say(refused, 413, str(error), close=True)

    async def _forward(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        abort = Abort()
        delivery = _Delivery(send)
        watch = asyncio.ensure_future(_until_disconnect(receive, abort))
        try:
            async with asyncio.timeout(self.request_timeout_s):
                if scope["path"] in EVERY_ENGINE:
                    await self._to_all(scope, body, send)
                else:
                    await self._to_one(scope, body, delivery, abort)
        except TimeoutError:
            if delivery.begun:
                raise
            await say(send, 504, f"no answer to {scope['path']} within {self.request_timeout_s:g} s")
        finally:
            watch.cancel()

    async def _to_one(self, scope: Scope, body: bytes, delivery: _Delivery, abort: Abort) -> None:
        method, target, headers = _request_line(scope)
        tried: dict[str, str] = {}
        for attempt in range(self.max_retries + 1):
            worker = await self._choose(tried)
            if worker is None:
                return await delivery.say(503, self._nobody())
            self._started(worker)
            try:
                answer = await worker.upstream.request(method, target, headers, body, abort)
                try:
                    unavailable = answer.status == 503 and attempt < self.max_retries and len(self.workers) > 1
                    if not unavailable:
                        await delivery.relay(answer, partial(self._moved, worker))
                        worker.answered += 1
                        self._moved(worker)
                        return None
                    tried[worker.name] = f"HTTP 503 {(await answer.body())[:200]!r}"
                finally:
                    answer.done()
            except UpstreamError as error:
                if abort.fired:
                    return None
                if error.refused:
                    self.mark_dead(worker, str(error))
                if delivery.begun:
                    raise  # the server closes the client's connection: a torn answer must not look whole
                tried[worker.name] = str(error)
            finally:
                self._finished(worker)
            self.failovers += 1
        await delivery.say(502, "no engine gave an answer: " + "; ".join(f"{k}: {v}" for k, v in tried.items()))

    async def _to_all(self, scope: Scope, body: bytes, send: Send) -> None:
        """The first error, if there is one, else the first answer."""
        method, target, headers = _request_line(scope)

        async def one(worker: Worker) -> tuple[int, bytes]:
            try:
                answer = await worker.upstream.request(method, target, headers, body)
                try:
                    return answer.status, await answer.body()
                finally:
                    answer.done()
            except UpstreamError as error:
                return 502, _error(f"{worker.name}: {error}")

        answers = await asyncio.gather(*(one(w) for w in list(self.workers.values()) if not w.trouble))
        if not answers:
            return await say(send, 503, self._nobody())
        status, content = max(answers, key=lambda answer: answer[0])
        await send_whole(send, status, [(b"content-type", b"application/json")], content)

    async def _choose(self, tried: dict[str, str]) -> Worker | None:
        """An engine, best one that has not failed this request; waits up to ``wait_s`` for one to come."""
        end = self.clock() + self.wait_s
        while True:
            arrival = self._arrival
            name = self.policy.choose(tried) or self.policy.choose()
            if name is not None:
                return self.workers[name]
            try:
                async with asyncio.timeout(max(0.0, end - self.clock())):
                    await arrival.wait()
            except TimeoutError:
                return None

    def _nobody(self) -> str:
        known = ", ".join(f"{w.name} ({w.trouble or 'up'})" for w in self.workers.values())
        return f"waited {self.wait_s:g} s for an engine that is up; known: {known or 'none, no engine has joined yet'}"

    def _moved(self, worker: Worker) -> None:
        worker.moved_at = self.clock()

    def _started(self, worker: Worker) -> None:
        worker.started(self.clock())
        self.policy.started(worker.name)

    def _finished(self, worker: Worker) -> None:
        worker.finished(self.clock())
        if self.workers.get(worker.name) is worker:
            self.policy.finished(worker.name)


def create_app(
    policy: RoutingPolicy | None = None,
    *,
    wait_s: float = 30.0,
    request_timeout_s: float = 600.0,
    max_retries: int = 3,
    on_dead: Callable[[Worker, str], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    api_key: str | None = None,
    engine_key: str | None = None,
    max_body_bytes: int = 64 << 20,
    refusals: Refusals | None = None,
) -> RouterApp:
    """A router without engines: they come by :meth:`RouterApp.add` or ``POST /workers``.

    ``wait_s``: how long a request waits for an engine. ``on_dead`` hears of every engine that is given up. ``api_key``: what
    clients have to bring (None: nothing); ``engine_key``: what the router brings to engines. ``refusals`` are counted there.
    """
    return RouterApp(
        policy or LeastInflight(),
        wait_s=wait_s,
        request_timeout_s=request_timeout_s,
        max_retries=max_retries,
        on_dead=on_dead,
        clock=clock,
        api_key=api_key,
        engine_key=engine_key,
        max_body_bytes=max_body_bytes,
        refusals=refusals,
    )


class _Delivery:
    """Hands an answer to the client and knows whether it has begun to."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def say(self, status: int, message: str) -> None:
        self.begun = True
        await say(self._send, status, message)

    async def relay(self, answer: Answer, moved: Callable[[], None]) -> None:
        """``moved`` is called for each piece that comes."""
        headers = [pair for pair in answer.headers if pair[0] not in _NOT_PASSED_ON]
        length = next((int(value) for name, value in answer.headers if name == b"content-length"), None)
        if length is not None and length <= WHOLE_ANSWER_BYTES:
            content = await answer.body()
            self.begun = True
            return await send_whole(self._send, answer.status, headers, content)
        part = await answer.chunk()
        self.begun = True
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        while part:
            moved()
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
            part = await answer.chunk()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _request_line(scope: Scope) -> tuple[bytes, bytes, list[Header]]:
    target = scope.get("raw_path") or scope["path"].encode()
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    return scope["method"].encode(), target, [pair for pair in scope["headers"] if pair[0] not in _NOT_PASSED_ON]


async def _until_disconnect(receive: Receive, abort: Abort) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    abort.fire()


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()
