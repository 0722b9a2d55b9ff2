"""A lean keep-alive HTTP/1.1 client for one engine: raw bytes in, raw bytes out, nothing parsed but the framing.

Promises: the body of an answer is handed over as it comes, with back-pressure; a failure says whether the engine can
have begun to answer (``answered``) and whether it was not even there (``refused``); what is longer than a limit is no answer; a
connection is reused only after its answer was read to the end. One request at a time on a connection, as many connections
as requests in flight.
(A general client costs several times more for each request, and the router's own time is its only product.)
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

import httptools

CONNECT_TIMEOUT_S = 5.0
MAX_HEAD_BYTES = 64 * 1024  # of an answer
TOO_LONG = f"an answer whose head has more than {MAX_HEAD_BYTES} bytes"
NOT_HTTP = "not an HTTP answer"
MAX_BODY_BYTES = 256 << 20  # of an answer that is read as a whole
BUFFER_BYTES = 1 << 20  # of an answer not yet taken; more stops the reading until it is
Header = tuple[bytes, bytes]


_PLAIN = re.compile(r"[A-Za-z0-9_.:\[\]-]+")


class UpstreamError(ConnectionError):
    """No complete answer. ``answered``: some of it came. ``refused``: nobody listens there. ``garbage``: it is no HTTP."""

    def __init__(self, message: str, *, answered: bool = False, refused: bool = False) -> None:
        super().__init__(message)
        self.answered = answered
        self.refused = refused
        self.garbage = message.startswith(NOT_HTTP)


class Abort:
    """Breaks off the request it was given to: at once, or as soon as that has a connection.

    ``waiter``: what that request waits for while no engine has it; it is woken.
    """

    def __init__(self) -> None:
        self.fired = False
        self.waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    def bind(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        if self.fired:
            transport.abort()

    def fire(self) -> None:
        self.fired = True
        if self._transport is not None:
            self._transport.abort()
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class EngineConnection(asyncio.Protocol):
    """One connection: the receiving half of httptools and a buffer of body chunks."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.closed = self.closed_by_us = False
        self.reused = False
        self._waiter: asyncio.Future[None] | None = None
        self.on_news: Callable[[], None] | None = None  # called in the place of waking who waits
        self.parser = httptools.HttpResponseParser(self)  # of one answer after the other
        self._begin()

    def _begin(self) -> None:
        self.status = 0
        self.headers: list[Header] = []
        self.chunks: deque[bytes] = deque()
        self.buffered = self.head_bytes = 0
        self.has_head = self.complete = self.answered = self.keep = self.framed = False
        self.error: str | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self.complete:  # nobody asked: whatever it is, it must not be taken for the next answer
            self.transport.abort()
            return
        self.answered = True
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.error = self.error or f"{NOT_HTTP}: {error}"
            self.transport.abort()
        self.head_bytes += 0 if self.has_head else len(data)
        if self.head_bytes > MAX_HEAD_BYTES and self.error is None:
            self.error = TOO_LONG
            self.transport.abort()
        if self.buffered > BUFFER_BYTES:
            self.transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self.has_head and exc is None and not self.framed:
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
        self.status = self.parser.get_status_code()
        if self.status >= 200:  # else an interim answer: the real one follows
            self.framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
            self.keep = self.framed and self.parser.should_keep_alive()
            self.has_head = True
        else:
            self.headers = []

    def on_body(self, body: bytes) -> None:
        self.chunks.append(body)
        self.buffered += len(body)

    def on_message_complete(self) -> None:
        self.complete = self.has_head

    # for the pool and the answer

    def _wake(self) -> None:
        if self.on_news is not None:
            self.on_news()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def news(self) -> None:
        """Wait for more of the answer. Raises UpstreamError if none can come."""
        if self.error is not None:
            raise UpstreamError(self.error, answered=self.answered)
        if self.closed:
            raise UpstreamError("connection closed", answered=self.answered)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self.error is not None and not self.chunks:
            raise UpstreamError(self.error, answered=self.answered)

    def take(self) -> bytes:
        """What has come of the body since the last call."""
        data = self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.chunks.clear()
        if self.buffered > BUFFER_BYTES and not self.closed:
            self.transport.resume_reading()
        self.buffered = 0
        return data

    def send(self, data: bytes) -> None:
        """Ask for the next answer."""
        self._begin()
        self.transport.write(data)


