"""Clients that send or take too slowly are given up, over real sockets with short deadlines; slow ones that get on are not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from http_answers import DEADLINE_S, answer, client_of

from miles_async.http.deadlines import DEADLINES, BodyPace, Deadlines
from miles_async.http.limits import read_body, send_whole
from miles_async.http.refusals import Refusals
from miles_async.router.app import RouterApp

LONG = 1000.0
HEAD = b"POST /%b HTTP/1.1\r\nhost: x\r\n"
STREAMS = 8


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = await read_body(receive)
    await send_whole(send, 200, [], scope["path"].encode() + b" " + (body or b""))


async def drip(writer: asyncio.StreamWriter, content: bytes, pause_s: float = 0.02) -> None:
    """Byte by byte, as long as somebody listens."""
    for byte in content:
        if writer.is_closing():
            return
        writer.write(bytes([byte]))
        await asyncio.sleep(pause_s)  # shorter than any deadline here


@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\nx: "], ids=["empty lines", "a head without end"])
async def test_a_head_that_drips_is_given_up(begin: bytes) -> None:
    refusals, deadlines = Refusals(), Deadlines(head_s=0.2)
    async with client_of(echo, 0.2, deadlines, refusals) as (reader, writer):
        writer.write(begin)
        dripping = asyncio.create_task(drip(writer, b"\r\n" * 5000 if not begin else b"a" * 10_000))
        with contextlib.suppress(ConnectionResetError):  # it closed while we were writing
            await reader.read()
        dripping.cancel()
    assert refusals["408"] == bool(begin)


async def test_a_body_that_stops_coming_is_given_up_and_its_application_told() -> None:
    told, refusals = asyncio.Event(), Refusals()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await read_body(receive) is None
        told.set()

    async with client_of(app, LONG, Deadlines(still_s=0.2), refusals) as (reader, writer):
        writer.write(HEAD % b"" + b"content-length: 100\r\n\r\nten bytes.")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        await told.wait()
    assert refusals["408"] == 1


async def test_unfinished_bodies_give_the_places_of_the_router_back() -> None:
    app = RouterApp(max_concurrency=STREAMS)

    async def until(holds: Any) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async with client_of(app, LONG, Deadlines(still_s=0.5)) as (_, first):
        address = first.get_extra_info("peername")
        others = [await asyncio.open_connection(*address) for _ in range(STREAMS - 1)]
        for writer in (first, *(writer for _, writer in others)):
            writer.write(HEAD % b"generate" + b"transfer-encoding: chunked\r\n\r\n")
        await until(lambda: app.concurrency == STREAMS)
        await until(lambda: app.concurrency == 0)
        for _, writer in others:
            writer.close()


async def test_a_body_that_the_application_does_not_take_yet_is_not_the_clients_fault() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.5)  # several times the deadline
        await echo(scope, receive, send)

    body = b"x" * 8_000_000  # more than the server holds, and the socket's buffers
    async with client_of(app, LONG, Deadlines(still_s=0.1)) as (reader, writer):
        writer.write(HEAD % b"" + b"content-length: %d\r\n\r\n" % len(body) + body)
        status, got = await answer(reader)
        assert status == 200 and len(got) == len(body) + 2


async def test_a_client_that_waits_for_the_word_to_send_is_not_late() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.5)
        await echo(scope, receive, send)

    async with client_of(app, LONG, Deadlines(still_s=0.2)) as (reader, writer):
        writer.write(HEAD % b"" + b"content-length: 4\r\nexpect: 100-continue\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"body")
        assert await answer(reader) == (200, b"/ body")


@pytest.fixture
async def left() -> AsyncIterator[asyncio.Event]:
    yield asyncio.Event()


@pytest.mark.parametrize("keeps_on", [True, False], ids=["an answer without end", "an answer that is over"])
async def test_a_client_that_does_not_take_its_answer_is_given_up(left: asyncio.Event, keeps_on: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["on_disconnect"](left.set)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        part = {"type": "http.response.body", "body": b"x" * 20_000_000}
        await send(part | {"more_body": keeps_on})
        while keeps_on and not left.is_set():
            await send(part | {"more_body": True})

    async with client_of(app, LONG, Deadlines(still_s=0.2)) as (_, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(HEAD % b"" + b"content-length: 0\r\n\r\n")
        if keeps_on:
            await left.wait()
        while not writer.is_closing():  # what is written finds nobody in the end
            writer.write(b" ")
            await asyncio.sleep(0.02)


async def test_what_came_in_time_is_answered_before_a_late_head_behind_it_ends_the_connection() -> None:
    refusals, answered = Refusals(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answered.wait()
        await echo(scope, receive, send)

    async with client_of(app, LONG, Deadlines(head_s=0.1), refusals) as (reader, writer):
        writer.write(HEAD % b"1" + b"content-length: 0\r\n\r\nGET /2 HTT")
        while not refusals["408"]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        answered.set()
        assert await answer(reader) == (200, b"/1 ")
        assert await reader.read() == b""


def test_a_slow_body_is_given_up_below_the_least_rate_only() -> None:
    slow, steady, paused = BodyPace(0.0), BodyPace(0.0), BodyPace(0.0)
    for second in range(1, 4000):
        now = float(second)
        slow.came(int(DEADLINES.least_rate) - 1, now)
        steady.came(int(DEADLINES.least_rate) + 1, now)
        assert not steady.late(DEADLINES, now)
        assert bool(slow.late(DEADLINES, now)) == (now >= DEADLINES.slow_s)
    paused.came(1, 1.0)
    paused.pause(2.0)
    assert not paused.late(DEADLINES, LONG)
    paused.go_on(LONG)
    assert not paused.late(DEADLINES, LONG + 1)
    assert "no byte" in paused.late(DEADLINES, LONG + DEADLINES.still_s)


@pytest.mark.parametrize(
    "body", [b"content-length: 4\r\n\r\nbody", b"transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_request_that_offers_another_protocol_is_answered_in_this_one_with_its_body(
    body: bytes, at_once: bool
) -> None:
    upgrade = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
    both = HEAD % b"1" + upgrade + body + HEAD % b"2" + b"upgrade: h2c\r\nconnection: upgrade\r\n\r\n"
    both += HEAD % b"3" + b"content-length: 2\r\n\r\nhi"
    async with client_of(echo) as (reader, writer):
        if at_once:
            writer.write(both)
        else:
            await drip(writer, both, 0.0)
        assert [await answer(reader) for _ in range(3)] == [(200, b"/1 body"), (200, b"/2 "), (200, b"/3 hi")]
