"""Engines join, drain, are removed, fail and are updated while requests come: none is lost, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import aiohttp
import pytest
from fake_engines import FakeEngine, Receive, Send, respond, served

from miles_async.router.app import RouterApp
from miles_async.router.policies.choice import POLICIES, make_policy

ENGINES, REQUESTS, AT_ONCE = 5, 300, 24


class Shaky(FakeEngine):
    """Takes a moment for each answer, and tears or refuses some."""

    def __init__(self, name: str, rng: random.Random) -> None:
        super().__init__(name, self.answer)
        self.rng = rng

    async def answer(self, _: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        await asyncio.sleep(self.rng.uniform(0, 0.02))
        draw = self.rng.random()
        if draw < 0.03:
            return await respond(send, 503, b"not now")
        if draw < 0.06:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"99")]})
            await send({"type": "http.response.body", "body": b"torn", "more_body": True})
            raise RuntimeError("a test")
        await respond(send, 200, body)


def disturb(app: RouterApp, urls: dict[str, str], rng: random.Random, version: int) -> None:
    """One thing that happens to one engine; the first two are left alone, so that there always is one to go to."""
    name = rng.choice(sorted(urls)[2:])
    worker = app.engines.get(name)
    match rng.choice(("drain", "remove", "dead", "update", "trip")) if worker is not None else "join":
        case "drain":
            app.drain(name)
        case "remove":
            app.remove(name)
        case "dead" if worker is not None:
            app.mark_dead(worker, "a test")
            app.revive(worker)
        case "update":
            app.set_updating(name, not app.engines[name].updating)
        case "trip" if worker is not None:
            for _ in range(5):
                app.failed(worker, False, "a test")
        case _:
            app.add(name, urls[name], version, incarnation=version)


@pytest.mark.parametrize("policy", sorted(POLICIES))
async def test_every_request_is_answered_once_whatever_happens_to_the_engines(policy: str) -> None:
    rng, app = random.Random(7), RouterApp(make_policy(policy), max_retries=50, breaker_open_s=0.02)
    engines = [Shaky(f"e{i}", rng) for i in range(ENGINES)]
    async with contextlib.AsyncExitStack() as stack:
        urls = {engine.name: await stack.enter_async_context(served(engine)) for engine in engines}
        url = await stack.enter_async_context(served(app))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        for name, engine_url in urls.items():
            app.add(name, engine_url, 0)
        answered, numbers = [], iter(range(REQUESTS))

        async def client() -> None:
            for number in numbers:
                headers = {"x-routing-key": str(number % 7)}
                async with session.post(url + "/generate", data=b"%d" % number, headers=headers) as answer:
                    assert (answer.status, await answer.read()) == (200, b"%d" % number)
                answered.append(number)
                disturb(app, urls, rng, number)

        async with asyncio.timeout(60):
            await asyncio.gather(*(client() for _ in range(AT_ONCE)))
            assert sorted(answered) == list(range(REQUESTS))
            assert app.failovers > 0
            while app.concurrency:
                (await session.get(url + "/workers")).close()
        assert all(worker.inflight == 0 for worker in app.engines.values())
        assert all(load.inflight == 0 for load in app.policy.loads.values())  # type: ignore[attr-defined]
        assert not any(worker.draining for worker in app.engines.values())
