"""Real HTTP servers with the behaviour a test gives them, and a router before them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp

from actors.router import _server
from miles_async.http.limits import answer_at_once
from miles_async.router.app import RouterApp

Receive = Callable[[], Awaitable[dict[str, Any]]]


Send = Callable[[dict[str, Any]], Awaitable[None]]


Handler = Callable[["FakeEngine", dict[str, Any], bytes, Receive, Send], Awaitable[None]]


@contextlib.asynccontextmanager
async def served(app: Any, port: int = 0) -> AsyncIterator[str]:
    """A web application on a real socket, in this loop."""
    listener = socket.create_server(("127.0.0.1", port))
    answer_at_once(listener)
    server = _server(app)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        await task
        listener.close()


async def respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    length = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": length + (headers or [])})
    await send({"type": "http.response.body", "body": body})


ADMIN_KEY = "for-control"


class FakeEngine:
    """A real HTTP server with the behaviour a test gives it."""

    idle_connections = 0  # that the router has to each engine of a fleet at the beginning

    def __init__(self, name: str, handler: Handler | None = None) -> None:
        self.name, self.handler = name, handler
        self.seen: list[tuple[str, bytes]] = []
        self.arrived = asyncio.Semaphore(0)  # released by every request
        self.left = asyncio.Event()  # a client went away before its answer

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["path"] == "/warm":
            return await respond(send, 200, b"")
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        target = scope["raw_path"].decode() + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
        self.seen.append((f"{scope['method']} {target}", body))
        self.arrived.release()
        if self.handler is not None:
            await self.handler(self, scope, body, receive, send)
        else:
            await respond(send, 200, self.name.encode() + b":" + body)


@contextlib.asynccontextmanager
async def fleet(
    *engines: FakeEngine, **options: Any
) -> AsyncIterator[tuple[RouterApp, str, list[str], aiohttp.ClientSession]]:
    """(router, its URL, the engines' URLs, a client). Where no ``api_key`` is asked for, the client is one that may control."""
    options = {"admin_key": ADMIN_KEY, "allowed_engines": ("127.0.0.1:*",)} | options
    headers = {} if "api_key" in options else {"authorization": f"Bearer {ADMIN_KEY}"}
    async with contextlib.AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(served(engine)) for engine in engines]
        app = RouterApp(**options)
        for engine, url in zip(engines, urls, strict=True):
            app.add(engine.name, url, version=0)
            upstream = app.engines[engine.name].upstream
            await asyncio.gather(*(upstream.get(b"/warm", 10) for _ in range(FakeEngine.idle_connections)))
        url = await stack.enter_async_context(served(app))
        session = await stack.enter_async_context(aiohttp.ClientSession(headers=headers))
        yield app, url, urls, session


async def hang_up(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
    """Dies in the middle of its answer: the connection of an application that fails is closed."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
    await send({"type": "http.response.body", "body": b"half an", "more_body": True})
    raise RuntimeError("a test")


async def wait_for_disconnect(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    engine.left.set()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Held(FakeEngine):
    """Answers /generate when ``gate`` is set, all else at once."""

    def __init__(self, name: str) -> None:
        super().__init__(name, self.wait)
        self.gate = asyncio.Event()

    async def wait(self, _: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        if scope["path"] == "/generate":
            await self.gate.wait()
        await respond(send, 200, self.name.encode() + b":" + body)


async def arrive(engine: FakeEngine, count: int = 1) -> None:
    async with asyncio.timeout(10):
        for _ in range(count):
            await engine.arrived.acquire()


async def ask(session: aiohttp.ClientSession, url: str, body: bytes = b"x") -> tuple[int, bytes]:
    async with session.post(url + "/generate", data=body) as answer:
        return answer.status, await answer.read()
