"""A lean keep-alive HTTP/1.1 client for one server: raw bytes in, raw bytes out.

Promises: the body of an answer is handed over as it comes, with back-pressure; a failure says whether the server can
have begun to answer (``answered``) and whether it was not even there (``refused``); a connection is reused only after its
answer was read to the end. One request at a time on a connection, as many connections as requests in flight.
(A general client costs several times more for each request, and the router's own time is its only product.)
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterable
from urllib.parse import urlsplit

from miles_async.http.client_connection import ClientConnection, Header, UpstreamError

CONNECT_TIMEOUT_S = 5.0
_PLAIN = re.compile(r"[A-Za-z0-9_.:\[\]-]+")


class UpstreamAnswer:
    """The head of an answer, and its body as it comes. End it with :meth:`done`, whatever happened."""

    def __init__(self, pool: Upstream, connection: ClientConnection) -> None:
        self._pool = pool
        self._connection = connection
        self.status = connection.status
        self.headers = connection.headers

    async def chunk(self) -> bytes:
        """All that has come since the last call; waits for something; empty at the end. Raises UpstreamError."""
        return await self._connection.chunk()

    async def body(self) -> bytes:
        """The whole body. Raises UpstreamError, also for one that is too long."""
        return await self._connection.body()

    def done(self) -> None:
        self._pool.release(self._connection)


class Upstream:
    """The connections to one server."""

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
        self._idle: deque[ClientConnection] = deque()
        self._busy: set[ClientConnection] = set()

    async def request(
        self, method: bytes, target: bytes, headers: Iterable[Header] = (), body: bytes = b""
    ) -> UpstreamAnswer:
        """Send a request and wait for the head of its answer. ``headers`` without framing and hop-by-hop ones.

        A connection that the server closed while it lay idle is replaced by a new one; nobody saw that request. Whoever is
        cancelled while it waits breaks the request off. Raises UpstreamError.
        """
        message = self._message(method, target, headers, body)
        connection = self._from_idle() or await self._connect()
        while True:
            try:
                connection.send(message)
                await connection.head()
            except UpstreamError as error:
                self.release(connection)
                if not connection.reused or error.answered or connection.closed_by_us:
                    raise
                connection = await self._connect()
            except BaseException:
                self.release(connection)
                raise
            else:
                return UpstreamAnswer(self, connection)

    def _message(self, method: bytes, target: bytes, headers: Iterable[Header], body: bytes) -> bytes:
        """A request as it is sent, with the server's key."""
        head = [method, b" ", target, b" HTTP/1.1\r\nhost: ", self._host_header, b"\r\n"]
        for name, value in headers:
            head += (name, b": ", value, b"\r\n")
        head += (self._key_line, b"content-length: %d\r\n\r\n" % len(body), body)
        return b"".join(head)

    async def ask(
        self, method: bytes, target: bytes, headers: Iterable[Header] = (), body: bytes = b""
    ) -> tuple[int, bytes]:
        """Status and whole body of the answer to a :meth:`request`. Raises UpstreamError."""
        answer = await self.request(method, target, headers, body)
        try:
            return answer.status, await answer.body()
        finally:
            answer.done()

    async def get(self, path: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Status and whole body of a question of our own. Raises UpstreamError, TimeoutError."""
        async with asyncio.timeout(timeout_s):
            return await self.ask(b"GET", path)

    def _from_idle(self) -> ClientConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and not connection.transport.is_closing():
                connection.reused = True
                self._busy.add(connection)
                return connection
        return None

    async def _connect(self) -> ClientConnection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    ClientConnection, self._host, self._port
                )
        except TimeoutError:
            raise UpstreamError(f"{self.url}: no connection within {CONNECT_TIMEOUT_S:g} s") from None
        except (OSError, UnicodeError) as error:  # a name that no resolver takes
            raise UpstreamError(f"{self.url}: {error}", refused=isinstance(error, ConnectionRefusedError)) from None
        self._busy.add(connection)
        return connection

    def release(self, connection: ClientConnection) -> None:
        """Back to the idle ones if its answer was read to the end, else closed (the server then aborts the request)."""
        self._busy.discard(connection)
        if connection.reusable:
            self._idle.append(connection)
        elif not connection.closed:
            connection.transport.abort()

    def close(self) -> None:
        """Break off everything. What was asked is not asked again here."""
        for connection in (*self._idle, *self._busy):
            connection.closed_by_us = True
            connection.transport.abort()
        self._idle.clear()
