"""The router's web application: requests in, the answers of the engine that the policy chooses out.

Promises: a request is given to another engine only while its client has not received a byte of an answer, and its
connection to the first one is closed before, which aborts it there; an answer in pieces is passed on piece by piece,
unchanged; a client that leaves takes its request at the engine with it; without a fitting engine a request waits up to a
deadline and then gets a 503 that says which engines there are and why they do not fit. What is refused (no key, too long, too
many, no such page) is counted by status and logged; the router's keys never reach an engine, which gets its own; what changes
engines needs the key for control (``router/access.py`` says what that is).

    POST /generate, /v1/...          raw bytes to one engine (no JSON is parsed)    pages of its own: router/admin.py
    POST /abort_request, /flush_cache, ...   to all engines
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path

from miles_async.http.asgi import Receive, Scope, Send
from miles_async.http.client import Abort, Answer, UpstreamError
from miles_async.http.limits import BodyTooLongError, bounded, read_body, say, send_whole
from miles_async.http.refusals import Refusals
from miles_async.router.access import Access, access, is_own
from miles_async.router.admin import admin_app
from miles_async.router.delivery import Delivery, Head, comes_whole, read_head
from miles_async.router.fleet import RouterFleet
from miles_async.router.keys import WEIGHTS, RouterKeys
from miles_async.router.lane import Lane, Passage
from miles_async.router.policies.least_inflight import LeastInflight
from miles_async.router.policies.policy import RoutingPolicy
from miles_async.router.policies.versions import ANY, DemandError
from miles_async.router.worker import Worker

# what must reach the engine that has the request, or all of them
EVERY_ENGINE = ("/abort_request", "/flush_cache", "/pause_generation", "/continue_generation")
RETRY_AFTER_S = 1  # what a 429 asks for


class _NobodyThere(str):
    """Why an engine has not even seen a request, and is given up: that is no try, and cannot happen without end."""


class RouterApp(RouterFleet):
    """The ASGI application. Without engines at first: they come by :meth:`add` or ``POST /workers``.

    ``wait_s``: how long a request waits for an engine. ``on_dead`` hears of every engine that is given up. ``api_key``: what
    clients have to bring (None: nothing); ``admin_key``: what control takes (None: there is none), ``own_key``: the same of
    the run's own processes, from this machine. ``engine_key``: what the router brings to engines that :meth:`add` is given.
    ``allowed_engines``: where engines may be added by hand, ``weight_roots``: where they may be told to load weights from.
    ``refusals`` are counted there.
    ``breaker_failures`` in a row open an engine's circuit breaker for ``breaker_open_s``. ``max_concurrency``: requests that
    wait or are in flight; None: as many as come.
    """

    def __init__(
        self,
        policy: RoutingPolicy | None = None,
        *,
        wait_s: float = 30.0,
        request_timeout_s: float = 600.0,
        max_retries: int = 3,
        on_dead: Callable[[Worker, str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        api_key: str | None = None,
        admin_key: str | None = None,
        own_key: str | None = None,
        allowed_engines: Sequence[str] = (),
        weight_roots: Sequence[Path] = (),
        engine_key: str | None = None,
        max_body_bytes: int = 64 << 20,
        max_concurrency: int | None = None,
        breaker_failures: int = 5,
        breaker_open_s: float = 10.0,
        refusals: Refusals | None = None,
    ) -> None:
        super().__init__(
            policy or LeastInflight(),
            wait_s=wait_s,
            on_dead=on_dead,
            clock=clock,
            engine_key=engine_key,
            breaker_failures=breaker_failures,
            breaker_open_s=breaker_open_s,
            refusals=refusals,
        )
        self.request_timeout_s, self.max_retries = request_timeout_s, max_retries
        self.max_body_bytes, self.max_concurrency = max_body_bytes, max_concurrency
        self.paused = False  # by a client, through this router
        # told what an engine said in the place of an answer; None: whatever it says is passed on
        self.on_garbage: Callable[[Worker, str], None] | None = None
        self.direct = Lane(self)
        self.allowed_engines, self.weight_roots = tuple(allowed_engines), tuple(weight_roots)
        self.keys = RouterKeys(api_key, admin_key, own_key)
        self._admin = admin_app(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refused = self.refusals.watching(scope, send)
        receive = bounded(scope, receive, self.max_body_bytes)
        method, path = scope["method"], scope["path"]
        needs, may = access(method, path), self.keys.may(scope)
        try:
            if needs != "open" and may is None:
                await say(refused, 401, "the router asks for its key: Authorization: Bearer KEY")
            elif needs == "control" and may != "control":
                await say(refused, 403, f"{method} {path} is control: {self.keys.what_controls()}")
            elif is_own(path):
                await self._admin(scope, receive, refused)
            elif method not in ("GET", "POST", "PUT"):
                await say(refused, 405, f"{method} is not passed on to engines")
            elif path in EVERY_ENGINE or path in WEIGHTS:  # also where no more requests are taken: an abort makes room
                await self._control(may, scope, receive, refused)
            elif self._full:
                await _too_many(refused, self.max_concurrency)
            else:
                head = read_head(scope)
                self.concurrency += 1
                try:
                    await self._forward(head, scope, receive, send)
                finally:
                    self.concurrency -= 1
        except DemandError as error:
            await say(refused, 400, str(error))
        except BodyTooLongError as error:
            await say(refused, 413, str(error), close=True)

    async def _control(self, may: Access | None, scope: Scope, receive: Receive, send: Send) -> None:
        """What goes to all engines, and where weights come from: looked at before it is passed on."""
        head, body = read_head(scope), await read_body(receive)
        if body is None:
            return
        try:
            body = self.keys.checked(scope["path"], body, may, self.weight_roots)
        except PermissionError as error:
            return await say(send, 403, str(error))
        await self._forward(head, scope, receive, send, body)

    @property
    def _full(self) -> bool:
        return self.max_concurrency is not None and self.concurrency >= self.max_concurrency

    def may_enter(self, scope: Scope, length: int) -> bool:
        """Whether a request with a body of ``length`` bytes is refused for nothing that can be seen now."""
        return self.keys.may(scope) is not None and not self._full and length <= self.max_body_bytes

    async def _forward(self, head: Head, scope: Scope, receive: Receive, send: Send, body: bytes | None = None) -> None:
        body = await read_body(receive) if body is None else body
        if body is None:
            return
        abort, delivery, deadline = Abort(), Delivery(send), asyncio.get_running_loop().time() + self.request_timeout_s
        scope["on_disconnect"](abort.fire)
        every = scope["path"] in EVERY_ENGINE
        carried = self._to_all(head, body, send) if every else self._to_one(head, body, delivery, abort)
        await self._in_time(carried, head, delivery, deadline)

    async def go_on(self, passage: Passage, send: Send) -> None:
        """End what the lane has begun."""
        head, abort, delivery = passage.head, passage.abort, Delivery(send)
        passage.request.on_disconnect(abort.fire)
        try:
            await self._in_time(
                self._to_one(head, passage.body, delivery, abort, passage), head, delivery, passage.deadline
            )
        finally:
            self.concurrency -= 1

    async def _in_time(
        self, carried: Coroutine[None, None, None], head: Head, delivery: Delivery, deadline: float
    ) -> None:
        """``deadline``: of the loop's clock."""
        try:
            async with asyncio.timeout_at(deadline):
                await carried
        except TimeoutError:
            if delivery.begun:
                raise
            path = head.target.partition(b"?")[0].decode(errors="replace")
            await delivery.say(504, f"no answer to {path} within {self.request_timeout_s:g} s")

    async def _to_one(
        self, head: Head, body: bytes, delivery: Delivery, abort: Abort, begun: Passage | None = None
    ) -> None:
        tried: dict[str, str] = {}
        retries_left = self.max_retries
        while retries_left >= 0:
            worker = begun.worker if begun else await self.pick(tried, head.demand, head.key, abort)
            if worker is None and abort.fired:
                return None
            if worker is None:
                why = "".join(f"; {name} {failure}" for name, failure in tried.items())
                return await delivery.say(503, self.nobody(head.demand) + why)
            why = await self._attempt(worker, head, body, delivery, abort, retries_left == 0, begun)
            begun = None
            if why is None:
                return None
            tried[worker.name] = why
            retries_left -= not isinstance(why, _NobodyThere)
            self.failovers += 1
        await delivery.say(502, "no engine gave an answer: " + "; ".join(f"{k}: {v}" for k, v in tried.items()))

    async def _attempt(
        self,
        worker: Worker,
        head: Head,
        body: bytes,
        delivery: Delivery,
        abort: Abort,
        last: bool,
        begun: Passage | None,
    ) -> str | None:
        """None: the client has its answer, or left. Else why another engine is to be asked."""
        probing = begun.probing if begun else worker.breaker.state == "half_open"
        version, failure, why = worker.version, None, None
        if begun is None:
            self.started(worker)
        sent = begun.connection if begun else None
        try:
            answer = await worker.upstream.request(head.method, head.target, head.headers, body, abort, sent)
            try:
                if answer.status >= 500:
                    failure = f"HTTP {answer.status}"
                if answer.status == 503 and not last and len(self.workers) > 1:
                    why = failure = f"HTTP 503 {(await answer.body())[:200]!r}"
                elif comes_whole(answer.headers):
                    content = await answer.body()
                    if self.is_garbage(head, answer.status, content):
                        why = failure = self._garbage(worker, f"answered /generate with {content[:60]!r}")
                    elif head.demand is not ANY and (other := head.demand.broken_by(content)) is not None:
                        why = f"answered with weight version {other}"
                        failure = None if other.isdigit() and int(other) >= version else why
                    else:
                        await delivery.whole(answer, content)
                else:
                    await delivery.pieces(answer, partial(self._moved, worker))
                self.report(worker, probing, failure, delivered=why is None)
                return why
            finally:
                answer.done()
        except UpstreamError as error:
            if abort.fired:
                return None
            self.failed(worker, probing, str(error))
            if error.garbage:
                self._garbage(worker, str(error))
            if error.refused:
                self.mark_dead(worker, str(error))
            if delivery.begun:
                raise  # the server closes the client's connection: a torn answer must not look whole
            return _NobodyThere(error) if error.refused else str(error)
        except asyncio.CancelledError:
            if not delivery.begun:  # else the client may be the slow one
                self.failed(worker, probing, "no answer in time")
            raise
        finally:
            if probing and worker.breaker.state == "half_open":
                self.unprobed(worker)
            self.finished(worker)

    async def _to_all(self, head: Head, body: bytes, send: Send) -> None:
        """The first error, if there is one, else the first answer."""
        if not head.target.startswith((b"/abort", b"/flush")):
            self.paused = head.target.startswith(b"/pause")

        async def one(worker: Worker) -> tuple[int, bytes]:
            try:
                answer: Answer = await worker.upstream.request(head.method, head.target, head.headers, body)
                try:
                    return answer.status, await answer.body()
                finally:
                    answer.done()
            except UpstreamError as error:
                return 502, json.dumps({"error": {"message": f"{worker.name}: {error}"}}).encode()

        answers = await asyncio.gather(*(one(w) for w in list(self.workers.values()) if not w.dead))
        if not answers:
            return await say(send, 503, self.nobody())
        status, content = max(answers, key=lambda answer: answer[0])
        await send_whole(send, status, [(b"content-type", b"application/json")], content)

    def is_garbage(self, head: Head, status: int, content: bytes) -> bool:
        """Whether it cannot be JSON. Two bytes tell; an answer is too long to be parsed here."""
        if self.on_garbage is None or status != 200 or head.target != b"/generate":
            return False
        return content[:1] not in (b"{", b"[") or content[-1:] not in (b"}", b"]", b"\n")

    def _garbage(self, worker: Worker, said: str) -> str:
        if self.on_garbage is not None:
            self.on_garbage(worker, said)
        return said

    def _moved(self, worker: Worker) -> None:
        worker.moved_at = self.clock()

    def started(self, worker: Worker) -> None:
        worker.started(self.clock())
        self.policy.started(worker.name)

    def report(self, worker: Worker, probing: bool, failure: str | None, *, delivered: bool) -> None:
        if delivered:
            worker.answered += 1
            self._moved(worker)
        if failure is not None:
            self.failed(worker, probing, failure)
        elif probing or worker.breaker.in_a_row:
            self.succeeded(worker, probing)

    def finished(self, worker: Worker) -> None:
        worker.finished(self.clock())
        if self.workers.get(worker.name) is worker:
            self.policy.finished(worker.name)
            if worker.draining and not worker.inflight:
                self.remove(worker.name)


async def _too_many(send: Send, limit: int | None) -> None:
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"%d" % RETRY_AFTER_S)]
    message = f"{limit} requests wait or are in flight, router.max_concurrency"
    await send_whole(send, 429, headers, json.dumps({"error": {"message": message}}).encode())
