"""One request and its answer on a connection of ours: what an ASGI application gets as ``receive`` and ``send``.

Promises: the head of an answer leaves in one write with the first part of its body; ``scope["on_disconnect"](callback)`` has
``callback`` called once if the client leaves before its answer is complete (a task that waits for ``http.disconnect`` costs
as much as all the rest); what an application raises is a 500, or a torn connection if its answer has begun.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

JOIN_BYTES = 16 * 1024  # below it a copy is cheaper than a second buffer on the way to the socket
_log = logging.getLogger("http")


class RequestConnection(Protocol):
    """What a request needs of the connection that it came on."""

    transport: asyncio.Transport
    full: asyncio.Future[None] | None

    def adjust_reading(self) -> None: ...
    def answered(self, request: ServedRequest) -> None: ...
    def failed(self, request: ServedRequest) -> None: ...


class ServedRequest:
    """Made by the connection that it came on."""

    def __init__(self, connection: RequestConnection, scope: dict[str, Any], keep_alive: bool, expects: bool) -> None:
        self.scope, self.keep_alive = scope, keep_alive
        self.held = 0  # bytes of the body that have come and were not taken
        self.left = self.started = self.sent = self.complete = False
        self._connection, self._expects = connection, expects
        self._parts: list[bytes] = []
        self._whole = self._taken = False  # the body
        self._news: asyncio.Future[None] | None = None
        self._on_disconnect: Callable[[], None] | None = None
        self._head = b""
        self._length: int | None = None  # bytes of the answer's body still to come; None: chunked

    # what the connection tells

    def feed(self, part: bytes) -> None:
        if not self.complete:
            self._parts.append(part)
            self.held += len(part)
            self._wake()

    def feed_end(self) -> None:
        self._whole = True
        self._wake()

    def gone(self) -> None:
        """The client has left."""
        self.left = True
        if self._on_disconnect is not None and not self.complete:
            self._on_disconnect()
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    @property
    def not_asked_for(self) -> bool:
        """The body: its client waits for a word before it sends it."""
        return self._expects and not self.started

    # what the application calls

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Have it called once if the client leaves, or has left, before its answer is complete."""
        self._on_disconnect = callback
        if self.left:
            callback()

    async def receive(self) -> dict[str, Any]:
        """ASGI's."""
        if self._expects and not self.started:
            self._expects = False
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self.left and not self.complete:
            if self._parts or (self._whole and not self._taken):
                body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
                self._parts, self.held, self._taken = [], 0, self._whole
                self._connection.adjust_reading()
                return {"type": "http.request", "body": body, "more_body": not self._whole}
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        """ASGI's. Raises RuntimeError: not in the order, or not of the length, that was announced."""
        if self._connection.full is not None:
            await self._connection.full
        if self.left:
            return
        if not self.started:
            if message["type"] != "http.response.start":
                raise RuntimeError(f"an answer begins with http.response.start, not {message['type']}")
            self._begin(message["status"], message.get("headers", ()))
        elif self.complete or message["type"] != "http.response.body":
            raise RuntimeError(f"{message['type']} after the head, or the end, of an answer")
        else:
            self._write(message.get("body", b""), message.get("more_body", False))

    def _begin(self, status: int, headers: Any) -> None:
        """The head, kept until there is something to send with it."""
        self.started = True
        parts = [STATUS_LINE[status]]
        framed = closes = False
        for name, value in headers:
            if b"\n" in name or b"\r" in name or b"\n" in value or b"\r" in value:
                raise RuntimeError(f"a header with a line end in it: {name!r}")
            name = name.lower()
            if name == b"content-length":
                self._length, framed = int(value), True
            elif name == b"transfer-encoding":
                continue  # ours to say
            elif name == b"connection" and b"close" in value.lower():
                closes, self.keep_alive = True, False
            parts += (name, b": ", value, b"\r\n")
        if not self.keep_alive and not closes:
            parts.append(b"connection: close\r\n")
        if status in (204, 304):
            self._length = 0
        elif not framed:
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n")
        self._head = b"".join(parts)

    def _write(self, body: bytes, more: bool) -> None:
        self.sent, head, self._head = True, self._head, b""
        if self.scope["method"] == "HEAD":
            body = b""
        elif self._length is None:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        else:
            self._length -= len(body)
            if self._length < 0 or (self._length and not more):
                raise RuntimeError("an answer that is not of the content-length that it announced")
        transport = self._connection.transport
        if head and len(body) > JOIN_BYTES:
            transport.write(head)
            transport.write(body)
        elif head or body:
            transport.write(head + body)
        if not more:
            self.complete, self._on_disconnect = True, None
            self._wake()
            self._connection.answered(self)

    async def run(self, app: Any) -> None:
        self.scope["on_disconnect"] = self.on_disconnect
        try:
            await app(self.scope, self.receive, self.send)
            if not self.complete and not self.left:
                raise RuntimeError("the application ended without an answer")
        except Exception as error:
            _log.error("in the application", exc_info=error)
            self._connection.failed(self)
        finally:  # no reference cycle: with one for each request their collection would cost more than they do
            self._on_disconnect = None
            del self.scope["on_disconnect"]
