"""One request and its answer on a uvicorn connection, cheaper than uvicorn's own, and with a word on clients that leave.

Promises: the head of an answer leaves in one write with the first part of its body; ``scope["on_disconnect"](callback)`` has
``callback`` called once if the client leaves before its answer is complete, at once if it has left (a task that waits for
``http.disconnect`` costs the router as much as all the rest of a request); a header that would end its line is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

JOIN_BYTES = 16 * 1024  # below it a copy is cheaper than a second buffer on the way to the socket


class Cycle(RequestResponseCycle):
    """Made by the protocol in ``http_limits.py`` for each request."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._head = b""
        self._callback: Callable[[], None] | None = None
        self.scope["on_disconnect"] = self._call_if_left  # type: ignore[typeddict-unknown-key]

    def _call_if_left(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        if self.disconnected:
            callback()

    def left(self) -> None:
        """The connection is gone."""
        if not self.response_complete:
            self.disconnected = True
            if self._callback is not None:
                self._callback()
        self.message_event.set()

    async def run_asgi(self, app: Any) -> None:
        """Leaves no reference cycle behind: with one for each request the garbage collector would cost more than they do."""
        try:
            await super().run_asgi(app)
        finally:
            self._callback = None
            del self.scope["on_disconnect"]  # type: ignore[typeddict-item]

    async def send(self, message: Any) -> None:
        """ASGI's. Raises RuntimeError: not in the order, or not of the length, that was announced."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            if message["type"] != "http.response.start":
                raise RuntimeError(f"an answer begins with http.response.start, not {message['type']}")
            self._begin(message)
        elif self.response_complete or message["type"] != "http.response.body":
            raise RuntimeError(f"{message['type']} after the head, or the end, of an answer")
        else:
            self._write(message.get("body", b""), message.get("more_body", False))

    def _begin(self, message: Any) -> None:
        """The head, kept until there is something to send with it."""
        self.response_started, self.waiting_for_100_continue = True, False
        status, method = message["status"], self.scope["method"]
        parts = [STATUS_LINE[status]]
        closes = False
        for name, value in (*self.default_headers, *message.get("headers", ())):
            if b"\n" in name or b"\r" in name or b"\n" in value or b"\r" in value:
                raise RuntimeError(f"a header with a line end in it: {name!r}")
            lowered = name.lower()
            if lowered == b"content-length" and self.chunked_encoding is None:
                self.expected_content_length, self.chunked_encoding = int(value), False
            elif lowered == b"transfer-encoding" and value.lower() == b"chunked":
                self.expected_content_length, self.chunked_encoding = 0, True
            elif lowered == b"connection" and b"close" in value.lower():
                closes, self.keep_alive = True, False
            parts += (lowered, b": ", value, b"\r\n")
        if not self.keep_alive and not closes:
            parts.append(b"connection: close\r\n")
        if self.chunked_encoding is None and method != "HEAD" and status not in (204, 304):
            self.chunked_encoding = True
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n")
        self._head = b"".join(parts)

    def _write(self, body: bytes, more: bool) -> None:
        head, self._head = self._head, b""
        if self.scope["method"] == "HEAD":
            body, self.expected_content_length = b"", 0
        elif self.chunked_encoding:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0 or (self.expected_content_length and not more):
                raise RuntimeError("an answer that is not of the content-length that it announced")
        if head and len(body) > JOIN_BYTES:
            self.transport.write(head)
            self.transport.write(body)
        elif head or body:
            self.transport.write(head + body)
        if not more:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()
