"""What a server says on a connection that a test has opened."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

from miles_async.http.deadlines import DEADLINES, Deadlines
from miles_async.http.limits import answer_at_once
from miles_async.http.refusals import Refusals
from miles_async.http.server import HttpServer

DEADLINE_S = 20.0


@contextlib.asynccontextmanager
async def client_of(
    app: Any, keep_alive_s: float = 75, deadlines: Deadlines = DEADLINES, refusals: Refusals | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    listener = socket.create_server(("127.0.0.1", 0))
    answer_at_once(listener)
    options: dict[str, Any] = {"timeout_keep_alive": keep_alive_s, "server_header": False, "date_header": False}
    server = HttpServer(app, Refusals() if refusals is None else refusals, deadlines, **options)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        async with asyncio.timeout(DEADLINE_S):
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            yield reader, writer
            writer.close()
    finally:
        server.should_exit = server.force_exit = True
        await task
        listener.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of one answer, chunked or of a stated length."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"content-length: " in head:
        return int(head[9:12]), await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
    assert b"transfer-encoding: chunked" in head
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return int(head[9:12]), body
