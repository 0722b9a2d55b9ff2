"""An engine that gives nothing for what it has is found before a diagnosis needs it, and one that works is not blamed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fake_engines import FakeEngine, Receive, Send, fleet, respond

from miles_async.router.observe.quiet import ASK_AFTER_S, QUIET_S, QuietEngines

LOOK_S = 1.0


class Generating(FakeEngine):
    """Holds its request until ``gate`` is set; says that it has sampled ``rate`` tokens more each time it is asked."""

    def __init__(self, rate: int | None) -> None:
        super().__init__("a", self.work)
        self.rate, self.tokens, self.asked, self.gate = rate, 0, 0, asyncio.Event()

    async def work(self, _: FakeEngine, scope: Any, body: bytes, receive: Receive, send: Send) -> None:
        if scope["path"] == "/generate":
            await self.gate.wait()
            return await respond(send, 200, b"{}")
        self.asked += 1
        self.tokens += self.rate or 0
        loads = [{"num_generated_tokens": self.tokens}] if self.rate is not None else []
        await respond(send, 200, json.dumps({"loads": loads}).encode())


@pytest.mark.parametrize(("rate", "quiet"), [(0, True), (None, True), (3, False)])
async def test_only_an_engine_whose_tokens_stand_still_between_two_looks_is_quiet(
    rate: int | None, quiet: bool
) -> None:
    now, engine = 100.0, Generating(rate)
    async with fleet(engine, clock=lambda: now) as (app, url, _, session):
        quiets = QuietEngines(app, app.loads)
        asking = asyncio.create_task(session.post(url + "/generate", data=b"{}"))
        async with asyncio.timeout(10):
            await engine.arrived.acquire()
        found: list[list[float]] = []
        for _ in range(6):
            now += LOOK_S
            found.append([seconds for _, seconds in await quiets.look()])
        assert found == ([[], [], [3.0], [4.0], [5.0], [6.0]] if quiet else [[]] * 6)
        now += QUIET_S
        engine.gate.set()
        await asking
        assert await quiets.look() == []  # it has nothing to answer any more


async def test_an_engine_is_not_quiet_at_the_first_look_that_asks_it_nor_asked_while_it_gives_answers() -> None:
    now, engine = 100.0, Generating(rate=5)
    async with fleet(engine, clock=lambda: now) as (app, url, _, session):
        quiets = QuietEngines(app, app.loads)
        asking = asyncio.create_task(session.post(url + "/generate", data=b"{}"))
        async with asyncio.timeout(10):
            await engine.arrived.acquire()
        now += ASK_AFTER_S
        assert await quiets.look() == [] and engine.asked == 0
        now += 10 * QUIET_S  # the router's loop was held up
        assert await quiets.look() == [] and engine.asked == 1
        now += LOOK_S
        assert await quiets.look() == [] and engine.asked == 2
        engine.gate.set()
        await asking
