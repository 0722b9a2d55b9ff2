"""What every HTTP server of ours refuses before it looks at a request: heads and bodies that are too long, and what is no
HTTP. Each refusal is counted by its status and logged.

Promises: a head is held up to ``MAX_HEAD_BYTES`` (and one read), a body up to its server's limit, whatever the client
announces; whoever sends more gets 431 or 413; nothing that a client sends ends the server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, cast
from urllib.parse import unquote

import httptools
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from miles_async.http_cycle import Cycle

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_HEAD_BYTES = 64 * 1024

_log = logging.getLogger("http")


class Refusals(Counter[str]):
    """Requests that a server refused, by HTTP status."""

    def note(self, status: int, why: str) -> None:
        """Count and log one."""
        self[str(status)] += 1
        _log.warning("refused with %d: %s", status, ascii(why)[:200])

    def watching(self, scope: Scope, send: Send) -> Send:
        """``send`` for one request; an answer with a status of 400 to 499 is noted."""

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and 400 <= message["status"] < 500:
                self.note(message["status"], f"{scope['method']} {scope['path']}")
            await send(message)

        return watched


class BodyTooLongError(ValueError):
    """A request's body is longer than its server takes."""


def announced_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """What the content-length says, 0 where there is none."""
    return next((int(value[:20]) for name, value in headers if name == b"content-length" and value.isdigit()), 0)


def bounded(scope: Scope, receive: Receive, limit: int) -> Receive:
    """``receive`` for one request. Raises BodyTooLongError once, at the first read or later."""
    taken, announced = 0, announced_length(scope["headers"])

    async def counted() -> MutableMapping[str, Any]:
        nonlocal taken
        if announced <= limit:
            message = await receive()
            taken += len(message.get("body", b""))
            if taken <= limit:
                return message
        raise BodyTooLongError(f"the body of a request may have {limit} bytes")

    return counted


async def read_body(receive: Receive) -> bytes | None:
    """The whole body; None if the client left. Raises what ``receive`` raises."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def refuse_in(app: FastAPI) -> None:
    """The same for a FastAPI application: a body that is too long is a 413, a client that left gets nothing."""

    async def too_long(_: Request, error: Exception) -> Response:
        content = json.dumps({"error": {"message": str(error)}})
        return Response(content, 413, {"connection": "close"}, "application/json")

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=499)  # that nobody hears

    app.add_exception_handler(BodyTooLongError, too_long)
    app.add_exception_handler(ClientDisconnect, gone)


def has_key(scope: Scope, key: str) -> bool:
    """Whether the request brings ``key`` as its bearer token. Takes the same time for any wrong key of its length."""
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, token = given.partition(b" ")
    return secrets.compare_digest(scheme.lower() + b" " + token.strip(), b"bearer " + key.encode())


async def say(send: Send, status: int, message: str, *, close: bool = False) -> None:
    """A JSON answer ``{"error": {"message": ...}}``. ``close``: the rest of the request is not waited for."""
    headers = [(b"content-type", b"application/json")]
    if close:
        headers.append((b"connection", b"close"))
    await send_whole(send, status, headers, json.dumps({"error": {"message": message}}).encode())


async def send_whole(send: Send, status: int, headers: list[tuple[bytes, bytes]], content: bytes) -> None:
    headers = [*headers, (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})


def answer_at_once(listener: socket.socket) -> None:
    """The two writes of an answer do not wait for each other (40 ms, under asyncio's own loop)."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is accepted inherits it


def protocol(refusals: Refusals) -> type[HttpToolsProtocol]:
    """The HTTP side of a uvicorn server that keeps these promises."""

    class Bounded(HttpToolsProtocol):
        _head_bytes = 0
        _in_head = True
        _cycles: list[Cycle] = []  # replaced, never changed

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return  # its connection was refused: what still comes is not parsed
            self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
            super().data_received(data)
            if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse_head()

        def _refuse_head(self) -> None:
            refusals.note(431, f"a head of more than {MAX_HEAD_BYTES} bytes")
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            self.transport.close()

        def on_message_begin(self) -> None:
            self._in_head = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head, self._head_bytes = False, 0
            if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
                self._refuse_head()
                raise ValueError("the head is too long")  # ends the parsing; all is said
            self._begin_cycle()

        def _begin_cycle(self) -> None:
            """What uvicorn does here, with a cycle of ours."""
            parser, scope = cast(Any, self.parser), self.scope
            version = parser.get_http_version()
            url = httptools.parse_url(self.url)
            path = url.path.decode("ascii")
            scope["method"], scope["http_version"] = parser.get_method().decode("ascii"), version
            scope["path"], scope["raw_path"] = unquote(path) if "%" in path else path, url.path
            scope["query_string"] = url.query or b""
            before, app = self._cycles, cast(Any, self.app)
            self.cycle = cycle = Cycle(
                scope=scope,
                transport=self.transport,
                flow=self.flow,
                logger=self.logger,
                access_logger=self.access_logger,
                access_log=False,
                default_headers=self.server_state.default_headers,
                message_event=asyncio.Event(),
                expect_100_continue=self.expect_100_continue,
                keep_alive=version != "1.0" and parser.should_keep_alive(),
                on_response=self.on_response_complete,
            )
            self._cycles = [*(c for c in before if not c.response_complete), cycle]
            if len(self._cycles) == 1:
                self._start_asgi_task(cycle, app)
            else:  # a pipelined request waits for the answer to the one before it
                self.flow.pause_reading()
                self.pipeline.appendleft((cycle, app))

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for cycle in self._cycles:
                cycle.left()

        def send_400_response(self, msg: str) -> None:
            if not self.transport.is_closing():
                refusals.note(400, msg)
                super().send_400_response(msg)

    return Bounded
