"""The HTTP/1.1 side of our servers: a connection, and each of its requests as a call of an ASGI application.

uvicorn's server runs it in the place of its own protocol, which costs the router more for each request.

Promises: heads have up to ``MAX_HEAD_BYTES``, what is no HTTP is a 400, both counted; pipelined requests are answered in
order; a connection without a request is closed after ``timeout_keep_alive`` seconds. The answers: ``http_request.py``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from miles_async.http_limits import MAX_HEAD_BYTES
from miles_async.http_request import Request
from miles_async.refusals import Refusals

HELD_BYTES = 1 << 20  # of a body that nobody takes; more stops the reading
ASGI = {"version": "3.0", "spec_version": "2.3"}


class Connection(asyncio.Protocol):
    """Made by uvicorn's server for each connection; :func:`protocol` adds where refusals are counted."""

    refusals: Refusals
    transport: asyncio.Transport

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        self._app, self._server, self._keep_alive_s = config.loaded_app, server_state, config.timeout_keep_alive
        self._direct = getattr(self._app, "direct", None)
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._requests: deque[Request] = deque()  # the first one runs, the others wait for it
        self._reading: Request | None = None  # whose body comes
        self.full: asyncio.Future[None] | None = None  # while the client does not take what is written
        self._paused, self._in_head, self._head_bytes = False, True, 0
        self._active_at = 0.0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._server.connections.add(self)
        self._address = tuple(transport.get_extra_info("sockname")[:2])
        self._active_at = self._loop.time()
        self._timer = self._loop.call_later(self._keep_alive_s, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._timer.cancel()
        for request in self._requests:
            request.gone()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # it was refused: what still comes is not parsed
        self._active_at = self._loop.time()
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # answered as what it is without the upgrade
        except httptools.HttpParserError:
            self._refuse(400, "Invalid HTTP request received.")
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"a head of more than {MAX_HEAD_BYTES} bytes")

    def pause_writing(self) -> None:
        self.full = self.full or self._loop.create_future()

    def resume_writing(self) -> None:
        if self.full is not None and not self.full.done():  # done: who waited was cancelled
            self.full.set_result(None)
        self.full = None

    # httptools

    def on_message_begin(self) -> None:
        self._in_head, self._expects, self._length = True, False, 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-length" and value.isdigit():
            self._length = int(value[:20])
        elif name == b"transfer-encoding":
            self._length = None
        elif name == b"expect" and value.lower() == b"100-continue":
            self._expects = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        if len(self._url) + sum(len(name) + len(value) for name, value in self._headers) > MAX_HEAD_BYTES:
            self._refuse(431, f"a head of more than {MAX_HEAD_BYTES} bytes")
            raise ValueError("the head is too long")  # ends the parsing; all is said
        parser, url = self._parser, httptools.parse_url(self._url)
        version, path = parser.get_http_version(), url.path.decode("ascii")
        scope = {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "method": parser.get_method().decode("ascii"),
            "scheme": "http",
            "path": unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
            "root_path": "",
            "headers": self._headers,
            "server": self._address,
            "client": None,
        }
        keep_alive = version != "1.0" and parser.should_keep_alive() and not parser.should_upgrade()
        self._reading = request = Request(self, scope, keep_alive, self._expects)
        self._requests.append(request)
        if len(self._requests) == 1 and not self._waits_for_body(request):
            self._start(request)

    def on_body(self, body: bytes) -> None:
        if self._reading is not None:
            self._reading.feed(body)
            self.adjust_reading()

    def on_message_complete(self) -> None:
        request = self._reading
        if request is not None:
            request.feed_end()
            self._reading = None
            if request is self._requests[0] and not request.running:
                self._start(request)
            self.adjust_reading()

    # requests

    def _waits_for_body(self, request: Request) -> bool:
        """Whether it may do without a task, once its body is here."""
        if self._direct is None or self._expects or self._length is None or self._length > HELD_BYTES:
            return False
        return self._direct.wants(request, self._length)

    def _start(self, request: Request) -> None:
        request.running = True
        if self._direct is None or not request.whole or self.full is not None or not self._direct.take(request):
            self.run(request, self._app)

    def run(self, request: Request, app: Any) -> None:
        """Give the request to an application."""
        task = self._loop.create_task(request.run(app))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    def adjust_reading(self) -> None:
        """Read on unless a request waits behind another one, or a body that nobody takes has grown long."""
        pause = len(self._requests) > 1 or (self._reading is not None and self._reading.held > HELD_BYTES)
        if pause != self._paused and not self.transport.is_closing():
            self._paused = pause
            (self.transport.pause_reading if pause else self.transport.resume_reading)()

    def answered(self, request: Request) -> None:
        """The running request has its whole answer."""
        self._requests.popleft()
        self._server.total_requests += 1
        self._active_at = self._loop.time()
        if not request.keep_alive:
            self.transport.close()
        elif not self.transport.is_closing():
            self.adjust_reading()
            if self._requests:
                self._start(self._requests[0])

    def failed(self, request: Request) -> None:
        """Its application raised."""
        if not request.sent and not self.transport.is_closing():
            body = b"Internal Server Error"
            self.transport.write(
                STATUS_LINE[500] + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
        self.transport.close()

    def _refuse(self, status: int, why: str) -> None:
        if self.transport.is_closing():
            return
        self.refusals.note(status, why)
        body = why.encode()
        head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def _close_if_idle(self) -> None:
        left_s = self._keep_alive_s - (self._loop.time() - self._active_at)
        if self._requests or left_s > 0:
            self._timer = self._loop.call_later(max(left_s, 1.0), self._close_if_idle)
        else:
            self.transport.close()

    def shutdown(self) -> None:
        """uvicorn's server stops: finish what runs, take nothing new."""
        for request in self._requests:
            request.keep_alive = False
        if not self._requests:
            self.transport.close()


def protocol(refusals: Refusals) -> type[Connection]:
    """The class for ``uvicorn.Config(http=...)``; what it refuses is counted in ``refusals``."""
    return type("CountingConnection", (Connection,), {"refusals": refusals})