class Answer:
    """The head of an answer, and its body as it comes. End it with :meth:`done`, whatever happened."""

    def __init__(self, pool: Upstream, connection: EngineConnection) -> None:
        self._pool = pool
        self._connection = connection
        self.status = connection.status
        self.headers = connection.headers

    @property
    def complete(self) -> bool:
        """The whole body is here."""
        return self._connection.complete

    async def chunk(self) -> bytes:
        """All that has come since the last call; waits for something; empty at the end. Raises UpstreamError."""
        connection = self._connection
        while not connection.chunks:
            if connection.complete:
                return b""
            await connection.news()
        return connection.take()

    async def body(self) -> bytes:
        """The whole body. Raises UpstreamError, also for one that is too long."""
        parts: list[bytes] = []
        size = 0
        while part := await self.chunk():
            parts.append(part)
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise UpstreamError(f"an answer of more than {MAX_BODY_BYTES} bytes", answered=True)
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def done(self) -> None:
        self._pool.release(self._connection)


class Upstream:
    """The connections to one engine."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """``api_key``: brought along with every request. Raises ValueError: not such a URL."""
        try:
            parts = urlsplit(url)
            port = parts.port or 80
        except ValueError as error:
            raise ValueError(f"the URL of an engine looks like http://host:port, not {url!r}: {error}") from None
        if parts.scheme != "http" or not parts.hostname or not _PLAIN.fullmatch(parts.netloc):
            raise ValueError(f"the URL of an engine looks like http://host:port, not {url!r}")
        self.url = url.rstrip("/")
        self._host, self._port = parts.hostname, port
        self._host_header = parts.netloc.encode()
        self._key_line = b"" if api_key is None else b"authorization: Bearer %b\r\n" % api_key.encode()
        self._idle: deque[EngineConnection] = deque()
        self._busy: set[EngineConnection] = set()

    async def request(
        self,
        method: bytes,
        target: bytes,
        headers: Iterable[Header] = (),
        body: bytes = b"",
        abort: Abort | None = None,
        sent: EngineConnection | None = None,
    ) -> Answer:
        """Send a request and wait for the head of its answer. ``headers`` without framing and hop-by-hop ones.

        ``sent``: the connection on which this very request was sent already. One that the engine closed while it lay idle
        is replaced by a new one; nobody saw that request. Raises UpstreamError.
        """
        connection = sent or self.idle()
        while True:
            connection = connection or await self._connect()
            if abort is not None:
                abort.bind(connection.transport)
            try:
                if sent is None:
                    connection.send(self.message(method, target, headers, body))
                sent = None
                while not connection.has_head:
                    await connection.news()
            except UpstreamError as error:
                self.release(connection)
                ours = connection.closed_by_us or (abort is not None and abort.fired)
                if connection.reused and not error.answered and not ours:
                    connection = None
                    continue
                raise
            except BaseException:
                self.release(connection)
                raise
            return Answer(self, connection)

    def message(self, method: bytes, target: bytes, headers: Iterable[Header], body: bytes) -> bytes:
        """A request as it is sent, with the engine's key."""
        head = [method, b" ", target, b" HTTP/1.1\r\nhost: ", self._host_header, b"\r\n"]
        for name, value in headers:
            head += (name, b": ", value, b"\r\n")
        head += (self._key_line, b"content-length: %d\r\n\r\n" % len(body), body)
        return b"".join(head)

    async def get(self, path: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Status and whole body of a question of our own. Raises UpstreamError, TimeoutError."""
        async with asyncio.timeout(timeout_s):
            answer = await self.request(b"GET", path)
            try:
                return answer.status, await answer.body()
            finally:
                answer.done()

    def idle(self) -> EngineConnection | None:
        """A connection that lay idle; it has to come to :meth:`release`."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and not connection.transport.is_closing():
                connection.reused = True
                self._busy.add(connection)
                return connection
        return None

    async def _connect(self) -> EngineConnection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    EngineConnection, self._host, self._port
                )
        except TimeoutError:
            raise UpstreamError(f"{self.url}: no connection within {CONNECT_TIMEOUT_S:g} s") from None
        except (OSError, UnicodeError) as error:  # a name that no resolver takes
            raise UpstreamError(f"{self.url}: {error}", refused=isinstance(error, ConnectionRefusedError)) from None
        self._busy.add(connection)
        return connection

    def release(self, connection: EngineConnection) -> None:
        """Back to the idle ones if its answer was read to the end, else closed (the engine then aborts the request)."""
        self._busy.discard(connection)
        if connection.complete and connection.keep and not connection.chunks and not connection.closed:
            self._idle.append(connection)
        elif not connection.closed:
            connection.transport.abort()

    def close(self) -> None:
        """Break off everything. What was asked is not asked again here."""
        for connection in (*self._idle, *self._busy):
            connection.closed_by_us = True
            connection.transport.abort()
        self._idle.clear()
