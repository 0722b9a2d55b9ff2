"""The HTTP/1.1 side of our servers: a connection, and each of its requests as a call of an ASGI application.

uvicorn's server runs it in the place of its own protocol, which costs the router more for each request.

Promises: heads have up to ``MAX_HEAD_BYTES``, what is no HTTP is a 400, both counted; pipelined requests are answered in
order; a connection without a request is closed after ``timeout_keep_alive`` seconds, one whose client is too slow by
``http/deadlines.py``, with a 408; a request that asks for another protocol is answered in this one, with its body. The
answers: ``http/request.py``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from miles_async.http.deadlines import BodyPace, Deadlines, Taking
from miles_async.http.limits import MAX_HEAD_BYTES
from miles_async.http.refusals import Refusals
from miles_async.http.request import ServedRequest

HELD_BYTES = 1 << 20  # of a body that nobody takes; more stops the reading
FRAMING = (b"content-length", b"transfer-encoding")
ASGI = {"version": "3.0", "spec_version": "2.3"}


class ServerConnection(asyncio.Protocol):
    """Made by uvicorn's server for each connection; :func:`protocol` adds where refusals are counted."""

    refusals: Refusals
    deadlines: Deadlines
    transport: asyncio.Transport

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        self._app, self._server, self._keep_alive_s = config.loaded_app, server_state, config.timeout_keep_alive
        self._loop = _loop or asyncio.get_running_loop()
        self._parser = self._new_parser()
        self._upgrades = self._mute = False
        self._requests: deque[ServedRequest] = deque()  # the first one runs, the others wait for it
        self._reading: ServedRequest | None = None  # whose body comes
        self.full: asyncio.Future[None] | None = None  # while the client does not take what is written
        self._paused, self._in_head, self._head_bytes = False, True, 0
        self._head_since: float | None = None
        self._body = BodyPace(0.0)  # of what is read
        self._taking = Taking()
        self._away_s = 0.0  # how long nobody looked, all in all: what waited in the socket meanwhile came in time
        self._now = self._idle_since = self._time()
        self._look_s = self.deadlines.look_s(self._keep_alive_s)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._server.connections.add(self)
        self._address = tuple(transport.get_extra_info("sockname")[:2])
        self._peer = tuple((transport.get_extra_info("peername") or ())[:2]) or None
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._timer.cancel()
        for request in self._requests:
            request.gone()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return  # it was refused: what still comes is not parsed
        self._now = self._time()
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(400, "Invalid HTTP request received.")
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, f"a head of more than {MAX_HEAD_BYTES} bytes")

    def _feed(self, data: bytes | memoryview) -> None:
        while True:
            try:
                return self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:  # it has ended the message behind its head
                self._go_on_behind_the_head()
                data = memoryview(data)[upgrade.args[0] :]

    def _go_on_behind_the_head(self) -> None:
        """The upgrade is not made: a parser that has not seen it reads the body, and what follows."""
        framing = b"".join(b"%b: %b\r\n" % header for header in self._headers if header[0] in FRAMING)
        self._parser, self._upgrades, self._mute = self._new_parser(), False, True
        self._parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
        self._mute = False

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def pause_writing(self) -> None:
        self.full = self.full or self._loop.create_future()

    def resume_writing(self) -> None:
        if self.full is not None and not self.full.done():  # done: who waited was cancelled
            self.full.set_result(None)
        self.full = None

    # httptools

    def on_message_begin(self) -> None:
        if self._mute:
            return
        self._head_since = self._now
        self._in_head, self._expects = True, False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        if not self._mute:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._mute:
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._mute:
            self._mute = False  # the end of the message is that of the request
            return
        self._in_head, self._head_bytes, self._head_since = False, 0, None
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
            "client": self._peer,
        }
        keep_alive = version != "1.0" and parser.should_keep_alive()
        self._upgrades = parser.should_upgrade()
        self._body = BodyPace(self._now)
        self._reading = request = ServedRequest(self, scope, keep_alive, self._expects)
        self._requests.append(request)
        if len(self._requests) == 1:
            self._start(request)

    def on_body(self, body: bytes) -> None:
        if self._reading is not None:
            self._body.came(len(body), self._now)
            self._reading.feed(body)
            self.adjust_reading()

    def on_message_complete(self) -> None:
        request = self._reading
        if request is not None and not self._upgrades:
            request.feed_end()
            self._reading = None
            self.adjust_reading()

    # requests

    def _start(self, request: ServedRequest) -> None:
        task = self._loop.create_task(request.run(self._app))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    def adjust_reading(self) -> None:
        """Read on unless a request waits behind another one, or a body that nobody takes has grown long."""
        pause = len(self._requests) > 1 or (self._reading is not None and self._reading.held > HELD_BYTES)
        if pause != self._paused and not self.transport.is_closing():
            self._paused = pause
            (self._body.pause if pause else self._body.go_on)(self._time())
            (self.transport.pause_reading if pause else self.transport.resume_reading)()

    def answered(self, request: ServedRequest) -> None:
        """The running request has its whole answer."""
        self._requests.popleft()
        self._server.total_requests += 1
        self._idle_since = self._time()
        if not request.keep_alive:
            self.transport.close()
        elif not self.transport.is_closing():
            self.adjust_reading()
            if self._requests:
                self._start(self._requests[0])

    def failed(self, request: ServedRequest) -> None:
        """End a request whose application raised."""
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

    def _time(self) -> float:
        """Seconds, without those that this process was stopped or held up for."""
        return self._loop.time() - self._away_s

    def _look_later(self) -> None:
        self._due = self._loop.time() + self._look_s
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        """Whether the client takes too long for what it is to do now."""
        late_s = self._loop.time() - self._due
        self._away_s += late_s if late_s > self._look_s else 0.0
        self._look_later()
        now = self._now = self._time()
        unsent = self.transport.get_write_buffer_size()
        if self._taking.late(unsent, self.deadlines, now):
            self.transport.abort()  # an orderly end would wait for what the client does not take
        elif self.transport.is_closing():
            pass  # its end waits for what is unsent
        elif self._head_since is not None:
            if now - self._head_since >= self.deadlines.head_s:
                self._too_late(f"no whole head within {self.deadlines.head_s:g} s")
        elif self._reading is not None:
            (self._body.pause if self._paused or self._reading.not_asked_for else self._body.go_on)(now)
            if why := self._body.late(self.deadlines, now):
                self._too_late(why)
        elif not self._requests and now - self._idle_since >= self._keep_alive_s:
            self.transport.close()

    def _too_late(self, why: str) -> None:
        if self._reading is not None and self._reading.started:
            self.refusals.note(408, why)
            self.transport.abort()  # it has an answer, or half of one
        elif self._reading is None and self._requests:
            self.refusals.note(408, why)
            self._head_since = None
            for request in self._requests:  # they have come in time: the end follows their answers
                request.keep_alive = False
        else:
            self._refuse(408, why)

    def shutdown(self) -> None:
        """uvicorn's server stops: finish what runs, take nothing new."""
        for request in self._requests:
            request.keep_alive = False
        if not self._requests:
            self.transport.close()


def protocol(refusals: Refusals, deadlines: Deadlines) -> type[ServerConnection]:
    """The class for ``uvicorn.Config(http=...)``; what it refuses is counted in ``refusals``."""
    return type("CountingConnection", (ServerConnection,), {"refusals": refusals, "deadlines": deadlines})
