"""Circuit breakers in a router, with real engines that fail and recover."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_engines import FakeEngine, Receive, Send, ask, fleet, free_port, respond, wait_for_disconnect

from miles_async.router.observe.health import HealthChecker

pytestmark = pytest.mark.usefixtures("with_and_without_connections")


class Moody(FakeEngine):
    """Healthy, and answers other requests with ``status``; 0: with something that is no HTTP answer's whole."""

    def __init__(self, name: str, status: int) -> None:
        super().__init__(name, self.answer)
        self.status = status

    async def answer(self, _: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        if scope["path"] == "/health":
            return await respond(send, 200, b"")
        if self.status:
            return await respond(send, self.status, self.name.encode())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"torn", "more_body": True})
        raise RuntimeError("a test")

    @property
    def generated(self) -> int:
        return sum(target == "POST /generate" for target, _ in self.seen)


def clocked(**options: Any) -> tuple[list[float], dict[str, Any]]:
    """A clock that a test turns, and the options of a router that goes by it."""
    now = [0.0]
    return now, {"clock": lambda: now[0], "breaker_failures": 2, "breaker_open_s": 10.0, **options}


async def test_an_engine_that_fails_its_requests_gets_none_until_a_probe_shows_that_it_serves() -> None:
    now, options = clocked()
    for status in (0, 503):
        now[0] = 0.0
        bad, good = Moody("bad", status), FakeEngine("good")
        async with fleet(bad, good, **options) as (app, url, _, session):
            for _ in range(8):
                assert await ask(session, url) == (200, b"good:x")
            assert bad.generated == 2 and app.engines["bad"].state == "tripped"
            now[0] = 10.0  # one request probes, and is answered by the other one; the next ten seconds begin
            for _ in range(4):
                assert await ask(session, url) == (200, b"good:x")
            assert bad.generated == 3
            now[0], bad.status = 20.0, 200
            assert await ask(session, url) == (200, b"bad")
            assert app.engines["bad"].state == "up"
            assert {(await ask(session, url))[1] for _ in range(4)} == {b"bad", b"good:x"}


async def test_a_500_is_the_clients_answer_and_still_a_failure() -> None:
    now, options = clocked(wait_s=0.05)
    bad = Moody("bad", 500)
    async with fleet(bad, **{**options, "clock": asyncio.get_running_loop().time}) as (app, url, _, session):
        assert [await ask(session, url) for _ in range(2)] == [(500, b"bad")] * 2
        status, message = await ask(session, url)
        assert status == 503 and b"2 failures in a row, last: HTTP 500" in message
        assert bad.generated == 2 and app.failovers == 0
    assert now == [0.0]


async def test_health_alone_does_not_bring_back_an_engine_that_fails_its_requests() -> None:
    _, options = clocked()
    bad, good = Moody("bad", 0), FakeEngine("good")
    async with fleet(bad, good, **options) as (app, url, urls, session):
        for _ in range(6):
            await ask(session, url)
        look = HealthChecker(app, interval_s=0.2, max_failures=1, is_updating=lambda _: False)
        await look.look()
        app.revive(app.engines["bad"])
        app.set_updating("bad", True)
        app.set_updating("bad", False)
        app.add("bad", urls[0], version=0)
        assert app.engines["bad"].state == "tripped"
        assert {app.policy.choose() for _ in range(4)} == {"good"}
        app.add("bad", urls[0], version=0, incarnation=1)  # another engine
        assert app.engines["bad"].state == "up"


async def test_a_breaker_that_opens_has_its_engine_looked_at_at_once() -> None:
    dead = asyncio.Event()
    _, options = clocked(on_dead=lambda worker, why: dead.set())
    good, stop = FakeEngine("good"), asyncio.Event()
    async with fleet(good, **options) as (app, _, _, _):
        looking = asyncio.create_task(HealthChecker(app, interval_s=60.0, max_failures=1).run(stop))
        async with asyncio.timeout(10):
            await good.arrived.acquire()  # the first look
            app.add("gone", f"http://127.0.0.1:{free_port()}")
            for _ in range(2):
                app.failed(app.engines["gone"], False, "torn")
            await dead.wait()
        assert app.engines["gone"].state == "dead"
        stop.set()
        await looking


async def test_an_engine_that_was_given_up_and_answers_again_begins_with_a_closed_breaker() -> None:
    _, options = clocked()
    async with fleet(FakeEngine("a"), **options) as (app, _, _, _):
        worker = app.engines["a"]
        for _ in range(2):
            app.failed(worker, False, "torn")
        app.mark_dead(worker, "nobody listens")
        assert worker.state == "dead" and worker.trouble == "nobody listens"
        await HealthChecker(app, interval_s=1.0, max_failures=1).look()
        assert worker.state == "up" and app.policy.choose() == "a"


async def test_a_probe_whose_client_leaves_shows_nothing_and_the_next_request_probes() -> None:
    now, options = clocked()
    engine = FakeEngine("a", wait_for_disconnect)
    async with fleet(engine, **options) as (app, url, _, session):
        worker = app.engines["a"]
        for _ in range(2):
            app.failed(worker, False, "torn")
        now[0] = 10.0
        leaving = asyncio.create_task(ask(session, url))
        async with asyncio.timeout(10):
            await engine.arrived.acquire()
            assert worker.breaker.state == "half_open"
            leaving.cancel()
            await engine.left.wait()
            while worker.inflight:
                (await session.get(url + "/workers")).close()
        assert worker.breaker.state == "open"
        engine.handler = None
        assert await ask(session, url) == (200, b"a:x")
        assert worker.state == "up"
