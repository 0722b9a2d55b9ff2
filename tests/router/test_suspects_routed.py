"""Engines that misbehave behind a router are named and taken out within the stated time, and come back when they behave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import aiohttp
import pytest
from fake_engines import ADMIN_KEY, served
from yarl import URL

from benchmarks.lib.synthetic.batch import Latency
from benchmarks.lib.synthetic_engine import LIE, Misbehaviour, SyntheticEngine
from miles_async.router.app import RouterApp
from miles_async.router.engine import RoutedEngine
from miles_async.router.observe.looks import EngineLooks
from miles_async.router.observe.suspects import LYING_LOOKS, Suspects, Verdict

INTERVAL_S, SLOW_LOOKS, REAL_HUNG_S = 0.1, 3, 3.0
DEADLINE_S = 15.0
STATED_S: dict[Misbehaviour, float] = {
    "slow": (SLOW_LOOKS + 2) * INTERVAL_S,
    "stuck": REAL_HUNG_S + INTERVAL_S,
    "lying": (LYING_LOOKS + 1) * INTERVAL_S,
    "no_http": INTERVAL_S,
    "no_json": INTERVAL_S,
}
KINDS = {"slow": "slow", "stuck": "hung", "lying": "lying", "no_http": "garbage", "no_json": "garbage"}
Ask = Callable[[], Coroutine[Any, Any, Any]]


class Found:
    """The verdicts as they come."""

    def __init__(self) -> None:
        self.verdicts: list[Verdict] = []
        self._news = asyncio.Event()

    def __call__(self, _: RoutedEngine, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        self._news.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.verdicts) < count:
                self._news.clear()
                await self._news.wait()


@contextlib.asynccontextmanager
async def fleet(
    count: int,
) -> AsyncIterator[tuple[RouterApp, list[SyntheticEngine], Found, Ask]]:
    """(router with its looks, engines, verdicts, a call that asks for an answer)."""
    app, found, stop = RouterApp(wait_s=5.0, admin_key=ADMIN_KEY), Found(), asyncio.Event()
    judge = Suspects(interval_s=INTERVAL_S, slow_share=0.2, slow_looks=SLOW_LOOKS, hung_s=REAL_HUNG_S)
    engines = [SyntheticEngine(f"e{i}", latency=Latency(0.002, 0.0, 0.0)) for i in range(count)]
    looks = asyncio.create_task(EngineLooks(app, app.loads, judge, found).run(stop))
    try:
        for engine in engines:
            await engine.start()
            app.add(engine.name, engine.url, version=0)
        async with served(app) as url, aiohttp.ClientSession() as session:

            async def ask() -> Any:
                body = {"input_ids": [5], "sampling_params": {"max_new_tokens": 100, "ignore_eos": True}}
                async with session.post(url + "/generate", json=body) as answer:
                    return answer.status, await answer.json()

            yield app, engines, found, ask
    finally:
        stop.set()
        await looks
        for engine in engines:
            engine.die()


async def keep_asking(ask: Ask, answers: list[Any]) -> None:
    while True:
        answers.append(await ask())


@pytest.mark.parametrize("how", STATED_S)
async def test_a_misbehaving_engine_is_named_and_taken_out_in_time_and_comes_back(how: Misbehaviour) -> None:
    async with fleet(4) as (app, engines, found, ask):
        answers: list[Any] = []
        clients = [asyncio.create_task(keep_asking(ask, answers)) for _ in range(12)]
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(3 * INTERVAL_S)
            assert found.verdicts == []
            began = loop.time()
            await engines[1].misbehave(how)
            await found.until(1)
            [verdict] = found.verdicts
            assert (verdict.engine, verdict.kind) == ("e1", KINDS[how])
            assert loop.time() - began < 3 * STATED_S[how] + 1.0  # slow cores, shared with others
            assert app.engines["e1"].state == "suspected" and KINDS[how] in app.engines["e1"].trouble
            assert verdict.why in app.engines["e1"].trouble
            before = len(engines[1].answered)
            app.add("e1", engines[1].url, version=0)  # news of it: it stays out
            await asyncio.sleep(3 * INTERVAL_S)
            assert app.engines["e1"].state == "suspected"
            await engines[1].misbehave(None)
            await found.until(2)
            assert found.verdicts[1].engine == "e1" and found.verdicts[1].kind is None
            assert app.engines["e1"].state == "up"
            while len(engines[1].answered) < before + 20:  # it is given work again
                assert all(client.done() is False for client in clients)
                await asyncio.sleep(INTERVAL_S)
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
        assert len(found.verdicts) == 2
        assert {status for status, _ in answers} == {200}
        told = {span["version"] for _, body in answers for span in body["meta_info"]["weight_versions"]}
        assert told <= ({"0", LIE} if how == "lying" else {"0"})


async def test_garbage_is_not_passed_on_while_another_engine_answers_and_is_an_error_where_none_does() -> None:
    async with fleet(1) as (app, engines, _, ask):
        await engines[0].misbehave("no_json")
        app.wait_s = 0.2
        status, body = await ask()
        assert status == 503 and "garbage" in body["error"]["message"]


async def test_a_pause_of_all_engines_through_the_router_makes_nobody_hung() -> None:
    async with fleet(2) as (app, _, found, ask):
        tasks = [asyncio.create_task(ask()) for _ in range(3)]
        async with (
            aiohttp.ClientSession(headers={"authorization": f"Bearer {ADMIN_KEY}"}) as session,
            served(app) as router,
        ):
            await session.post(router + "/pause_generation", json={"mode": "in_place"})
            assert app.paused
            await asyncio.sleep(REAL_HUNG_S + 5 * INTERVAL_S)
            await session.post(router + "/continue_generation", json={})
        assert not app.paused and found.verdicts == []
        assert {status for status, _ in await asyncio.gather(*tasks)} == {200}


@pytest.mark.parametrize("path", ["/%61bort_request", "/abort_request", "/%66lush_cache"])
async def test_a_pause_of_all_engines_is_forgotten_by_nothing_but_the_request_to_go_on(path: str) -> None:
    async with (
        fleet(2) as (app, _, _, _),
        aiohttp.ClientSession(headers={"authorization": f"Bearer {ADMIN_KEY}"}) as session,
        served(app) as router,
    ):
        await session.post(URL(router + "/%70ause_generation", encoded=True), json={"mode": "in_place"})
        assert app.paused
        await session.post(URL(router + path, encoded=True), json={"rid": "none"})
        await session.get(router + "/continue_generation")  # which no engine takes
        assert app.paused
        await session.post(router + "/continue_generation", json={})
        assert not app.paused


async def test_what_an_engine_is_taken_out_with_is_not_sent_to_it_again() -> None:
    """Also over a connection that had been used before, which looks as if the engine had closed it while it lay idle."""
    async with fleet(2) as (app, engines, _, ask):
        await asyncio.gather(*(ask() for _ in range(4)))
        await engines[1].misbehave("stuck")
        tasks = [asyncio.create_task(ask()) for _ in range(4)]
        for _ in range(1000):
            if engines[1].batch.rows.count + len(engines[1].batch.waiting) == 2:
                break
            await asyncio.sleep(0.01)
        app.suspect("e1", "so says the test")
        async with asyncio.timeout(DEADLINE_S):
            assert {status for status, _ in await asyncio.gather(*tasks)} == {200}
        assert engines[1].batch.idle
