"""How engines leave a router, or stop to serve in the middle of a request: nothing is lost, nothing runs twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from engine_support import make_checkpoint
from fake_engines import FakeEngine, Held, Receive, Send, arrive, ask, fleet, served, wait_for_disconnect

from miles_async.engines.embedded.server import serve
from miles_async.router.app import RouterApp
from miles_async.router.observe.health import HealthChecker

pytestmark = pytest.mark.usefixtures("with_and_without_connections")


async def test_an_engine_that_drains_gets_nothing_new_answers_what_it_has_and_is_gone() -> None:
    a, b = Held("a"), FakeEngine("b")
    async with fleet(a, b) as (app, url, _, session):
        app.set_updating("b", True)  # so that these go to the other one
        asking = [asyncio.create_task(ask(session, url, b"%d" % i)) for i in range(3)]
        await arrive(a, 3)
        app.set_updating("b", False)
        async with session.delete(url + "/workers/a") as answer:
            assert answer.status == 202
            assert await answer.json() == {"removed": False, "id": "a", "inflight": 3}
        for _ in range(4):
            assert await ask(session, url) == (200, b"b:x")
        async with session.get(url + "/workers/a") as answer:
            assert (await answer.json())["state"] == "draining"
        a.gate.set()
        assert [await one for one in asking] == [(200, b"a:%d" % i) for i in range(3)]
        async with asyncio.timeout(10):
            while "a" in app.engines:  # noqa: ASYNC110 - its place is free once the last answer is delivered
                await asyncio.sleep(0)
        assert list(app.engines) == ["b"] and len(a.seen) == 3
        async with session.get(url + "/workers/a") as answer:
            assert answer.status == 404


async def test_an_idle_engine_drains_at_once_and_news_of_one_that_drains_does_not_bring_it_back() -> None:
    a, b = Held("a"), FakeEngine("b")
    async with fleet(a, b) as (app, url, urls, session):
        app.drain("b")
        assert list(app.engines) == ["a"]
        asking = asyncio.create_task(ask(session, url))
        await arrive(a)
        app.drain("a")
        app.add("a", urls[0], version=1)
        app.set_updating("a", False)
        app.revive(app.engines["a"])
        assert app.engines["a"].state == "draining" and app.policy.choose() is None
        async with session.post(url + "/workers", json={"url": urls[0], "id": "a"}) as answer:
            assert answer.status == 409 and "drains" in (await answer.json())["detail"]
        async with session.post(url + "/abort_request", json={"rid": "r"}) as answer:
            assert answer.status == 200  # it reaches the engine, which still has requests
        a.gate.set()
        assert await asking == (200, b"a:x")
        assert [target for target, _ in a.seen] == ["POST /generate", "POST /abort_request"]


async def test_removal_at_once_gives_the_requests_in_flight_to_others_and_aborts_them_there() -> None:
    a, b = FakeEngine("a", wait_for_disconnect), FakeEngine("b")
    async with fleet(a, b) as (app, url, _, session):
        app.set_updating("b", True)
        asking = asyncio.create_task(ask(session, url))
        await arrive(a)
        app.set_updating("b", False)
        async with session.delete(url + "/workers/a?now=true") as answer:
            assert answer.status == 200 and (await answer.json())["removed"]
        assert await asking == (200, b"b:x")
        async with asyncio.timeout(10):
            await a.left.wait()
        assert app.failovers == 1


async def test_a_request_whose_engine_is_given_up_is_aborted_there_and_answered_once() -> None:
    async def hangs(engine: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        """Has begun its answer, and neither goes on nor tells of its health."""
        if scope["path"] == "/generate":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await wait_for_disconnect(engine, scope, body, receive, send)

    a, b = FakeEngine("a", hangs), FakeEngine("b")
    async with fleet(a, b) as (app, url, _, session):
        app.set_updating("b", True)
        asking = asyncio.create_task(ask(session, url))
        await arrive(a)
        app.set_updating("b", False)
        look = HealthChecker(app, interval_s=0.1, max_failures=1, is_updating=lambda _: False)
        await look.look()
        assert await asking == (200, b"b:x")
        async with asyncio.timeout(10):
            await a.left.wait()
        generated = [engine.name for engine in (a, b) for target, _ in engine.seen if target == "POST /generate"]
        assert generated == ["a", "b"]


async def test_a_request_that_ran_out_of_time_is_aborted_at_its_engine() -> None:
    engine = FakeEngine("a", wait_for_disconnect)
    async with fleet(engine, request_timeout_s=0.2) as (_, url, _, session):
        assert (await ask(session, url))[0] == 504
        async with asyncio.timeout(10):
            await engine.left.wait()


async def test_the_embedded_engine_drops_a_request_that_the_router_has_given_to_another(tmp_path: Path) -> None:
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    checkpoint = make_checkpoint(tmp_path)
    engine = asyncio.create_task(serve(str(checkpoint), device="cpu", on_ready=ready.set_result, stop=stop))
    engine_url, app = await asyncio.wait_for(ready, 30), RouterApp()
    async with served(FakeEngine("b")) as other, served(app) as url, aiohttp.ClientSession() as session:

        async def running() -> int:
            async with session.get(engine_url + "/v1/loads") as answer:
                (load,) = (await answer.json())["loads"]
                return load["num_running_reqs"] + load["num_waiting_reqs"]

        async def until(count: int) -> None:
            async with asyncio.timeout(20):
                while await running() != count:
                    pass

        app.add("a", engine_url, version=0)
        async with session.post(engine_url + "/pause_generation", json={"mode": "in_place"}):
            pass  # only the abort can end the request now
        body = b'{"input_ids": [1], "sampling_params": {"max_new_tokens": 400, "ignore_eos": true}}'
        asking = asyncio.create_task(ask(session, url, body))
        await until(1)
        app.add("b", other, version=0)
        app.remove("a")
        assert await asking == (200, b"b:" + body)
        await until(0)
    stop.set()
    await asyncio.wait_for(engine, 30)
