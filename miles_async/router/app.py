"""The router's web application: requests in, the answers of the engine that the policy chooses out.

Promises: what is refused (no key, too long, too many, no such page) is counted by status and logged; the router's keys never
reach an engine, which gets its own; what changes engines needs the key for control (``router/access.py`` has the table).

    POST /generate, /v1/...          raw bytes to one engine, router/forward.py     pages of its own: router/pages/
    POST /abort_request, ...         to all engines, router/broadcast.py
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from miles_async.http.asgi import Receive, Scope, Send
from miles_async.http.limits import BodyTooLongError, bounded, read_body, say, send_whole
from miles_async.http.refusals import Refusals
from miles_async.router.access import Access, Route
from miles_async.router.broadcast import ask_every_engine
from miles_async.router.engine import RoutedEngine
from miles_async.router.fleet import RouterFleet
from miles_async.router.forward import Forwarder
from miles_async.router.head import Head, read_head
from miles_async.router.keys import WEIGHTS, RouterKeys
from miles_async.router.observe.loads import LoadPoller
from miles_async.router.pages.own import own_pages
from miles_async.router.passage import Passage
from miles_async.router.policies.least_inflight import LeastInflight
from miles_async.router.policies.policy import RoutingPolicy
from miles_async.router.policies.versions import DemandError

RETRY_AFTER_S = 1  # what a 429 asks for


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
        on_dead: Callable[[RoutedEngine, str], None] | None = None,
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
        self.request_timeout_s = request_timeout_s
        self.max_body_bytes, self.max_concurrency = max_body_bytes, max_concurrency
        self.allowed_engines, self.weight_roots = tuple(allowed_engines), tuple(weight_roots)
        self.keys = RouterKeys(api_key, admin_key, own_key)
        self.forwarder = Forwarder(self, max_retries)
        self.loads = LoadPoller(self)
        self.pages = own_pages(self, self.loads)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refused = self.refusals.watching(scope, send)
        receive = bounded(scope, receive, self.max_body_bytes)
        method, path = scope["method"], scope["path"]
        route, may = self.pages.routes.find(method, path), self.keys.may(scope)
        try:
            if route.needs != "open" and may is None:
                await say(refused, 401, "the router asks for its key: Authorization: Bearer KEY")
            elif route.needs == "control" and may != "control":
                await say(refused, 403, f"{method} {path} is control: {self.keys.what_controls()}")
            elif route.by == "router":
                await self.pages.app(scope, receive, refused)
            elif route.by == "nobody":
                await say(refused, 404, f"{path} is no page of the router, and is not passed on to engines")
            elif method not in ("GET", "POST", "PUT"):
                await say(refused, 405, f"{method} is not passed on to engines")
            elif route.by == "every" or path in WEIGHTS:  # also where no more requests are taken: an abort makes room
                await self._control(route, may, scope, receive, refused)
            elif self.max_concurrency is not None and self.concurrency >= self.max_concurrency:
                await _too_many(refused, self.max_concurrency)
            else:
                head = read_head(scope)
                self.concurrency += 1
                try:
                    if (body := await read_body(receive)) is not None:
                        await self._forward(route, head, body, scope, send)
                finally:
                    self.concurrency -= 1
        except DemandError as error:
            await say(refused, 400, str(error))
        except BodyTooLongError as error:
            await say(refused, 413, str(error), close=True)

    async def _control(self, route: Route, may: Access | None, scope: Scope, receive: Receive, send: Send) -> None:
        """What goes to all engines, and where weights come from: looked at before it is passed on."""
        head, body = read_head(scope), await read_body(receive)
        if body is None:
            return
        try:
            body = self.keys.checked(scope["path"], body, may, self.weight_roots)
        except PermissionError as error:
            return await say(send, 403, str(error))
        await self._forward(route, head, body, scope, send)

    async def _forward(self, route: Route, head: Head, body: bytes, scope: Scope, send: Send) -> None:
        passage: Passage | None = None
        try:
            async with asyncio.timeout(self.request_timeout_s):
                if route.by == "every":
                    await ask_every_engine(self, scope["path"], head, body, send)
                else:
                    passage = Passage(scope, send)
                    await self.forwarder.carry(head, body, passage)
        except TimeoutError:
            if passage is not None and passage.begun:
                raise
            await say(send, 504, f"no answer to {scope['path']} within {self.request_timeout_s:g} s")


async def _too_many(send: Send, limit: int) -> None:
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"%d" % RETRY_AFTER_S)]
    message = f"{limit} requests wait or are in flight, router.max_concurrency"
    await send_whole(send, 429, headers, json.dumps({"error": {"message": message}}).encode())
