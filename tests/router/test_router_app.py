"""The router between a real client and real HTTP servers that misbehave in every way an engine can."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import aiohttp
import pytest
from fake_engines import (
    FakeEngine,
    Receive,
    Send,
    fleet,
    free_port,
    hang_up,
    respond,
    served,
    wait_for_disconnect,
)

from miles_async.router.app import RouterApp
from miles_async.router.engine import RoutedEngine
from miles_async.router.observe.health import HealthChecker

pytestmark = pytest.mark.usefixtures("with_and_without_connections")


async def test_a_request_goes_through_unchanged_and_so_does_its_answer() -> None:
    async def odd(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        kept = dict(scope["headers"]).get(b"x-mine", b"")
        await respond(send, 418, kept + b"\x00\xff" + body, [(b"x-theirs", b"yes")])

    engine = FakeEngine("a", odd)
    payload = bytes(range(256)) * 5000
    async with fleet(engine) as (_, url, _, session):
        for _ in range(3):  # the second one on a connection that was used before
            async with session.post(url + "/generate?x=1%202", data=payload, headers={"x-mine": "kept"}) as answer:
                assert answer.status == 418 and answer.headers["x-theirs"] == "yes"
                assert await answer.read() == b"kept\x00\xff" + payload
    assert engine.seen == [("POST /generate?x=1%202", payload)] * 3


async def test_concurrent_requests_are_spread_over_the_engines() -> None:
    gate = asyncio.Event()

    async def wait(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        await gate.wait()
        await respond(send, 200, engine.name.encode())

    a, b = FakeEngine("a", wait), FakeEngine("b", wait)
    async with fleet(a, b) as (app, url, _, session):
        requests = [asyncio.create_task(session.post(url + "/generate", data=b"x")) for _ in range(8)]
        async with asyncio.timeout(10):
            for engine in (a, b) * 4:
                await engine.arrived.acquire()
        assert len(a.seen) == len(b.seen) == 4
        assert [worker.inflight for worker in app.engines.values()] == [4, 4]
        gate.set()
        for request in requests:
            await (await request).read()
        assert [worker.inflight for worker in app.engines.values()] == [0, 0]
        assert all(worker.busy_seconds(app.clock()) > 0 for worker in app.engines.values())


async def test_an_engine_that_breaks_off_its_answer_loses_the_request_to_another_one() -> None:
    bad, good = FakeEngine("bad", hang_up), FakeEngine("good")
    async with fleet(bad, good) as (app, url, _, session):
        for number in range(4):
            async with session.post(url + "/generate", data=b"%d" % number) as answer:
                assert (answer.status, await answer.read()) == (200, b"good:%d" % number)
        assert bad.seen and app.failovers == len(bad.seen)


async def test_a_request_whose_connection_is_closed_without_a_word_is_sent_once_more_there_and_then_to_another() -> (
    None
):
    async def hang_up_at_once(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        # shorter than it says: the connection is closed and nothing written
        await respond(send, 200, b"", [(b"content-length", b"100")])

    bad, good = FakeEngine("bad", hang_up_at_once), FakeEngine("good")
    async with fleet(bad, good) as (app, url, _, session):
        for _ in range(4):
            async with session.post(url + "/generate", data=b"x") as answer:
                assert (answer.status, await answer.read()) == (200, b"good:x")
        # whoever closed an idle connection has not seen the request; a new connection that is closed is a failure
        assert app.failovers and len(bad.seen) == app.failovers * (2 if FakeEngine.idle_connections else 1)


async def test_an_engine_that_nobody_listens_for_is_dead_at_once_and_reported() -> None:
    deaths: list[str] = []

    def on_dead(engine: RoutedEngine, why: str) -> None:
        deaths.append(engine.name)

    good = FakeEngine("good")
    async with fleet(good, on_dead=on_dead) as (app, url, _, session):
        app.add("gone", f"http://127.0.0.1:{free_port()}")
        for _ in range(4):
            async with session.post(url + "/generate", data=b"x") as answer:
                assert await answer.read() == b"good:x"
        assert deaths == ["gone"]
        async with session.get(url + "/workers") as answer:
            states = {worker["id"]: worker["state"] for worker in (await answer.json())["workers"]}
        assert states == {"good": "up", "gone": "dead"}


async def test_engines_where_nobody_listens_cost_a_request_none_of_its_tries() -> None:
    good = FakeEngine("good")
    async with fleet(good, max_retries=0) as (app, url, _, session):
        app.set_updating("good", True)  # so that the others are asked first
        for number in range(5):
            app.add(f"gone-{number}", f"http://127.0.0.1:{free_port()}", version=0)
        async with session.post(url + "/generate", data=b"x") as answer:
            assert (answer.status, await answer.read()) == (200, b"good:x")
        assert app.failovers == 5 and sum(worker.state == "dead" for worker in app.engines.values()) == 5


async def test_an_answer_that_has_begun_to_arrive_is_not_started_again_and_does_not_look_whole() -> None:
    async def torn(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})  # chunked
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        raise RuntimeError("the engine dies here")

    bad = FakeEngine("bad", torn)
    async with fleet(bad) as (app, url, _, session):
        with contextlib.suppress(aiohttp.ClientError):
            async with session.post(url + "/generate", data=b"x") as answer:
                assert await answer.content.readany() == b"data: 1\n\n"
                await answer.read()
                raise AssertionError("a torn answer was delivered as a whole one")
        assert len(bad.seen) == 1 and app.failovers == 0


async def test_a_streamed_answer_arrives_piece_by_piece() -> None:
    gate = asyncio.Event()

    async def stream(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await gate.wait()  # the second piece exists only once the client has the first
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    async with (
        fleet(FakeEngine("a", stream)) as (_, url, _, session),
        session.post(url + "/v1/completions", data=b"x") as answer,
    ):
        assert answer.headers["content-type"] == "text/event-stream"
        async with asyncio.timeout(10):
            assert await answer.content.readany() == b"data: 1\n\n"
            gate.set()
            assert await answer.read() == b"data: [DONE]\n\n"


async def test_a_client_that_leaves_takes_its_request_at_the_engine_with_it() -> None:
    engine = FakeEngine("a", wait_for_disconnect)
    async with fleet(engine) as (app, url, _, session):
        request = asyncio.create_task(session.post(url + "/generate", data=b"x"))
        async with asyncio.timeout(10):
            await engine.arrived.acquire()
            request.cancel()
            await engine.left.wait()
            while app.engines["a"].inflight:
                (await session.get(url + "/workers")).close()
        assert len(engine.seen) == 1 and app.failovers == 0


async def test_a_request_waits_for_an_engine_to_come_and_else_is_told_what_is_missing() -> None:
    engine = FakeEngine("late")
    async with fleet(wait_s=0.2) as (app, url, _, session), served(engine) as engine_url:
        async with session.post(url + "/generate", data=b"x") as answer:
            assert answer.status == 503
            assert "no engine has joined" in (await answer.json())["error"]["message"]
        app.wait_s = 20.0
        request = asyncio.create_task(session.post(url + "/generate", data=b"x"))
        async with session.post(url + "/workers", json={"url": engine_url, "id": "late", "version": 3}) as answer:
            assert answer.status == 201
        async with await request as answer:
            assert await answer.read() == b"late:x"


async def test_an_engine_that_answers_503_is_passed_over_while_there_is_another() -> None:
    async def starting(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        await respond(send, 503, b"starting")

    async with fleet(FakeEngine("a", starting), FakeEngine("b")) as (_, url, _, session):
        for _ in range(3):
            async with session.post(url + "/generate", data=b"x") as answer:
                assert (answer.status, await answer.read()) == (200, b"b:x")
        async with session.delete(url + "/workers/b") as answer:
            assert answer.status == 200
        async with session.post(url + "/generate", data=b"x") as answer:
            assert (answer.status, await answer.read()) == (503, b"starting")


async def test_an_abort_reaches_every_engine_and_other_paths_one() -> None:
    a, b = FakeEngine("a"), FakeEngine("b")
    async with fleet(a, b) as (_, url, _, session):
        async with session.post(url + "/abort_request", json={"rid": "r"}) as answer:
            assert answer.status == 200
        async with session.get(url + "/model_info") as answer:
            assert answer.status == 200
    assert a.seen[0][0] == b.seen[0][0] == "POST /abort_request"
    assert len(a.seen) + len(b.seen) == 3


async def test_the_routers_own_pages_tell_of_its_engines() -> None:
    async with fleet(FakeEngine("a")) as (app, url, _, session):
        async with session.get(url + "/health") as answer:
            assert answer.status == 200
        async with session.get(url + "/metrics") as answer:
            text = await answer.text()
        assert 'router_engine_up{engine="a"} 1.0' in text and "router_failovers_total 0.0" in text
        async with session.post(url + "/workers", json={"url": "https://nope"}) as answer:
            assert answer.status == 400 and "http://host:port" in (await answer.json())["detail"]
        async with session.delete(url + "/workers/b") as answer:
            assert answer.status == 404
        app.remove("a")
        async with session.get(url + "/health") as answer:
            assert answer.status == 503


def checker(app: RouterApp, updating: set[str] | None = None) -> HealthChecker:
    known = None if updating is None else updating.__contains__
    return HealthChecker(app, interval_s=0.2, max_failures=2, is_updating=known)


async def paused(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
    """What a paused engine does: ``/health`` does not answer, ``/model_info`` does."""
    if scope["path"] == "/health":
        return await wait_for_disconnect(engine, scope, body, receive, send)
    await respond(send, 200, b"{}")


async def test_a_paused_engine_is_not_given_up_but_one_that_hangs_is() -> None:
    async with fleet(FakeEngine("paused", paused), FakeEngine("hangs", wait_for_disconnect)) as (app, _, _, _):
        look = checker(app)
        for _ in range(3):
            await look.look()
        assert not app.engines["paused"].trouble
        assert "2 health checks failed" in app.engines["hangs"].trouble


async def test_the_ledger_of_versions_tells_a_paused_engine_from_a_stuck_one() -> None:
    async with fleet(FakeEngine("a", paused)) as (app, _, _, _):
        updating = {"a"}
        look = checker(app, updating)
        for _ in range(3):
            await look.look()
        assert not app.engines["a"].trouble
        updating.clear()
        for _ in range(2):
            await look.look()
        assert app.engines["a"].trouble


async def test_an_engine_that_answers_again_gets_requests_again() -> None:
    engine = FakeEngine("a")
    async with fleet() as (app, url, _, session):
        port = free_port()
        app.add("a", f"http://127.0.0.1:{port}")
        look = checker(app)
        await look.look()
        assert "refused" in app.engines["a"].trouble or "Connect call failed" in app.engines["a"].trouble
        async with served(engine, port):
            await look.look()
            async with session.post(url + "/generate", data=b"x") as answer:
                assert await answer.read() == b"a:x"
            engine.handler = wait_for_disconnect
            await look.look()  # it answered since the last look: not even asked
            assert not app.engines["a"].trouble


async def test_an_engine_that_did_not_answer_in_time_is_named_by_a_504() -> None:
    async with (
        fleet(FakeEngine("a", wait_for_disconnect), request_timeout_s=0.2) as (_, url, _, session),
        session.post(url + "/generate", data=b"x") as answer,
    ):
        assert answer.status == 504
        assert "/generate within 0.2 s" in (await answer.json())["error"]["message"]
