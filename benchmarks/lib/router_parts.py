"""What stands on both sides of a router under test: engines without a model, and clients that count.

    python -m benchmarks.lib.router_parts engine --port P --answer-bytes N --hold-s S     answers everything after S seconds
    python -m benchmarks.lib.router_parts router --port P --engines URL URL               our router, as its actor serves it

Promises: both are raw asyncio protocols on uvloop, so that the router is what costs; a client asks again when it has
the last byte of the answer; an answer that is not a 200 of the right length is an error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httptools
import uvloop

from miles_async.http.limits import answer_at_once

HEADERS_END = b"\r\n\r\n"
CHUNKS_END = b"0\r\n\r\n"


class _EngineConnection(asyncio.Protocol):
    """One connection of an engine that answers any request with the same bytes, ``hold_s`` seconds later."""

    transport: asyncio.Transport

    def __init__(self, answer: bytes, hold_s: float) -> None:
        self._answer, self._hold_s = answer, hold_s
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.transport.abort()  # sglang-router asks for HTTP/2 first

    def on_message_complete(self) -> None:
        if self._hold_s and self._parser.get_method() == b"POST":
            asyncio.get_running_loop().call_later(self._hold_s, self.transport.write, self._answer)
        else:
            self.transport.write(self._answer)


def _answer(size: int) -> bytes:
    """A /generate answer of about ``size`` bytes; it also passes for /health, /model_info and /server_info."""
    body: dict[str, object] = {"text": "", "meta_info": {"id": "0", "weight_version": "0"}, "model_path": "none"}
    body["output_ids"] = [1000] * max(1, (size - 120) // 6)
    content = json.dumps(body).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content)
    return head + content


async def serve_engine(port: int, answer_bytes: int, hold_s: float) -> None:
    answer = _answer(answer_bytes)
    server = await asyncio.get_running_loop().create_server(
        lambda: _EngineConnection(answer, hold_s), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


async def serve_router(port: int, engines: list[str]) -> None:
    """As ``actors/router.py`` serves it, without a bus."""
    import socket

    from miles_async.http.heap import settle_memory
    from miles_async.http.server import HttpServer
    from miles_async.router.app import RouterApp

    settle_memory()
    app = RouterApp()
    for url in engines:
        app.add(url.removeprefix("http://"), url)
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    answer_at_once(listener)
    server = HttpServer(app, app.refusals, backlog=4096, timeout_keep_alive=75, server_header=False, date_header=False)
    await server.serve(sockets=[listener])


@dataclass
class Load:
    """What clients have seen. Seconds by request; ``cold`` are those of each connection's first one."""

    warm: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class _Client(asyncio.Protocol):
    """One keep-alive connection that asks again as long as ``more()``."""

    transport: asyncio.Transport

    def __init__(self, request: bytes, load: Load, more: Callable[[int], bool], ended: asyncio.Future[None]) -> None:
        self._request, self._load, self._more, self._ended = request, load, more, ended
        self._asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._ask()

    def _ask(self) -> None:
        self._asked += 1
        self._head, self._left, self._chunked = b"", -1, False
        self._since = time.perf_counter()
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._left < 0 and not self._chunked:
            self._head += data
            end = self._head.find(HEADERS_END)
            if end < 0:
                return
            head, data = self._head[:end].lower(), self._head[end + 4 :]
            if not head.startswith(b"http/1.1 200"):
                return self._fail(head.split(b"\r\n")[0].decode(errors="replace"))
            _, found, length = head.partition(b"content-length:")
            self._chunked = not found
            self._left = int(length.split(b"\r\n")[0]) if found else 0
        if self._chunked:
            if data.endswith(CHUNKS_END):
                self._answered()
            return
        self._left -= len(data)
        if self._left <= 0:
            self._answered()

    def _answered(self) -> None:
        (self._load.warm if self._asked > 1 else self._load.cold).append(time.perf_counter() - self._since)
        if self._more(self._asked):
            self._ask()
        else:
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._fail(f"connection lost: {exc}")

    def _fail(self, why: str) -> None:
        self._load.errors.append(why)
        self._end()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
        self.transport.abort()


def post(port: int, body_bytes: int) -> bytes:
    """A /generate request with a body of about ``body_bytes``."""
    ids = [1000] * max(1, (body_bytes - 60) // 6)
    body = json.dumps({"input_ids": ids, "sampling_params": {"max_new_tokens": 16}}).encode()
    head = f"POST /generate HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


async def closed_loop(port: int, connections: int, seconds: float, request: bytes) -> Load:
    """``connections`` clients that ask without a pause for ``seconds``."""
    end = time.perf_counter() + seconds
    return await _run(port, connections, request, lambda _: time.perf_counter() < end, seconds + 30, ramp_s=0.0)


async def held(port: int, connections: int, requests: int, request: bytes, hold_s: float, ramp_s: float) -> Load:
    """``connections`` clients that ask ``requests`` times each, the first ones within ``ramp_s``."""
    limit_s = ramp_s + requests * (hold_s + 15)
    return await _run(port, connections, request, lambda asked: asked < requests, limit_s, ramp_s=ramp_s)


async def _run(
    port: int, connections: int, request: bytes, more: Callable[[int], bool], limit_s: float, ramp_s: float
) -> Load:
    load, loop = Load(), asyncio.get_running_loop()
    ends: list[asyncio.Future[None]] = []

    async def one(number: int) -> None:
        await asyncio.sleep(ramp_s * number / connections)
        ended: asyncio.Future[None] = loop.create_future()
        ends.append(ended)
        try:
            await loop.create_connection(lambda: _Client(request, load, more, ended), "127.0.0.1", port)
        except OSError as error:
            load.errors.append(str(error))
            return
        await ended

    try:
        async with asyncio.timeout(limit_s):
            await asyncio.gather(*(one(number) for number in range(connections)))
    except TimeoutError:
        load.errors += ["no answer in time"] * sum(not ended.done() for ended in ends)
    return load


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["engine", "router"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--answer-bytes", type=int, default=4096)
    parser.add_argument("--hold-s", type=float, default=0.0)
    parser.add_argument("--engines", nargs="*", default=[])
    given = parser.parse_args()
    if given.part == "engine":
        uvloop.run(serve_engine(given.port, given.answer_bytes, given.hold_s))
    else:
        uvloop.run(serve_router(given.port, given.engines))


if __name__ == "__main__":
    main()
