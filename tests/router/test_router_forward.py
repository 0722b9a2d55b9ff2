"""A request's way through the router over connections that lay idle: sizes, pieces, deadlines and clients that leave, and that
nothing is left of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from fake_engines import FakeEngine, Handler, Receive, Send, fleet, respond, wait_for_disconnect
from http_answers import answer

from miles_async.http.client_connection import BUFFER_BYTES
from miles_async.router.app import RouterApp

DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def idle_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "idle_connections", 4)


@contextlib.asynccontextmanager
async def router_to(handler: Handler | None = None, **options: Any) -> AsyncIterator[tuple[RouterApp, str, FakeEngine]]:
    """A router with idle connections to one engine. At the end nothing counts as in flight."""
    engine = FakeEngine("a", handler)
    async with asyncio.timeout(DEADLINE_S), fleet(engine, **options) as (app, url, _, _):
        yield app, url, engine
        assert app.concurrency == 0 and [worker.inflight for worker in app.engines.values()] == [0]


async def raw(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(url)
    return await asyncio.open_connection(address.hostname, address.port)


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions?x=1"])
async def test_bodies_of_any_size_come_back_whole(path: str) -> None:
    async with router_to() as (app, url, engine), aiohttp.ClientSession() as session:
        for size in (0, 1, 70_000, 1_000_000):
            async with session.post(url + path, data=b"x" * size) as got:
                assert (got.status, await got.read()) == (200, b"a:" + b"x" * size)
        assert app.engines["a"].answered == len(engine.seen) == 4


async def test_pipelined_requests_and_one_that_comes_byte_by_byte_are_answered_in_order() -> None:
    async with router_to() as (_, url, _):
        reader, writer = await raw(url)
        requests = b"".join(
            b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n%02d" % number for number in range(20)
        )
        for place in range(len(requests) // 2):
            writer.write(requests[place : place + 1])
            await writer.drain()
        writer.write(requests[len(requests) // 2 :])
        assert [await answer(reader) for _ in range(20)] == [(200, b"a:%02d" % number) for number in range(20)]
        writer.close()


async def test_a_body_that_is_long_or_of_unknown_length_arrives_whole() -> None:
    async with router_to() as (_, url, _), aiohttp.ClientSession() as session:

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield b"y" * 100_000

        async with session.post(url + "/generate", data=parts()) as got:
            assert await got.read() == b"a:" + b"y" * 4_000_000
        async with session.post(url + "/generate", data=b"z" * 4_000_000) as got:
            assert await got.read() == b"a:" + b"z" * 4_000_000


@pytest.mark.parametrize("status", [401, 413, 429])
async def test_what_is_refused_for_its_head_is_refused_before_its_body_is_waited_for(status: int) -> None:
    refusing: dict[int, dict[str, Any]] = {
        401: {"api_key": "k"},
        413: {"max_body_bytes": 9},
        429: {"max_concurrency": 0},
    }
    async with router_to(**refusing[status]) as (_, url, _):
        reader, writer = await raw(url)
        writer.write(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"%d" % status
        writer.close()


async def test_an_answer_longer_than_what_a_connection_holds_arrives_whole() -> None:
    content = b"z" * (3 * BUFFER_BYTES)

    async def long(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        await respond(send, 200, content)

    async with router_to(long) as (_, url, _), aiohttp.request("POST", url + "/generate", data=b"x") as got:
        assert await got.read() == content


async def test_those_that_run_out_of_time_are_told_so_each_at_its_own_time() -> None:
    async def never(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        engine.arrived.release()

    async with router_to(never, request_timeout_s=0.3) as (_, url, engine), aiohttp.ClientSession() as session:

        async def ask() -> int:
            async with session.post(url + "/generate", data=b"x") as got:
                return got.status

        first = asyncio.create_task(ask())
        await engine.arrived.acquire()
        second = asyncio.create_task(ask())
        assert await first == 504 and await second == 504
        for _ in range(3):  # the second one's arrival, and that both were aborted at their engine
            await engine.arrived.acquire()


async def test_a_client_that_leaves_takes_its_request_along_and_that_says_nothing_of_the_engine() -> None:
    async with router_to(wait_for_disconnect) as (app, url, engine):
        _, writer = await raw(url)
        writer.write(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx")
        await engine.arrived.acquire()
        assert app.concurrency == 1
        writer.transport.abort()
        await engine.left.wait()
        assert app.failovers == 0 and app.engines["a"].breaker.in_a_row == 0
        assert app.concurrency == 0


async def test_what_is_no_json_is_not_delivered() -> None:
    said: list[str] = []
    async with router_to(max_retries=0) as (app, url, _), aiohttp.ClientSession() as session:
        app.on_garbage = lambda worker, what: said.append(what)
        async with session.post(url + "/generate", data=b"x") as got:
            assert got.status == 502
    assert said == ["answered /generate with b'a:x'"]


async def test_an_answer_whose_version_was_not_demanded_is_not_delivered() -> None:
    async def old(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        await respond(send, 200, b'{"meta_info": {"weight_version": "6"}}')

    async with router_to(old, max_retries=0) as (app, url, _), aiohttp.ClientSession() as session:
        app.add("a", app.engines["a"].url, version=7)
        async with session.post(url + "/generate", data=b"x", headers={"x-weight-version": "7"}) as got:
            assert got.status == 502 and "weight version 6" in await got.text()


async def test_an_answer_that_the_server_cannot_send_is_a_500_and_the_router_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with router_to() as (_, url, _), aiohttp.ClientSession() as session:
        with monkeypatch.context() as broken:
            broken.setattr("miles_async.router.passage.passed_on", lambda headers: [(b"a", b"b\r\nc: d")])
            async with session.post(url + "/generate", data=b"x") as got:
                assert got.status == 500
        async with session.post(url + "/generate", data=b"x") as got:
            assert await got.read() == b"a:x"
