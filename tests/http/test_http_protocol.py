"""The HTTP side of our servers, over real sockets. What it refuses: test_refusals.py and test_fuzz_http.py."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from http_answers import answer, client_of

from miles_async.http.limits import read_body, send_whole

GET = b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n"


async def test_pipelined_requests_are_answered_in_their_order_one_after_the_other() -> None:
    began, release, running = asyncio.Event(), asyncio.Event(), 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running
        running += 1
        assert running == 1
        began.set()
        await release.wait()
        await send_whole(send, 200, [], scope["path"].encode())
        running -= 1

    async with client_of(app) as (reader, writer):
        writer.write(b"".join(GET % i for i in range(5)))
        await began.wait()
        release.set()
        assert [await answer(reader) for _ in range(5)] == [(200, b"/%d" % i) for i in range(5)]


async def test_a_body_in_pieces_and_an_answer_in_pieces_arrive_whole() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = await read_body(receive)
        assert body is not None
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for place in range(0, len(body), 70_000):
            part = {"type": "http.response.body", "body": body[place : place + 70_000], "more_body": True}
            await send(part)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    body = bytes(range(256)) * 20_000
    async with client_of(app) as (reader, writer):
        for _ in range(2):  # the connection is good for another one
            writer.write(
                b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body)
            )
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            assert await answer(reader) == (200, body)


async def test_an_application_hears_at_once_of_a_client_that_leaves() -> None:
    began, left = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["on_disconnect"](left.set)
        began.set()
        await left.wait()
        assert (await receive())["type"] == "http.disconnect"

    async with client_of(app) as (_, writer):
        writer.write(GET % 0)
        await began.wait()
        assert not left.is_set()
        writer.transport.abort()
        await left.wait()


async def test_who_was_answered_leaves_without_a_word() -> None:
    calls: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["on_disconnect"](lambda: calls.append("left"))
        await send_whole(send, 200, [], b"")

    async with client_of(app) as (reader, writer):
        writer.write(GET % 0)
        assert await answer(reader) == (200, b"")
        writer.close()
        await writer.wait_closed()
    assert not calls


async def test_what_an_application_raises_is_a_500_or_tears_the_answer_that_has_begun(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/1":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise ValueError("of the application")

    with caplog.at_level(logging.ERROR, "http"):
        async with client_of(app) as (reader, writer):
            writer.write(GET % 0)
            assert await answer(reader) == (500, b"Internal Server Error")
            assert await reader.read() == b""
        async with client_of(app) as (reader, writer):
            writer.write(GET % 1)
            assert (await reader.read()).endswith(b"4\r\nhalf\r\n")
    assert "of the application" in caplog.text


@pytest.mark.parametrize("header", [(b"a", b"b\r\nc: d"), (b"a\n", b"b")])
async def test_a_header_that_would_end_its_line_is_not_sent(header: tuple[bytes, bytes]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send_whole(send, 200, [header], b"")

    async with client_of(app) as (reader, writer):
        writer.write(GET % 0)
        assert (await answer(reader))[0] == 500


async def test_an_answer_of_another_length_than_announced_is_torn() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"four", "more_body": False})

    async with client_of(app) as (reader, writer):
        writer.write(GET % 0)
        assert await reader.read() == b""


async def test_a_connection_without_a_request_is_closed_in_time_and_one_with_a_request_is_not() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.5)  # longer than idle connections live
        await send_whole(send, 200, [], b"late")

    async with client_of(app, keep_alive_s=0.2) as (reader, writer):
        writer.write(GET % 0)
        assert await answer(reader) == (200, b"late")
        assert await reader.read() == b""
