"""One connection of our client: the receiving half of HTTP/1.1, one answer after the other, nothing parsed but the framing.

Promises: the body of an answer is held up to a limit, and read on only as it is taken; what is longer than a limit, or no
HTTP, is an error and no answer; a byte that nobody asked for ends the connection.
"""

from __future__ import annotations

import asyncio
from collections import deque

import httptools

MAX_HEAD_BYTES = 64 * 1024  # of an answer
TOO_LONG = f"an answer whose head has more than {MAX_HEAD_BYTES} bytes"
_TOO_MUCH = "an answer of more than %d bytes"
NOT_HTTP = "not an HTTP answer"
MAX_BODY_BYTES = 256 << 20  # of an answer that is read as a whole
BUFFER_BYTES = 1 << 20  # of an answer that is taken in pieces; more stops the reading until it is
Header = tuple[bytes, bytes]


class UpstreamError(ConnectionError):
    """No complete answer. ``answered``: some of it came. ``refused``: nobody listens there. ``garbage``: it is no HTTP."""

    def __init__(self, message: str, *, answered: bool = False, refused: bool = False) -> None:
        super().__init__(message)
        self.answered = answered
        self.refused = refused
        self.garbage = message.startswith(NOT_HTTP)


class ClientConnection(asyncio.Protocol):
    """The pool of ``http/client.py`` opens, keeps and closes it."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.closed = self.closed_by_us = False
        self.reused = False
        self._waiter: asyncio.Future[None] | None = None
        self._parser = httptools.HttpResponseParser(self)  # of one answer after the other
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: list[Header] = []
        self._chunks: deque[bytes] = deque()
        self._buffered = self._head_bytes = 0
        self.has_head = self.complete = self._answered = self._keep = self._framed = False
        self._whole = False  # nobody takes the body before its end
        self.error: str | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self.complete:  # nobody asked: whatever it is, it must not be taken for the next answer
            self.transport.abort()
            return
        self._answered = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._give_up(f"{NOT_HTTP}: {error}")
        self._head_bytes += 0 if self.has_head else len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._give_up(TOO_LONG)
        if self._whole and self._buffered > MAX_BODY_BYTES:
            self._give_up(_TOO_MUCH % MAX_BODY_BYTES)
        elif self._buffered > BUFFER_BYTES and not self._whole:
            self.transport.pause_reading()
        if self.complete or self.error is not None or not self._whole:
            self._wake()

    def _give_up(self, why: str) -> None:
        self.error = self.error or why
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.has_head and exc is None and not self._framed:
            self.complete = True  # such a body ends with the connection
        if not self.complete and self.error is None:
            self.error = f"connection lost: {exc}" if exc else "connection closed before the answer was complete"
        self._wake()

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self.error = TOO_LONG
            raise ValueError(TOO_LONG)  # ends the parsing
        self.status = self._parser.get_status_code()
        if self.status >= 200:  # else an interim answer: the real one follows
            self._framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
            self._keep = self._framed and self._parser.should_keep_alive()
            self.has_head = True
        else:
            self.headers = []

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._buffered += len(body)

    def on_message_complete(self) -> None:
        self.complete = self.has_head

    # for the client

    @property
    def reusable(self) -> bool:
        """Its answer was read to the end, and the server keeps it open."""
        return self.complete and self._keep and not self._chunks and not self.closed

    def send(self, data: bytes) -> None:
        """Ask for the next answer."""
        self._begin()
        self.transport.write(data)

    async def head(self) -> None:
        """Wait for the head of the answer. Raises UpstreamError."""
        while not self.has_head:
            await self._news()

    async def chunk(self) -> bytes:
        """All that has come of the body since the last call; waits for some; empty at the end. Raises UpstreamError."""
        while not self._chunks:
            if self.complete:
                return b""
            await self._news()
        return self._take()

    async def body(self) -> bytes:
        """The whole rest of the body. Raises UpstreamError, also for one that is too long."""
        self._whole = True
        if self._buffered > BUFFER_BYTES and not self.closed:
            self.transport.resume_reading()
        while not self.complete:
            await self._news()
        if self._buffered > MAX_BODY_BYTES:
            raise UpstreamError(_TOO_MUCH % MAX_BODY_BYTES, answered=True)
        return self._take()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _news(self) -> None:
        """Wait for more of the answer. Raises UpstreamError if none can come."""
        if self.error is not None:
            raise UpstreamError(self.error, answered=self._answered)
        if self.closed:
            raise UpstreamError("connection closed", answered=self._answered)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self.error is not None and not self._chunks:
            raise UpstreamError(self.error, answered=self._answered)

    def _take(self) -> bytes:
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        if self._buffered > BUFFER_BYTES and not self.closed:
            self.transport.resume_reading()
        self._buffered = 0
        return data
